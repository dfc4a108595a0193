"""A function of one tensor as the list of operations that it runs, to be run again without the Python around them.

A Pyro program spends its time in messengers and distributions; of its log density and gradient, what is left is some
hundred operations on tensors. They are recorded once, the gradient's among them, and those that do not depend on the
argument are kept as their results.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.operations import direct_call
from pyro_laplace.recording.recorder import Entry, NotRecordable, Slot, slots_in, take_down
from pyro_laplace.recording.simplified import simplified
from pyro_laplace.settings import settings

type _Call = tuple[Callable[..., Any], Callable[[list[Any]], Any], int]
"""A function, what takes its arguments out of the places, and the place that its result goes to."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """The operations of a function of one tensor.

    Attributes:
        places: what lies where before the first call: constants, and room for the argument, number 0, and results.
        calls: in order.
        outputs: places of the function's own results.
    """

    places: Sequence[Any]
    calls: Sequence[_Call]
    outputs: Sequence[int]

    @staticmethod
    def of(fn: Callable[[Tensor], Sequence[Tensor]], argument: Tensor) -> "Recorded":
        """Record a function.

        Args:
            fn: the function.
            argument: where it is run.

        Returns:
            its operations.

        Raises:
            NotRecordable: if it takes a number out of a tensor, as ``if`` and ``.item()`` do, selects by a mask, draws,
                or writes into tensors that were there before.
        """
        operations = simplified(take_down(fn, argument))
        writer = _Writer(len(operations.layouts))
        for step in operations.steps:
            writer.add(step)
        outputs = [writer.own(each) for each in operations.outputs]
        return Recorded(writer.places, writer.calls, outputs)

    def __call__(self, argument: Tensor) -> list[Tensor]:
        """Run the operations at another value of the argument."""
        places = list(self.places)
        places[0] = argument
        for function, arguments, place in self.calls:
            places[place] = function(*arguments(places))
        return [places[number] for number in self.outputs]


class _Writer:
    """Lays operations out so that to run one is a call with what lies in some places.

    Args:
        count: number of slots.
    """

    def __init__(self, count: int) -> None:
        self.places: list[Any] = [None] * count
        self.calls: list[_Call] = []

    def add(self, step: Entry) -> None:
        """The calls of one operation."""
        function, args = direct_call(step.operation), [*step.args, *step.kwargs.values()]
        if slots_in(step.kwargs):
            function = partial(_with_names, function, tuple(step.kwargs))
        elif step.kwargs:
            function, args = partial(function, **step.kwargs), [*step.args]
        if not step.several:
            self._call(function, args, step.results[0])
            return
        together = self._call(function, args)
        for number, result in enumerate(step.results):
            self.calls.append((itemgetter(number), _taking([together]), result))

    def place_of(self, tree: Any) -> int:
        """Where an argument lies when the operation is run."""
        if isinstance(tree, Slot):
            return tree.number
        if isinstance(tree, tuple | list) and slots_in(tree):
            return self._call(_as_list, tree)
        self.places.append(tree)
        return len(self.places) - 1

    def own(self, output: Any) -> int:
        """Where a result of the function lies: neither its argument nor a constant, which a caller might write into."""
        place = self.place_of(output)
        return place if any(each == place for _, _, each in self.calls) else self._call(torch.clone, [output])

    def _call(self, function: Callable[..., Any], args: Sequence[Any], place: int | None = None) -> int:
        taking = _taking([self.place_of(each) for each in args])
        if place is None:
            self.places.append(None)
            place = len(self.places) - 1
        self.calls.append((function, taking, place))
        return place


def _taking(places: Sequence[int]) -> Callable[[list[Any]], Any]:
    return itemgetter(*places) if len(places) > 1 else itemgetter(slice(places[0], places[0] + 1))


def _as_list(*entries: Any) -> list[Any]:
    return list(entries)


def _with_names(function: Callable[..., Any], names: tuple[str, ...], *args: Any) -> Any:
    count = len(args) - len(names)
    return function(*args[:count], **dict(zip(names, args[count:], strict=True)))


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
            for at in arguments:
                recorded(at)  # what remembers where it was, as a search does, gives the same from the second time on
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
