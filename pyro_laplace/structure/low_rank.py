"""The leading eigenpairs of a curvature, by a randomised sketch that takes one pass over the data.

What is kept is ``Y = H T`` for a test matrix T of `rank` + `settings.oversampling` columns: a sum over data like any
other. Of a positive semi-definite H, Nystroem's approximation ``Y (T'Y)^+ Y'`` is exact as soon as the columns reach
its rank (Halko et al. 2011, "Finding structure with randomness"; Tropp et al. 2017, "Fixed-rank approximation of a
positive-semidefinite matrix from streaming data"). A prior whitens it afterwards: no other pass for another prior. A
further pass, with T the range that the last one found, is a step of power iteration.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature, LaplaceError, UnsupportedProgram
from pyro_laplace._typing import State, Theta
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.reading.columns import Columns
from pyro_laplace.reading.prior import Prior
from pyro_laplace.settings import settings
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.explain import advise
from pyro_laplace.structure.low_rank_block import LowRankBlock
from pyro_laplace.structure.options import LowRank
from pyro_laplace.structure.sum import Sum


class LowRankSum(Sum):
    """The sketch; of few coordinates the matrix itself.

    Args:
        anchor: theta and its free coordinates.
        option: rank and passes.
        test: T [params, columns], in float64; None where ``T = I`` and the sketch is H.
        sketch: Y [params, columns], in float64.
        rooted: whether H is positive semi-definite.
    """

    def __init__(self, anchor: Anchor, option: LowRank, test: Tensor | None, sketch: Tensor, rooted: bool) -> None:
        self.anchor, self.option, self.test, self.sketch, self.rooted = anchor, option, test, sketch, rooted
        self._passes = 1

    @classmethod
    def plan(
        cls, option: Any, anchor: Anchor, prior: Prior, exact: Sequence[str] = (), double: bool = False
    ) -> "LowRankSum":
        """A prior that whitens; the test matrix has the prior's scale, so that the sketch sees what data add to it.

        Returns:
            the empty sum.

        Raises:
            UnsupportedProgram: if the prior's precision is not a positive diagonal, naming the sites.
        """
        _refuse_prior(option, anchor, prior)
        size, device = anchor.size, anchor.theta.device
        columns = option.rank + settings.oversampling
        if size <= max(4 * option.rank, settings.small, columns):
            return cls(anchor, option, None, torch.zeros(size, size, dtype=torch.float64, device=device), not exact)
        generator = torch.Generator().manual_seed(0)
        test = torch.randn(size, columns, generator=generator, dtype=torch.float64).to(device)
        test = test / prior.diagonal.sqrt().unsqueeze(1)
        return cls(anchor, option, test, torch.zeros_like(test), not exact)

    def add(self, columns: Columns) -> None:
        """Add ``A'(A T)``."""
        self.sketch += columns.matrix() if self.test is None else columns.times(self.test.mT).mT

    def refine(self) -> bool:
        """The range that was found is the next pass's test matrix, as long as `option.passes` asks for one."""
        if self.test is None or self._passes >= self.option.passes:
            return False
        scale = self.test.norm(dim=1, keepdim=True)  # about the prior's standard deviations
        basis = torch.linalg.qr(self.sketch * scale).Q
        self.test, self.sketch = basis * scale, torch.zeros_like(self.sketch)
        self._passes += 1
        return True

    def merge(self, other: "LowRankSum") -> None:
        """Sketches by one test matrix add up.

        Args:
            other: the sum over other data.

        Raises:
            LaplaceError: if its test matrix is another, which the data of earlier passes or another prior chose.
        """
        if not _same_test(self.test, other.test):
            raise LaplaceError(
                f"{self.option}: the sketches of these data were made by different test matrices and do not add up: "
                + (
                    "the data of the earlier passes chose them. Fit all data jointly, or give passes=1"
                    if self.option.passes > 1
                    else "they have the scale of the prior, and the priors differ. Fit all data jointly, or both under "
                    "one prior, and give the other to posterior(prior)"
                )
            )
        self.sketch = self.sketch + other.sketch

    @classmethod
    def weighted(cls, parts: Sequence[tuple["LowRankSum", float]]) -> "LowRankSum":
        """Sketches of several terms by one test matrix."""
        first = parts[0][0]
        sketch = torch.stack([part.sketch * factor for part, factor in parts]).sum(0)
        return cls(first.anchor, first.option, first.test, sketch, all(part.rooted for part, _ in parts))

    def state(self) -> State:
        """The test matrix and the sketch."""
        option = {"rank": self.option.rank, "passes": self.option.passes}
        return {**option, "test": self.test, "sketch": self.sketch, "rooted": self.rooted}

    @classmethod
    def from_state(cls, state: State, anchor: Anchor) -> "LowRankSum":
        """What `state` gave."""
        option = LowRank(state["rank"], state["passes"])
        return cls(anchor, option, state["test"], state["sketch"].clone(), state["rooted"])

    def times(self, vectors: Tensor) -> Tensor:
        """``Y (T'Y)^+ Y'v``."""
        v = vectors.to(self.sketch)
        if self.test is None:
            return v @ self.sketch
        values, vectors_of = self._pairs(torch.ones_like(v[0]))
        return ((v @ vectors_of) * values) @ vectors_of.mT

    def posterior(self, prior: Prior) -> Block:
        """The prior, and the leading eigenpairs of the curvature that it whitens.

        Args:
            prior: a positive diagonal.

        Returns:
            the block.

        Raises:
            IndefiniteCurvature: if the point is no maximum in some direction, naming the sites that form it.
        """
        _refuse_prior(self.option, self.anchor, prior)
        values, vectors = self._pairs(prior.diagonal.sqrt())
        leading = values.abs().argsort(descending=True)[: self.option.rank]
        values, vectors = values[leading], vectors[:, leading]
        if self.rooted:
            values = values.clamp(min=0)  # what is negative is rounding
        if not bool((values > -1).all()):
            direction = vectors[:, values.argmin()].square()
            raise IndefiniteCurvature(advise(direction, float(1 + values.min()), self.anchor))
        return LowRankBlock(prior.diagonal, vectors, values)

    def _pairs(self, scale: Theta) -> tuple[Tensor, Tensor]:
        """Eigenvalues and orthonormal eigenvectors of ``D^-1 H D^-1``, with D the scale, as far as the sketch goes."""
        if self.test is None:
            return torch.linalg.eigh(self.sketch / scale / scale.unsqueeze(1))
        whitened = self.sketch / scale.unsqueeze(1)
        return self._semidefinite(whitened) if self.rooted else self._indefinite(whitened, scale)

    def _semidefinite(self, whitened: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``B B'`` with ``B = D^-1 Y (T'Y)^-1/2``."""
        assert self.test is not None
        core = self.test.mT @ self.sketch
        weights, basis = torch.linalg.eigh((core + core.mT) / 2)
        rounding = len(weights) * torch.finfo(self.anchor.theta.dtype).eps * float(weights.abs().max())
        kept = weights > rounding
        if not bool(kept.any()):  # the data say nothing
            return whitened.new_zeros(0), whitened[:, :0]
        root = whitened @ (basis[:, kept] / weights[kept].sqrt())
        values, vectors = torch.linalg.eigh(root.mT @ root)
        kept = values > len(values) * torch.finfo(values.dtype).eps * values.max()
        return values[kept], root @ (vectors[:, kept] / values[kept].sqrt())

    def _indefinite(self, whitened: Tensor, scale: Theta) -> tuple[Tensor, Tensor]:
        """Of ``Q X Q'`` with Q the sketch's range and X the least-squares solution of ``X Q'D T = Q'D^-1 Y``."""
        assert self.test is not None
        basis = torch.linalg.qr(whitened).Q
        given, found = basis.mT @ (self.test * scale.unsqueeze(1)), basis.mT @ whitened
        core = found @ torch.linalg.pinv(given)
        values, vectors = torch.linalg.eigh((core + core.mT) / 2)
        return values, basis @ vectors


def _same_test(test: Tensor | None, other: Tensor | None) -> bool:
    if test is None or other is None:
        return test is other
    return torch.equal(test, other.to(test))


def _refuse_prior(option: LowRank, anchor: Anchor, prior: Prior) -> None:
    coupled = ~(prior.diagonal > 0) if prior.is_diagonal else prior.coupled
    if bool(coupled.any()):
        names = anchor.names_of(coupled.nonzero()[:, 0])
        raise UnsupportedProgram(
            f"structure=LowRank({option.rank}) needs a diagonal prior precision, and positive: that of sites {names} "
            f"{'is not positive' if prior.is_diagonal else 'couples their coordinates'}. Use 'full' for them, by a "
            "mapping {site glob: structure}"
        )
