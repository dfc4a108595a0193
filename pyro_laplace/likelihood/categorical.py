"""Categories: eta = log probabilities up to a constant, I = n (diag p - p p'), with n the number of draws."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_laplace.likelihood.gaussian import GaussianEta
from pyro_laplace.likelihood.links import log_laplace_bridge, probit
from pyro_laplace.likelihood.registry import Family, register, requires_grad
from pyro_laplace.likelihood.special import log_sigmoid_slope
from pyro_laplace.likelihood.totals import MultinomialOfTotals


def multinomial_root(logits: Tensor) -> Tensor:
    """The Cholesky factor of diag p - p p' `[*batch, classes, classes - 1]`; its last column is zero, and left out.

    With q_j = sum_{i > j} p_i: L_jj = sqrt(p_j q_j / q_{j-1}), L_ij = -p_i sqrt(p_j / (q_{j-1} q_j)), i > j. Tails
    are sums of positive terms, so that a saturated class keeps all its digits (Tanabe & Sagae 1992, "An exact Cholesky
    decomposition and the generalized inverse of the variance-covariance matrix of the multinomial distribution").

    Returns:
        L, a zero column for a class of probability zero.
    """
    p = logits.softmax(-1)
    tail = p.flip(-1).cumsum(-1).flip(-1).clamp(min=torch.finfo(p.dtype).tiny)  # q_{j-1}, with q_{-1} = 1
    share, after = (p[..., :-1] / tail[..., :-1]).sqrt(), tail[..., 1:].sqrt()
    root = (p.unsqueeze(-1) * (-share / after).unsqueeze(-2)).tril(-1)
    root.diagonal(dim1=-2, dim2=-1).copy_(share * after)
    return root


@register(torch.distributions.Categorical)
class CategoricalFamily(Family):
    """One draw, its class as an integer."""

    outputs = concave = ("logits",)
    shift_invariant = True
    classes = True

    def link(self, fn: Any) -> Tensor:
        """Normalised logits `[*batch, classes]`; a softmax does not see the constant that this takes away."""
        return fn.logits

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """Categorical(logits=eta)."""
        return dist.Categorical(logits=eta)

    def predictive(self, eta: GaussianEta, fn: Any, link: str) -> Any | None:
        """At moderated logits, or at probabilities averaged over draws; None of several classes by draws."""
        if link == "sample":
            return self.averaged(eta, fn)
        if link == "probit":
            return self.distribution(probit(eta.mean, eta.embed(eta.variance())), fn)
        covariance = eta.embed_covariance(eta.covariance())
        return self.distribution(log_laplace_bridge(eta.mean, covariance, normalised=link == "bridge_norm"), fn)

    def log_classes(self, eta: Tensor) -> Tensor | None:
        """Of a softmax."""
        return eta.log_softmax(-1)

    def of_log_classes(self, log_p: Tensor) -> Tensor:
        """They are logits."""
        return log_p

    def expected(self, fn: Any) -> Tensor:
        """Class probabilities `[*batch, classes]`."""
        return fn.probs

    def hits(self, expected: Tensor, observed: Tensor) -> Tensor:
        """Whether the most probable class is the observed one."""
        return expected.argmax(-1) == observed

    def location(self, fn: Any) -> Tensor:
        """All of eta: classes have no spread beside their probabilities."""
        return self.link(fn)

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """`multinomial_root`, `[*batch, classes, classes - 1]`."""
        return multinomial_root(eta)

    def information_sum(self, eta: Tensor, fn: Any, weight: Tensor) -> Tensor:
        """diag(sum w p) - sum w p p'."""
        p = eta.softmax(-1).reshape(-1, eta.shape[-1])
        weighted = weight.reshape(-1, 1) * p
        return weighted.sum(0).diag() - weighted.mT @ p

    def information_diagonal(self, eta: Tensor, fn: Any) -> Tensor:
        """p (1 - p)."""
        p = eta.softmax(-1)
        return p * (1 - p)


@register(torch.distributions.OneHotCategorical)
class OneHotCategoricalFamily(CategoricalFamily):
    """One draw, its class as a one among zeros."""

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """OneHotCategorical(logits=eta)."""
        return dist.OneHotCategorical(logits=eta)

    def hits(self, expected: Tensor, observed: Tensor) -> Tensor:
        """Whether the most probable class is the observed one `[*batch]`."""
        return expected.argmax(-1) == observed.argmax(-1)


@register(torch.distributions.Multinomial)
class MultinomialFamily(CategoricalFamily):
    """Counts of a number of draws, several classes, of which a mixture is more spread."""

    classes = False

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """Multinomial(total_count, logits=eta)."""
        if isinstance(fn, MultinomialOfTotals):
            return MultinomialOfTotals(fn.totals, eta)
        return dist.Multinomial(fn.total_count, logits=eta)

    def log_classes(self, eta: Tensor) -> None:
        """No one class."""

    def expected(self, fn: Any) -> Tensor:
        """n p."""
        return fn.mean

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """sqrt(n) `multinomial_root`, `[*batch, classes, classes - 1]`."""
        return _totals(fn, eta).sqrt()[..., None, None] * multinomial_root(eta)

    def information_sum(self, eta: Tensor, fn: Any, weight: Tensor) -> Tensor:
        """diag(sum w n p) - sum w n p p'."""
        return super().information_sum(eta, fn, _totals(fn, eta) * weight)

    def information_diagonal(self, eta: Tensor, fn: Any) -> Tensor:
        """n p (1 - p)."""
        return _totals(fn, eta).unsqueeze(-1) * super().information_diagonal(eta, fn)


def _totals(fn: Any, eta: Tensor) -> Tensor:
    """The number of draws of each datum `[*batch]`, or of all."""
    return torch.as_tensor(fn.totals if isinstance(fn, MultinomialOfTotals) else fn.total_count).to(eta)


@register(dist.OrderedLogistic)
class OrderedLogisticFamily(Family):
    """eta = (first cutpoint - predictor, logs of the steps to the next cutpoints): linear in the predictor.

    With F the sigmoid and t_j the cutpoints less the predictor, class j has probability p_j = F(t_j) - F(t_{j-1}).
    """

    outputs = ("cutpoints",)
    classes = True

    def link(self, fn: Any) -> Tensor:
        """(t_0, log(t_1 - t_0), ...) `[*batch, classes - 1]`."""
        first = fn.cutpoints[..., :1] - fn.predictor.unsqueeze(-1)
        return torch.cat([first, fn.cutpoints.diff(dim=-1).log()], -1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """OrderedLogistic(0, t)."""
        return dist.OrderedLogistic(torch.zeros_like(eta[..., 0]), _cutpoints(eta))

    def expected(self, fn: Any) -> Tensor:
        """Class probabilities `[*batch, classes]`."""
        return fn.probs

    def hits(self, expected: Tensor, observed: Tensor) -> Tensor:
        """Whether the most probable class is the observed one."""
        return expected.argmax(-1) == observed

    def location(self, fn: Any) -> Tensor:
        """All of eta: classes have no spread beside their probabilities."""
        return self.link(fn)

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """S_ij = (d p_j / d eta_i) / sqrt p_j `[*batch, classes - 1, classes]`, a column for each class.

        d p_j / d t_j = F'(t_j), and all cutpoints from the i-th on move by exp(eta_i): above the diagonal the
        difference F'(t_j) - F'(t_{j-1}) = p_j (1 - F(t_j) - F(t_{j-1})).

        Returns:
            S, finite for classes far in a tail.
        """
        t = _cutpoints(eta)
        step = torch.cat([torch.zeros_like(eta[..., :1]), eta[..., 1:]], -1)
        log_p = torch.cat([logsigmoid(t[..., :1]), _log_between(t, eta), logsigmoid(-t[..., -1:])], -1)
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
