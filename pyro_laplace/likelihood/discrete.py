"""Counts and binary data with one parameter: exponential families."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_laplace._errors import InvalidOption
from pyro_laplace.likelihood.gaussian import GaussianEta
from pyro_laplace.likelihood.links import probit
from pyro_laplace.likelihood.registry import Family, register
from pyro_laplace.likelihood.special import log_sigmoid_slope


class _Logit(Family):
    """eta = the logit of a probability."""

    outputs = concave = ("logit",)

    def link(self, fn: Any) -> Tensor:
        """Logits `[*batch, 1]`."""
        return fn.logits.unsqueeze(-1)


class _Sigmoid(_Logit):
    """A logit whose sigmoid is what is averaged."""

    def predictive(self, eta: GaussianEta, fn: Any, link: str) -> Any | None:
        """At a moderated logit, or at the probability averaged over draws; None of several trials by draws.

        Args:
            eta: the logit.
            fn: the program's own distribution.
            link: "probit" or "sample".

        Returns:
            the distribution `[*base]`, or None.

        Raises:
            InvalidOption: for a link of several classes.
        """
        if link == "sample":
            return self.averaged(eta, fn)
        if link != "probit":
            raise InvalidOption(
                f"link={link!r} is for classes, and the observed site {eta.site!r} has one logit: use 'probit' or "
                "'sample'"
            )
        return self.distribution(probit(eta.mean, eta.embed(eta.variance())), fn)


@register(torch.distributions.Bernoulli)
class BernoulliFamily(_Sigmoid):
    """I = p (1 - p)."""

    classes = True
    takes_floats = True

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """Bernoulli(logits=eta)."""
        return dist.Bernoulli(logits=eta.squeeze(-1))

    def log_classes(self, eta: Tensor) -> Tensor:
        """Of 0 and of 1 `[*batch, 2]`."""
        return torch.cat([logsigmoid(-eta), logsigmoid(eta)], -1)

    def of_log_classes(self, log_p: Tensor) -> Tensor:
        """The log odds of 1."""
        return log_p[..., 1:] - log_p[..., :1]

    def hits(self, expected: Tensor, observed: Tensor) -> Tensor:
        """Whether the more probable value is the observed one."""
        return (expected > 0.5) == (observed > 0.5)

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """sqrt(p (1 - p)) `[*batch, 1, 1]`."""
        return (0.5 * log_sigmoid_slope(eta)).exp().unsqueeze(-1)


@register(torch.distributions.Binomial)
class BinomialFamily(_Sigmoid):
    """I = n p (1 - p), with n the fixed number of trials."""

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """Binomial(total_count, logits=eta)."""
        return type_of(fn, dist.ExtendedBinomial, dist.Binomial)(fn.total_count, logits=eta.squeeze(-1))

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """sqrt(n p (1 - p)) `[*batch, 1, 1]`."""
        trials = fn.total_count.to(eta).clamp(min=0.0).unsqueeze(-1)
        return (trials.sqrt() * (0.5 * log_sigmoid_slope(eta)).exp()).unsqueeze(-1)


@register(torch.distributions.Geometric)
class GeometricFamily(_Logit):
    """I = 1 - p."""

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """Geometric(logits=eta)."""
        return dist.Geometric(logits=eta.squeeze(-1))

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """sqrt(1 - p) `[*batch, 1, 1]`."""
        return (-eta).sigmoid().sqrt().unsqueeze(-1)


@register(torch.distributions.ContinuousBernoulli)
class ContinuousBernoulliFamily(_Logit):
    """I = 1 / eta^2 - 1 / (4 sinh^2(eta / 2)), the variance of y."""

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """ContinuousBernoulli(logits=eta)."""
        return dist.ContinuousBernoulli(logits=eta.squeeze(-1))

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """The standard deviation of y `[*batch, 1, 1]`, by its series where |eta| < 1/2."""
        large, small = eta.abs().clamp(min=0.5), eta.abs().clamp(max=0.5).square()
        exact = 1 / large.square() - (-large).exp() / torch.expm1(-large).square()
        series = 1 / 12 - small * (1 / 240 - small * (1 / 6048 - small * (1 / 172800 - small / 5322240)))
        return torch.where(eta.abs() < 0.5, series, exact).sqrt().unsqueeze(-1)


@register(torch.distributions.Poisson)
class PoissonFamily(Family):
    """eta = log rate, I = rate."""

    outputs = concave = ("log_rate",)
    takes_floats = True

    def link(self, fn: Any) -> Tensor:
        """Log rates `[*batch, 1]`."""
        return fn.rate.log().unsqueeze(-1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """Poisson(exp eta)."""
        return dist.Poisson(eta.squeeze(-1).exp())

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """sqrt(rate) `[*batch, 1, 1]`."""
        return (0.5 * eta).exp().unsqueeze(-1)


def type_of(fn: Any, *kinds: type) -> type:
    """The first of some types that a distribution is of."""
    return next(kind for kind in kinds if isinstance(fn, kind))
