"""The one loop over data: every datum once, in chunks that fit a memory budget.

Whatever passes over the data goes through here: sums over data, densities, draws. It is the place for what concerns all
passes alike: how batches are cut and joined, the progress bar, and later checkpoints and several processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pyro_laplace._progress import progress_bar
from pyro_laplace._typing import Theta, Values
from pyro_laplace.capture.rows import Cut, cut_of
from pyro_laplace.data import Batch, Data
from pyro_laplace.program.chunks import Chunk, index_chunks
from pyro_laplace.program.program import Program
from pyro_laplace.settings import settings


@dataclass(frozen=True)
class Loop:
    """A program and its data, to be passed over as often as it takes.

    A batch whose rows are data of their own is cut to `settings.chunk_bytes`, and smaller ones are joined to it; what
    else there is comes as the user gave it.

    Attributes:
        program: traced on the data.
        data: the data.
    """

    program: Program
    data: Data

    def chunks(self, what: str = "", progress: bool = False) -> Iterator[Chunk]:
        """One pass.

        Args:
            what: what the pass is for, which the progress bar says.
            progress: whether one that lasts shows a bar.

        Yields:
            the chunks, in the data's order.
        """
        total = 1 if self.data.one_batch else None
        if total is None and hasattr(self.data.source, "__len__"):
            total = len(self.data.source)
        with progress_bar(what, total, "batch", progress) as bar:
            for batches, chunk in self._divided():
                yield chunk
                bar.update(batches)

    def at(self, theta: Theta, params: Values) -> "Loop":
        """The same data, and the program at another start and other values of `pyro.param`s."""
        moved = Loop(replace(self.program, start=theta, params={**self.program.params, **params}), self.data)
        moved.__dict__["cut"] = self.cut  # how batches divide does not depend on these
        return moved

    def holding(self, bytes_of_row: float) -> "Loop":
        """The same passes in chunks of so few rows that what is held of them at once fits `settings.chunk_bytes`."""
        smaller = Loop(self.program, self.data)
        most = settings.chunk_bytes / max(1.0, bytes_of_row)
        smaller.__dict__["cut"] = None if self.cut is None else replace(self.cut, most_rows=most)
        return smaller

    def few_rows(self) -> Chunk:
        """Some rows of the data, for what no datum matters to; the first chunk where rows are not data of their own."""
        if self.program.own_indices or self.cut is None:
            return next(self._divided())[1]
        first = self.data.first()
        count = self.cut.rows(first, first) or 1
        return self._chunk(self.cut.part(first, 0, max(1, min(count // 2, settings.cut_rows))), count)

    @cached_property
    def cut(self) -> Cut | None:
        """How batches divide into rows; None where they do not."""
        return cut_of(self.program, self.data)

    def _divided(self) -> Iterator[tuple[float, Chunk]]:
        """Chunks, each with the batches (or the share of one) that it stands for."""
        if self.program.own_indices:
            for batch in self.data:
                chunks = [Chunk(batch, *each) for each in index_chunks(self.program.own_indices)]
                yield from ((1 / len(chunks), chunk) for chunk in chunks)
        elif (cut := self.cut) is None:
            yield from ((1, Chunk(batch, weights=self._weights)) for batch in self.data)
        else:
            yield from self._to_budget(cut)

    def _to_budget(self, cut: Cut) -> Iterator[tuple[float, Chunk]]:
        pending: list[Batch] = []
        first, rows, usual = None, 0, None
        for batch in self.data:
            first = batch if first is None else first
            count = cut.rows(batch, first)
            usual = count if usual is None else usual
            if pending and (count is None or rows + count > cut.limit or not cut.alike(pending[-1], batch)):
                yield len(pending), self._chunk(cut.join(pending), usual)
                pending, rows = [], 0
            if count is None:
                yield 1, self._chunk(batch, None)
            elif count > cut.limit:
                parts = -(-count // cut.limit)
                size = -(-count // parts)
                for start in range(0, count, size):
                    stop = min(start + size, count)
                    yield (stop - start) / count, self._chunk(cut.part(batch, start, stop), count)
            else:
                pending.append(batch)
                rows += count
        if pending:
            yield len(pending), self._chunk(cut.join(pending), usual)

    def _chunk(self, batch: Batch, rows: int | None) -> Chunk:
        return Chunk(batch, weights=self._weights, rows=rows)

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        """What a datum stands for where a plate has more than the data given."""
        shares = {name: size / visited for name, (size, visited) in self.program.external.items()}
        return {name: torch.tensor(share, dtype=torch.float64) for name, share in shares.items()}
