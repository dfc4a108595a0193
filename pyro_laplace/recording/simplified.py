"""The same results by fewer operations: of those of a third derivative, a third do nothing or are done before."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.operations import BY_ONE, OF_LAYOUT, POWER, PRODUCT, SAME_ENTRIES, writes
from pyro_laplace._compat.torch import map_tree
from pyro_laplace.recording.recorder import Entry, Layout, Operations, Slot, needed
from pyro_laplace.settings import settings


def simplified(operations: Operations) -> Operations:
    """Do once what is done twice, not at all what changes nothing, and beforehand what needs no argument.

    No sum is reordered, and no result changes.

    Args:
        operations: of a function.

    Returns:
        fewer operations; the same ones if any of them writes in place.
    """
    if any(writes(step.operation) for step in operations.steps):
        return operations
    return _Simplifier(operations).run()


class _Simplifier:
    """One pass over the operations.

    Args:
        operations: these.
    """

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self.instead: dict[int, Any] = {}  # of a slot: another one, or a constant
        self.done: dict[Hashable, Entry] = {}
        self.constants: dict[Layout, list[Tensor]] = defaultdict(list)

    def run(self) -> Operations:
        """Go through the operations.

        Returns:
            those that are left.
        """
        steps = []
        for step in self.operations.steps:
            step = replace(step, args=self._now(step.args), kwargs=self._now(step.kwargs))
            found = self._constants(step) or self._unchanged(step) or self._done_before(step)
            if found:
                self.instead.update(zip(step.results, found, strict=True))
            else:
                steps.append(step)
        outputs = [self._now(each) for each in self.operations.outputs]
        return replace(self.operations, steps=needed(steps, outputs), outputs=outputs)

    def _now(self, tree: Any) -> Any:
        return map_tree(lambda leaf: self.instead.get(leaf.number, leaf) if isinstance(leaf, Slot) else leaf, tree)

    def _layout(self, leaf: Any) -> Layout | None:
        if isinstance(leaf, Slot):
            return self.operations.layouts[leaf.number]
        return Layout.of(leaf) if isinstance(leaf, Tensor) else None

    def _constants(self, step: Entry) -> Sequence[Tensor] | None:
        """The results, where they do not depend on the function's argument and are small enough to be kept."""
        layouts = [self.operations.layouts[number] for number in step.results]
        if not all(form is not None and math.prod(form.shape) <= settings.record_constant for form in layouts):
            return None
        slots, args = step.slots, step.args
        if slots and step.operation in OF_LAYOUT:
            source = self._layout(args[0])
            args = (None if source is None else source.empty(), *args[1:])
        elif slots and step.operation is POWER and args[1] == 0:
            (form,) = layouts
            return None if form is None else [self._kept(torch.ones_like(form.empty()))]
        elif slots:
            return None
        result = step.operation(*args, **step.kwargs)
        return [self._kept(each) for each in (result if isinstance(result, tuple | list) else (result,))]

    def _kept(self, constant: Tensor) -> Tensor:
        """The one tensor for all constants that are equal."""
        form = Layout.of(constant)
        if form is None:
            return constant
        known = next((each for each in self.constants[form] if _identical(each, constant)), None)
        if known is None:
            self.constants[form].append(constant)
        return constant if known is None else known

    def _unchanged(self, step: Entry) -> Sequence[Any] | None:
        """The argument that is the result too."""
        if len(step.results) != 1:
            return None
        form = self.operations.layouts[step.results[0]]
        first = step.args[0] if step.args else None
        if step.operation in SAME_ENTRIES and form is not None and self._layout(first) == form:
            return [first]
        if step.operation in BY_ONE:
            pairs = [step.args[:2]] if step.operation is not PRODUCT else [step.args[:2], step.args[1::-1]]
            for source, factor in pairs:
                if form is not None and _is_one(factor) and self._layout(source) == form:
                    return [source]
        return None

    def _done_before(self, step: Entry) -> Sequence[Any] | None:
        """The results of the same operation with the same arguments."""
        before = self.done.setdefault((step.operation, _identity_of(step.args), _identity_of(step.kwargs)), step)
        return None if before is step else [Slot(number) for number in before.results]


def _is_one(factor: Any) -> bool:
    if isinstance(factor, Tensor):
        return factor.numel() <= settings.record_constant and bool((factor == 1).all())
    return not isinstance(factor, Slot) and factor == 1


def _identity_of(tree: Any) -> Hashable:
    """What two trees have in common if and only if they are the same."""
    if isinstance(tree, tuple | list):
        return type(tree), tuple(map(_identity_of, tree))
    if isinstance(tree, dict):
        return tuple((name, _identity_of(value)) for name, value in sorted(tree.items()))
    if isinstance(tree, float):
        return float, tree, math.copysign(1.0, tree)
    return (Tensor, id(tree)) if isinstance(tree, Tensor) else (type(tree), tree)


def _identical(one: Tensor, other: Tensor) -> bool:
    """Equal in the signs of zeros too."""
    return torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())
