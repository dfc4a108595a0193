"""The likelihood's sum over data as a value: what a posterior is made of, whatever its prior."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._errors import InvalidOption
from pyro_laplace._typing import State, Terms, Theta
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.reading.prior import Prior
from pyro_laplace.structure.precision import Precision
from pyro_laplace.structure.statistics import TermStatistics
from pyro_laplace.structure.sum import SumOverData


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The quadratic model of the log likelihood at a point.

    Attributes:
        log_lik: ``l + g'd - d'H d / 2`` at a deviation d from the anchor, in nats.
        gradient: ``g - H d`` over the free coordinates [params], in float64.
    """

    log_lik: float
    gradient: Theta


@dataclass(frozen=True, eq=False)
class LikelihoodSum:
    """The curvature of the log likelihood, summed over data, with its value and gradient at the anchor.

    Attributes:
        anchor: theta, the free coordinates and the curvature that it was measured with.
        structure: of the sums, as the user gave it.
        sums: one for each likelihood term that has a root, and one for all that have their exact Hessian.
        statistics: by term.
        gradient: of the log likelihood over the free coordinates [params], in float64.
        num_data: how many data were visited: elements of the first axis of the data's plate.
        double: whether everything was added up in float64, also what the sites' dtype would have done for.
    """

    anchor: Anchor
    structure: Any
    sums: Mapping[Terms, SumOverData]
    statistics: Mapping[str, TermStatistics]
    gradient: Theta
    num_data: int
    double: bool = False

    @property
    def log_lik(self) -> float:
        """Log p(y | theta) at the anchor, in nats."""
        return sum((each.log_lik for each in self.statistics.values()), 0.0)

    def posterior(self, prior: Prior, factors: Mapping[str, float] | None = None) -> Precision:
        """The posterior precision under a prior, without the data.

        Args:
            prior: its curvature at the anchor.
            factors: by likelihood term, what its curvature is multiplied by; 1 where it has none. Terms that are summed
                together have one.

        Returns:
            ``sum_t f_t H_t + H_prior``.

        Raises:
            NeedsDouble: if the sums are too coarse for this prior.
            IndefiniteCurvature: if the point is no maximum in some direction.
            InvalidOption: for a factor of a term that there is not, or that is negative or not finite.
        """
        factors = factors or {}
        unknown = sorted(factors.keys() - self.statistics.keys())
        if unknown:
            raise InvalidOption(f"factors: the terms {unknown} are none of {list(self.statistics)}")
        bad = {name: factor for name, factor in factors.items() if not 0 <= factor < math.inf}
        if bad:
            raise InvalidOption(f"factors={bad}: give finite numbers that are not negative")
        parts = [(each, self._factor(terms, factors)) for terms, each in self.sums.items()]
        first = parts[0][0]
        total = first if len(parts) == 1 and parts[0][1] == 1.0 else type(first).weighted(parts)
        return Precision.of(total.posterior(prior), self.anchor.theta.dtype)

    def times(self, vectors: Tensor) -> Tensor:
        """H v of vectors v [v, params]."""
        return torch.stack([each.times(vectors) for each in self.sums.values()]).sum(0)

    def at(self, theta: Theta) -> Quadratic:
        """The log likelihood elsewhere, as far as a quadratic goes.

        Args:
            theta: another point, whose coordinates that are not free are the anchor's.

        Returns:
            value and gradient there.
        """
        deviation = (theta[self.anchor.index] - self.anchor.free).double()
        product = self.times(deviation.unsqueeze(0))[0]
        log_lik = self.log_lik + float(deviation @ (self.gradient - product / 2))
        return Quadratic(log_lik, self.gradient - product)

    def merged(self, other: "LikelihoodSum") -> "LikelihoodSum":
        """The sum over both data; neither is changed.

        Args:
            other: the sum over other data, at the same anchor.

        Returns:
            the sum.

        Raises:
            InvalidOption: if it was measured elsewhere, or in another structure.
        """
        difference = self.anchor.differs_from(other.anchor)
        if not difference and not _same_structure(self.structure, other.structure):
            difference = f"structure, {self.structure!r} and {other.structure!r}"
        if not difference and self.sums.keys() != other.sums.keys():
            difference = f"terms, {list(self.sums)} and {list(other.sums)}"
        if difference:
            raise InvalidOption(f"these sums over data do not add up: they differ in their {difference}")
        sums: dict[Terms, SumOverData] = {}
        for terms, own in self.sums.items():
            sums[terms] = type(own).weighted([(own, 1.0)])
            sums[terms].merge(other.sums[terms])
        statistics = {name: own + other.statistics[name] for name, own in self.statistics.items()}
        gradient = self.gradient + other.gradient.to(self.gradient)
        return replace(
            self,
            sums=sums,
            statistics=statistics,
            gradient=gradient,
            num_data=self.num_data + other.num_data,
            double=self.double and other.double,
        )

    def statistics_at(self, log_lik: float) -> dict[str, TermStatistics]:
        """The statistics where the log likelihood is another one, by a quadratic model: of one term they are known.

        Args:
            log_lik: of all terms, in nats.

        Returns:
            by term; of several, the first has the difference, and none has residuals.
        """
        first, *others = self.statistics
        rise = log_lik - self.log_lik
        found = {name: replace(each, squares=None) for name, each in self.statistics.items()}
        own = self.statistics[first]
        squares = None if others or own.squares is None else own.squares - 2 * rise
        return found | {first: TermStatistics(own.log_lik + rise, own.count, squares)}

    def under_noise(self, ratio: Tensor, power: int = 2) -> "LikelihoodSum":
        """The same under a homoscedastic Normal noise that is so many times as large, of a single term.

        Args:
            ratio: c.
            power: the curvature is multiplied by ``c^-power``.

        Returns:
            the sum; this one stays as it is.
        """
        c = float(ratio)
        sums = {terms: type(each).weighted([(each, c**-power)]) for terms, each in self.sums.items()}
        statistics = {name: each.under_noise(c) for name, each in self.statistics.items()}
        return replace(self, sums=sums, statistics=statistics, gradient=self.gradient / c**2)

    def state(self) -> State:
        """As plain tensors, numbers and names; `build.restore` makes it again, at the anchor that it was made at.

        Returns:
            the sum's own tensors, not copies: they are to be saved or read, and not changed.
        """
        return {
            "sums": [{"terms": list(terms), "sum": each.state()} for terms, each in self.sums.items()],
            "statistics": {name: each.state() for name, each in self.statistics.items()},
            "gradient": self.gradient,
            "num_data": self.num_data,
            "double": self.double,
        }

    @property
    def num_bytes(self) -> int:
        """How many bytes its tensors have."""
        return _num_bytes(self.state())

    @staticmethod
    def _factor(terms: Terms, factors: Mapping[str, float]) -> float:
        given = {factors.get(name, 1.0) for name in terms} or {1.0}
        if len(given) > 1:
            raise InvalidOption(
                f"the terms {list(terms)} are summed together: give them one factor, not {dict(factors)}"
            )
        return given.pop()


def _same_structure(one: Any, other: Any) -> bool:
    """Whether two structures are the same; of mappings in the same order too, as the first glob that matches wins."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one.items()) == list(other.items())
    return type(one) is type(other) and bool(one == other)


def _num_bytes(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(map(_num_bytes, state.values()))
    return sum(map(_num_bytes, state)) if isinstance(state, list) else 0
