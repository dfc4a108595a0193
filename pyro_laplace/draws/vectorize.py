"""One function at many rows: in chunks by `torch.func.vmap`, or row by row where it does not vectorise."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_laplace._compat.random import RandomState
from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace._progress import progress_bar
from pyro_laplace.settings import settings

type At = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""From one row of each tensor to named results."""


def over_rows(
    at: At,
    rows: Mapping[str, Tensor],
    count: int,
    chunk_size: int | None,
    on_loop: Callable[[str], None] | None = None,
    what: str | None = None,
) -> dict[str, Tensor]:
    """`at` of each row; random numbers are drawn anew for each.

    Args:
        at: run with validation off where it is vectorised, because checks of values cannot be.
        rows: name to `[rows, ...]`; may be empty.
        count: number of rows.
        chunk_size: rows of one vectorised pass; None takes all at once.
        on_loop: told why, before `at` is run row by row.
        what: what the rows are for, which a progress bar says; None for no bar.

    Returns:
        name to `[rows, ...]`. Either way the random numbers follow from the generators' state at the call.
    """

    def at_row(row: dict[str, Tensor], marker: Tensor) -> dict[str, Tensor]:
        with _EmptyPerRow(marker):
            return dict(at(row))

    step, markers = chunk_size or count, torch.zeros(count)
    chunks = (slice(start, start + step) for start in range(0, count, step))
    batched = torch.func.vmap(at_row, randomness="different")
    state = RandomState()
    try:
        with pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # it is no user's to mend
            made = (batched({n: v[chunk] for n, v in rows.items()}, markers[chunk]) for chunk in chunks)
            return _one_by_one(made, count, what)
    except Exception as error:  # an error of at's own comes again below
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    state.restore()
    if on_loop is not None:
        on_loop(reason)
    return row_by_row(at, rows, count, what)


def row_by_row(at: At, rows: Mapping[str, Tensor], count: int, what: str | None = None) -> dict[str, Tensor]:
    """`over_rows`, one row after the other."""
    results = (at({name: value[i] for name, value in rows.items()}) for i in range(count))
    return _one_by_one(({name: value[None] for name, value in result.items()} for result in results), count, what)


def _one_by_one(parts: Iterable[Mapping[str, Tensor]], count: int, what: str | None = None) -> dict[str, Tensor]:
    """Parts `[some rows, ...]` one behind the other, `[count, ...]`.

    Each is copied and let go before the next is made. Kept until the end, small results between large intermediate
    tensors keep the allocator from using their memory again: gigabytes, for draws of a wide network.

    Args:
        parts: name to `[some rows, ...]`, in order.
        count: number of rows of all parts.
        what: what the rows are for, which a progress bar says; None for no bar.

    Returns:
        name to `[count, ...]`.

    Raises:
        UnsupportedProgram: if the parts differ in their names or shapes.
    """
    whole: dict[str, Tensor] = {}
    start = 0
    with progress_bar(what or "", count, "draw", what is not None) as bar:
        for part in parts:
            if not start:
                whole = {name: value.new_empty((count, *value.shape[1:])) for name, value in part.items()}
            shapes = {name: value.shape[1:] for name, value in part.items()}
            if shapes != {name: value.shape[1:] for name, value in whole.items()}:
                raise UnsupportedProgram(
                    f"the program's sites have the shapes {_as_tuples(shapes)} on one run, and others on the first: "
                    "they must not depend on what is drawn"
                )
            for name, value in part.items():
                whole[name][start : start + len(value)] = value
            start += len(next(iter(part.values()), ()))
            bar.update(start - bar.n)
    return whole


def _as_tuples(shapes: Mapping[str, torch.Size]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in shapes.items()}


class _EmptyPerRow(TorchFunctionMode):
    """Makes uninitialised tensors anew for each row of a vectorised pass, and binomial counts each row's own.

    Distributions fill such a tensor with random numbers in place (`torch.distributions.Normal.rsample` does), which
    `torch.func.vmap` refuses where all rows share it. Of `torch.binomial` it asks that all arguments have the rows: it
    resizes what has none, and warns.

    Args:
        marker: any tensor that differs from row to row.
    """

    def __init__(self, marker: Tensor) -> None:
        super().__init__()
        self.marker = marker

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; if its result is uninitialised, give it the rows."""
        if func is torch.binomial:
            args = [each + self.marker.to(each) if isinstance(each, Tensor) else each for each in args]
        result = func(*args, **(kwargs or {}))
        uninitialised = func in _EMPTY or (func is Tensor.new and isinstance(args[-1], int | torch.Size))
        return result + self.marker.to(result) if uninitialised else result


_EMPTY = {torch.empty, torch.empty_like, Tensor.new_empty}


class Widest(TorchFunctionMode):
    """Measures how many elements the largest tensor has that is made while it is active, and how many all have."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.total = 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at its result."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements, self.total = max(self.elements, result.numel()), self.total + result.numel()
        return result

    @property
    def chunk_size(self) -> int:
        """Rows of one vectorised pass, so that its largest tensor has `settings.draw_elements`."""
        return max(1, settings.draw_elements // self.elements)
