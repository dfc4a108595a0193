"""A sparse symmetric matrix over the free coordinates, by the entries of its lower triangle."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._typing import Matrix, State, Theta


@dataclass(frozen=True, eq=False)
class Symmetric:
    """The entries that may be other than zero.

    Attributes:
        size: number of coordinates.
        row: of each entry [nnz].
        col: of each entry, at most its row [nnz]; no place is there twice, and they ascend by rows.
        value: of each entry, in float64 [nnz].
    """

    size: int
    row: Tensor
    col: Tensor
    value: Tensor

    @staticmethod
    def of(size: int, row: Tensor, col: Tensor, value: Tensor) -> "Symmetric":
        """Entries of the lower triangle, in any order; those of one place add up.

        Args:
            size: number of coordinates.
            row: of each entry.
            col: of each entry, at most its row.
            value: of each entry.

        Returns:
            the matrix.
        """
        keys, inverse = (row * size + col).unique(return_inverse=True)
        total = torch.zeros(len(keys), dtype=torch.float64, device=value.device)
        return Symmetric(size, keys // max(1, size), keys % max(1, size), total.index_add(0, inverse, value.double()))

    @staticmethod
    def zeros(size: int, device: torch.device) -> "Symmetric":
        """The zero matrix."""
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        return Symmetric(size, nothing, nothing, torch.zeros(0, dtype=torch.float64, device=device))

    @staticmethod
    def of_diagonal(diagonal: Theta) -> "Symmetric":
        """A diagonal [params]."""
        every = torch.arange(len(diagonal), device=diagonal.device)
        return Symmetric(len(diagonal), every, every, diagonal.double())

    @staticmethod
    def of_dense(matrix: Matrix) -> "Symmetric":
        """The lower triangle of a dense matrix [params, params], but for its zeros."""
        row, col = matrix.tril().nonzero(as_tuple=True)
        return Symmetric(len(matrix), row, col, matrix[row, col].double())

    @staticmethod
    def total(parts: Sequence["Symmetric"]) -> "Symmetric":
        """The sum of some matrices of one size, one at least."""
        row, col, value = (torch.cat([getattr(part, name) for part in parts]) for name in ("row", "col", "value"))
        return Symmetric.of(parts[0].size, row, col, value)

    def __mul__(self, factor: float) -> "Symmetric":
        """The matrix times a number."""
        return Symmetric(self.size, self.row, self.col, self.value * factor)

    @property
    def diagonal(self) -> Theta:
        """Its diagonal [params]."""
        on = self.row == self.col
        return torch.zeros(self.size, dtype=torch.float64, device=self.value.device).index_add(
            0, self.row[on], self.value[on]
        )

    @property
    def entries(self) -> int:
        """How many entries it has, both triangles counted."""
        return 2 * len(self.value) - int((self.row == self.col).sum())

    @property
    def coupled(self) -> Tensor:
        """Which coordinates have entries beside the diagonal [params]."""
        beside = (self.row != self.col) & (self.value != 0)
        coupled = torch.zeros(self.size, dtype=torch.bool, device=self.value.device)
        coupled[self.row[beside]] = True
        coupled[self.col[beside]] = True
        return coupled

    def times(self, vectors: Tensor) -> Tensor:
        """Its products with vectors v [v, params], in float64."""
        v, beside = vectors.double(), self.row != self.col
        total = torch.zeros_like(v).index_add_(1, self.row, v[:, self.col] * self.value)
        row, col = self.row[beside], self.col[beside]
        return total.index_add_(1, col, v[:, row] * self.value[beside])

    def moved(self, places: Tensor, size: int) -> "Symmetric":
        """The same with the coordinate i now at ``places[i]`` of so many; -1 for one that is left out."""
        row, col = places[self.row], places[self.col]
        kept = (row >= 0) & (col >= 0)
        row, col = row[kept], col[kept]
        return Symmetric.of(size, torch.maximum(row, col), torch.minimum(row, col), self.value[kept])

    def matrix(self) -> Matrix:
        """All of it, dense [params, params]."""
        dense = torch.zeros(self.size, self.size, dtype=torch.float64, device=self.value.device)
        dense[self.row, self.col] = self.value
        dense[self.col, self.row] = self.value
        return dense

    def compressed(self) -> Any:
        """All of it, both triangles, as scipy's compressed columns, on the processor."""
        import scipy.sparse  # takes a quarter of a second to load

        beside = self.row != self.col
        row, col = torch.cat([self.row, self.col[beside]]), torch.cat([self.col, self.row[beside]])
        value = torch.cat([self.value, self.value[beside]])
        both = row.cpu().numpy(), col.cpu().numpy()
        return scipy.sparse.csc_array((value.detach().cpu().numpy(), both), (self.size, self.size))

    def state(self) -> State:
        """As plain tensors and a number."""
        return {"size": self.size, "row": self.row, "col": self.col, "value": self.value}

    @staticmethod
    def from_state(state: State) -> "Symmetric":
        """What `state` gave."""
        return Symmetric(**state)
