"""Several structures over one pass: each group of sites has its own, and the curvature between groups is dropped."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_laplace._typing import State
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.reading.columns import Columns
from pyro_laplace.reading.prior import Prior
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.precision import Precision
from pyro_laplace.structure.sum import SumOverData


class Grouped(SumOverData):
    """A sum for each group of coordinates; together they cover all, each once.

    Args:
        anchor: theta and its free coordinates.
        groups: each group's coordinates, by their ascending place among the free ones, with its sum.
    """

    def __init__(self, anchor: Anchor, groups: Sequence[tuple[Tensor, SumOverData]]) -> None:
        self.anchor, self.groups = anchor, list(groups)
        self._open = list(range(len(self.groups)))  # which a pass over the data adds to

    def add(self, columns: Columns) -> None:
        """Add to each group what concerns its coordinates."""
        for chosen, part in (self.groups[number] for number in self._open):
            part.add(columns.over(chosen))

    def merge(self, other: "Grouped") -> None:
        """Group by group."""
        for (_, part), (_, theirs) in zip(self.groups, other.groups, strict=True):
            part.merge(theirs)

    @classmethod
    def weighted(cls, parts: Sequence[tuple["Grouped", float]]) -> "Grouped":
        """Group by group."""
        first = parts[0][0]
        groups = []
        for number, (chosen, part) in enumerate(first.groups):
            own = [(each.groups[number][1], factor) for each, factor in parts]
            groups.append((chosen, type(part).weighted(own)))
        return cls(first.anchor, groups)

    def state(self) -> State:
        """The states of the groups, in order."""
        return {"groups": [part.state() for _, part in self.groups]}

    def times(self, vectors: Tensor) -> Tensor:
        """Group by group."""
        total = torch.zeros_like(vectors, dtype=torch.float64)
        for chosen, part in self.groups:
            total[:, chosen] = part.times(vectors[:, chosen])
        return total

    def posterior(self, prior: Prior) -> Block:
        """The blocks of the groups, which are independent of one another."""
        placed = []
        for chosen, part in self.groups:
            blocks = part.posterior(prior.over(chosen)).placed()
            placed += [(chosen[index.to(chosen.device)], block) for index, block in blocks]
        return Precision(placed)

    def refine(self) -> bool:
        """The groups that take one more pass; the others have what they need."""
        self._open = [number for number, (_, part) in enumerate(self.groups) if part.refine()]
        return bool(self._open)
