"""Counts with two parameters, whose informations are sums without a closed form: by quadrature, or over the support."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from pyro_laplace.likelihood.discrete import type_of
from pyro_laplace.likelihood.registry import Family, register, requires_grad
from pyro_laplace.likelihood.special import compressed_root, triangular_root


@register(torch.distributions.NegativeBinomial)
class NegativeBinomialFamily(Family):
    """eta = (logits, log total_count), I = [[r p, r p], [r p, r^2 E(psi'(r) - psi'(r + y))]] with r the total count.

    The expectation is by quadrature, to 1e-12 of it.
    """

    outputs = ("logits", "log_total_count")
    concave = ("logits",)

    def link(self, fn: Any) -> Tensor:
        """(logits, log total_count) `[*batch, 2]`."""
        return torch.stack(torch.broadcast_tensors(fn.logits, fn.total_count.log()), -1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """NegativeBinomial(exp eta_1, logits=eta_0)."""
        return dist.NegativeBinomial(eta[..., 1].exp(), logits=eta[..., 0])

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """[[sqrt(r p), 0], [sqrt(r p), sqrt(rest)]] `[*batch, 2, 2]`."""
        root, rest = _negative_binomial(*eta.unbind(-1))
        return triangular_root(root, root, rest)

    def moving(self, fn: Any) -> Tensor:
        """Of logits and total_count."""
        return requires_grad(fn.logits, fn.total_count)


@register(dist.GammaPoisson)
class GammaPoissonFamily(Family):
    """eta = (log concentration, log rate): a NegativeBinomial with logits -log rate and total count concentration."""

    outputs = ("log_concentration", "log_rate")
    concave = ("log_rate",)

    def link(self, fn: Any) -> Tensor:
        """(log concentration, log rate) `[*batch, 2]`."""
        return torch.stack([fn.concentration.log(), fn.rate.log()], -1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """GammaPoisson(exp eta)."""
        return dist.GammaPoisson(eta[..., 0].exp(), eta[..., 1].exp())

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """As the NegativeBinomial's, `[*batch, 2, 2]`."""
        root, rest = _negative_binomial(-eta[..., 1], eta[..., 0])
        return triangular_root(-root, root, rest).flip(-2)

    def moving(self, fn: Any) -> Tensor:
        """Of concentration and rate."""
        return requires_grad(fn.concentration, fn.rate)


@register(dist.BetaBinomial)
class BetaBinomialFamily(Family):
    """eta = (log concentration1, log concentration0), by a sum over the counts 0, ..., total_count."""

    outputs = ("log_concentration1", "log_concentration0")

    def link(self, fn: Any) -> Tensor:
        """Log concentrations `[*batch, 2]`."""
        return torch.stack([fn.concentration1.log(), fn.concentration0.log()], -1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """BetaBinomial(exp eta, total_count)."""
        kind = type_of(fn, dist.ExtendedBetaBinomial, dist.BetaBinomial)
        return kind(eta[..., 0].exp(), eta[..., 1].exp(), fn.total_count)

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """The scores of all counts, weighted by the roots of their probabilities, compressed to `[*batch, 2, 2]`."""
        trials = fn.total_count.to(eta).clamp(min=0.0).unsqueeze(-1)
        count = torch.arange(max(2, int(trials.max()) + 1)).to(eta)  # two at least, for as many columns as outputs
        possible = count <= trials
        count = torch.where(possible, count, 0.0)
        a, b = eta.exp().unsqueeze(-1).unbind(-2)
        prob = dist.BetaBinomial(a, b, trials, validate_args=False).log_prob(count).exp() * possible
        both = torch.digamma(a + b) - torch.digamma(a + b + trials)
        of_a = a * (torch.digamma(a + count) - torch.digamma(a) + both)
        of_b = b * (torch.digamma(b + trials - count) - torch.digamma(b) + both)
        return compressed_root(torch.stack([of_a, of_b], -2) * prob.sqrt().unsqueeze(-2))

    def moving(self, fn: Any) -> Tensor:
        """Of both concentrations."""
        return requires_grad(fn.concentration1, fn.concentration0)


def _negative_binomial(logits: Tensor, log_total_count: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(r p), and the root of r^2 E(psi'(r) - psi'(r + y)) - r p, what is left of log r beside the logits.

    As psi'(r) - psi'(r + y) = int t exp(-r t) (1 - exp(-y t)) / (1 - exp(-t)) dt over t > 0, its expectation has the
    generating function E exp(-y t) = (1 + exp(logits) (1 - exp(-t)))^-r under the integral. In log t the integrand is
    analytic and decays on both sides: the trapezoidal rule converges geometrically.

    Returns:
        both `[*batch]`.
    """
    total_count = log_total_count.exp().unsqueeze(-1)
    step = 0.25
    log_t = torch.arange(-36.0, 4.0, step).to(logits) - log_total_count.unsqueeze(-1)
    t = log_t.exp()
    odds_beyond = softplus(logits.unsqueeze(-1) + torch.log(-torch.expm1(-t)))
    integrand = t.square() * (-total_count * t).exp() / -torch.expm1(-t) * -torch.expm1(-total_count * odds_beyond)
    expected = step * integrand.sum(-1)
    log_rp = log_total_count + logsigmoid(logits)
    rest = (2 * log_total_count).exp() * expected - log_rp.exp()
    return (log_rp / 2).exp(), rest.clamp(min=0.0).sqrt()
