"""The curvature of a program whose data and priors couple few coordinates each, by its entries."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature, UnsupportedProgram
from pyro_laplace._typing import State
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.reading.columns import Columns
from pyro_laplace.reading.prior import Prior
from pyro_laplace.settings import settings
from pyro_laplace.sparse.factor import SparseIndefinite
from pyro_laplace.sparse.rows import NotSparse
from pyro_laplace.sparse.symmetric import Symmetric
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.dense import dense_posterior
from pyro_laplace.structure.explain import advise, explain_diagonal
from pyro_laplace.structure.sparse_block import SparseBlock
from pyro_laplace.structure.sum import Sum


class SparseSum(Sum):
    """The entries of H.

    Args:
        anchor: theta and its free coordinates.
        total: H.
    """

    searches: ClassVar[bool] = True

    def __init__(self, anchor: Anchor, total: Symmetric) -> None:
        self.anchor, self.total = anchor, total

    @classmethod
    def plan(
        cls, option: Any, anchor: Anchor, prior: Prior, exact: Sequence[str] = (), double: bool = False
    ) -> "SparseSum":
        """It holds any program whose curvature turns out to be sparse."""
        return cls(anchor, Symmetric.zeros(anchor.size, anchor.theta.device))

    def add(self, columns: Columns) -> None:
        """Add A'A, or a Hessian, by its entries.

        Args:
            columns: of a chunk.

        Raises:
            UnsupportedProgram: if the data couple many coordinates with many others, naming the sites.
        """
        try:
            self.total = Symmetric.total([self.total, columns.symmetric()])
        except NotSparse as error:
            raise UnsupportedProgram(_dense(self.anchor, error.places, "data couple")) from None
        _refuse_dense(self.anchor, self.total)

    def merge(self, other: "SparseSum") -> None:
        """Entries add up."""
        self.total = Symmetric.total([self.total, other.total])

    @classmethod
    def weighted(cls, parts: Sequence[tuple["SparseSum", float]]) -> "SparseSum":
        """``sum_t f_t H_t``."""
        return cls(parts[0][0].anchor, Symmetric.total([part.total * factor for part, factor in parts]))

    def state(self) -> State:
        """The entries."""
        return {"total": self.total.state()}

    @classmethod
    def from_state(cls, state: State, anchor: Anchor) -> "SparseSum":
        """What `state` gave."""
        return cls(anchor, Symmetric.from_state(state["total"]))

    def times(self, vectors: Tensor) -> Tensor:
        """``H v``."""
        return self.total.times(vectors)

    def posterior(self, prior: Prior) -> Block:
        """``H + H_prior`` by a sparse factor.

        Args:
            prior: any that is sparse.

        Returns:
            the block.

        Raises:
            UnsupportedProgram: if the prior couples many coordinates with many others, naming the sites.
        """
        try:
            of_prior = prior.symmetric()
        except NotSparse as error:
            places = prior.rest.index[error.places]
            raise UnsupportedProgram(_dense(self.anchor, places, "log prior couples")) from None
        total = Symmetric.total([self.total, of_prior])
        _refuse_dense(self.anchor, total)
        try:
            block = SparseBlock(total)
            if block.flattest() < settings.flat_pivot * block.size * self._eps:
                raise block.flat()
        except SparseIndefinite as error:
            return self._without_convex(total, prior, error)
        return block

    def _without_convex(self, total: Symmetric, prior: Prior, error: SparseIndefinite) -> Block:
        """Without the directions in which the log prior is convex, where the likelihood's part is not to blame."""
        if self.anchor.curvature == "hessian" or self.anchor.size > settings.projected_coordinates:
            raise IndefiniteCurvature(_explain(error, self.anchor))
        every = torch.arange(self.anchor.size, device=total.value.device)
        return dense_posterior(self.total.matrix().contiguous(), every, prior, self.anchor)

    @property
    def _eps(self) -> float:
        """Rounding of the entries: a Hessian is made in the sites' own dtype, sums of a root in float64."""
        exact = self.anchor.curvature == "hessian"
        return torch.finfo(self.anchor.theta.dtype if exact else torch.float64).eps


def _explain(error: SparseIndefinite, anchor: Anchor) -> str:
    if not bool(error.shares.isfinite().all()):
        return explain_diagonal(error.shares, anchor)
    return advise(error.shares.to(anchor.index.device), error.value, anchor)


def _refuse_dense(anchor: Anchor, total: Symmetric) -> None:
    share = total.entries / max(1, anchor.size) ** 2
    if anchor.size > settings.small and share > settings.sparse_share:
        raise UnsupportedProgram(
            f"structure='sparse': {share:.0%} of the curvature [{anchor.size}, {anchor.size}] of sites "
            f"{list(anchor.touched)} are not zero: {_INSTEAD}"
        )


def _dense(anchor: Anchor, places: Tensor, what: str) -> str:
    return (
        f"structure='sparse': the {what} {len(places)} coordinates of sites {anchor.names_of(places)} with many others:"
        f" {_INSTEAD}"
    )


_INSTEAD = "use structure='full', or, of many weights of a network, 'kron', 'diag' or LowRank"
