"""A function of one tensor as the list of operations that it runs, to be run again without the Python around them.

A Pyro program spends its time in messengers and distributions; of its log density and gradient, what is left is some
hundred operations on tensors. They are recorded once, the gradient's among them, and those that do not depend on the
argument are kept as their results.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.torch import ByIdentity, DispatchMode, leaves_of, map_tree, writes
from pyro_laplace._errors import LaplaceError
from pyro_laplace.settings import settings


class NotRecordable(LaplaceError):
    """What a function does with its argument is no list of operations."""


@dataclass(frozen=True)
class _Slot:
    """Where a result lies."""

    number: int


@dataclass(frozen=True, eq=False)
class _Step:
    """An operation, the places in its arguments taken by earlier results, and where its own go."""

    operation: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    nested: bool
    results: tuple[int, ...]


class _Recorder(DispatchMode):
    """Takes down the operations that depend on a tensor.

    Args:
        argument: the tensor.
    """

    def __init__(self, argument: Tensor) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.slots = ByIdentity()
        self.slots[argument] = 0
        self.count = 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; record it if it depends on the argument."""
        kwargs = kwargs or {}
        depends = False

        def place(leaf: Any) -> Any:
            nonlocal depends
            slot = self.slots.get(leaf) if isinstance(leaf, Tensor) else None
            depends = depends or slot is not None
            return leaf if slot is None else _Slot(slot)

        placed_args, placed_kwargs = tuple(map_tree(place, args)), dict(map_tree(place, kwargs))
        result = func(*args, **kwargs)
        if not depends:
            return result
        results = result if isinstance(result, tuple | list) else (result,)
        if not all(isinstance(each, Tensor) or each is None for each in results):
            raise NotRecordable(f"{func} makes of a value that depends on the argument one that is no tensor")
        if writes(func) and not all(each in self.slots for each in results):
            raise NotRecordable(f"{func} writes a value that depends on the argument into one that does not")
        numbers = []
        for each in results:
            if each not in self.slots:
                self.slots[each] = self.count
                self.count += 1
            numbers.append(self.slots[each])
        inside = leaves_of([[a for a in placed_args if not isinstance(a, _Slot)], placed_kwargs])
        nested = any(isinstance(leaf, _Slot) for leaf in inside)
        self.steps.append(_Step(func, placed_args, placed_kwargs, nested, tuple(numbers)))
        return result


@dataclass(frozen=True, eq=False)
class Recorded:
    """The operations of a function of one tensor.

    Attributes:
        steps: in order.
        count: number of results.
        outputs: where the function's own results are, or these themselves where they do not depend on the argument.
    """

    steps: Sequence[_Step]
    count: int
    outputs: Sequence[Any]

    @staticmethod
    def of(fn: Callable[[Tensor], Sequence[Tensor]], argument: Tensor) -> "Recorded":
        """Record a function.

        Args:
            fn: the function.
            argument: where it is run.

        Returns:
            its operations.

        Raises:
            NotRecordable: if it takes a number out of a tensor, as ``if`` and ``.item()`` do, or writes into tensors
                that were there before.
        """
        recorder = _Recorder(argument)
        with recorder:
            results = fn(argument)
        outputs = [_Slot(recorder.slots[each]) if each in recorder.slots else each.detach() for each in results]
        return Recorded(_needed(recorder.steps, outputs), recorder.count, outputs)

    def __call__(self, argument: Tensor) -> list[Tensor]:
        """Run the operations at another value of the argument."""
        found: list[Any] = [None] * self.count
        found[0] = argument

        def value(leaf: Any) -> Any:
            return found[leaf.number] if type(leaf) is _Slot else leaf

        for step in self.steps:
            if step.nested:
                result = step.operation(*map_tree(value, step.args), **map_tree(value, step.kwargs))
            else:
                result = step.operation(*[found[a.number] if type(a) is _Slot else a for a in step.args], **step.kwargs)
            if len(step.results) == 1:
                found[step.results[0]] = result[0] if isinstance(result, tuple | list) else result
            else:
                for number, each in zip(step.results, result, strict=True):
                    found[number] = each
        return [value(each) for each in self.outputs]


def recorded_if_same(
    fn: Callable[[Tensor], Sequence[Tensor]], arguments: Sequence[Tensor], eps: float
) -> Recorded | None:
    """Take the Python out of a function, where it does the same at every argument.

    Args:
        fn: the function.
        arguments: where its operations must give what it gives itself; at the first one they are recorded.
        eps: rounding of what it computes in.

    Returns:
        its operations; None where they are no list, or give something else.
    """
    try:
        recorded = Recorded.of(fn, arguments[0])
        with torch.no_grad():
            pairs = [pair for at in arguments for pair in zip(recorded(at), fn(at), strict=True)]
    except (NotRecordable, RuntimeError, ValueError):  # whatever a program does that is no list of operations
        return None
    return recorded if all(_agrees(ours, theirs, settings.rounding * eps) for ours, theirs in pairs) else None


def points_around(theta: Tensor) -> list[Tensor]:
    """A point, and one on each side of it."""
    beside = theta + settings.record_step * (1 + theta.abs())
    return [theta, beside, 2 * theta - beside]


def _agrees(one: Tensor, other: Tensor, error: float) -> bool:
    size = float(other.abs().nan_to_num(0, 0, 0).max()) if other.numel() else 0.0
    return torch.allclose(one, other, rtol=error, atol=error * size, equal_nan=True)


def _needed(steps: Sequence[_Step], outputs: Sequence[Any]) -> list[_Step]:
    """The operations that the outputs depend on; all that write in place stay."""
    wanted = {each.number for each in outputs if isinstance(each, _Slot)}
    kept = []
    for step in reversed(steps):
        if writes(step.operation) or wanted & set(step.results):
            kept.append(step)

            def add(leaf: Any) -> None:
                if isinstance(leaf, _Slot):
                    wanted.add(leaf.number)

            map_tree(add, (step.args, step.kwargs))
    return kept[::-1]
