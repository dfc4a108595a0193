"""A sparse precision, by its sparse factor."""

from typing import Any

import torch
from torch import Tensor

from pyro_laplace._typing import Draws, Matrix, Scalar, Theta
from pyro_laplace.sparse.factor import SparseFactor, SparseIndefinite
from pyro_laplace.sparse.plan import SparsePlan
from pyro_laplace.sparse.symmetric import Symmetric
from pyro_laplace.structure.block import Block


class SparseBlock(Block):
    """Lambda by the entries of its lower triangle, and ``R = S^1/2 L' P D``.

    The factor is worked with on the processor, wherever the entries are.

    Attributes:
        row: of each entry.
        col: of each entry.
        value: of each entry.
        factor: of Lambda.
    """

    row: Tensor
    col: Tensor
    value: Tensor

    def __init__(self, entries: Symmetric, plan: SparsePlan | None = None) -> None:
        """Factorise a precision.

        Args:
            entries: Lambda.
            plan: of another precision with entries in the same places; found if it is not given.

        Raises:
            SparseIndefinite: if it is not positive definite.
        """
        super().__init__()
        self.factor = SparseFactor.of(entries.compressed(), plan)
        for name in ("row", "col", "value"):
            self.register_buffer(name, getattr(entries, name))

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.factor.size

    @property
    def entries(self) -> Symmetric:
        """Lambda."""
        return Symmetric(self.size, self.row, self.col, self.value)

    def flattest(self) -> float:
        """The least pivot of Lambda with unit diagonal."""
        return float(self.factor.pivots.min())

    def flat(self) -> SparseIndefinite:
        """What says that Lambda is positive definite by rounding alone."""
        return self.factor.along(int(self.factor.pivots.argmin()))

    def log_det(self) -> Scalar:
        """Of the factor."""
        return self.factor.log_det().to(self.value)

    def color(self, white: Draws) -> Draws:
        """R^-1 z."""
        return self._rows(self.factor.color, white)

    def whiten(self, deviation: Draws) -> Draws:
        """R d."""
        return self._rows(self.factor.whiten, deviation)

    def solve(self, vector: Tensor) -> Tensor:
        """Lambda^-1 v."""
        return self._rows(self.factor.solve, vector)

    def variance(self) -> Theta:
        """The diagonal of the selected inverse."""
        return self.factor.variance().to(self.value)

    def covariance_at(self, row: Tensor, col: Tensor) -> Tensor:
        """Entries of the selected inverse in places of its factor, and of solves elsewhere."""
        return self.factor.inverse_at(row, col).to(self.value)

    def to_dense(self) -> Matrix:
        """Lambda."""
        return self.entries.matrix()

    def push(self, rows: Tensor) -> Tensor:
        """R'^-1 j."""
        return self._rows(self.factor.push, rows)

    def _rows(self, operation: Any, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.size).detach().to("cpu", torch.float64)
        return operation(rows).reshape(x.shape).to(x)
