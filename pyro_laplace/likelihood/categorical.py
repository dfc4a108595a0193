"""Categories: eta = log probabilities up to a constant, I = n (diag p - p p'), with n the number of draws."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace.likelihood.classes import ClassFamily
from pyro_laplace.likelihood.gaussian import GaussianEta
from pyro_laplace.likelihood.links import log_laplace_bridge, probit
from pyro_laplace.likelihood.registry import register
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
class CategoricalFamily(ClassFamily):
    """One draw, its class as an integer."""

    outputs = concave = ("logits",)
    shift_invariant = True

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
