"""A sparse Hessian by its products with few vectors: which columns may share one, and where the entries then are.

Columns whose entries lie in different rows are told apart in one product (Curtis, Powell and Reid 1974, "On the
estimation of sparse Jacobian matrices"). A few columns with entries nearly everywhere (fixed effects) have a product
each, and give their rows by symmetry, so that they keep no others apart (Powell and Toint 1979).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_laplace.sparse.symmetric import Symmetric


@dataclass(frozen=True, eq=False)
class Compression:
    """Vectors d_c, and where the entries of H are in the products ``H d_c``.

    Attributes:
        size: number of coordinates.
        row: of each entry of the lower triangle [nnz].
        col: of each entry, at most its row [nnz].
        seeds: d_c, sums of unit vectors [c, size].
        product: in which product each entry is [nnz].
        place: at which coordinate of it [nnz].
    """

    size: int
    row: Tensor
    col: Tensor
    seeds: Tensor
    product: Tensor
    place: Tensor

    @staticmethod
    def of(pattern: Symmetric) -> "Compression":
        """The fewest vectors that were found for a pattern.

        Args:
            pattern: its entries are places that may be other than zero; the diagonal is added.

        Returns:
            the vectors.
        """
        diagonal = Symmetric.of_diagonal(torch.ones(pattern.size, dtype=torch.float64, device=pattern.value.device))
        pattern = Symmetric.total(
            [Symmetric(pattern.size, pattern.row, pattern.col, pattern.value.abs() + 1), diagonal]
        )
        matrix = pattern.compressed()
        degree = np.diff(matrix.indptr)
        colors = _fewest(matrix, [degree > most for most in _thresholds(degree)])
        alone = np.bincount(colors)[colors] == 1
        color, alone = torch.from_numpy(colors), torch.from_numpy(alone)
        row, col = pattern.row.cpu(), pattern.col.cpu()
        by_row = alone[row] & ~alone[col]
        product = torch.where(by_row, color[row], color[col])
        place = torch.where(by_row, col, row)
        seeds = torch.zeros(int(colors.max()) + 1, pattern.size, dtype=torch.float64)
        seeds[color, torch.arange(pattern.size)] = 1.0
        device = pattern.row.device
        return Compression(
            pattern.size, pattern.row, pattern.col, seeds.to(device), product.to(device), place.to(device)
        )

    def dominant(self) -> Symmetric:
        """A matrix of this pattern that is positive definite whatever order it is eliminated in: an M-matrix."""
        on = self.row == self.col
        ones = torch.ones(len(self.row), dtype=torch.float64, device=self.row.device)
        degree = torch.zeros(self.size, dtype=torch.float64, device=self.row.device)
        degree = degree.index_add(0, self.row[~on], ones[~on]).index_add(0, self.col[~on], ones[~on])
        return Symmetric(self.size, self.row, self.col, torch.where(on, degree[self.row] + 1, -ones))

    def entries(self, products: Tensor) -> Symmetric:
        """H of its products with the vectors [c, size]."""
        return Symmetric(self.size, self.row, self.col, products[self.product, self.place])

    def values(self, multiply: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """The entries of a matrix that has none elsewhere, with the graph of its products.

        Args:
            multiply: vectors v [v, size] to M v [v, size].
            like: of the dtype and on the device of the vectors.

        Returns:
            the entries [nnz].
        """
        return multiply(self.seeds.to(like))[self.product, self.place]

    def weights(self, values: Tensor) -> Tensor:
        """W [c, size] with ``sum_c w_c' H d_c = sum_ij V_ij H_ij``, of a symmetric V at the entries [nnz]."""
        both = torch.where(self.row == self.col, 1.0, 2.0).to(values)
        flat = torch.zeros(self.seeds.numel(), dtype=values.dtype, device=values.device)
        return flat.index_add(0, self.product * self.size + self.place, both * values).reshape(self.seeds.shape)


def _thresholds(degree: Any) -> list[float]:
    """Numbers of entries beyond which a column has a product of its own."""
    typical = float(np.median(degree))
    return [float("inf"), *(factor * typical + 1 for factor in (16.0, 4.0, 2.0, 1.0))]


def _fewest(matrix: Any, choices: list[Any]) -> Any:
    """The colors of the choice of columns by themselves that needs fewest."""
    best = None
    # at least as many as the longest row has columns
    bounds = [
        int(np.diff(matrix[~alone][:, ~alone].tocsr().indptr).max(initial=0)) + int(alone.sum()) for alone in choices
    ]
    for number in np.argsort(bounds, kind="stable"):
        if best is None or bounds[number] < best.max() + 1:
            found = _colored(matrix, choices[number])
            best = found if best is None or found.max() < best.max() else best
    return best


def _colored(matrix: Any, alone: Any) -> Any:
    """A color of each column: no two of one color have an entry in one row, but for rows of columns with their own."""
    import scipy.sparse

    size, others = len(alone), np.flatnonzero(~alone)
    colors = np.empty(size, dtype=np.int64)
    inside = scipy.sparse.csc_array(matrix[others][:, others])
    found = np.full(len(others), -1)
    most = 0
    taken: list[set[int]] = [set() for _ in range(len(others))]  # by row, the colors of columns with an entry there
    for column in range(len(others)):
        beside = inside.indices[inside.indptr[column] : inside.indptr[column + 1]]
        color = 0
        while any(color in taken[row] for row in beside):
            color += 1
        found[column] = color
        most = max(most, color + 1)
        for row in beside:
            taken[row].add(color)
    colors[others] = found
    colors[alone] = most + np.arange(int(alone.sum()))
    return colors
