"""The last layer of a program: the latent sites that the last operation with parameters takes, read off one run.

A `TorchFunctionMode` follows every tensor from the latent sites and from the data to the parameters of the observed
distributions. What is made of latent values and constants alone is still a parameter (a transposed or rescaled weight);
what is made of data is an activation. Where a parameter meets an activation in a product, a layer is born; where it is
added to one, it is that layer's bias. Which functions are products and sums says the table of `operations`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import leaves_of, without_override
from pyro_laplace.capture.operations import CHOICES, OPERATIONS, STRAIGHT, is_composite
from pyro_laplace.capture.watch import VIEWS
from pyro_laplace.data import Data
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Run
from pyro_laplace.unwrap import tensors_of


@dataclass(eq=False)
class _Layer:
    """An operation in which an activation met latent parameters.

    Attributes:
        latents: the sites it takes, its bias included.
        upstream: the layers that its input went through.
        late: the sites that were added after something nonlinear, as a program's own log density has them.
    """

    latents: set[str]
    upstream: set["_Layer"] = field(default_factory=set)
    late: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Node:
    """What is known of a tensor.

    Attributes:
        latents: the sites that a parameter is made of; none of an activation.
        active: whether it is an activation: made of data.
        layers: that it went through.
        straight: whether it is linear in what the last of them gave.
        single: whether it is one number.
    """

    latents: frozenset[str] = frozenset()
    active: bool = False
    layers: frozenset[_Layer] = frozenset()
    straight: bool = True
    single: bool = False


class _Graph(TorchFunctionMode):
    """Follows tensors on.

    Args:
        values: latent site to the very tensor that the program receives.
        data: the tensors that the program is called with; None takes every tensor that meets a latent in a product for
            data.
    """

    def __init__(self, values: Mapping[str, Tensor], data: list[Tensor] | None) -> None:
        super().__init__()
        self._nodes: dict[int, _Node] = {}
        self._alive: list[Any] = []  # so that no id is given out twice
        self._any_data = data is None
        for tensor in data or ():
            self._note(tensor, _Node(active=True))
        for name, value in values.items():
            self._note(value, _Node(frozenset({name})))

    def layers(self, tensor: Tensor) -> frozenset[_Layer]:
        """The layers that a tensor went through."""
        node = self._nodes.get(id(tensor))
        return node.layers if node else frozenset()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and note what it made of what."""
        kind, given = getattr(func, "__name__", ""), leaves_of((args, kwargs or {}))
        inputs = [leaf for leaf in given if isinstance(leaf, Tensor)]
        nodes = [self._nodes[id(leaf)] for leaf in inputs if id(leaf) in self._nodes]
        plain = len(nodes) < len(inputs)
        if any(node.latents for node in nodes) and is_composite(func):
            with self:
                return without_override(func)(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if nodes:
            node = self._combined(kind, nodes, plain)
            for leaf in [args[0]] if kind == "__setitem__" else leaves_of(result):
                if isinstance(leaf, Tensor):
                    self._note(leaf, node)
        return result

    def _note(self, tensor: Tensor, node: _Node) -> None:
        single = tensor.numel() == 1
        self._nodes[id(tensor)] = node if node.single == single else _Node(**{**vars(node), "single": single})
        self._alive.append(tensor)

    def _combined(self, kind: str, nodes: list[_Node], plain: bool) -> _Node:
        """What a function makes of what it is given."""
        parameters = [node for node in nodes if not node.active]
        activations = [node for node in nodes if node.active]
        latents = frozenset().union(*(node.latents for node in parameters))
        layers = frozenset().union(*(node.layers for node in activations))
        straight = all(node.straight for node in activations)
        role = "product" if kind in CHOICES else OPERATIONS[kind].role if kind in OPERATIONS else None
        met = bool(activations) or (self._any_data and plain and role == "product" and kind not in CHOICES)
        if not met:
            return _Node(latents)
        if latents and role == "sum" and layers:
            for layer in last(layers):
                (layer.latents if straight else layer.late).update(latents)
        elif latents and (role in ("product", "sum") or (role == "scale" and _makes_layer(parameters, layers))):
            return _Node(active=True, layers=layers | {_Layer(set(latents), set(layers))})
        elif latents and role is None and kind in _JOINS:
            layers |= {_Layer(set(latents))}
        linear = role == "sum" or kind in STRAIGHT or kind in VIEWS or kind == "__setitem__"
        return _Node(active=True, layers=layers, straight=straight and linear)


_JOINS = frozenset(
    {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack", "__setitem__"}
)
"""What puts tensors side by side: a parameter among them is a layer's whole output."""


def _makes_layer(parameters: list[_Node], layers: frozenset[_Layer]) -> bool:
    """Whether what multiplies an activation entry by entry is a layer: not a number that scales another's output."""
    return not layers or not all(node.single for node in parameters)


def last(layers: frozenset[_Layer]) -> set[_Layer]:
    """The layers that no other one of them comes after."""
    passed: set[_Layer] = set().union(*(layer.upstream for layer in layers))
    return set(layers) - passed


def last_layer(program: Program, data: Data) -> frozenset[str]:
    """The sites of a traced program's last layer, by a run on its first batch; what is enumerated is summed out in it.

    Args:
        program: the traced program.
        data: the data.

    Returns:
        the latent sites of the last operations with parameters before the observed sites; none where no parameter meets
        an activation in a product.
    """
    chunk = Chunk(data.first())
    given = [leaf for leaf in leaves_of((chunk.batch.args, dict(chunk.batch.kwargs))) if isinstance(leaf, Tensor)]
    for tensors in (given, None):  # a program may have its data from elsewhere
        values = {name: value.clone() for name, value in program.unpack(program.start).items()}
        with undisturbed(), torch.no_grad(), _Graph(values, tensors) as graph:
            run = program.run_at(values, chunk)
        found = _sites_of(graph, run)
        if found:
            break
    return found


def _sites_of(graph: _Graph, run: Run) -> frozenset[str]:
    """The sites of the last layers before the terms of a log likelihood."""
    of_sites = [tensor for site in run.observed.values() for tensor in tensors_of(site.fn)]
    of_factors = [tensor for site in run.factors.values() if site.frames for tensor in tensors_of(site.fn)]
    layers = frozenset().union(*(graph.layers(tensor) for tensor in (*of_sites, *of_factors)))
    found = frozenset().union(*(layer.latents for layer in last(layers)))
    if not of_sites:
        return found
    own = frozenset().union(*(graph.layers(tensor) for tensor in of_sites))
    return found.union(*(layer.late for layer in last(layers) if layer in own))
