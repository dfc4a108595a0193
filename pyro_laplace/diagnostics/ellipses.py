"""Elliptical densities of theta to draw from, and mixtures of them whose tails are heavier than a posterior's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._typing import Matrix
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Triangular:
    """A covariance ``L L'`` by its lower triangle, with the operations of a precision.

    Attributes:
        scale_tril: L, in float64.
    """

    scale_tril: Matrix

    def color(self, white: Tensor) -> Tensor:
        """``L z``."""
        return white @ self.scale_tril.mT

    def whiten(self, deviation: Tensor) -> Tensor:
        """``L^-1 d``."""
        return torch.linalg.solve_triangular(self.scale_tril, deviation.mT, upper=False).mT

    def log_det(self) -> Tensor:
        """Of the precision."""
        return -2 * self.scale_tril.diagonal().log().sum()

    def variance(self) -> Tensor:
        """Marginal variances."""
        return self.scale_tril.square().sum(1)


@dataclass(frozen=True, eq=False)
class Scaled:
    """A precision whose deviations are stretched, each coordinate by a factor.

    Attributes:
        inner: the precision.
        factor: of each coordinate [free].
    """

    inner: Any
    factor: Tensor

    def color(self, white: Tensor) -> Tensor:
        """Stretched deviations."""
        return self.inner.color(white) * self.factor

    def whiten(self, deviation: Tensor) -> Tensor:
        """The inverse of `color`."""
        return self.inner.whiten(deviation / self.factor)

    def log_det(self) -> Tensor:
        """Of the stretched precision."""
        return self.inner.log_det() - 2 * self.factor.log().sum()

    def variance(self) -> Tensor:
        """Marginal variances."""
        return self.inner.variance().double() * self.factor.square()


@dataclass(frozen=True, eq=False)
class Ellipse:
    """Student's t (Normal where `df` is infinite) over the free coordinates of theta, the others held.

    Attributes:
        theta: its centre, with the values of the held coordinates [params].
        index: the free coordinates, ascending.
        precision: what colours white noise to deviations, whitens them, and has a log-determinant.
        df: degrees of freedom.
    """

    theta: Tensor
    index: Tensor
    precision: Any
    df: float = math.inf

    def draw(self, num_samples: int) -> Tensor:
        """Draws of all of theta [draws, params]."""
        white = torch.randn(num_samples, len(self.index), dtype=torch.float64, device=self.theta.device)
        if self.df < math.inf:
            df = torch.full((num_samples, 1), self.df, dtype=torch.float64, device=self.theta.device)
            white = white / (torch.distributions.Chi2(df).sample() / self.df).sqrt()
        draws = self.theta.repeat(num_samples, 1)
        draws[:, self.index] += self.precision.color(white).to(draws)
        return draws

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log density of the free coordinates [draws]; minus infinity where the held ones are others."""
        deviation = theta - self.theta
        squares = self.precision.whiten(deviation[:, self.index].double()).square().sum(-1)
        size, log_det = len(self.index), float(self.precision.log_det())
        if self.df < math.inf:
            half = (self.df + size) / 2
            constant = math.lgamma(half) - math.lgamma(self.df / 2) - 0.5 * size * math.log(self.df * math.pi)
            log_p = constant + 0.5 * log_det - half * (squares / self.df).log1p()
        else:
            log_p = 0.5 * (log_det - squares - size * math.log(2 * math.pi))
        held = deviation.index_fill(1, self.index, 0.0)
        return torch.where((held == 0).all(-1), log_p, -math.inf)

    def heavy(self) -> "Ellipse":
        """The same with heavier tails."""
        return Ellipse(self.theta, self.index, self.precision, float(settings.proposal_df))

    def matched(self, theta: Tensor, weight: Tensor) -> "Ellipse":
        """The same with mean and covariance of weighted draws, as far as so many effective draws tell them.

        The mean and the marginal variances, and the whole covariance where there are draws enough (Paananen, Piironen,
        Buerkner and Vehtari 2021, "Implicitly adaptive importance sampling").

        Args:
            theta: draws [draws, params].
            weight: of each, which sum to one [draws].

        Returns:
            the ellipse; this one where the draws have no variance.
        """
        free = theta[:, self.index].double()
        mean = weight @ free
        centred = free - mean
        variance = weight @ centred.square()
        if not bool((variance > 0).all()):
            return self
        centre = self.theta.index_copy(0, self.index, mean.to(self.theta))
        if float(1 / weight.square().sum()) >= settings.match_draws * len(self.index):
            covariance = (weight.unsqueeze(-1) * centred).mT @ centred
            scale_tril, info = torch.linalg.cholesky_ex(covariance)
            if not int(info):
                return Ellipse(centre, self.index, Triangular(scale_tril), self.df)
        factor = (variance / self.precision.variance().double()).sqrt()
        return Ellipse(centre, self.index, Scaled(self.precision, factor), self.df)


type Parts = Sequence[tuple[float, Ellipse]]
"""Ellipses, each with its share."""


@dataclass(frozen=True, eq=False)
class Blend:
    """Ellipses with shares: ``q = sum_k s_k q_k``, drawn from in exactly these proportions.

    Veach and Guibas 1995, "Optimally combining sampling techniques": every draw is weighed by the whole mixture,
    whichever part it came from (the balance heuristic).

    Attributes:
        parts: share and ellipse; the shares sum to one.
    """

    parts: Parts

    def draw(self, num_samples: int) -> Tensor:
        """Draws of all of theta [draws, params], one part after the other."""
        bounds = [round(num_samples * share) for share in accumulate((share for share, _ in self.parts), initial=0.0)]
        counts = [stop - start for start, stop in pairwise(bounds)]
        return torch.cat([each.draw(count) for count, (_, each) in zip(counts, self.parts, strict=True)])

    def log_terms(self, theta: Tensor) -> Tensor:
        """``log s_k q_k`` [parts, draws]."""
        return torch.stack([math.log(share) + each.log_prob(theta) for share, each in self.parts])

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log density of the mixture [draws]."""
        return self.log_terms(theta).logsumexp(0)

    def matched(self, theta: Tensor, weight: Tensor) -> "Blend":
        """Each part fitted to its share of weighted draws.

        Cappe et al. 2008, "Adaptive importance sampling in general mixture classes".

        Args:
            theta: draws [draws, params].
            weight: of each, which sum to one [draws].

        Returns:
            the mixture; parts without draws are left out.
        """
        own = weight * self.log_terms(theta).softmax(0).nan_to_num()
        shares = own.sum(1)
        parts = zip(shares, own, self.parts, strict=True)
        kept = [(s, each.matched(theta, w / s)) for s, w, (_, each) in parts if float(s) > settings.least_share]
        total = float(sum(share for share, _ in kept))
        return Blend([(float(share) / total, each) for share, each in kept]) if kept else self

    def joined(self, other: "Blend", share: float) -> "Blend":
        """A mixture of two, with a share of the other."""
        own = [(each_share * (1 - share), each) for each_share, each in self.parts]
        return Blend([*own, *((each_share * share, each) for each_share, each in other.parts)])
