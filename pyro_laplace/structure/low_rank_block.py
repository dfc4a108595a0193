"""A diagonal precision and an update of low rank, in the basis that the diagonal whitens.

``Lambda = D^1/2 (I + Q diag(s) Q') D^1/2`` with orthonormal columns Q: its inverse and root are closed forms of the
same shape (Woodbury), at a cost of params times rank.
"""

from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature
from pyro_laplace._typing import Draws, Matrix, Scalar, Theta
from pyro_laplace.structure.block import Block


class LowRankBlock(Block):
    """``Lambda = D^1/2 (I + Q diag(s) Q') D^1/2``; its root is ``R = (I + Q diag(sqrt(1 + s) - 1) Q') D^1/2``."""

    scale: Tensor
    basis: Tensor
    eigenvalues: Tensor

    def __init__(self, diagonal: Theta, basis: Tensor, eigenvalues: Tensor) -> None:
        """Hold the diagonal and the update.

        Args:
            diagonal: D [params], positive.
            basis: Q [params, rank], orthonormal columns.
            eigenvalues: s [rank], above -1.

        Raises:
            IndefiniteCurvature: if Lambda is not positive definite.
        """
        super().__init__()
        if not bool((diagonal > 0).all()) or not bool((eigenvalues > -1).all()):
            raise IndefiniteCurvature("the posterior precision is not positive definite")
        self.register_buffer("scale", diagonal.double().sqrt())
        self.register_buffer("basis", basis.double())
        self.register_buffer("eigenvalues", eigenvalues.double())

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.scale)

    def log_det(self) -> Scalar:
        """sum log D + sum log(1 + s)."""
        return 2 * self.scale.log().sum() + self.eigenvalues.log1p().sum()

    def color(self, white: Draws) -> Draws:
        """D^-1/2 (z + Q ((1 + s)^-1/2 - 1) Q'z)."""
        change = (1 + self.eigenvalues).rsqrt() - 1
        return (self._changed(white.to(self.scale), change) / self.scale).to(white)

    def whiten(self, deviation: Draws) -> Draws:
        """x + Q (sqrt(1 + s) - 1) Q'x of x = D^1/2 d."""
        change = (1 + self.eigenvalues).sqrt() - 1
        return self._changed(deviation.to(self.scale) * self.scale, change).to(deviation)

    def solve(self, vector: Tensor) -> Tensor:
        """D^-1/2 (x - Q s/(1 + s) Q'x) of x = D^-1/2 v."""
        change = -self.eigenvalues / (1 + self.eigenvalues)
        return (self._changed(vector.to(self.scale) / self.scale, change) / self.scale).to(vector)

    def variance(self) -> Theta:
        """``(1 - Q^2 s/(1 + s)) / D``."""
        shrunk = self.basis.square() @ (self.eigenvalues / (1 + self.eigenvalues))
        return (1 - shrunk) / self.scale.square()

    def to_dense(self) -> Matrix:
        """D + D^1/2 Q diag(s) Q' D^1/2."""
        root = self.scale.unsqueeze(-1) * self.basis
        return self.scale.square().diag() + (root * self.eigenvalues) @ root.mT

    def push(self, rows: Tensor) -> Tensor:
        """x + Q ((1 + s)^-1/2 - 1) Q'x of x = D^-1/2 j."""
        change = (1 + self.eigenvalues).rsqrt() - 1
        return self._changed(rows.to(self.scale) / self.scale, change).to(rows)

    def _changed(self, x: Tensor, change: Tensor) -> Tensor:
        """x + Q diag(change) Q'x of x [..., params]."""
        return x + ((x @ self.basis) * change) @ self.basis.mT
