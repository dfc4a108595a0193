"""Captured operations: which operation of the program consumes which latent site, with its input and its output.

A `TorchFunctionMode` active while the program runs follows every latent value through views (a transpose, a slice, a
reshape) and sees it enter a product or a sum. ``z = a W' + b`` makes the Jacobian of a datum's outputs in W an outer
product of ``dz`` and ``a``, so that every curvature can be had from the pairs without a Jacobian. It needs no module
hooks: `PyroModule[nn.Linear]`, ``x @ w`` and `F.linear` look alike.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_laplace._compat.torch import leaves_of, map_tree, without_override, without_torch_function
from pyro_laplace.capture.contraction import Contraction, Lookup, Output, Scale, Use
from pyro_laplace.capture.operations import contractions, is_composite, rows_of_table

VIEWS = {
    "t", "transpose", "permute", "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "__getitem__",
    "unbind", "split", "chunk", "select", "narrow", "movedim", "swapaxes", "swapdims", "contiguous", "view_as", "clone",
    "__get__", "detach", "index_select", "expand", "expand_as", "broadcast_to", "flip", "roll", "reshape_as",
    "moveaxis", "tensor_split", "unsafe_chunk", "unsafe_split", "ravel", "adjoint", "embedding",
}  # fmt: skip


_CHOOSING = {"__getitem__", "index_select", "embedding"}


@dataclass
class Captured:
    """What a run of the program under `Capture` showed.

    Attributes:
        uses: the products, in the order in which they ran.
        scales: the latent entries that each meet an activation of their own.
        lookups: the latent entries that the data choose one by one.
        opaque: names of the sites that were also used in some other way.
    """

    uses: list[Use] = field(default_factory=list)
    scales: list[Scale] = field(default_factory=list)
    lookups: list[Lookup] = field(default_factory=list)
    opaque: set[str] = field(default_factory=set)

    def among(self, chosen: Callable[[Tensor], bool]) -> "Captured":
        """What belongs to some sites, by the coordinates in theta that are these sites'."""
        return Captured(
            [use for use in self.uses if chosen(use.index)],
            [scale for scale in self.scales if chosen(scale.index)],
            [lookup for lookup in self.lookups if chosen(lookup.index)],
            self.opaque,
        )

    @property
    def outputs(self) -> list[Output]:
        """The results of the operations."""
        return [each.output for each in (*self.uses, *self.scales, *self.lookups)]


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Rows of a table, chosen by integers."""

    index: Tensor
    words: Tensor
    values: Tensor
    output: Output

    def lookup(self, count: int) -> Lookup | None:
        """The entries one by one, for a table that is too long for one-hot rows."""
        return Lookup.of(self.index[self.words], self.words, self.output, count)


@dataclass(frozen=True, eq=False)
class _View:
    """A tensor that holds entries of a latent site, and nothing else.

    `chosen` is how rows were chosen from a table, if they were: an embedding, where the view itself leads nowhere.
    """

    name: str
    index: Tensor
    chosen: _Chosen | None = None


@dataclass(frozen=True, eq=False)
class _Seen:
    """A contraction, the operation's result, the product it was added to, and whose entries took part."""

    contraction: Contraction
    output: Output
    product: Output | None
    views: list[_View]


