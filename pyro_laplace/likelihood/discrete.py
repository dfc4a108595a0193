"""Bernoulli, Categorical and Poisson: exponential families with their canonical links."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace.likelihood.registry import Family, register


@register(torch.distributions.Bernoulli)
class BernoulliFamily(Family):
    """eta = logit p, I = p (1 - p)."""

    outputs = ("logit",)

    @staticmethod
    def link(fn: Any) -> Tensor:
        """Logits `[*batch, 1]`."""
        return fn.logits.unsqueeze(-1)

    @staticmethod
    def distribution(eta: Tensor) -> Any:
        """Bernoulli(logits=eta)."""
        return dist.Bernoulli(logits=eta.squeeze(-1))

    @staticmethod
    def fisher_root(eta: Tensor) -> Tensor:
        """sqrt(p (1 - p)) `[*batch, 1, 1]`."""
        return (eta.sigmoid() * (-eta).sigmoid()).sqrt().unsqueeze(-1)


@register(torch.distributions.Categorical)
class CategoricalFamily(Family):
    """eta = log probabilities up to a constant, I = diag p - p p'."""

    outputs = ("logits",)

    @staticmethod
    def link(fn: Any) -> Tensor:
        """Normalised logits `[*batch, classes]`; a softmax does not see the constant that this takes away."""
        return fn.logits

    @staticmethod
    def distribution(eta: Tensor) -> Any:
        """Categorical(logits=eta)."""
        return dist.Categorical(logits=eta)

    @staticmethod
    def fisher_root(eta: Tensor) -> Tensor:
        """S = diag(sqrt p) - p sqrt(p)' `[*batch, classes, classes]`; as sqrt(p)' sqrt(p) = 1, S S' = diag p - p p'."""
        p = eta.softmax(-1)
        return p.sqrt().diag_embed() - p.unsqueeze(-1) * p.sqrt().unsqueeze(-2)


@register(torch.distributions.Poisson)
class PoissonFamily(Family):
    """eta = log rate, I = rate."""

    outputs = ("log_rate",)

    @staticmethod
    def link(fn: Any) -> Tensor:
        """Log rates `[*batch, 1]`."""
        return fn.rate.log().unsqueeze(-1)

    @staticmethod
    def distribution(eta: Tensor) -> Any:
        """Poisson(exp eta)."""
        return dist.Poisson(eta.squeeze(-1).exp())

    @staticmethod
    def fisher_root(eta: Tensor) -> Tensor:
        """sqrt(rate) `[*batch, 1, 1]`."""
        return (0.5 * eta).exp().unsqueeze(-1)
