"""Logits that are a product with random sites, read off the autograd graph of a run.

Where ``logits = a W' + b`` and nothing else of the program depends on random sites, the graph that leads to the logits
is that one operation, and the activation a is what it saved for its backward pass. That the program has this form is
seen on each run anew, in a few microseconds, without watching its operations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.torch import saved

_VIEWS = {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"}
"""What keeps the entries of a contiguous tensor in their order."""

_LEAF = "torch::autograd::AccumulateGrad"


@dataclass(frozen=True, eq=False)
class GraphLayer:
    """Logits ``a W' + b``.

    Attributes:
        inputs: a [n, i].
        weight: the site of W.
        bias: the site of b; None without one, or where it is not random.
        transposed: whether the site holds W [o, i], not W' [i, o].
    """

    inputs: Tensor
    weight: str
    bias: str | None
    transposed: bool

    @property
    def layout(self) -> tuple[str, str | None, bool, int]:
        """What tells one layer of a program from another, whatever the inputs."""
        return self.weight, self.bias, self.transposed, self.inputs.shape[1]


def graph_layer(logits: Tensor, leaves: Mapping[str, Tensor]) -> GraphLayer | None:
    """The layer that logits are the output of.

    Args:
        logits: `[n, classes]`, before they are normalised.
        leaves: by site, flat coordinates [size] that the run's graph starts from.

    Returns:
        the layer; None if the logits are anything else, or what it multiplies depends on one of the leaves.
    """
    found = _as_matmul(logits.grad_fn) if logits.dim() == 2 and logits.grad_fn is not None else None
    if found is None:
        return None
    names = {id(leaf): name for name, leaf in leaves.items()}
    transposed = found.matrix.name() == "TBackward0"
    weight = _site(_before(found.matrix) if transposed else found.matrix, names)
    (n, classes), (rows, width) = logits.shape, found.inputs.shape
    if weight is None or rows != n or found.shape != (width, classes) or _reaches(found.activation, names):
        return None
    bias = _site(found.bias, names)
    if found.bias is not None and (bias is None or leaves[bias].numel() != classes or n == classes):
        return None  # with as many data as classes, the graph does not tell along which axis b lies
    return GraphLayer(found.inputs.detach(), weight, bias, transposed)


@dataclass(frozen=True, eq=False)
class _Matmul:
    """``a @ w + b`` as nodes of the graph, None for what needs no gradient, with the value of a and the shape of w."""

    activation: Any
    matrix: Any
    bias: Any
    inputs: Tensor
    shape: tuple[int, ...]


def _as_matmul(node: Any) -> _Matmul | None:
    """What ``a @ w + b``, ``a @ w`` and `addmm` have left in the graph; None of any other operation."""
    before = [each for each, _ in node.next_functions]
    if node.name() == "AddmmBackward0":
        bias, activation, matrix = before
        if matrix is None or saved(node, "alpha") != 1 or saved(node, "beta") != 1:
            return None
        return _Matmul(activation, matrix, bias, saved(node, "mat1"), tuple(saved(node, "mat2_sym_sizes")))
    bias = None
    if node.name() == "AddBackward0" and saved(node, "alpha") == 1:
        first = 0 if before[0] is not None and before[0].name() == "MmBackward0" else 1
        node, bias = before[first], before[1 - first]
    if node is None or node.name() != "MmBackward0" or node.next_functions[1][0] is None:
        return None
    (activation, _), (matrix, _) = node.next_functions
    return _Matmul(activation, matrix, bias, saved(node, "self"), tuple(saved(node, "mat2_sym_sizes")))


def _site(node: Any, names: Mapping[int, str]) -> str | None:
    """The site whose leaf a node has the entries of, in their order."""
    while node is not None and node.name() in _VIEWS:
        node = _before(node)
    return names.get(id(node.variable)) if node is not None and node.name() == _LEAF else None


def _before(node: Any) -> Any:
    return node.next_functions[0][0]


def _reaches(node: Any, names: Mapping[int, str]) -> bool:
    """Whether a node depends on a leaf."""
    seen, pending = set(), [node]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        if node.name() == _LEAF and id(node.variable) in names:
            return True
        seen.add(node)
        pending += [each for each, _ in node.next_functions]
    return False


def layer_index(layer: GraphLayer, classes: int, places: Mapping[str, slice]) -> Tensor:
    """Coordinates in theta of the rows ``(W, b)`` [o, i], the bias last.

    Args:
        layer: the layer.
        classes: o.
        places: site to its coordinates in theta.

    Returns:
        the index.
    """
    weight = torch.arange(places[layer.weight].start, places[layer.weight].stop)
    index = weight.reshape(classes, -1) if layer.transposed else weight.reshape(-1, classes).mT
    if layer.bias is None:
        return index
    place = places[layer.bias]
    return torch.cat([index, torch.arange(place.start, place.stop).unsqueeze(-1)], 1)
