"""The precision of independent coordinates."""

import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature
from pyro_laplace._typing import Draws, Matrix, Scalar, Theta
from pyro_laplace.structure.block import Basis, Block


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