class Capture(TorchFunctionMode):
    """Follows latent values into the operations that consume them.

    Args:
        values: latent site to the very tensor that the program receives; it must require a gradient.
        index: latent site to the coordinates in theta of its entries, in the site's shape.
    """

    def __init__(self, values: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._views: dict[int, _View] = {}
        self._seen: list[_Seen] = []
        self._unknown: list[_View] = []
        self._outputs: dict[int, Output] = {}
        self._alive: list[Any] = []  # so that no id is given out twice
        for name, value in values.items():
            self._views[id(value)] = _View(name, index[name])
            self._alive.append(value)

    def outputs(self) -> list[Output]:
        """The results of all operations that consumed latent entries."""
        found = [each.output for each in self._seen]
        found += [view.chosen.output for view in self._views.values() if view.chosen is not None]
        found += [view.chosen.output for view in self._unknown if view.chosen is not None]
        return list({id(output): output for output in found}.values())

    def captured(self, count: int, first: Callable[[], Tensor], among: set[int] | None = None) -> Captured:
        """What was seen, once the program has run.

        A bias that is added to a product, whose output nothing else reads, is that product's: they have one gradient.

        Args:
            count: the number of data; an operation's axis of that size, or a part of an axis, is taken for theirs.
            first: gives a scalar function of the first datum's outputs, which tells the data's axis from others of that
                size.
            among: the outputs, by id, that count; all of them if it is not given.

        Returns:
            the uses of latent entries, a datum's row at a time.
        """
        counted = [each for each in self._seen if among is None or id(each.output) in among]
        found, failed = _along_data(counted, count, first)
        unknown = [
            view
            for view in (*self._unknown, *failed)
            if among is None or view.chosen is None or id(view.chosen.output) in among
        ]
        chosen = {id(view.chosen): view.chosen for view in unknown if view.chosen is not None}
        tables = {key: rows_of_table(each.index, each.words, each.values) for key, each in chosen.items()}
        seen = [
            _Seen(table, chosen[key].output, None, [view for view in unknown if id(view.chosen) == key])
            for key, table in tables.items()
            if table is not None
        ]
        embedded, failed = _along_data(seen, count, first)
        found += embedded
        long = {key: each for key, each in chosen.items() if tables[key] is None}
        lookups = {key: each.lookup(count) for key, each in long.items()}
        opaque = [
            *failed,
            *(view for view in unknown if id(view.chosen) not in chosen or lookups.get(id(view.chosen), 0) is None),
        ]
        uses, scales = [use for use in found if isinstance(use, Use)], [use for use in found if isinstance(use, Scale)]
        return Captured(
            uses, scales, [each for each in lookups.values() if each is not None], {view.name for view in opaque}
        )

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; record what it did to latent entries."""
        kwargs = kwargs or {}
        given = _tensors(args) + _tensors(kwargs.values())
        if not any(id(leaf) in self._views or id(leaf) in self._outputs for leaf in given):
            return func(*args, **kwargs)
        kind = getattr(func, "__name__", "")
        views = [view for leaf in given if (view := self._views.get(id(leaf))) is not None]
        if views and is_composite(func):
            with self:
                return without_override(func)(*args, **kwargs)
        result = func(*args, **kwargs)
        outputs = _tensors((result,))
        self._count_readers(given, outputs)
        if not views or not any(output.requires_grad for output in outputs):
            self._unknown += views if kind == "__setitem__" else []
        elif kind not in VIEWS or len(views) > 1 or not self._follow(func, args, kwargs, outputs, views[0]):
            self._record(kind, args, kwargs, result, views)
        return result

    def _count_readers(self, given: list[Tensor], outputs: list[Tensor]) -> None:
        """Every operation reads what it is given, but for one that returns it as it is."""
        for leaf in given if outputs else ():
            output = self._outputs.get(id(leaf))
            if output is not None and not (outputs[0] is leaf and leaf.grad_fn is output.edge.node):
                output.readers += 1

    def _record(self, kind: str, args: Any, kwargs: Any, result: Any, views: list[_View]) -> None:
        whole = [view for view in views if view.chosen is None]
        found = self._contractions(kind, args, kwargs, result, views)
        if found is None and len(whole) < len(views):  # rows that data chose of a table are an activation to others
            self._unknown += [view for view in views if view.chosen is not None]
            views = whole
            found = self._contractions(kind, args, kwargs, result, views) if views else []
        if found is None:
            self._unknown += views
            found = []
        output = Output(result) if found else None
        if output is not None and found:
            products = [self._outputs.get(id(each.product)) for each in found]
            self._seen += [_Seen(each, output, of, views) for each, of in zip(found, products, strict=True)]
        for leaf in leaves_of(result):  # which an in-place operation may have had before
            self._views.pop(id(leaf), None)
            self._outputs.pop(id(leaf), None)
        if output is not None:
            self._outputs[id(result)] = output
            self._alive.append(result)

    def _contractions(
        self, kind: str, args: Any, kwargs: Any, result: Any, views: list[_View]
    ) -> list[Contraction] | None:
        """What a call does to some latent entries; None if it is not known, or not of all of them."""
        ids, accounted = {id(view) for view in views}, set()

        def find(leaf: Any) -> Tensor | None:
            view = self._views.get(id(leaf)) if isinstance(leaf, Tensor) else None
            if view is None or id(view) not in ids:
                return None
            accounted.add(id(view))
            return view.index

        found = contractions(kind, find, args, kwargs, result) if isinstance(result, Tensor) else None
        return found if found is not None and ids <= accounted else None

    def _follow(self, func: Callable[..., Any], args: Any, kwargs: Any, outputs: list[Tensor], view: _View) -> bool:
        """Apply a view to the coordinates as the program applied it to the values."""

        def swap(leaf: Any) -> Any:
            return view.index if self._is(leaf, view) else leaf

        with without_torch_function():
            moved = func(*map_tree(swap, args), **map_tree(swap, kwargs))
        indices = [leaf for leaf in leaves_of(moved) if isinstance(leaf, Tensor)]
        if [i.shape for i in indices] != [o.shape for o in outputs]:
            return False
        chosen = view.chosen
        if (words := _words(func, args, kwargs)) is not None:
            chosen = _Chosen(view.index, words, outputs[0].detach(), Output(outputs[0]))
        for output, index in zip(outputs, indices, strict=True):
            self._views[id(output)] = _View(view.name, index, chosen)
            self._alive.append(output)
        return True

    def _is(self, leaf: Any, view: _View) -> bool:
        return isinstance(leaf, Tensor) and self._views.get(id(leaf)) is view


def _tensors(arguments: Iterable[Any]) -> list[Tensor]:
    """The tensors among arguments, lists and tuples of them included (`tree_leaves` takes ten times as long)."""
    found = []
    for each in arguments:
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, list | tuple):
            found += _tensors(each)
    return found


def _words(func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor | None:
    """The integers by which ``table[words]``, ``table.index_select(0, words)`` or an embedding chooses rows."""
    kind, chosen = func.__name__, args[-1] if not kwargs and len(args) > 1 else None
    if kind == "embedding":
        chosen = args[1]
    if (kind == "index_select" and args[1] != 0) or not isinstance(chosen, Tensor) or chosen.dim() == 0:
        return None
    return chosen if chosen.dtype in (torch.int64, torch.int32) and kind in _CHOOSING else None


def _along_data(seen: list[_Seen], count: int, first: Callable[[], Tensor]) -> tuple[list[Use | Scale], list[_View]]:
    """The uses of contractions whose data lie along one axis, and the views of the others."""
    layouts = [each.contraction.layouts(count) for each in seen]
    unclear = {id(each.output): each.output for each, known in zip(seen, layouts, strict=True) if len(known) > 1}
    gradients: dict[int, Tensor | None] = {}
    if unclear and (scalar := first()).requires_grad:
        edges = [output.edge for output in unclear.values()]
        grads = torch.autograd.grad(scalar, edges, retain_graph=True, allow_unused=True)
        gradients = dict(zip(unclear, grads, strict=True))
    found: list[Use | Scale] = []
    failed: list[_View] = []
    for each, known in zip(seen, layouts, strict=True):
        gradient = gradients.get(id(each.output))
        layout = next(((part, data) for part, data in known if part.belongs(data, gradient)), None)
        if layout is None:
            failed += each.views
            continue
        output = each.product if each.product is not None and each.product.readers == 1 else each.output
        found += layout[0].uses(layout[1], output)
    return found, failed
