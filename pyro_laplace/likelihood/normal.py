"""Normal(loc, scale): eta = (loc, log scale), I = diag(1 / scale^2, 2)."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace.likelihood.registry import Family, register


@register(torch.distributions.Normal)
class NormalFamily(Family):
    """Location and log scale; they are orthogonal."""

    outputs = ("loc", "log_scale")

    @staticmethod
    def link(fn: Any) -> Tensor:
        """(loc, log scale) `[*batch, 2]`."""
        return torch.stack([fn.loc, fn.scale.log()], -1)

    @staticmethod
    def distribution(eta: Tensor) -> Any:
        """Normal(eta_0, exp eta_1)."""
        return dist.Normal(eta[..., 0], eta[..., 1].exp())

    @staticmethod
    def fisher_root(eta: Tensor) -> Tensor:
        """diag(1 / scale, sqrt 2) `[*batch, 2, 2]`."""
        inverse_scale = (-eta[..., 1]).exp()
        return torch.stack([inverse_scale, torch.full_like(inverse_scale, 2.0**0.5)], -1).diag_embed()
