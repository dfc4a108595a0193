"""Whether the rows of a batch are data of their own: then it may be cut, and joined with others, to a memory budget.

A program on some rows must say of them what it says of them among others. A Gaussian process, a plate of fixed size, an
adjacency, a batch statistic, a scale that counts the rows: none of these does, and none is ever cut. That is found out
by running the program on a few rows, and on the halves of these.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import flattened, unflattened
from pyro_laplace.data import Batch, Data
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.module_state import modules_kept
from pyro_laplace.program.program import Program, likelihood_sites, log_lik_of
from pyro_laplace.program.run import Run
from pyro_laplace.settings import settings


@dataclass(frozen=True)
class Cut:
    """How batches of one form divide into rows.

    Attributes:
        form: the tree of a batch's arguments.
        leaves: which of its leaves have a row for each datum; the others are the same for all.
        bytes_of_row: what a run makes of one row.
        most_rows: of a chunk, whatever memory allows.
    """

    form: Any
    leaves: tuple[int, ...]
    bytes_of_row: float
    most_rows: float = math.inf

    @property
    def limit(self) -> int:
        """Rows of a chunk: enough for its operations to be worth their overhead, as far as memory allows."""
        size = max(1.0, self.bytes_of_row)
        enough = max(settings.enough_bytes / size, settings.enough_rows)
        return max(1, int(min(settings.chunk_bytes / size, enough, self.most_rows)))

    def rows(self, batch: Batch, first: Batch) -> int | None:
        """How many rows a batch has; None where it does not have the form of the first one."""
        values, form = flattened(_tree(batch))
        if form != self.form:
            return None
        counts = {len(values[i]) for i in self.leaves if _has_rows(values[i])}
        same = batch is first or all(
            _equal(one, other) for i, (one, other) in enumerate(zip(values, flattened(_tree(first))[0], strict=True))
            if i not in self.leaves
        )  # fmt: skip
        return counts.pop() if same and len(counts) == 1 else None

    def alike(self, one: Batch, other: Batch) -> bool:
        """Whether two batches can be joined: each may be padded to a length of its own."""
        values, others = flattened(_tree(one))[0], flattened(_tree(other))[0]
        return len(values) == len(others) and all(
            isinstance(b, Tensor) and a.shape[1:] == b.shape[1:] and a.dtype == b.dtype
            for i, (a, b) in enumerate(zip(values, others, strict=True))
            if i in self.leaves
        )

    def part(self, batch: Batch, start: int, stop: int) -> Batch:
        """Some rows of a batch."""
        values, form = flattened(_tree(batch))
        return _batch_of([each[start:stop] if i in self.leaves else each for i, each in enumerate(values)], form)

    def chosen(self, batch: Batch, index: Tensor) -> Batch:
        """The rows of a batch that an index [rows] of integers names."""
        values, form = flattened(_tree(batch))
        taken = [each[index.to(each.device)] if i in self.leaves else each for i, each in enumerate(values)]
        return _batch_of(taken, form)

    def join(self, batches: Sequence[Batch]) -> Batch:
        """The rows of several batches below one another."""
        if len(batches) == 1:
            return batches[0]
        parts = [flattened(_tree(batch))[0] for batch in batches]
        joined = [torch.cat(each) if i in self.leaves else each[0] for i, each in enumerate(zip(*parts, strict=True))]
        return _batch_of(joined, flattened(_tree(batches[0]))[1])


def cut_of(program: Program, data: Data) -> Cut | None:
    """How the batches of some data divide into rows.

    Args:
        program: traced on the data.
        data: the data.

    Returns:
        the cut; None where the rows of a batch are not data of their own, or there is nothing to be gained.
    """
    if program.own_indices:
        return None
    batch = _first_rows(data)
    values, form = flattened(_tree(batch))
    tensors = [each for each in values if _has_rows(each)]
    alone = data.one_batch or (hasattr(data.source, "__len__") and len(data.source) == 1)
    if not tensors or (alone and sum(each.nbytes for each in tensors) < settings.cut_bytes):
        return None
    count = len(tensors[0])
    leaves = tuple(i for i, each in enumerate(values) if _has_rows(each) and len(each) == count)
    half = min(count // 2, settings.cut_rows)
    if not half:
        return None
    whole = Cut(form, leaves, math.inf)
    try:
        with undisturbed(), modules_kept(program.model), torch.no_grad():
            theta = program.start + settings.row_check_step * _noise(program.start)
            ends = (0, 2 * half), (0, half), (half, 2 * half)
            runs = [_measured_run(program, theta, whole.part(batch, *each)) for each in ends]
            if not _independent(program, theta, [run for run, _ in runs], half):
                return None
    except Exception:  # whatever a program can raise that some of its rows do not suit: it is not cut
        return None
    made = max(1.0, (runs[0][1] - runs[1][1]) / half) * program.start.element_size()
    return Cut(form, leaves, made + sum(values[i].nbytes for i in leaves) / count)


def _first_rows(data: Data) -> Batch:
    """The first batch; of batches of one row the first two together, so that there is something to divide."""
    first, *others = itertools.islice(iter(data), 2)
    values, form = flattened(_tree(first))
    lengths = {len(each) for each in values if _has_rows(each)}
    if lengths != {1} or not others:
        return first
    leaves = tuple(i for i, each in enumerate(values) if _has_rows(each))
    cut = Cut(form, leaves, math.inf)
    return cut.join([first, *others]) if cut.alike(first, others[0]) else first


def _has_rows(value: Any) -> bool:
    """Whether something given may have a row for each datum; a sparse tensor's are no rows to be taken one by one."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.dim() > 0


