"""The full curvature: the rows of a root while these are few, the matrix from then on.

With fewer rows than half of the coordinates, the posterior has its dual form, which is the same posterior.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature
from pyro_laplace._memory import refuse_too_large
from pyro_laplace._typing import Matrix, State
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.reading.columns import Columns
from pyro_laplace.reading.gram import Gram
from pyro_laplace.reading.prior import Prior
from pyro_laplace.reading.records import Factors
from pyro_laplace.settings import settings
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.dense import dense_posterior
from pyro_laplace.structure.dual import Dual
from pyro_laplace.structure.precision import Precision
from pyro_laplace.structure.rows import FewRows
from pyro_laplace.structure.smaller import smaller_than_dense
from pyro_laplace.structure.sum import Sum


class Full(Sum):
    """The dense curvature, as `rows` or as `gram`.

    Args:
        anchor: theta and its free coordinates.
        held: the rows, or the matrix.
        limit: rows up to which they are kept as such.
    """

    takes_positions: ClassVar[bool] = True

    def __init__(self, anchor: Anchor, held: FewRows | Gram, limit: int) -> None:
        self.anchor, self.held, self.limit = anchor, held, limit

    @classmethod
    def plan(cls, option: Any, anchor: Anchor, prior: Prior, exact: Sequence[str] = (), double: bool = False) -> "Full":
        """Half of the coordinates is where the dense form costs less; a small one costs nothing, a Hessian has no rows.

        Returns:
            the empty sum.
        """
        limit = min(anchor.size // 2, settings.block_bytes // (8 * max(1, anchor.size)))
        if exact or anchor.size <= settings.small:
            limit = 0
        return cls(anchor, FewRows(anchor.size, []) if limit else _empty(anchor), limit)

    def add(self, columns: Columns) -> None:
        """Add A'A by its rows, or a matrix."""
        rooted = columns.rooted()
        if rooted is None:
            self._add_matrix(columns.matrix())
            return
        for factors in rooted:
            self._add_rows([factors])

    def merge(self, other: "Full") -> None:
        """Rows below rows, or matrices."""
        if isinstance(other.held, FewRows):
            self._add_rows(other.held.pieces)
        else:
            self._add_matrix(other.held.matrix())

    @classmethod
    def weighted(cls, parts: Sequence[tuple["Full", float]]) -> "Full":
        """Rows times the roots of the factors, or matrices times the factors."""
        first = parts[0][0]
        total = cls(first.anchor, FewRows(first.anchor.size, []), min(part.limit for part, _ in parts))
        for part, factor in parts:
            if isinstance(part.held, FewRows):
                total._add_rows(part.held.scaled(factor).pieces)
            else:
                total._add_matrix(part.held.matrix() * factor)
        return total

    def state(self) -> State:
        """Rows as factors, or the matrix."""
        if isinstance(self.held, FewRows):
            return {"limit": self.limit, "rows": [piece.state() for piece in self.held.pieces]}
        return {"limit": self.limit, "matrix": self.held.matrix()}

    @classmethod
    def from_state(cls, state: State, anchor: Anchor) -> "Full":
        """What `state` gave."""
        if "rows" in state:
            return cls(
                anchor, FewRows(anchor.size, [Factors.from_state(each) for each in state["rows"]]), state["limit"]
            )
        gram = Gram(anchor.size, anchor.theta.device)
        gram.add_symmetric(state["matrix"])
        return cls(anchor, gram, state["limit"])

    def times(self, vectors: Tensor) -> Tensor:
        """``A'(A v)``, or the matrix times v."""
        return self.held.times(vectors)

    def posterior(self, prior: Prior) -> Block:
        """Dual where there are few rows and the prior whitens them, else dense.

        Returns:
            the block, or a block in another order of the coordinates.
        """
        if isinstance(self.held, FewRows) and self.held.pieces and prior.is_proper:
            scale = prior.diagonal.sqrt()
            try:
                return Dual(scale, *self.held.whitened(scale))
            except IndefiniteCurvature:  # rows that are not finite: the dense form says why
                pass
        gram = self.held if isinstance(self.held, Gram) else self._summed(self.held)
        return Precision([(gram.order, dense_posterior(gram.lower, gram.order, prior, self.anchor))])

    def _add_rows(self, pieces: Sequence[Factors]) -> None:
        if isinstance(self.held, FewRows):
            rows = FewRows(self.anchor.size, [*self.held.pieces, *pieces])
            most = max(self.anchor.size**2 // 4, settings.few_elements)
            self.held = rows if rows.num_rows <= self.limit and rows.elements <= most else self._summed(rows)
            return
        for piece in pieces:
            self.held.add(piece)

    def _add_matrix(self, matrix: Matrix) -> None:
        if isinstance(self.held, FewRows):
            self.held = self._summed(self.held)
        self.held.add_symmetric(matrix)

    def _summed(self, rows: FewRows) -> Gram:
        total = _empty(self.anchor)
        for piece in rows.pieces:
            total.add(piece)
        return total


def _empty(anchor: Anchor) -> Gram:
    size = anchor.size
    what = f"the dense curvature [{size}, {size}]"
    refuse_too_large(size**2, torch.float64.itemsize, what, lambda: smaller_than_dense(anchor))
    return Gram(size, anchor.theta.device)
