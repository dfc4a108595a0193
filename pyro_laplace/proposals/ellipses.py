"""Elliptical densities of theta to draw from, whose tails may be heavier than a posterior's."""

import math
from dataclasses import dataclass
from functools import cached_property
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
        return torch.where(self.holds(theta), self.log_density_at(self.squares(theta)), -math.inf)

    def squares(self, theta: Tensor) -> Tensor:
        """Squared distances of draws from the centre, in the ellipse's own units [draws]."""
        return self.precision.whiten((theta - self.theta)[:, self.index].double()).square().sum(-1)

    def log_density_at(self, squares: Tensor) -> Tensor:
        """Log density of the free coordinates, where such squared distances from the centre are."""
        size, log_det = len(self.index), self._log_det
        if self.df < math.inf:
            half = (self.df + size) / 2
            constant = math.lgamma(half) - math.lgamma(self.df / 2) - 0.5 * size * math.log(self.df * math.pi)
            return constant + 0.5 * log_det - half * (squares / self.df).log1p()
        return 0.5 * (log_det - squares - size * math.log(2 * math.pi))

    def holds(self, theta: Tensor) -> Tensor:
        """Whether the held coordinates of draws are the ellipse's own [draws]."""
        if len(self.index) == len(self.theta):
            return torch.ones(len(theta), dtype=torch.bool, device=theta.device)
        return ((theta - self.theta).index_fill(1, self.index, 0.0) == 0).all(-1)

    @cached_property
    def root(self) -> Matrix:
        """R [free, free], in float64: ``R d`` is what `precision.whiten` makes of a deviation d."""
        eye = torch.eye(len(self.index), dtype=torch.float64, device=self.theta.device)
        return self.precision.whiten(eye).mT

    @cached_property
    def _log_det(self) -> float:
        return float(self.precision.log_det())

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
        if float(1 / weight.square().sum()) >= settings.match_draws * len(self.index):
            covariance = (weight.unsqueeze(-1) * centred).mT @ centred
            scale_tril, info = torch.linalg.cholesky_ex(covariance)
            if not int(info):
                return Ellipse(self._moved(mean), self.index, Triangular(scale_tril), self.df)
        return self.stretched(mean, variance)

    def stretched(self, mean: Tensor, variance: Tensor) -> "Ellipse":
        """The same with other means and marginal variances of the free coordinates [free]."""
        factor = (variance / self.precision.variance().double()).sqrt()
        return Ellipse(self._moved(mean), self.index, Scaled(self.precision, factor), self.df)

    def _moved(self, mean: Tensor) -> Tensor:
        return self.theta.index_copy(0, self.index, mean.to(self.theta))
