"""Ordered classes: eta = cutpoints less the predictor, and class probabilities that have numbers for a mean."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from pyro_laplace.likelihood.classes import ClassFamily
from pyro_laplace.likelihood.gaussian import GaussianEta
from pyro_laplace.likelihood.registry import register, requires_grad
from pyro_laplace.likelihood.special import log_sigmoid_slope


class Ordinal(dist.OrderedLogistic):
    """`OrderedLogistic`, with the moments of its classes as the numbers 0, 1, ...: they have an order."""

    @property
    def mean(self) -> Tensor:
        """``sum_j j p_j`` `[*batch]`."""
        probs, numbers = self._classes
        return probs @ numbers

    @property
    def variance(self) -> Tensor:
        """``sum_j p_j (j - mean)^2`` `[*batch]`."""
        probs, numbers = self._classes
        return (probs * (numbers - self.mean.unsqueeze(-1)).square()).sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Ordinal":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The same distribution of more data."""
        cutpoints = self.cutpoints.expand(*batch_shape, self.cutpoints.shape[-1])
        return Ordinal(self.predictor.expand(batch_shape), cutpoints, validate_args=False)

    @property
    def _classes(self) -> tuple[Tensor, Tensor]:
        """Their probabilities `[*batch, classes]`, and the numbers that they are [classes]."""
        probs: Any = self.probs
        return probs, torch.arange(probs.shape[-1]).to(probs)


@register(dist.OrderedLogistic)
class OrderedLogisticFamily(ClassFamily):
    """eta = (first cutpoint - predictor, logs of the steps to the next cutpoints): linear in the predictor.

    With F the sigmoid and t_j the cutpoints less the predictor, class j has probability p_j = F(t_j) - F(t_{j-1}).
    """

    outputs = ("cutpoints",)

    def link(self, fn: Any) -> Tensor:
        """(t_0, log(t_1 - t_0), ...) `[*batch, classes - 1]`."""
        first = fn.cutpoints[..., :1] - fn.predictor.unsqueeze(-1)
        return torch.cat([first, fn.cutpoints.diff(dim=-1).log()], -1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """OrderedLogistic(0, t), with its moments."""
        return Ordinal(torch.zeros_like(eta[..., 0]), _cutpoints(eta))

    def predictive(self, eta: GaussianEta, fn: Any, link: str) -> Any | None:
        """At class probabilities averaged over draws, for every link; None of several entries of one datum."""
        return self.averaged(eta, fn)

    def log_classes(self, eta: Tensor) -> Tensor:
        """log p_j `[*batch, classes]`, with all digits of classes far in a tail."""
        t = _cutpoints(eta)
        return torch.cat([logsigmoid(t[..., :1]), _log_between(t, eta), logsigmoid(-t[..., -1:])], -1)

    def of_log_classes(self, log_p: Tensor) -> Tensor:
        """Any probabilities of ordered classes are those of some cutpoints: t_j are the logits of their sums.

        With A_j the sum of the classes below the j-th and B_j of those above it, t_j - t_{j-1} is
        ``log(1 + p_j / A_j) + log(1 + p_j / B_j)``, a sum of positive terms.

        Args:
            log_p: log p_j `[*batch, classes]`.

        Returns:
            eta `[*batch, classes - 1]`.
        """
        below = log_p.logcumsumexp(-1)
        above = log_p.flip(-1).logcumsumexp(-1).flip(-1)
        inner = log_p[..., 1:-1]
        steps = softplus(inner - below[..., :-2]) + softplus(inner - above[..., 2:])
        return torch.cat([log_p[..., :1] - above[..., 1:2], steps.log()], -1)

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """S_ij = (d p_j / d eta_i) / sqrt p_j `[*batch, classes - 1, classes]`, a column for each class.

        d p_j / d t_j = F'(t_j), and all cutpoints from the i-th on move by exp(eta_i): above the diagonal the
        difference F'(t_j) - F'(t_{j-1}) = p_j (1 - F(t_j) - F(t_{j-1})).

        Returns:
            S, finite for classes far in a tail.
        """
        t = _cutpoints(eta)
        step = torch.cat([torch.zeros_like(eta[..., :1]), eta[..., 1:]], -1)
        log_p = self.log_classes(eta)
        edge = torch.zeros_like(t[..., :1])
        above, below = torch.cat([(-t).sigmoid(), edge], -1), torch.cat([edge, t.sigmoid()], -1)
        beyond = (0.5 * log_p).exp() * (above - below)
        own = (log_sigmoid_slope(t) - log_p[..., :-1] / 2).exp()
        classes = log_p.shape[-1]
        rows = beyond.unsqueeze(-2).expand(*beyond.shape[:-1], classes - 1, classes).triu(1)
        return step.exp().unsqueeze(-1) * (rows + torch.nn.functional.pad(own.diag_embed(), (0, 1)))

    def moving(self, fn: Any) -> Tensor:
        """Of the first cutpoint less the predictor, and of the steps."""
        first = requires_grad(fn.cutpoints) | requires_grad(fn.predictor)
        return torch.cat([first, requires_grad(fn.cutpoints).expand(fn.cutpoints.shape[-1] - 1)])


def _cutpoints(eta: Tensor) -> Tensor:
    """(t_0, t_1, ...) `[*batch, classes - 1]`."""
    return torch.cat([eta[..., :1], eta[..., 1:].exp()], -1).cumsum(-1)


def _log_between(t: Tensor, eta: Tensor) -> Tensor:
    """log(F(b) - F(a)) = log F(b) + log F(-a) + log(1 - exp(a - b)) of the inner classes."""
    return logsigmoid(t[..., 1:]) + logsigmoid(-t[..., :-1]) + torch.log(-torch.expm1(-eta[..., 1:].exp()))