def _noise(like: Tensor) -> Tensor:
    return torch.randn(len(like), generator=torch.Generator().manual_seed(0)).to(like)


def _measured_run(program: Program, theta: Tensor, batch: Batch) -> tuple[Run, int]:
    with _Footprint() as footprint:
        run = program.run(theta, Chunk(batch))
    return run, footprint.elements


def _independent(program: Program, theta: Tensor, runs: list[Run], half: int) -> bool:
    """Whether a run on some rows says what those on their two halves say."""
    whole, *parts = runs
    names = likelihood_sites(whole).keys()
    if any(likelihood_sites(part).keys() != names for part in parts):
        return False
    terms = [log_lik_of(run, Chunk(Batch())) for run in runs]
    joined = all(
        terms[0][name].dim()
        and terms[0][name].shape[0] == 2 * half
        and _joins_to(terms[0][name], [t[name] for t in terms[1:]])
        for name in names
    )
    priors = [program.log_prior_of(run, theta) for run in runs]
    same = all(_near(priors[0], prior) for prior in priors[1:])
    return (
        joined
        and same
        and all(
            _divides(run_site.value, [p.deterministic[n].value for p in parts])
            for n, run_site in whole.deterministic.items()
        )
    )


def _divides(whole: Tensor, parts: list[Tensor]) -> bool:
    """Whether a value is the same on all rows, or one a row."""
    if all(part.shape == whole.shape and _near(part, whole) for part in parts):
        return True
    return bool(whole.dim()) and _joins_to(whole, parts)


def _joins_to(whole: Tensor, parts: list[Tensor]) -> bool:
    if not all(part.dim() for part in parts):
        return False
    joined = torch.cat(parts)
    return joined.shape == whole.shape and _near(joined, whole)


def _near(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding, and finite: what is not tells nothing."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    scale = float(other.abs().max()) if other.numel() else 0.0
    close = settings.rounding * torch.finfo(one.dtype).eps
    return bool(one.isfinite().all()) and torch.allclose(one, other, rtol=close, atol=close * scale)


def _tree(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return batch.args, dict(batch.kwargs)


def _batch_of(values: list[Any], form: Any) -> Batch:
    args, kwargs = unflattened(values, form)
    return Batch(tuple(args), kwargs)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and torch.equal(one, other))
    return one is other or (type(one) is type(other) and bool(one == other))


class _Footprint(TorchFunctionMode):
    """Counts the elements that operations make; a convolution's patches too, which its curvature takes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements += result.numel()
            if getattr(func, "__name__", "").startswith("conv") and len(args) > 1 and isinstance(args[1], Tensor):
                self.elements += result.numel() // max(1, result.shape[1]) * args[1][0].numel()
        return result
