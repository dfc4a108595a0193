"""Location-scale distributions: eta = (loc, log scale).

With z = (y - loc) / scale and a density symmetric in z, loc and log scale are orthogonal, and the information is
``diag(a / scale^2, b)`` with a and b numbers of the standard distribution.
"""

import math
from typing import Any, ClassVar

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace.likelihood.registry import Family, register, requires_grad
from pyro_laplace.likelihood.special import triangular_root, trigamma


class LocationScale(Family):
    """Location and log scale; subclasses say the distribution type and the information at loc 0 and scale 1."""

    outputs = ("loc", "log_scale")
    kind: ClassVar[type]
    symmetric: ClassVar[bool] = True
    information: ClassVar[tuple[float, float]]

    def link(self, fn: Any) -> Tensor:
        """(loc, log scale) `[*batch, 2]`."""
        return torch.stack([fn.loc, fn.scale.log()], -1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """The distribution at eta_0, exp eta_1."""
        return self.kind(eta[..., 0], eta[..., 1].exp())

    def location(self, fn: Any) -> Tensor:
        """Loc, also where there is no mean."""
        return fn.loc

    def moved(self, fn: Any, loc: float | Tensor, scale: float | Tensor) -> Any | None:
        """The distribution of loc + scale y; None of a density that is not symmetric."""
        return self.kind(loc + scale * fn.loc, abs(scale) * fn.scale) if self.symmetric else None

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """diag(sqrt a / scale, sqrt b) `[*batch, 2, 2]`."""
        of_loc, of_log_scale = self.information
        first = of_loc**0.5 * (-eta[..., 1]).exp()
        return torch.stack([first, torch.full_like(first, of_log_scale**0.5)], -1).diag_embed()

    def moving(self, fn: Any) -> Tensor:
        """Of loc and scale."""
        return requires_grad(fn.loc, fn.scale)


@register(torch.distributions.Laplace)
class LaplaceFamily(LocationScale):
    """I = diag(1 / scale^2, 1): the variance of the score, as the density has a kink at loc."""

    kind, information = dist.Laplace, (1.0, 1.0)
    concave = ("loc",)


@register(torch.distributions.Cauchy)
class CauchyFamily(LocationScale):
    """I = diag(1 / 2 scale^2, 1 / 2)."""

    kind, information = dist.Cauchy, (0.5, 0.5)


@register(dist.Logistic)
class LogisticFamily(LocationScale):
    """I = diag(1 / 3 scale^2, (3 + pi^2) / 9)."""

    kind, information = dist.Logistic, (1 / 3, (3 + math.pi**2) / 9)
    concave = ("loc",)


@register(dist.SoftLaplace)
class SoftLaplaceFamily(LocationScale):
    """The hyperbolic secant: I = diag(1 / 2 scale^2, pi^2 / 8)."""

    kind, information = dist.SoftLaplace, (0.5, math.pi**2 / 8)
    concave = ("loc",)


@register(torch.distributions.Gumbel)
class GumbelFamily(LocationScale):
    """I = [[1 / scale^2, -(1 - g) / scale], [., pi^2 / 6 + (1 - g)^2]] with g Euler's constant; loc is no centre."""

    kind, symmetric = dist.Gumbel, False
    concave = ("loc",)

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """[[1 / scale, 0], [-(1 - g), pi / sqrt 6]] `[*batch, 2, 2]`."""
        first = (-eta[..., 1]).exp()
        rest = torch.full_like(first, math.pi / 6**0.5)
        return triangular_root(first, torch.full_like(first, np.euler_gamma - 1), rest)


@register(torch.distributions.StudentT)
class StudentTFamily(LocationScale):
    """eta = (loc, log scale, log df); loc is orthogonal to both others (Lange, Little & Taylor 1989)."""

    outputs = ("loc", "log_scale", "log_df")

    def link(self, fn: Any) -> Tensor:
        """(loc, log scale, log df) `[*batch, 3]`."""
        return torch.stack([fn.loc, fn.scale.log(), fn.df.log()], -1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """StudentT(exp eta_2, eta_0, exp eta_1)."""
        return dist.StudentT(eta[..., 2].exp(), eta[..., 0], eta[..., 1].exp())

    def moved(self, fn: Any, loc: float | Tensor, scale: float | Tensor) -> Any:
        """The distribution of loc + scale y."""
        return dist.StudentT(fn.df, loc + scale * fn.loc, abs(scale) * fn.scale)

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """Lower triangular `[*batch, 3, 3]`: the loc by itself, the log scale and the log df together."""
        df = eta[..., 2].exp()
        root = eta.new_zeros((*eta.shape, 3))
        root[..., 0, 0] = ((df + 1) / (df + 3)).sqrt() * (-eta[..., 1]).exp()
        root[..., 1, 1] = (2 * df / (df + 3)).sqrt()
        root[..., 2, 1] = -2 * df / ((df + 1) * (df + 3)) / root[..., 1, 1]
        root[..., 2, 2] = (_information_of_log_df(df) - root[..., 2, 1].square()).clamp(min=0.0).sqrt()
        return root

    def moving(self, fn: Any) -> Tensor:
        """Of loc, scale and df."""
        return requires_grad(fn.loc, fn.scale, fn.df)


def _information_of_log_df(df: Tensor) -> Tensor:
    """df^2 (psi'(df / 2) - psi'((df + 1) / 2)) / 4 - df (df + 5) / (2 (df + 1) (df + 3)); a series beyond 1,000."""
    small = df.clamp(max=1e3)
    exact = small.square() * (trigamma(small / 2) - trigamma((small + 1) / 2)) / 4
    exact = exact - small * (small + 5) / (2 * (small + 1) * (small + 3))
    inverse = 1 / df.clamp(min=1e3)
    series = inverse.square() * (3.5 - inverse * (13 - inverse * (39.5 - 119 * inverse)))
    return torch.where(df > 1e3, series, exact)
