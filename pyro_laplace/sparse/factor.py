"""The factorisation of a sparse symmetric positive definite matrix, by SuperLU.

``Lambda = D C D`` with C of unit diagonal, and ``P C P' = L S L'`` for an order P of little fill, L with unit diagonal
and S diagonal. The root is ``R = S^1/2 L' P D``.

The entries of ``Z = Lambda^-1`` in the places of L and L' are had without the others (Takahashi, Fagan, Chen 1973,
"Formation of a sparse bus impedance matrix and its application to short circuit study"; Rue and Martino 2007). By
blocks of columns, with S their rows and R the rows beneath, ``Y = L_RS L_SS^-1``:

    Z_RS = -Z_RR Y,    Z_SS = L_SS'^-1 S^-1 L_SS^-1 - Y' Z_RS

from the last block to the first, where ``Z_RR`` is a part of what the parent in the tree of blocks has.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature
from pyro_laplace._typing import Draws, Scalar, Theta
from pyro_laplace.settings import settings
from pyro_laplace.sparse.plan import SparseMatrix, SparsePlan, Supernodes, superlu


class SparseIndefinite(IndefiniteCurvature):
    """A sparse matrix is not positive definite.

    Attributes:
        shares: of a direction x with ``x' C x <= 0``, squared entries that sum to 1 [n]; nan if Lambda is not finite.
        value: about the curvature ``x' C x / x'x``.
    """

    def __init__(self, shares: Tensor, value: float) -> None:
        """Say so.

        Args:
            shares: of the direction.
            value: its curvature.
        """
        super().__init__("the posterior precision is not positive definite")
        self.shares, self.value = shares, value


@dataclass(frozen=True, eq=False)
class SparseFactor:
    """A symmetric positive definite matrix Lambda [n, n] by its factor. All tensors are float64, on the processor.

    Attributes:
        plan: order and blocks.
        scale: D [n], by coordinate.
        lower: L, scipy's compressed columns.
        pivots: S [n], by row of L.
    """

    plan: SparsePlan
    scale: Tensor
    lower: SparseMatrix
    pivots: Tensor

    @staticmethod
    def of(matrix: SparseMatrix, plan: SparsePlan | None = None) -> "SparseFactor":
        """Factorise a matrix.

        Args:
            matrix: symmetric, a scipy sparse matrix in float64 [n, n], both triangles stored.
            plan: of another matrix, whose entries cover this one's; found if it is not given.

        Returns:
            the factor.

        Raises:
            SparseIndefinite: if the matrix is not positive definite, or not finite.
        """
        import scipy.sparse  # takes a quarter of a second to load

        matrix = scipy.sparse.csc_array(matrix)
        diagonal = matrix.diagonal()
        if not np.isfinite(matrix.data).all():
            raise SparseIndefinite(torch.full((len(diagonal),), torch.nan, dtype=torch.float64), torch.nan)
        if not (diagonal > 0).all():
            worst = torch.from_numpy(diagonal <= 0).double()
            raise SparseIndefinite(worst / worst.sum(), float(np.sign(diagonal.min())))
        plan = SparsePlan.of(matrix) if plan is None else plan
        scale = np.sqrt(diagonal)
        inverse = scipy.sparse.diags_array(1 / scale)
        ordered = (inverse @ matrix @ inverse).tocsc()[plan.order][:, plan.order]
        lower, pivots = _factors_of(ordered)
        factor = SparseFactor(plan, torch.from_numpy(scale), lower, torch.from_numpy(pivots))
        if not (pivots > 0).all():
            raise factor.along(int((~(factor.pivots > 0)).nonzero()[0, 0]))
        return factor

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.scale)

    def log_det(self) -> Scalar:
        """``sum log S + 2 sum log D``."""
        return self.pivots.log().sum() + 2 * self.scale.log().sum()

    def solve(self, vectors: Tensor) -> Tensor:
        """Lambda^-1 v for vectors v [v, n]."""
        return self._back(self._forward(vectors) / self.pivots)

    def push(self, rows: Tensor) -> Tensor:
        """R'^-1 j for rows j [v, n], whose products are those of ``J Lambda^-1 J'``."""
        return self._forward(rows) / self.pivots.sqrt()

    def color(self, white: Draws) -> Draws:
        """White noise z [draws, n] to R^-1 z, which has covariance Lambda^-1."""
        return self._back(white.to(self.pivots) / self.pivots.sqrt())

    def whiten(self, deviation: Draws) -> Draws:
        """The inverse of `color`: R d for deviations d [draws, n]."""
        scaled = (deviation.to(self.scale) * self.scale)[:, self._order]
        return torch.from_numpy((self.lower.T @ scaled.numpy().T).T.copy()) * self.pivots.sqrt()

    def variance(self) -> Theta:
        """The diagonal of Lambda^-1 [n]."""
        diagonal = self.plan.places[self.plan.indptr[:-1]]
        return torch.empty_like(self.scale).index_copy(0, self._order, self._blocks()[diagonal]) / self.scale.square()

    def inverse(self) -> SparseMatrix:
        """The entries of Lambda^-1 in the places of L and L', and so in those of Lambda.

        Returns:
            a symmetric scipy matrix in compressed columns [n, n]; what it doesn't store is not zero, but was not asked.
        """
        import scipy.sparse

        plan, size = self.plan, self.size
        values = self._blocks()[plan.places].numpy()
        row, col = plan.order[plan.indices], plan.order[np.repeat(np.arange(size), np.diff(plan.indptr))]
        values = values / (self.scale.numpy()[row] * self.scale.numpy()[col])
        beside = row != col
        both = np.concatenate([row, col[beside]]), np.concatenate([col, row[beside]])
        return scipy.sparse.csc_array((np.concatenate([values, values[beside]]), both), (size, size))

    def inverse_at(self, row: Tensor, col: Tensor) -> Tensor:
        """Entries of Lambda^-1: of places of L and L', such as those where Lambda has entries, or else by solves.

        Args:
            row: coordinate of each entry [entries].
            col: coordinate of each entry [entries].

        Returns:
            the entries.
        """
        row, col = row.cpu(), col.cpu()
        number = torch.empty_like(self._order).index_copy(0, self._order, torch.arange(self.size))
        lower, upper = torch.maximum(number[row], number[col]), torch.minimum(number[row], number[col])
        entry = torch.from_numpy(self.plan.entries_at(lower.numpy(), upper.numpy()))
        places = torch.from_numpy(self.plan.places)[entry.clamp(min=0)]
        values = self._blocks()[places] / (self.scale[row] * self.scale[col])
        missing = entry < 0
        if bool(missing.any()):
            values[missing] = self._solved_at(row[missing], col[missing])
        return values

    def matrix(self) -> SparseMatrix:
        """Lambda, scipy's compressed columns."""
        import scipy.sparse

        back = np.argsort(self.plan.order)
        product = self.lower @ scipy.sparse.diags_array(self.pivots.numpy()) @ self.lower.T
        scale = scipy.sparse.diags_array(self.scale.numpy())
        return (scale @ product.tocsc()[back][:, back] @ scale).tocsc()

    @property
    def _order(self) -> Tensor:
        return torch.from_numpy(self.plan.order)

    def _forward(self, vectors: Tensor) -> Tensor:
        """``L^-1 P D^-1 v``, rows [v, n]."""
        return self._triangular(self.lower.tocsr(), (vectors.to(self.scale) / self.scale)[:, self._order], True)

    def _back(self, rows: Tensor) -> Tensor:
        """``D^-1 P' L'^-1 z`` of rows [v, n]."""
        solved = self._triangular(self.lower.T, rows, False)
        return torch.empty_like(solved).index_copy(1, self._order, solved) / self.scale

    def _triangular(self, triangle: SparseMatrix, rows: Tensor, lower: bool) -> Tensor:
        from scipy.sparse.linalg import spsolve_triangular

        solved = spsolve_triangular(triangle, rows.numpy().T, lower=lower, unit_diagonal=True)
        return torch.from_numpy(np.ascontiguousarray(solved.T))

    def along(self, pivot: int) -> SparseIndefinite:
        """What a pivot says that is not positive, or positive by rounding: it is the curvature along ``L'^-1 e``.

        Args:
            pivot: its row of L.

        Returns:
            the direction with its curvature, to be raised.
        """
        unit = torch.zeros(1, self.size, dtype=torch.float64)
        unit[0, pivot] = 1.0
        direction = (self._back(unit) * self.scale)[0].square()
        total = direction.sum()
        return SparseIndefinite(direction / total, float(self.pivots[pivot] / total))

    def _solved_at(self, row: Tensor, col: Tensor) -> Tensor:
        """Entries of Lambda^-1 by the columns that they lie in, some after the other."""
        columns, where = col.unique(return_inverse=True)
        found = torch.empty(len(row), dtype=torch.float64)
        step = max(1, settings.row_elements // self.size)
        for start in range(0, len(columns), step):
            some = columns[start : start + step]
            unit = torch.zeros(len(some), self.size, dtype=torch.float64).scatter_(1, some.unsqueeze(1), 1.0)
            own = (where >= start) & (where < start + step)
            found[own] = self.solve(unit)[where[own] - start, row[own]]
        return found

    def _blocks(self) -> Tensor:
        """The inverse of ``L S L'``, block by block."""
        plan = self.plan
        values = torch.zeros(plan.block_elements, dtype=torch.float64)
        values[plan.places[plan.entries(self.lower)]] = torch.from_numpy(self.lower.data)
        found, fronts = torch.zeros_like(values), torch.zeros(plan.front_elements, dtype=torch.float64)
        for some in plan.supernodes:
            for part in some.parts():
                self._add_inverse(part, values, found, fronts)
        return found

    def _add_inverse(self, some: Supernodes, lower: Tensor, found: Tensor, fronts: Tensor) -> None:
        """That of some blocks, whose parents have theirs."""
        cols, height = some.cols, some.cols + some.below
        columns = torch.arange(cols)
        where = torch.from_numpy(some.block)[:, None, None] + torch.arange(height)[:, None] * cols + columns
        pivots = self.pivots[torch.from_numpy(some.start)[:, None] + columns].unsqueeze(2)
        block = lower[where]
        if cols > 1:
            top = torch.linalg.solve_triangular(
                block[:, :cols], torch.eye(cols, dtype=torch.float64), upper=False, unitriangular=True
            )
            y = block[:, cols:] @ top
            own = top.mT @ (top / pivots)
        else:
            y, own = block[:, 1:], pivots.reciprocal()
        places = torch.from_numpy(some.places)
        within = torch.from_numpy(some.parent_width)[:, None, None] * places.unsqueeze(2) + places.unsqueeze(1)
        beneath = fronts[torch.from_numpy(some.parent_front)[:, None, None] + within]
        beside = -beneath @ y
        own = own - y.mT @ beside
        found[where] = torch.cat([own, beside], 1)
        if some.front is not None:
            rows = torch.cat([torch.cat([own, beside.mT], 2), torch.cat([beside, beneath], 2)], 1)
            fronts[torch.from_numpy(some.front)[:, None] + torch.arange(height**2)] = rows.flatten(1)


def _factors_of(ordered: SparseMatrix) -> tuple[SparseMatrix, Any]:
    """L and the diagonal of S of a matrix of unit diagonal.

    SuperLU leaves the diagonal where a pivot is exactly zero. A matrix that has such a pivot is not positive definite,
    and has a negative one a rounding error away.

    Returns:
        L in compressed columns, and the pivots [n].

    Raises:
        SparseIndefinite: if no rounding error helps, without a direction.
    """
    import scipy.sparse

    size = ordered.shape[0]
    nudge = settings.flat_pivot * size * np.finfo(np.float64).eps
    for shift in (0.0, nudge, 2 * nudge):
        try:
            factors = superlu(ordered - shift * scipy.sparse.eye_array(size) if shift else ordered)
        except RuntimeError:  # "Factor is exactly singular"
            continue
        if np.array_equal(factors.perm_r, np.arange(size)):
            lower = factors.L
            lower.sort_indices()
            return lower, factors.U.diagonal()
    raise SparseIndefinite(torch.full((size,), 1 / size, dtype=torch.float64), 0.0)
