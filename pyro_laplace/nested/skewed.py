"""Densities to draw hyper points from: skewed and heavy-tailed along each coordinate, and correlated.

The scale of an effect that the data hardly show has an exponential tail in its logarithm, down to no effect at all, and
there the other hyper sites are no further spread than elsewhere. So each coordinate has a tail of its own: a
multivariate t, whose tail in one coordinate blows up all others, draws next to nothing where such a posterior lies.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Skewed:
    """``h = center + scale(u) u``, ``u = root e``, with e of independent t's and a scale on each side of the center.

    Attributes:
        center: [q].
        root: a root of the correlations, lower triangular [q, q].
        left: scales below the center [q].
        right: scales above it [q].
    """

    center: Tensor
    root: Tensor
    left: Tensor
    right: Tensor

    def draw(self, count: int, seed: int) -> Tensor:
        """Quasi-random points [count, q]."""
        import scipy.stats

        uniform = quasi_uniform(count, len(self.center), seed)
        e = torch.as_tensor(scipy.stats.t.ppf(uniform.numpy(), settings.design_freedom)).to(self.center)
        u = e @ self.root.mT
        return self.center + torch.where(u < 0, self.left, self.right) * u

    def log_density(self, h: Tensor) -> Tensor:
        """At points h [b, q], [b]."""
        freedom = settings.design_freedom
        scale = torch.where(h < self.center, self.left, self.right)
        e = torch.linalg.solve_triangular(self.root, ((h - self.center) / scale).mT, upper=False).mT
        constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
        each = constant - (freedom + 1) / 2 * torch.log1p(e.square() / freedom)
        return (each - scale.log()).sum(-1) - self.root.diagonal().log().sum()


def quasi_uniform(count: int, size: int, seed: int) -> Tensor:
    """Scrambled Sobol points of the open unit cube [count, size], whose quantiles of a distribution are draws of it."""
    sobol = torch.quasirandom.SobolEngine(size, scramble=True, seed=seed)
    return sobol.draw(count, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)  # at the ends quantiles are infinite


def fitted_to(h: Tensor, weights: Tensor, least: Skewed) -> Skewed:
    """The density fitted to weighted points: medians, mean squares on each side of them, and correlations.

    Args:
        h: the points [b, q].
        weights: of them, summing to 1 [b].
        least: whose scales it goes below nowhere: a tail that no point lies in yet is not forgotten.

    Returns:
        the density.
    """
    order = h.argsort(0)
    middle = (weights[order].cumsum(0) < 0.5).sum(0).clamp(max=len(h) - 1)
    center = h.gather(0, order).gather(0, middle.unsqueeze(0))[0]
    away = h - center
    sides = []
    for side, floor in ((away < 0, least.left), (away >= 0, least.right)):
        mass = weights.unsqueeze(1) * side
        scale = ((mass * away.square()).sum(0) / mass.sum(0)).sqrt().nan_to_num(nan=0.0)
        sides.append(torch.maximum(scale, floor))
    u = away / torch.where(away < 0, *sides)
    covariance = (u * weights.unsqueeze(1)).mT @ u
    sd = covariance.diagonal().sqrt().clamp(min=torch.finfo(h.dtype).tiny)
    # as if as many points had been uncorrelated as there are coordinates, and one
    effective, prior = float(1 / weights.square().sum()), len(center) + 1
    correlation = (effective * covariance / sd / sd.unsqueeze(1) + prior * torch.eye(len(sd)).to(h)) / (
        effective + prior
    )
    return Skewed(center, correlation_root(correlation), *sides)


def correlation_root(matrix: Tensor) -> Tensor:
    """Cholesky root of a covariance's correlations [q, q]."""
    sd = matrix.diagonal().sqrt()
    return torch.linalg.cholesky(matrix / sd / sd.unsqueeze(1))
