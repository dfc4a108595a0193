"""Fisher information of observed distributions, keyed by distribution type.

A family says three things about a distribution. Its *link*: the unconstrained parameters ``eta`` `[*batch, outputs]`
that the data's distribution depends on, in which predictions are linearised. The way back. And a root ``S`` of its
Fisher information in them, ``I(eta) = E[(d log p / d eta)(d log p / d eta)'] = S S'``, of shape
`[*batch, outputs, columns]`.
Curvature does not depend on which parametrisation a family chooses; the linearised predictive does.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace._compat import mask_of
from pyro_laplace._errors import UnsupportedProgram


class Family(ABC):
    """Link and Fisher information of one type of distribution."""

    outputs: ClassVar[tuple[str, ...]]
    """Names of the entries of eta; one name alone stands for as many as there are classes or components."""

    @staticmethod
    @abstractmethod
    def link(fn: Any) -> Tensor:
        """Unconstrained parameters eta `[*batch, outputs]` of a distribution."""

    @staticmethod
    @abstractmethod
    def distribution(eta: Tensor) -> Any:
        """The distribution with parameters eta."""

    @staticmethod
    @abstractmethod
    def fisher_root(eta: Tensor) -> Tensor:
        """S `[*batch, outputs, columns]` with S S' the Fisher information in eta."""


_FAMILIES: dict[type, type[Family]] = {}


def register(*types: type) -> Callable[[type[Family]], type[Family]]:
    """Class decorator: this family describes these distribution types."""

    def decorate(family: type[Family]) -> type[Family]:
        _FAMILIES.update(dict.fromkeys(types, family))
        return family

    return decorate


@dataclass(frozen=True)
class Likelihood:
    """An observed site's distribution seen through its wrappers (`to_event`, `mask`, `expand`, fixed transforms).

    Attributes:
        family: of the innermost distribution.
        base: the innermost distribution.
        wrappers: the wrappers around it, outermost first.
    """

    family: type[Family]
    base: Any
    wrappers: tuple[Any, ...]

    @property
    def event_dims(self) -> int:
        """Batch dims of the base that the wrappers made part of the event."""
        return sum(w.reinterpreted_batch_ndims for w in self.wrappers if isinstance(w, torch.distributions.Independent))

    def link(self) -> Tensor:
        """Unconstrained parameters eta `[*base batch, outputs]`; the event dims of `to_event` are batch dims here."""
        eta = self.family.link(self.base)
        shape = self.wrappers[0].shape() if self.wrappers else self.base.shape()
        batch = shape[: len(shape) - len(self.base.event_shape)]
        return eta.expand(*batch, eta.shape[-1])

    def distribution(self, eta: Tensor) -> Any:
        """The observed site's distribution, wrappers restored, with the base's parameters replaced by eta."""
        fn = self.family.distribution(eta)
        for wrapper in reversed(self.wrappers):
            if isinstance(wrapper, torch.distributions.Independent):
                fn = fn.to_event(wrapper.reinterpreted_batch_ndims)
            elif isinstance(wrapper, dist.MaskedDistribution):
                fn = fn.mask(mask_of(wrapper))
            elif isinstance(wrapper, torch.distributions.TransformedDistribution):
                fn = dist.TransformedDistribution(fn, wrapper.transforms)
        return fn

    def weight(self, per_datum: Tensor) -> Tensor:
        """Spread a weight `[*batch]` over the base's batch dims, and apply the wrappers' masks."""
        weight = per_datum.reshape(per_datum.shape + (1,) * self.event_dims)
        inner = self.event_dims
        for wrapper in self.wrappers:
            if isinstance(wrapper, torch.distributions.Independent):
                inner -= wrapper.reinterpreted_batch_ndims
            elif isinstance(wrapper, dist.MaskedDistribution):
                mask = torch.as_tensor(mask_of(wrapper))
                weight = weight * mask.reshape(mask.shape + (1,) * inner)
        return weight


_WRAPPERS = (torch.distributions.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)

_FIXED_TRANSFORMS = (
    torch.distributions.transforms.ExpTransform,
    torch.distributions.transforms.SigmoidTransform,
    torch.distributions.transforms.TanhTransform,
    torch.distributions.transforms.SoftplusTransform,
)
"""Elementwise bijections without parameters: observing T(x) has the Fisher information of observing x."""


def _is_fixed_transform(fn: Any) -> bool:
    is_transformed = isinstance(fn, torch.distributions.TransformedDistribution)
    return is_transformed and all(isinstance(transform, _FIXED_TRANSFORMS) for transform in fn.transforms)


def likelihood_of(fn: Any) -> Likelihood | None:
    """The family of a distribution, seen through its wrappers; None where no family is registered."""
    wrappers = []
    while isinstance(fn, _WRAPPERS) or _is_fixed_transform(fn):
        wrappers.append(fn)
        fn = fn.base_dist
    for cls in type(fn).__mro__:
        if cls in _FAMILIES:
            return Likelihood(_FAMILIES[cls], fn, tuple(wrappers))
    return None


def require_likelihood(name: str, fn: Any) -> Likelihood:
    """`likelihood_of`, or an error that names the site.

    Returns:
        the likelihood, never None.

    Raises:
        UnsupportedProgram: if no family is registered for the site's distribution.
    """
    likelihood = likelihood_of(fn)
    if likelihood is None:
        raise UnsupportedProgram(
            f"observed site {name!r} has a {type(fn).__name__} distribution, whose link is not known (known: "
            f"{', '.join(sorted({cls.__name__ for cls in _FAMILIES}))}): its program cannot be linearised. Draw "
            "through the nonlinear program instead, or register a family with pyro_laplace.likelihood.register"
        )
    return likelihood
