"""The mixture of several predictive distributions: of their own kind where there is one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_laplace.likelihood.decomposition import entropy
from pyro_laplace.likelihood.mixture import DistributionMixture, FunctionMixture, average
from pyro_laplace.likelihood.registry import Family, family_of, log_mean
from pyro_laplace.unwrap import innermost


def mix(weights: Tensor, components: Sequence[Any]) -> Any:
    """The mixture of distributions.

    Args:
        weights: w_k [components].
        components: distributions of one batch and event shape.

    Returns:
        of one class (Bernoulli, Categorical, OneHotCategorical) the same with averaged probabilities, else a
        `DistributionMixture`.
    """
    first = components[0]
    family = family_of(type(first))
    if family is None or any(type(component) is not type(first) for component in components):
        return DistributionMixture(weights, components)
    if not family.classes:
        return DistributionMixture(weights, components)
    mean = family.average(torch.stack([family.link(component) for component in components]), weights)
    return DistributionMixture(weights, components) if mean is None else family.distribution(mean, first)


def divergence(weights: Tensor, predictives: Sequence[Any]) -> Tensor:
    """The Jensen-Shannon divergence of class probabilities: the entropy of their mean, less their mean entropy.

    Args:
        weights: w_k [components].
        predictives: distributions of classes, whatever is around them.

    Returns:
        the divergence of each y `[*base]`.
    """
    log_ps = torch.stack([_log_classes(predictive) for predictive in predictives])
    return (entropy(log_mean(log_ps, weights)) - average(weights, [entropy(log_p) for log_p in log_ps])).clamp(min=0)


def _log_classes(predictive: Any) -> Tensor:
    """Log probabilities of each class alone; of a mixture over draws, of their mean."""
    over_draws = isinstance(predictive, FunctionMixture)
    base = innermost(predictive.components if over_draws else predictive)
    family = family_of(type(base))
    assert isinstance(family, Family)  # only of classes is there an entropy to decompose
    eta = family.average(predictive.eta) if over_draws else family.link(base)
    log_p = None if eta is None else family.log_classes(eta)
    assert log_p is not None
    return log_p
