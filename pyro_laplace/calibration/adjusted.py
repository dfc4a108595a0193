"""Predictive distributions with a temperature on their logits, or a scale on their spread."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Independent

from pyro_laplace._compat.pyro import mask_of
from pyro_laplace.likelihood.mixture import DistributionMixture, FunctionMixture
from pyro_laplace.scores.prediction import component_of_mixture, expected_of
from pyro_laplace.unwrap import innermost, peel


class Widened(TorchDistribution):
    """``m + s (y - m)`` of a distribution of real numbers with mean m.

    Args:
        base: the distribution.
        factor: s.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleMethodOverride]
    has_rsample = False

    def __init__(self, base: Any, factor: float) -> None:
        self.base, self.factor = base, factor
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The base's."""
        return self.base.support

    @property
    def mean(self) -> Tensor:
        """m."""
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        """s^2 times the base's."""
        return self.factor**2 * self.base.variance

    def log_prob(self, value: Tensor) -> Tensor:
        """The base's at ``m + (y - m) / s``, less log s for each number of an event."""
        moved = self.mean + (value - self.mean) / self.factor
        return self.base.log_prob(moved) - torch.as_tensor(self.factor).log() * self.event_shape.numel()

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws `[*sample_shape, *batch, *event]`."""
        return self.mean + self.factor * (self.base.sample(sample_shape) - self.mean)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles, where the base has them."""
        return self.mean + self.factor * (self.base.icdf(value) - self.mean)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Widened":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The expanded base, widened."""
        return Widened(self.base.expand(batch_shape), self.factor)


def tempered(fn: Any, temperature: float) -> Any:
    """Class probabilities ``softmax(log p / T)``, the wrappers of the distribution restored.

    Args:
        fn: a distribution of classes: `Bernoulli`, `Categorical`, one-hot, or a mixture of these.
        temperature: T.

    Returns:
        a distribution of the same kind.
    """
    logits = logits_of(fn) / temperature
    if innermost(component_of_mixture(fn)).event_shape:
        found = dist.OneHotCategorical(logits=logits)
    elif logits.dim() > len(fn.batch_shape) + len(fn.event_shape):
        found = dist.Categorical(logits=logits)
    else:
        found = dist.Bernoulli(logits=logits)
    return _around(fn, found)


def logits_of(fn: Any) -> Tensor:
    """Log probabilities of classes `[*shape, classes]`, or the logit of yes and no `[*shape]`.

    They are had from logits where there are any: a probability may be rounded to 1.

    Args:
        fn: a distribution of classes, or a mixture of these.

    Returns:
        the logits; of a mixture over draws those of the mean probabilities.
    """
    shape, base = fn.batch_shape + fn.event_shape, innermost(component_of_mixture(fn))
    logits = getattr(base, "logits", None)
    if logits is None or isinstance(fn, DistributionMixture):
        probs: Any = expected_of(fn)
        binary = probs.dim() == len(shape) and not base.event_shape
        return probs.logit(torch.finfo(probs.dtype).eps) if binary else probs.clamp(torch.finfo(probs.dtype).tiny).log()
    binary = isinstance(base, torch.distributions.Bernoulli)
    if isinstance(fn, FunctionMixture):
        if binary:
            ones, zeros = (torch.nn.functional.logsigmoid(each).logsumexp(0) for each in (logits, -logits))
            return (ones - zeros).expand(shape)
        logits = logits.log_softmax(-1).logsumexp(0)
    return logits.expand(shape if binary or base.event_shape else (*shape, logits.shape[-1]))


def widened(fn: Any, factor: float) -> Any:
    """A distribution of real numbers, its deviations from its mean times a factor.

    Args:
        fn: the distribution.
        factor: s.

    Returns:
        of a `Normal` or `MultivariateNormal` one of this kind, of others a `Widened`; wrappers are restored.
    """
    if isinstance(fn, FunctionMixture | DistributionMixture):
        return Widened(fn, factor)
    base = innermost(fn)
    if type(base) in (dist.Normal, torch.distributions.Normal):
        return _around(fn, dist.Normal(base.loc, factor * base.scale))
    if type(base) in (dist.MultivariateNormal, torch.distributions.MultivariateNormal):
        return _around(fn, dist.MultivariateNormal(base.loc, scale_tril=factor * base.scale_tril))
    return _around(fn, Widened(base, factor))


def _around(fn: Any, base: Any) -> Any:
    """The `to_event` and masks of a distribution around another."""
    over_draws = isinstance(fn, FunctionMixture)
    base = (
        base.expand(innermost(fn).batch_shape) if not over_draws and not isinstance(fn, DistributionMixture) else base
    )
    for wrapper in reversed(list(peel(component_of_mixture(fn)))):
        if isinstance(wrapper, Independent):
            base = base.to_event(wrapper.reinterpreted_batch_ndims)
        elif isinstance(wrapper, dist.MaskedDistribution):
            mask = mask_of(wrapper)
            if over_draws and isinstance(mask, Tensor) and mask.dim() > len(base.batch_shape):
                mask = mask[0]  # the same at all draws
            base = base.mask(mask)
    return base
