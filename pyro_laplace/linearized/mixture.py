"""Predictives of several components: their mixture, as one distribution of y at each observed site."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_laplace.draws.over_draws import base_of
from pyro_laplace.linearized.links import FunctionMixture

_CLASSES = (dist.Categorical, dist.OneHotCategorical)


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
    def variance(self) -> Tensor:
        """The mean of the components' variances, and the variance of their means."""
        between = [(component.mean - self.mean).square() for component in self.components]
        return average(self.weights, [c.variance + b for c, b in zip(self.components, between, strict=True)])

    def log_prob(self, value: Tensor) -> Tensor:
        """``log sum_k w_k p_k``."""
        log_probs = torch.stack([component.log_prob(value) for component in self.components], -1)
        return (log_probs + self.weights.log().to(log_probs)).logsumexp(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws `[*sample_shape, *batch, *event]`, each from one component for all data."""
        shape = torch.Size(sample_shape)
        chosen = torch.multinomial(self.weights, max(1, shape.numel()), replacement=True)[: shape.numel()]
        parts = [c.sample(((chosen == number).sum().item(),)) for number, c in enumerate(self.components)]
        return _in_order(chosen, parts).reshape(shape + self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DistributionMixture":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The mixture of the expanded components."""
        return DistributionMixture(self.weights, [component.expand(batch_shape) for component in self.components])


def mix(weights: Tensor, components: Sequence[Any]) -> Any:
    """The mixture of distributions: of their own kind where there is one, else a `DistributionMixture`.

    Args:
        weights: w_k [components].
        components: distributions of one batch and event shape.

    Returns:
        of Bernoulli, Categorical and OneHotCategorical data the same with averaged probabilities.
    """
    kind = type(components[0])
    if any(type(component) is not kind for component in components):
        return DistributionMixture(weights, components)
    if kind in _CLASSES:
        return kind(logits=_log_mean(weights, [component.logits for component in components]))
    if kind is dist.Bernoulli:
        log_odds = [component.logits for component in components]
        log_p = _log_mean(weights, [torch.nn.functional.logsigmoid(logit) for logit in log_odds])
        log_not_p = _log_mean(weights, [torch.nn.functional.logsigmoid(-logit) for logit in log_odds])
        return kind(logits=log_p - log_not_p)
    return DistributionMixture(weights, components)


class MixturePredictive:
    """The predictive of a `LaplaceMixture`, each component linearised at its own mode.

    It has the methods of a `LinearizedPredictive`, and mixes what those of the components give: distributions exactly,
    moments by the laws of total expectation and covariance.

    Args:
        weights: of the components [components].
        parts: the `LinearizedPredictive` of each.
    """

    def __init__(self, weights: Tensor, parts: Sequence[Any]) -> None:
        self.weights, self.parts = weights, tuple(parts)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The predictive distribution of y at each observed site.

        Args:
            *args: the model's.
            **kwargs: the model's.

        Returns:
            site name to the mixture: `Bernoulli` and classes with averaged probabilities, else a `DistributionMixture`.
        """
        return _by_site(partial(mix, self.weights), [part(*args, **kwargs) for part in self.parts])

    def sample(self, num_samples: int, latent: bool = False) -> Callable[..., dict[str, Tensor]]:
        """Draws in function space; one draw is one function, at all inputs, of one component.

        Args:
            num_samples: number of draws.
            latent: whether of the linear predictor instead of y.

        Returns:
            a function of the model's arguments that gives site name to draws `[num_samples, *shape]`.
        """
        self.parts[0].sample(num_samples, latent)  # refuses what is no number of draws
        return partial(self._sample, num_samples, latent)

    def latent(self, *args: Any, joint: bool = False, **kwargs: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and covariance of the linear predictor: within components, and between them.

        Args:
            *args: the model's.
            joint: whether the covariance is over all inputs together.
            **kwargs: the model's.

        Returns:
            site name to mean and covariance, as `LinearizedPredictive.latent` lays them out.
        """
        return _by_site(self._moments, [part.latent(*args, joint=joint, **kwargs) for part in self.parts])

    def decompose(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What of the uncertainty about y is the data's, and what the parameters': of a component, and which it is.

        Args:
            *args: the model's.
            **kwargs: the model's.

        Returns:
            site name to a `Decomposition`. To the mean epistemic part of the components comes what lies between them:
            the variance of their means, or the Jensen-Shannon divergence of their class probabilities.
        """
        parts = [part.decompose(*args, **kwargs) for part in self.parts]
        predictives = [part(*args, **kwargs) for part in self.parts]
        return {
            name: self._decomposition([p[name] for p in parts], [p[name] for p in predictives]) for name in parts[0]
        }

    def _sample(self, num_samples: int, latent: bool, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        chosen = torch.multinomial(self.weights, num_samples, replacement=True)
        counts = [int((chosen == number).sum()) for number in range(len(self.parts))]
        found = [
            part.sample(max(1, count), latent)(*args, **kwargs) for part, count in zip(self.parts, counts, strict=True)
        ]
        kept = [
            {name: value[:count] for name, value in each.items()} for each, count in zip(found, counts, strict=True)
        ]
        return _by_site(partial(_in_order, chosen), kept)

    def _moments(self, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        mean = average(self.weights, [each for each, _ in parts])
        deviations = [each - mean for each, _ in parts]
        between = average(self.weights, [d.unsqueeze(-1) * d.unsqueeze(-2) for d in deviations])
        return mean, average(self.weights, [covariance for _, covariance in parts]) + between

    def _decomposition(self, parts: Sequence[Any], predictives: Sequence[Any]) -> Any:
        within = average(self.weights, [part.epistemic for part in parts])
        if parts[0].kind == "entropy":
            bases = [_marginal(predictive) for predictive in predictives]
            mean_entropy = average(self.weights, [base.entropy() for base in bases])
            between = (mix(self.weights, bases).entropy() - mean_entropy).clamp(min=0)
        else:
            means = [predictive.mean for predictive in predictives]
            between = average(self.weights, [(m - average(self.weights, means)).square() for m in means])
        aleatoric = average(self.weights, [part.aleatoric for part in parts])
        return replace(parts[0], aleatoric=aleatoric, epistemic=within + between)


def _marginal(predictive: Any) -> Any:
    """The distribution of each class alone; a mixture over draws has that of averaged probabilities."""
    if not isinstance(predictive, FunctionMixture):
        return base_of(predictive)
    base = base_of(predictive.components)
    kind = dist.Bernoulli if isinstance(base, dist.Bernoulli) else dist.Categorical
    return kind(probs=base.probs.mean(0))


def average(weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    """``sum_k w_k v_k``."""
    stacked = torch.stack(list(values), -1)
    return (stacked * weights.to(stacked)).sum(-1)


def _log_mean(weights: Tensor, log_values: Sequence[Tensor]) -> Tensor:
    """``log sum_k w_k exp(v_k)``."""
    stacked = torch.stack(list(log_values), -1)
    return (stacked + weights.log().to(stacked)).logsumexp(-1)


def _in_order(chosen: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Draws of each component to where it was chosen, [draws, ...]."""
    whole = parts[0].new_empty(len(chosen), *parts[0].shape[1:])
    for number, part in enumerate(parts):
        whole[chosen == number] = part
    return whole


def _by_site(combine: Callable[[Any], Any], parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`combine` of what the parts have for each site."""
    return {name: combine([part[name] for part in parts]) for name in parts[0]}
