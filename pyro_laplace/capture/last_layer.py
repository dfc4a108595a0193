"""Which operation of the program consumes which latent site: the last layer, read off one run.

A `TorchFunctionMode` follows every tensor from the latent sites to the parameters of the observed distributions. A
tensor made of latent values and constants alone is still a parameter (a transposed or rescaled weight). Where such a
parameter meets an activation in a product, an operation with parameters is born; where it is added to one, it is that
operation's bias.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import leaves_of
from pyro_laplace.data import Data
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.unwrap import tensors_of

_PRODUCTS = {
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "baddbmm", "einsum",
    "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "embedding",
    "tensordot", "dot", "inner", "multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu",
}  # fmt: skip
_SUMS = {"add", "__add__", "__radd__", "__iadd__", "add_", "sub", "__sub__", "__rsub__"}


@dataclass(eq=False)
class Operation:
    """A product of an activation with latent parameters.

    Attributes:
        kind: the function's name.
        latents: the sites it consumes, its bias included.
        upstream: the operations that its input went through.
    """

    kind: str
    latents: set[str]
    upstream: set["Operation"] = field(default_factory=set)


@dataclass
class _Node:
    """What is known of a tensor: the sites that it was made of, and the operations that it went through."""

    latents: set[str]
    operations: set[Operation]


class GraphMode(TorchFunctionMode):
    """Follows tensors from latent values on.

    Args:
        values: latent site to the very tensor that the program receives.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._nodes: dict[int, _Node] = {}
        self._alive: list[Any] = []  # so that no id is given out twice
        for name, value in values.items():
            self._nodes[id(value)] = _Node({name}, set())
            self._alive.append(value)

    def operations(self, tensor: Tensor) -> set[Operation]:
        """The operations that a tensor went through."""
        node = self._nodes.get(id(tensor))
        return node.operations if node else set()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and note what it made of what."""
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in leaves_of((args, kwargs or {})) if isinstance(leaf, Tensor)]
        nodes = [self._nodes[id(leaf)] for leaf in inputs if id(leaf) in self._nodes]
        if nodes:
            plain = [leaf for leaf in inputs if id(leaf) not in self._nodes]
            node = self._combine(getattr(func, "__name__", ""), nodes, bool(plain))
            for leaf in leaves_of(result):
                if isinstance(leaf, Tensor):
                    self._nodes[id(leaf)] = node
                    self._alive.append(leaf)
        return result

    def _combine(self, kind: str, nodes: list[_Node], with_data: bool) -> _Node:
        parameters = [node for node in nodes if not node.operations]
        activations = [node for node in nodes if node.operations]
        latents: set[str] = set().union(*(node.latents for node in parameters))
        operations: set[Operation] = set().union(*(node.operations for node in activations))
        if kind in _PRODUCTS and latents and (activations or with_data):
            return _Node(set(), operations | {Operation(kind, latents, set(operations))})
        if kind in _SUMS and latents and activations:
            for operation in last(operations):
                operation.latents |= latents
            return _Node(set(), operations)
        return _Node(set() if activations else latents, operations)


def last(operations: set[Operation]) -> set[Operation]:
    """The operations that no other one of them comes after."""
    passed: set[Operation] = set().union(*(operation.upstream for operation in operations))
    return operations - passed


def last_layer(program: Program, data: Data) -> frozenset[str]:
    """The sites of a traced program's last layer, by a run on its first batch; what is enumerated is summed out in it.

    Args:
        program: the traced program.
        data: the data.

    Returns:
        the latent sites of the last operations with parameters before the observed sites; none where no parameter meets
        an activation in a product.
    """
    values = {name: value.clone() for name, value in program.unpack(program.start).items()}
    with undisturbed(), torch.no_grad(), GraphMode(values) as graph:
        run = program.run_at(values, Chunk(data.first()))
    operations: set[Operation] = set()
    for site in run.observed.values():
        operations |= set().union(*(graph.operations(param) for param in tensors_of(site.fn)))
    return frozenset().union(*(operation.latents for operation in last(operations)))
