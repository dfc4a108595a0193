"""VonMises: eta = (loc, log concentration k), I = diag(k A, k^2 A') with A(k) = I_1 / I_0 the mean resultant length."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace.likelihood.registry import Family, register, requires_grad


@register(torch.distributions.VonMises)
class VonMisesFamily(Family):
    """The angle and the log concentration; they are orthogonal."""

    outputs = ("loc", "log_concentration")

    def link(self, fn: Any) -> Tensor:
        """(loc, log concentration) `[*batch, 2]`."""
        return torch.stack([fn.loc, fn.concentration.log()], -1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """VonMises(eta_0, exp eta_1)."""
        return dist.VonMises(eta[..., 0], eta[..., 1].exp())

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """diag(sqrt(k A), k sqrt A') `[*batch, 2, 2]`."""
        k = eta[..., 1].exp()
        resultant = torch.special.i1e(k) / torch.special.i0e(k)
        return torch.stack([(k * resultant).sqrt(), _scaled_slope(k, resultant).sqrt()], -1).diag_embed()

    def moving(self, fn: Any) -> Tensor:
        """Of loc and concentration."""
        return requires_grad(fn.loc, fn.concentration)


def _scaled_slope(k: Tensor, resultant: Tensor) -> Tensor:
    """k^2 A' = k^2 (1 - A / k - A^2), by its asymptotic series where that cancels."""
    small = k.clamp(min=1e-300)
    inverse = 1 / k.clamp(min=300.0)
    series = 1 / 2 + inverse * (1 / 4 + inverse * (3 / 8 + inverse * (25 / 32 + inverse * 65 / 32)))
    return torch.where(k > 300.0, series, k.square() * (1 - resultant / small - resultant.square()))
