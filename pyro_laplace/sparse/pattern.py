"""The entries of a sparse symmetric matrix in known places, by products with as few vectors as these allow.

Columns that no row has in common are multiplied at once (Curtis, Powell, Reid 1974, "On the estimation of sparse
Jacobian matrices"). A column with many entries is multiplied by itself, and its row needs no look, as the matrix is
symmetric (Powell and Toint 1979, "On the estimation of sparse Hessian matrices"). The entries keep the products' graph.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace.settings import settings
from pyro_laplace.sparse.symmetric import Symmetric


@dataclass(frozen=True, eq=False)
class Pattern:
    """Places of a symmetric matrix of `size` coordinates, and how its entries are read off products.

    Attributes:
        size: number of coordinates.
        row: of each place [nnz].
        col: of each place, at most its row [nnz].
        color: of each column: those of one color are multiplied at once [size].
        of_row: in which row of a product each entry is read [nnz].
        of_color: of which color's product [nnz].
    """

    size: int
    row: Tensor
    col: Tensor
    color: Tensor
    of_row: Tensor
    of_color: Tensor

    @staticmethod
    def of(matrix: Symmetric) -> "Pattern":
        """The places of a matrix's entries."""
        size, row, col = matrix.size, matrix.row, matrix.col
        count = torch.bincount(torch.cat([row, col]), minlength=size)
        many = count > settings.recovery_columns
        color = torch.tensor(_hued(size, row.tolist(), col.tolist(), many.tolist()), device=row.device)
        flipped = many[row] & ~many[col]  # the product with the row's own column shows it
        of_row, of_col = torch.where(flipped, col, row), torch.where(flipped, row, col)
        return Pattern(size, row, col, color, of_row, color[of_col])

    def values(self, multiply: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """The entries of a matrix that has none elsewhere.

        Args:
            multiply: vectors v [v, size] to M v [v, size].
            like: of the dtype and on the device of the vectors.

        Returns:
            the entries [nnz].
        """
        colors = int(self.color.max()) + 1 if self.size else 0
        every = torch.arange(self.size, device=self.color.device)
        vectors = like.new_zeros(colors, self.size).index_put((self.color, every), like.new_ones(()))
        return multiply(vectors)[self.of_color, self.of_row]


def _hued(size: int, row: list[int], col: list[int], many: list[bool]) -> list[int]:
    """A color for each column: no row but those of the columns with many entries meets one twice."""
    rows: list[list[int]] = [[] for _ in range(size)]
    for one, other in zip(row, col, strict=True):
        rows[other].append(one)
        if one != other:
            rows[one].append(other)
    color, seen = [-1] * size, [set[int]() for _ in range(size)]
    alone = sum(many)
    for number, column in enumerate(place for place in range(size) if many[place]):
        color[column] = number
    for column in (place for place in range(size) if not many[place]):
        meets = [each for each in rows[column] if not many[each]]
        taken = set[int]().union(*(seen[each] for each in meets))
        chosen = alone
        while chosen in taken:
            chosen += 1
        color[column] = chosen
        for each in meets:
            seen[each].add(chosen)
    return color
