"""Mixtures that are predictive distributions of y: over draws of the parameters, and of several distributions."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_laplace.settings import settings
from pyro_laplace.unwrap import innermost


class FunctionMixture(TorchDistribution):
    """The equal mixture of a likelihood over draws of its parameters: a predictive distribution of y.

    Args:
        eta: draws of the parameters `[draws, *base batch, outputs]`.
        make: the likelihood of given parameters.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleMethodOverride]
    has_rsample = False

    def __init__(self, eta: Tensor, make: Callable[[Tensor], Any]) -> None:
        self.eta, self._make = eta, make
        self.components = make(eta)
        batch_shape, event_shape = self.components.batch_shape[1:], self.components.event_shape
        super().__init__(batch_shape, event_shape, validate_args=False)

    def __repr__(self) -> str:
        event = f", event_shape={list(self.event_shape)}" if self.event_shape else ""
        kind = type(innermost(self.components)).__name__
        return f"FunctionMixture({kind}, batch_shape={list(self.batch_shape)}{event}, draws={len(self.eta)})"

    @property
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The likelihood's."""
        return self.components.support

    @property
    def mean(self) -> Tensor:
        """The mean over draws of the likelihood's mean."""
        return self.components.mean.mean(0)

    @property
    def probs(self) -> Tensor:
        """Class probabilities averaged over draws, of classes: as the likelihood's own `probs` lays them out.

        Raises:
            AttributeError: if y is no class.
        """
        return _probs_of(self, self.components).mean(0)

    @property
    def variance(self) -> Tensor:
        """The mean of the likelihood's variance, and the variance of its mean."""
        return self.components.variance.mean(0) + self.components.mean.var(0, correction=0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of the mean density over draws, `[*batch]`."""
        lead = value.dim() - len(self.batch_shape) - len(self.event_shape)
        log_prob = self.components.log_prob(value.unsqueeze(max(lead, 0)))
        return log_prob.logsumexp(max(lead, 0)) - math.log(len(self.eta))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws `[*sample_shape, *batch, *event]`, each from the parameters of one draw."""
        shape = torch.Size(sample_shape)
        chosen = torch.randint(len(self.eta), (shape.numel(),), device=self.eta.device)
        return self._make(self.eta[chosen]).sample().reshape(shape + self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FunctionMixture":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The same distribution, which has the batch of its data.

        Returns:
            this one.

        Raises:
            NotImplementedError: if the batch is not the same; its base parameters may have event axes of `to_event`.
        """
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        raise NotImplementedError("a FunctionMixture has the batch shape of its data: expand what it is compared with")


class DistributionMixture(TorchDistribution):
    """``sum_k w_k p_k(y)`` of distributions of one shape, which may be of different kinds.

    Args:
        weights: w_k [components].
        components: p_k.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleMethodOverride]
    has_rsample = False

    def __init__(self, weights: Tensor, components: Sequence[Any]) -> None:
        self.weights, self.components = weights, list(components)
        first = self.components[0]
        super().__init__(first.batch_shape, first.event_shape, validate_args=False)

    @property
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The components'."""
        return self.components[0].support

    @property
    def mean(self) -> Tensor:
        """``sum_k w_k m_k``."""
        return average(self.weights, [component.mean for component in self.components])

    @property
    def probs(self) -> Tensor:
        """``sum_k w_k p_k`` of class probabilities, of classes.

        Raises:
            AttributeError: if y is no class.
        """
        return average(self.weights, [_probs_of(self, component) for component in self.components])

    @property
    def variance(self) -> Tensor:
        """The mean of the components' variances, and the variance of their means."""
        means, mean = [component.mean for component in self.components], self.mean
        within = [component.variance for component in self.components]
        return average(self.weights, [v + (m - mean).square() for m, v in zip(means, within, strict=True)])

    def log_prob(self, value: Tensor) -> Tensor:
        """``log sum_k w_k p_k``."""
        log_probs = torch.stack([component.log_prob(value) for component in self.components], -1)
        return (log_probs + self.weights.log().to(log_probs)).logsumexp(-1)

    def cdf(self, value: Tensor) -> Tensor:
        """``sum_k w_k F_k``."""
        return average(self.weights, [component.cdf(value) for component in self.components])

    @torch.no_grad()
    def icdf(self, value: Tensor) -> Tensor:
        """The quantile at a level, between the least and the largest of the components', by bisection."""
        level = torch.as_tensor(value).to(self.weights.device)
        each = torch.stack([component.icdf(level.to(component.mean)) for component in self.components])
        low, high = each.amin(0), each.amax(0)
        for _ in range(settings.bisections):
            middle = (low + high) / 2
            below = self.cdf(middle) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws `[*sample_shape, *batch, *event]`, each from one component for all data."""
        shape = torch.Size(sample_shape)
        chosen = torch.multinomial(self.weights, max(1, shape.numel()), replacement=True)[: shape.numel()]
        parts = [c.sample(((chosen == number).sum().item(),)) for number, c in enumerate(self.components)]
        return in_order(chosen, parts).reshape(shape + self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DistributionMixture":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The mixture of the expanded components."""
        return DistributionMixture(self.weights, [component.expand(batch_shape) for component in self.components])


_CLASSES = (torch.distributions.Bernoulli, torch.distributions.Categorical, torch.distributions.OneHotCategorical)
"""Of one class, and with its probabilities; what derives from them too."""


def _probs_of(mixture: Any, component: Any) -> Tensor:
    """Class probabilities of a component."""
    if isinstance(component, FunctionMixture | DistributionMixture):
        return component.probs
    base = innermost(component)
    if not isinstance(base, _CLASSES):
        raise AttributeError(f"{mixture!r} has no probs: its y are no classes")
    probs: Any = base.probs
    return probs.expand(component.shape() + probs.shape[len(base.batch_shape) + len(base.event_shape) :])


def average(weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    """``sum_k w_k v_k``."""
    stacked = torch.stack(list(values), -1)
    return (stacked * weights.to(stacked)).sum(-1)


def in_order(chosen: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Draws of each component to where it was chosen, [draws, ...]."""
    whole = parts[0].new_empty(len(chosen), *parts[0].shape[1:])
    for number, part in enumerate(parts):
        whole[chosen == number] = part
    return whole
