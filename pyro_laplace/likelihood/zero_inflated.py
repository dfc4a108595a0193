"""Zero inflation: y is 0 with probability g, else a count from a base distribution with information I_b."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace.likelihood.registry import Family, family_of, register
from pyro_laplace.likelihood.special import symmetric_root
from pyro_laplace.unwrap import core


@register(dist.ZeroInflatedDistribution)
class ZeroInflatedFamily(Family):
    """eta = (logit g, the base's eta), for every discrete base whose own family is registered.

    With f the base's probability of 0, s its score there and P = g + (1 - g) f: the data tell zeros from counts, and
    counts from one another, so that I = (1 - g) [[g^2 (1 - f) / P, g f s' / P], [., I_b - (f g / P) s s']].
    """

    outputs = ("gate_logit", "base")

    def link(self, fn: Any) -> Tensor:
        """(logit g, the base's eta) `[*batch, 1 + outputs]`."""
        return torch.cat([fn.gate_logits.unsqueeze(-1), _base(fn).link(fn.base_dist)], -1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """ZeroInflatedDistribution(base, gate_logits=eta_0)."""
        base = _base(fn).distribution(eta[..., 1:], fn.base_dist)
        return dist.ZeroInflatedDistribution(base, gate_logits=eta[..., 0])

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """The symmetric root of I `[*batch, outputs, outputs]`."""
        gate_logit, base_eta = eta[..., :1], eta[..., 1:]
        log_f, score = _at_zero(base_eta, fn)
        log_g, log_open = torch.nn.functional.logsigmoid(gate_logit), torch.nn.functional.logsigmoid(-gate_logit)
        log_p = torch.logaddexp(log_g, log_open + log_f)
        of_gate = (2 * log_g - log_p).exp() * -torch.expm1(log_f)
        cross = (log_g + log_f - log_p).exp() * score
        root = _base(fn).fisher_root(base_eta, fn.base_dist)
        of_base = root @ root.mT - cross.unsqueeze(-1) * score.unsqueeze(-2)
        top = torch.cat([of_gate.unsqueeze(-1), cross.unsqueeze(-2)], -1)
        inflated = torch.cat([top, torch.cat([cross.unsqueeze(-1), of_base], -1)], -2)
        return (0.5 * log_open).exp().unsqueeze(-1) * symmetric_root(inflated)

    def moving(self, fn: Any) -> Tensor | None:
        """Of the gate, and the base's."""
        base = _base(fn).moving(fn.base_dist)
        return None if base is None else torch.cat([torch.tensor([fn.gate_logits.requires_grad]), base])

    def as_data(self, value: Tensor, fn: Any) -> Tensor:
        """As the base takes them."""
        base = core(fn)
        family = family_of(type(base))
        return value if family is None else family.as_data(value, base)


def _base(fn: Any) -> Family:
    family = family_of(type(fn.base_dist))
    assert family is not None  # `likelihood_of` does not take others
    return family


def _at_zero(eta: Tensor, fn: Any) -> tuple[Tensor, Tensor]:
    """The base's log probability of 0 `[*batch, 1]`, and its score in eta there `[*batch, outputs]`."""

    def log_prob(eta: Tensor) -> tuple[Tensor, Tensor]:
        log_f = _base(fn).distribution(eta, fn.base_dist).log_prob(eta.new_zeros(()))
        return log_f.sum(), log_f

    score, log_f = torch.func.grad(log_prob, has_aux=True)(eta.detach())  # in no_grad and inference_mode as well
    return log_f.detach().unsqueeze(-1), score.detach()
