"""Dirichlet and Beta: eta = log concentrations, I = D (diag psi'(a) - psi'(sum a) 1 1') D with D = diag a."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace.likelihood.registry import Family, register, requires_grad
from pyro_laplace.likelihood.special import trigamma, trigamma_excess


def dirichlet_root(log_concentration: Tensor) -> Tensor:
    """The symmetric root of the information behind D: S = D G^1/2 (1 - b u u') `[*batch, n, n]`.

    With G = diag psi'(a), u = psi'(a)^-1/2, and b such that (1 - b u'u)^2 = 1 - psi'(sum a) u'u. The right-hand side
    vanishes for large concentrations: written in e(a) = a psi'(a) - 1 it does not cancel.

    Returns:
        S, with as many columns as concentrations.
    """
    concentration = log_concentration.exp()
    total = concentration.sum(-1, keepdim=True)
    excess, excess_of_total = trigamma_excess(concentration), trigamma_excess(total)
    root = trigamma(concentration).sqrt()
    u = 1 / root
    rest = (concentration / total * (excess - excess_of_total) / (1 + excess)).sum(-1, keepdim=True)
    b = (1 - rest.sqrt()) / u.square().sum(-1, keepdim=True)
    return (concentration * root).diag_embed() - concentration.unsqueeze(-1) * (b * u).unsqueeze(-2)


@register(torch.distributions.Dirichlet)
class DirichletFamily(Family):
    """eta = log concentrations."""

    outputs = ("log_concentration",)

    def link(self, fn: Any) -> Tensor:
        """Log concentrations `[*batch, components]`."""
        return fn.concentration.log()

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """Dirichlet(exp eta)."""
        return dist.Dirichlet(eta.exp())

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """`dirichlet_root`, `[*batch, components, components]`."""
        return dirichlet_root(eta)


@register(torch.distributions.Beta)
class BetaFamily(Family):
    """eta = (log concentration1, log concentration0)."""

    outputs = ("log_concentration1", "log_concentration0")

    def link(self, fn: Any) -> Tensor:
        """Log concentrations `[*batch, 2]`."""
        return torch.stack([fn.concentration1.log(), fn.concentration0.log()], -1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """Beta(exp eta)."""
        return dist.Beta(eta[..., 0].exp(), eta[..., 1].exp())

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """`dirichlet_root`, `[*batch, 2, 2]`."""
        return dirichlet_root(eta)

    def moving(self, fn: Any) -> Tensor:
        """Of both concentrations (torch keeps them in one tensor)."""
        return requires_grad(fn.concentration1, fn.concentration0)
