"""Captured operations: which operation of the program consumes which latent site, with its input and its output.

A `TorchFunctionMode` active while the program runs follows every latent value through views (a transpose, a slice, a
reshape) and sees it enter a product or a sum. ``z = a W' + b`` makes the Jacobian of a datum's outputs in W an outer
product of ``dz`` and ``a``, so that every curvature can be had from the pairs without a Jacobian. It needs no module
hooks: `PyroModule[nn.Linear]`, ``x @ w`` and `F.linear` look alike.

Axis letters: n data, t positions that share a weight (sequence, space), i inputs, o outputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_VIEWS = {
    "t", "transpose", "permute", "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "__getitem__",
    "unbind", "split", "chunk", "select", "narrow", "movedim", "swapaxes", "swapdims", "contiguous", "view_as", "clone",
    "__get__", "detach",
}  # fmt: skip

_SUMS = {"add", "__add__", "__radd__"}


@dataclass(frozen=True, eq=False)
class Use:
    """One product of an activation with the entries of latent sites, ``z[n,t,o] = sum_i a[n,t,i] W[o,i]``.

    Attributes:
        index: the entries' coordinates in theta [out, in].
        inputs: a [n, t, in]; ones for a bias.
        output: the operation's result, as the program goes on with it.
        positions: brings a gradient of `output` into the form [n, t, out].
        bias: whether a is all ones.
        product: the product's output that a bias was added to.
    """

    index: Tensor
    inputs: Tensor
    output: Tensor
    positions: Callable[[Tensor], Tensor]
    bias: bool = False
    product: Tensor | None = None


@dataclass
class Captured:
    """What a run of the program under `Capture` showed.

    Attributes:
        uses: the products, in the order in which they ran.
        opaque: names of the sites that were also used in some other way.
    """

    uses: list[Use] = field(default_factory=list)
    opaque: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _View:
    """A tensor that holds entries of a latent site, and nothing else."""

    name: str
    index: Tensor


class Capture(TorchFunctionMode):
    """Follows latent values into the operations that consume them.

    Args:
        values: latent site to the very tensor that the program receives; it must require a gradient.
        index: latent site to the coordinates in theta of its entries, in the site's shape.
    """

    def __init__(self, values: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._captured = Captured()
        self._views = {id(value): _View(name, index[name]) for name, value in values.items()}
        self._readers: dict[int, int] = {}
        self._alive: list[Any] = list(values.values())  # so that no id is given out twice

    @property
    def captured(self) -> Captured:
        """What was seen, once the program has run.

        A bias that is added to a product, whose output nothing else reads, is that product's: they have one gradient.
        """
        uses = [
            replace(use, output=use.product)
            if self._readers.get(id(use.product)) == 1 and use.product is not None
            else use
            for use in self._captured.uses
        ]
        return replace(self._captured, uses=uses)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; record what it did to latent entries."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        views = [view for leaf in tree_leaves((args, kwargs)) if (view := self._view(leaf)) is not None]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for leaf in args if outputs else ():
            if id(leaf) in self._readers:
                self._readers[id(leaf)] += 1
        if not views or not any(output.requires_grad for output in outputs):
            return result
        kind = getattr(func, "__name__", "")
        if len(views) == 1 and kind in _VIEWS and self._follow(func, args, kwargs, outputs, views[0]):
            return result
        uses = _HANDLERS[kind](self._view, args, kwargs, result) if kind in _HANDLERS else None
        if uses is None:
            self._captured.opaque |= {view.name for view in views}
            return result
        if kind in _SUMS:
            products = [leaf for leaf in args if id(leaf) in self._readers]
            uses = [replace(use, product=products[0]) for use in uses] if products else uses
        self._readers[id(result)] = 0
        self._captured.uses += uses
        self._alive.append(result)
        return result

    def _view(self, leaf: Any) -> _View | None:
        return self._views.get(id(leaf)) if isinstance(leaf, Tensor) else None

    def _follow(self, func: Callable[..., Any], args: Any, kwargs: Any, outputs: list[Tensor], view: _View) -> bool:
        """Apply a view to the coordinates as the program applied it to the values."""
        swap = lambda leaf: view.index if self._view(leaf) is view else leaf  # noqa: E731
        with torch._C.DisableTorchFunction():
            moved = func(*tree_map(swap, args), **tree_map(swap, kwargs))
        indices = [leaf for leaf in tree_leaves(moved) if isinstance(leaf, Tensor)]
        if [i.shape for i in indices] != [o.shape for o in outputs]:
            return False
        for output, index in zip(outputs, indices, strict=True):
            self._views[id(output)] = _View(view.name, index)
            self._alive.append(output)
        return True


_Find = Callable[[Any], _View | None]


def _product(a: Tensor, index: Tensor, output: Tensor) -> list[Use] | None:
    """``output[..., o] = sum_i a[..., i] W[o, i]``, the data along the first axis."""
    if a.dim() < 2:
        return None
    shape = (a.shape[0], -1, index.shape[0])
    inputs = a.detach().reshape(a.shape[0], -1, a.shape[-1])
    return [Use(index, inputs, output, lambda g: g.reshape(shape))]


def _bias(index: Tensor, output: Tensor) -> list[Use] | None:
    """``output[..., o] + b[o]``; a single entry is shared by all outputs."""
    if output.dim() < 1 or index.numel() not in (1, output.shape[-1]) or index.numel() != index.shape[-1:].numel():
        return None
    index = index.reshape(-1)
    n = output.shape[0]
    if output.dim() == 1:  # one output a datum
        if index.numel() != 1:
            return None
        return [Use(index[:, None], output.new_ones(n, 1, 1).detach(), output, lambda g: g.reshape(n, 1, 1), bias=True)]
    out = output.shape[-1]
    if index.numel() == out:
        positions = output[0].numel() // out
        ones = output.new_ones(n, positions, 1).detach()
        return [Use(index[:, None], ones, output, lambda g: g.reshape(n, -1, out), bias=True)]
    positions = output[0].numel()
    return [
        Use(index[:, None], output.new_ones(n, positions, 1).detach(), output, lambda g: g.reshape(n, -1, 1), bias=True)
    ]


def _linear(find: _Find, args: Any, kwargs: Any, output: Tensor) -> list[Use] | None:
    a = args[0] if args else kwargs["input"]
    weight = args[1] if len(args) > 1 else kwargs["weight"]
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    if find(a) is not None:
        return None
    uses: list[Use] = []
    for found in (
        _product(a, view.index, output) if (view := find(weight)) is not None else [],
        _bias(view.index, output) if (view := find(bias)) is not None else [],
    ):
        if found is None:
            return None
        uses += found
    return uses


def _matmul(find: _Find, args: Any, kwargs: Any, output: Tensor) -> list[Use] | None:
    a, weight = args[0], args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("mat2"))
    view = find(weight)
    if view is None or find(a) is not None or view.index.dim() > 2:
        return None
    return _product(a, view.index.T if view.index.dim() == 2 else view.index[None], output)


def _addmm(find: _Find, args: Any, kwargs: Any, output: Tensor) -> list[Use] | None:
    if kwargs or len(args) != 3:
        return None
    product, bias = _matmul(find, args[1:], {}, output) if find(args[2]) else [], find(args[0])
    added = _bias(bias.index, output) if bias is not None else []
    return None if product is None or added is None else product + added


def _add(find: _Find, args: Any, kwargs: Any, output: Tensor) -> list[Use] | None:
    if kwargs or len(args) != 2:
        return None
    left, right = find(args[0]), find(args[1])
    if (left is None) == (right is None):
        return None
    view, other = (left, args[1]) if left is not None else (right, args[0])
    if view is None or not isinstance(other, Tensor) or other.shape != output.shape:
        return None
    return _bias(view.index, output)


def _convolution(find: _Find, args: Any, kwargs: Any, output: Tensor) -> list[Use] | None:
    """A convolution is a product with patches: t runs over positions, i over input channels and kernel."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | kwargs
    a, view, bias = given["input"], find(given["weight"]), find(given.get("bias"))
    if find(a) is not None or a.dim() != 4 or isinstance(given.get("padding", 0), str):
        return None
    uses: list[Use] = []
    n, out = output.shape[:2]
    positions = lambda g: g.reshape(n, out, -1).mT  # noqa: E731
    if view is not None:
        if given.get("groups", 1) != 1:
            return None
        options = {key: given.get(key, default) for key, default in (("stride", 1), ("padding", 0), ("dilation", 1))}
        patches = functional.unfold(a.detach(), given["weight"].shape[2:], **options)
        uses.append(Use(view.index.reshape(out, -1), patches.mT, output, positions))
    if bias is not None:
        ones = output.new_ones(n, output[0, 0].numel(), 1).detach()
        uses.append(Use(bias.index.reshape(-1, 1), ones, output, positions, bias=True))
    return uses


_HANDLERS: dict[str, Callable[[_Find, Any, Any, Tensor], list[Use] | None]] = {
    "linear": _linear,
    "matmul": _matmul,
    "__matmul__": _matmul,
    "mm": _matmul,
    "mv": _matmul,
    "addmm": _addmm,
    "conv2d": _convolution,
    "add": _add,
    "__add__": _add,
    "__radd__": _add,
}
