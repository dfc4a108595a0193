"""Distributions of positive values, with eta the logs of their parameters."""

import math
from typing import Any, ClassVar

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace.likelihood.registry import Family, register, requires_grad
from pyro_laplace.likelihood.special import triangular_root, trigamma_excess


class _Scaled(Family):
    """One scale or rate alone: its log has a constant information."""

    outputs = concave = ("log_scale",)
    kind: ClassVar[type]
    information: ClassVar[float]

    def link(self, fn: Any) -> Tensor:
        """Log scale `[*batch, 1]`."""
        return fn.scale.log().unsqueeze(-1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """The distribution with scale exp eta."""
        return self.kind(eta.squeeze(-1).exp())

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """A constant `[*batch, 1, 1]`."""
        return torch.full_like(eta, self.information**0.5).unsqueeze(-1)


@register(torch.distributions.HalfNormal)
class HalfNormalFamily(_Scaled):
    """I = 2."""

    kind, information = dist.HalfNormal, 2.0


@register(torch.distributions.HalfCauchy)
class HalfCauchyFamily(_Scaled):
    """I = 1 / 2."""

    kind, information = dist.HalfCauchy, 0.5


@register(torch.distributions.Exponential)
class ExponentialFamily(_Scaled):
    """eta = log rate, I = 1."""

    outputs = concave = ("log_rate",)
    kind, information = dist.Exponential, 1.0

    def link(self, fn: Any) -> Tensor:
        """Log rate `[*batch, 1]`."""
        return fn.rate.log().unsqueeze(-1)


@register(torch.distributions.Gamma)
class GammaFamily(Family):
    """eta = (log concentration, log rate), I = [[a^2 psi'(a), -a], [-a, a]] with a the concentration."""

    outputs = ("log_concentration", "log_rate")
    concave = ("log_rate",)
    kind: ClassVar[type] = dist.Gamma

    def link(self, fn: Any) -> Tensor:
        """(log concentration, log rate) `[*batch, 2]`."""
        return torch.stack([fn.concentration.log(), fn.rate.log()], -1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """The distribution at exp eta."""
        return self.kind(eta[..., 0].exp(), eta[..., 1].exp())

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """[[-sqrt a, sqrt(a (a psi'(a) - 1))], [sqrt a, 0]] `[*batch, 2, 2]`."""
        concentration = eta[..., 0].exp()
        root, rest = concentration.sqrt(), (concentration * trigamma_excess(concentration)).sqrt()
        return triangular_root(root, -root, rest).flip(-2)

    def moving(self, fn: Any) -> Tensor:
        """Of concentration and rate."""
        return requires_grad(fn.concentration, fn.rate)


@register(torch.distributions.InverseGamma)
class InverseGammaFamily(GammaFamily):
    """1 / y is a Gamma: the same information."""

    kind = dist.InverseGamma


@register(torch.distributions.Weibull)
class WeibullFamily(Family):
    """eta = (log scale, log concentration); minus log y is a Gumbel(-log scale, 1 / concentration).

    I = [[k^2, -k (1 - g)], [., pi^2 / 6 + (1 - g)^2]] with k the concentration and g Euler's constant.
    """

    outputs = ("log_scale", "log_concentration")
    concave = ("log_scale",)

    def link(self, fn: Any) -> Tensor:
        """(log scale, log concentration) `[*batch, 2]`."""
        return torch.stack([fn.scale.log(), fn.concentration.log()], -1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """Weibull(exp eta)."""
        return dist.Weibull(eta[..., 0].exp(), eta[..., 1].exp())

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """[[k, 0], [-(1 - g), pi / sqrt 6]] `[*batch, 2, 2]`."""
        concentration = eta[..., 1].exp()
        rest = torch.full_like(concentration, math.pi / 6**0.5)
        return triangular_root(concentration, torch.full_like(concentration, np.euler_gamma - 1), rest)

    def location(self, fn: Any) -> Tensor:
        """The scale: a concentration moves the mean too, and is still no more than the shape around it."""
        return fn.scale

    def moving(self, fn: Any) -> Tensor:
        """Of scale and concentration."""
        return requires_grad(fn.scale, fn.concentration)
