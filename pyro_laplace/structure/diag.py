"""The diagonal of a curvature, and the precision that it makes."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature
from pyro_laplace._typing import State, Theta
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.reading.columns import Columns
from pyro_laplace.reading.prior import Prior
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.diag_block import DiagBlock
from pyro_laplace.structure.explain import explain_diagonal
from pyro_laplace.structure.sum import Sum


class DiagSum(Sum):
    """``diag H``.

    Args:
        anchor: theta and its free coordinates.
        total: the diagonal so far [params], in float64.
    """

    takes_direct: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def __init__(self, anchor: Anchor, total: Theta) -> None:
        self.anchor, self.total = anchor, total

    @classmethod
    def plan(
        cls, option: Any, anchor: Anchor, prior: Prior, exact: Sequence[str] = (), double: bool = False
    ) -> "DiagSum":
        """It holds any program."""
        return cls(anchor, torch.zeros(anchor.size, dtype=torch.float64, device=anchor.theta.device))

    def add(self, columns: Columns) -> None:
        """Add the diagonal of A'A, ``sum_nk (sum_t g a)^2``."""
        self.total += columns.diagonal()

    def merge(self, other: "DiagSum") -> None:
        """Diagonals add up."""
        self.total = self.total + other.total

    @classmethod
    def weighted(cls, parts: Sequence[tuple["DiagSum", float]]) -> "DiagSum":
        """``sum_t f_t diag H_t``."""
        return cls(parts[0][0].anchor, torch.stack([part.total * factor for part, factor in parts]).sum(0))

    def state(self) -> State:
        """The diagonal."""
        return {"total": self.total}

    @classmethod
    def from_state(cls, state: State, anchor: Anchor) -> "DiagSum":
        """What `state` gave."""
        return cls(anchor, state["total"].clone())

    def times(self, vectors: Tensor) -> Tensor:
        """``diag(H) v``."""
        return vectors.to(self.total) * self.total

    def posterior(self, prior: Prior) -> Block:
        """``diag(H) + diag(H_prior)``.

        Args:
            prior: of which the diagonal counts.

        Returns:
            the block.

        Raises:
            IndefiniteCurvature: if the point is no maximum in some coordinate, naming its site.
        """
        prec = self.total + prior.diagonal
        try:
            return DiagBlock(prec)
        except IndefiniteCurvature:
            raise IndefiniteCurvature(explain_diagonal(prec, self.anchor)) from None
