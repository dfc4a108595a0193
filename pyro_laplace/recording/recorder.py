"""The operations on tensors that a function runs, taken down as they run, those of its derivatives too."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.operations import OF_DTYPES, follows_values, writes
from pyro_laplace._compat.torch import ByIdentity, DispatchMode, NoNumbers, leaves_of, map_tree
from pyro_laplace._errors import LaplaceError


class NotRecordable(LaplaceError):
    """What a function does with its argument is no list of operations."""


@dataclass(frozen=True)
class Slot:
    """Where a result lies; the argument is at number 0."""

    number: int


def slots_in(tree: Any) -> list[Slot]:
    """Those among the leaves of a tree."""
    return [leaf for leaf in leaves_of(tree) if isinstance(leaf, Slot)]


@dataclass(frozen=True)
class Layout:
    """What is known of a result before it is computed.

    Attributes:
        shape: of the tensor.
        stride: likewise.
        dtype: likewise.
        device: likewise.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(tensor: Tensor) -> "Layout | None":
        """None of a tensor that has no strides."""
        if tensor.layout != torch.strided:
            return None
        return Layout(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    def empty(self) -> Tensor:
        """A tensor of this form."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


@dataclass(frozen=True, eq=False)
class Entry:
    """An operation.

    Attributes:
        operation: of `torch.ops.aten`, or a function that was taken down as one.
        args: trees with a `Slot` in the place of each earlier result.
        kwargs: likewise.
        results: numbers of the slots that its own results go to.
        several: whether it gives a tuple or list of them.
    """

    operation: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int, ...]
    several: bool

    @property
    def slots(self) -> list[Slot]:
        """Those among the arguments."""
        return slots_in([self.args, self.kwargs])


@dataclass(frozen=True, eq=False)
class Operations:
    """What a function does with its argument.

    Attributes:
        steps: in order.
        layouts: of the results by slot.
        outputs: slots of the function's own results, or these themselves where they do not depend on the argument.
    """

    steps: Sequence[Entry]
    layouts: Sequence[Layout | None]
    outputs: Sequence[Any]


def take_down(fn: Callable[[Tensor], Sequence[Tensor]], argument: Tensor) -> Operations:
    """Take down what a function does.

    Args:
        fn: the function.
        argument: where it is run.

    Returns:
        its operations.

    Raises:
        NotRecordable: if it takes a number out of a tensor, as ``if`` and ``.item()`` do, selects by a mask, draws, or
            writes into tensors that were there before.
    """
    recorder = _Recorder(argument)
    token = _RECORDER.set(recorder)
    try:
        with recorder, NoNumbers(recorder.refuse_numbers):
            results = fn(argument)
    finally:
        _RECORDER.reset(token)
    outputs = [Slot(recorder.slots[each]) if each in recorder.slots else each.detach() for each in results]
    return Operations(needed(recorder.steps, outputs), recorder.layouts, outputs)


def as_one_operation(fn: Callable[[Tensor], tuple[Tensor, ...]], argument: Tensor) -> tuple[Tensor, ...]:
    """A function's results; where operations are taken down, it is one of them, whatever it does with numbers.

    Args:
        fn: the function, whose results are all new tensors, of the same layouts each time.
        argument: what it is called with.

    Returns:
        what it returns.
    """
    recorder = _RECORDER.get()
    return fn(argument) if recorder is None else recorder.run(fn, (argument,), {})


def needed(steps: Sequence[Entry], outputs: Sequence[Any]) -> list[Entry]:
    """The operations that the outputs depend on; all that write in place stay."""
    wanted = {each.number for each in outputs if isinstance(each, Slot)}
    kept = []
    for step in reversed(steps):
        if writes(step.operation) or wanted & set(step.results):
            kept.append(step)
            wanted.update(slot.number for slot in step.slots)
    return kept[::-1]


class _Recorder(DispatchMode):
    """Takes down the operations that depend on a tensor.

    Args:
        argument: the tensor.
    """

    def __init__(self, argument: Tensor) -> None:
        super().__init__()
        self.steps: list[Entry] = []
        self.slots = ByIdentity()
        self.slots[argument] = 0
        self.layouts = [Layout.of(argument)]
        self._inside_one = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; record it if it depends on the argument."""
        return func(*args, **(kwargs or {})) if self._inside_one else self.run(func, args, kwargs or {})

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function as one operation, and record it if it depends on the argument."""
        placed = tuple(map_tree(self._place, args)), dict(map_tree(self._place, kwargs))
        with self._as_one():
            result = func(*args, **kwargs)
        if not slots_in(placed) or func in OF_DTYPES:
            return result
        if follows_values(func, leaves_of([args, kwargs])):
            raise NotRecordable(
                f"{func} makes of a value that depends on the argument one of another shape, or a random one"
            )
        several = isinstance(result, tuple | list)
        results = result if several else (result,)
        if not all(isinstance(each, Tensor) or each is None for each in results):
            raise NotRecordable(f"{func} makes of a value that depends on the argument one that is no tensor")
        if writes(func) and not all(each in self.slots for each in results):
            raise NotRecordable(f"{func} writes a value that depends on the argument into one that does not")
        self.steps.append(Entry(func, *placed, tuple(self._number(each) for each in results), several))
        return result

    def refuse_numbers(self, name: str) -> None:
        """Refuse to have numbers taken out of a tensor, by whatever has a name, unless it is within one operation."""
        if not self._inside_one:
            raise NotRecordable(f"{name} takes numbers out of a tensor")

    @contextmanager
    def _as_one(self) -> Iterator[None]:
        before, self._inside_one = self._inside_one, True
        try:
            yield
        finally:
            self._inside_one = before

    def _place(self, leaf: Any) -> Any:
        slot = self.slots.get(leaf) if isinstance(leaf, Tensor) else None
        return leaf if slot is None else Slot(slot)

    def _number(self, result: Tensor | None) -> int:
        """Of the slot that a result goes to."""
        known = None if result is None else self.slots.get(result)
        if known is not None:
            return known
        self.layouts.append(None if result is None else Layout.of(result))
        if result is not None:
            self.slots[result] = len(self.layouts) - 1
        return len(self.layouts) - 1


_RECORDER: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)
