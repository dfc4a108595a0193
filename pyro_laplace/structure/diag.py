"""The diagonal of a curvature, and the precision of independent coordinates that it makes."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature
from pyro_laplace._typing import Draws, Matrix, Scalar, State, Theta
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.reading.columns import Columns
from pyro_laplace.reading.prior import Prior
from pyro_laplace.structure.block import Basis, Block
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


class DiagBlock(Block):
    """Lambda = diag(prec)."""

    prec: Tensor

    def __init__(self, prec: Theta) -> None:
        """Hold a diagonal.

        Args:
            prec: the diagonal of Lambda.

        Raises:
            IndefiniteCurvature: if an entry is not positive.
        """
        super().__init__()
        if not bool((prec > 0).all()):
            raise IndefiniteCurvature("the posterior precision has a diagonal entry that is not positive")
        self.register_buffer("prec", prec.double())

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.prec)

    def log_det(self) -> Scalar:
        """Sum of log precisions."""
        return self.prec.log().sum()

    def color(self, white: Draws) -> Draws:
        """``z / sqrt(prec)``."""
        return (white / self.prec.sqrt()).to(white)

    def whiten(self, deviation: Draws) -> Draws:
        """sqrt(prec) d."""
        return (deviation * self.prec.sqrt()).to(deviation)

    def solve(self, vector: Tensor) -> Tensor:
        """``v / prec``."""
        return (vector / self.prec).to(vector)

    def variance(self) -> Theta:
        """1 / prec."""
        return self.prec.reciprocal()

    def covariance_at(self, row: Tensor, col: Tensor) -> Tensor:
        """``1 / prec`` on the diagonal."""
        return torch.where(row == col, self.prec[row].reciprocal(), 0.0)

    def to_dense(self) -> Matrix:
        """diag(prec)."""
        return self.prec.diag()

    def push(self, rows: Tensor) -> Tensor:
        """``j / sqrt(prec)``."""
        return (rows / self.prec.sqrt()).to(rows)

    def diagonal_basis(self, index: Tensor, dtype: torch.dtype) -> Basis:
        """The coordinates as they are."""
        return Basis(None, None, torch.where(index < 0, 0.0, self.prec[index].reciprocal()).to(dtype))
