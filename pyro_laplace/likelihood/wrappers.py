"""An observed site's distribution seen through its wrappers, with the family of what they wrap."""

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, transforms
from torch.distributions.transforms import AffineTransform

from pyro_laplace._compat.pyro import mask_of
from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.likelihood.decomposition import Decomposition
from pyro_laplace.likelihood.gaussian import GaussianEta
from pyro_laplace.likelihood.mixture import FunctionMixture
from pyro_laplace.likelihood.registry import FAMILIES, Family, family_of
from pyro_laplace.unwrap import WRAPPERS

_FIXED_TRANSFORMS = (
    transforms.ExpTransform,
    transforms.SigmoidTransform,
    transforms.TanhTransform,
    transforms.SoftplusTransform,
    transforms.StickBreakingTransform,
    transforms.SoftmaxTransform,
)
"""Maps without parameters. Those that are one to one (a softmax is not) keep the Fisher information."""


@dataclass(frozen=True)
class Likelihood:
    """An observed site's distribution seen through its wrappers (`to_event`, `mask`, `expand`, fixed transforms).

    Attributes:
        family: of the innermost distribution.
        base: the innermost distribution.
        wrappers: the wrappers around it, outermost first.
    """

    family: Family
    base: Any
    wrappers: tuple[Any, ...]

    @property
    def event_dims(self) -> int:
        """Batch dims of the base that the wrappers made part of the event."""
        return sum(w.reinterpreted_batch_ndims for w in self.wrappers if isinstance(w, Independent))

    @property
    def shape(self) -> torch.Size:
        """Of the base's batch, expanded as the wrappers say; the event dims of `to_event` are batch dims here."""
        shape = torch.Size((self.wrappers[0] if self.wrappers else self.base).batch_shape)  # a tuple, of some of Pyro's
        for wrapper in self.wrappers:
            if isinstance(wrapper, Independent):
                inner = wrapper.base_dist.batch_shape
                shape += inner[len(inner) - wrapper.reinterpreted_batch_ndims :]
        return shape

    @property
    def event(self) -> torch.Size:
        """Shape of the entries that `to_event` put into one datum."""
        return self.shape[len(self.shape) - self.event_dims :]

    def link(self) -> Tensor:
        """Unconstrained parameters eta `[*base batch, outputs]`; the event dims of `to_event` are batch dims here."""
        eta = self.family.link(self.base)
        return eta.expand(*self.shape, eta.shape[-1])

    def moving(self) -> Tensor | None:
        """Which entries of eta require a gradient, bool `[outputs]`, in a run under autograd; None: any may."""
        return self.family.moving(self.base)

    def fisher_root(self, eta: Tensor) -> Tensor:
        """S `[*base batch, outputs, columns]` with S S' the Fisher information in eta."""
        return self.family.fisher_root(eta, self.base)

    def information_sum(self, eta: Tensor, weight: Tensor) -> Tensor:
        """``sum_n w_n I(eta_n)`` [outputs, outputs]."""
        return self.family.information_sum(eta, self.base, weight)

    def information_diagonal(self, eta: Tensor) -> Tensor:
        """The diagonal of each datum's Fisher information `[*base batch, outputs]`."""
        return self.family.information_diagonal(eta, self.base)

    def distribution(self, eta: Tensor) -> Any:
        """The observed site's distribution, wrappers restored, with the base's parameters replaced by eta."""
        return self.around(self.family.distribution(eta, self.base))

    def around(self, fn: Any, grouped: bool = False) -> Any:
        """The wrappers around another distribution.

        Args:
            fn: in the place of the base.
            grouped: whether it has the axes of `to_event` in its event already.

        Returns:
            the distribution with masks and fixed transforms, and `to_event` unless `grouped`.
        """
        for wrapper in reversed(self.wrappers):
            if isinstance(wrapper, Independent):
                fn = fn if grouped else fn.to_event(wrapper.reinterpreted_batch_ndims)
            elif isinstance(wrapper, dist.MaskedDistribution):
                fn = fn.mask(mask_of(wrapper))
            elif isinstance(wrapper, torch.distributions.LogNormal) and type(fn) is dist.Normal:  # knows its moments
                fn = dist.LogNormal(fn.loc, fn.scale)
            elif isinstance(wrapper, torch.distributions.TransformedDistribution):
                fn = dist.TransformedDistribution(fn, wrapper.transforms)
        return fn

    def standardised(self, value: Tensor) -> Tensor | None:
        """`Family.standardised` of the data, which no transform stands around; None elsewhere."""
        return None if self._transformed else self.family.standardised(self.base, value)

    def predictive(self, eta: GaussianEta, link: str) -> Any:
        """The distribution of y where eta is Gaussian: the family's, or a mixture over draws, wrappers restored.

        Args:
            eta: the parameters.
            link: of classes and logits, one of `LINKS`.

        Returns:
            a distribution of the site's batch and event shape.
        """
        if eta.event and not self._masks_entries:
            joint = self.family.joint_predictive(eta, self.base)
            if joint is not None:
                return self.around(joint, grouped=True)
        fn = self.family.predictive(eta, self.base, link)
        return FunctionMixture(eta.draw(), self.distribution) if fn is None else self.around(fn)

    def decomposition(self, eta: GaussianEta) -> Decomposition:
        """What of the uncertainty about y is the data's, and what the parameters', where eta is Gaussian."""
        known = None if self._transformed else self.family.variances(eta, self.base)
        if known is not None:
            return Decomposition("variance", *known)
        if self.family.log_classes(eta.mean) is None:
            return Decomposition.of_variance(self.distribution(eta.draw()))
        log_ps = (self.family.log_classes(draws) for draws in eta.draws())
        return Decomposition.of_entropy(log_p for log_p in log_ps if log_p is not None)

    @property
    def _transformed(self) -> bool:
        """Whether a transform stands around the data."""
        return any(isinstance(wrapper, torch.distributions.TransformedDistribution) for wrapper in self.wrappers)

    @property
    def _masks_entries(self) -> bool:
        """Whether a mask lies within a `to_event`, and so tells the entries of one datum apart."""
        inside = False
        for wrapper in self.wrappers:  # outermost first
            inside = inside or isinstance(wrapper, Independent)
            if inside and isinstance(wrapper, dist.MaskedDistribution):
                return True
        return False

    def weight(self, per_datum: Tensor, value: Tensor) -> Tensor:
        """Spread a weight `[*batch]` over the base's batch dims; what is masked, or missing as NaN, weighs nothing.

        Args:
            per_datum: what each datum is multiplied by.
            value: the site's data.

        Returns:
            the weight of each entry `[*base batch]`.
        """
        weight = per_datum.reshape(per_datum.shape + (1,) * self.event_dims)
        inner = self.event_dims
        for wrapper in self.wrappers:
            if isinstance(wrapper, Independent):
                inner -= wrapper.reinterpreted_batch_ndims
            elif isinstance(wrapper, dist.MaskedDistribution):
                mask = torch.as_tensor(mask_of(wrapper))
                weight = weight * mask.reshape(mask.shape + (1,) * inner)
        return weight * value.isfinite() if isinstance(self.base, dist.NanMaskedNormal) else weight


def likelihood_of(fn: Any) -> Likelihood | None:
    """The family of a distribution, seen through its wrappers; None where no family is registered."""
    base, wrappers = seen_through(fn)
    family = family_of(type(base))
    if family is None or not _is_known(base):
        return None
    return Likelihood(family, base, wrappers)


def seen_through(fn: Any) -> tuple[Any, tuple[Any, ...]]:
    """The innermost distribution, and the wrappers around it, outermost first.

    An affine transform of a location-scale distribution is no wrapper but another such distribution: its shift and
    scale may depend on latent sites.

    Returns:
        a distribution that is registered or that has nothing to see through, and its wrappers.
    """
    wrappers = []
    while family_of(type(fn)) is None:
        if (moved := _moved(fn)) is not None:
            fn = moved
        elif isinstance(fn, WRAPPERS) or _is_fixed_transform(fn):
            wrappers.append(fn)
            fn = fn.base_dist
        else:
            break
    return fn, tuple(wrappers)


def marginalises_nan(fn: Any) -> bool:
    """Whether a distribution takes NaN for a missing entry."""
    return isinstance(seen_through(fn)[0], dist.NanMaskedNormal | dist.NanMaskedMultivariateNormal)


def _is_known(base: Any) -> bool:
    """Whether the family holds: not where entries are marginalised, or zeros are added to a density."""
    if isinstance(base, dist.NanMaskedMultivariateNormal):
        return False
    if not isinstance(base, dist.ZeroInflatedDistribution):
        return True
    return family_of(type(base.base_dist)) is not None and bool(base.base_dist.support.is_discrete)


def _is_fixed_transform(fn: Any) -> bool:
    """Whether a distribution is another one mapped one to one, by maps that depend on no tensor."""
    if not isinstance(fn, torch.distributions.TransformedDistribution):
        return False
    return all(_is_fixed(each) and each.bijective for each in fn.transforms)


def _is_fixed(transform: Any) -> bool:
    if isinstance(transform, AffineTransform):
        return not isinstance(transform.loc, Tensor) and not isinstance(transform.scale, Tensor)
    if isinstance(transform, transforms.ComposeTransform):
        return all(_is_fixed(part) for part in transform.parts)
    return isinstance(transform, _FIXED_TRANSFORMS)


def _moved(fn: Any) -> Any | None:
    """An affine transform of a location-scale distribution as one such distribution; None if it is no such thing."""
    if not isinstance(fn, torch.distributions.TransformedDistribution) or not fn.transforms:
        return None
    affine, *rest = fn.transforms
    if not isinstance(affine, AffineTransform):
        return None
    base, event_dims = fn.base_dist, 0
    while isinstance(base, Independent):
        base, event_dims = base.base_dist, event_dims + base.reinterpreted_batch_ndims
    family = family_of(type(base))
    moved = None if family is None else family.moved(base, affine.loc, affine.scale)
    if moved is None:
        return None
    moved = moved.to_event(event_dims)
    return dist.TransformedDistribution(moved, rest) if rest else moved


def require_likelihood(name: str, fn: Any) -> Likelihood:
    """`likelihood_of`, or an error that names the site.

    Returns:
        the likelihood, never None.

    Raises:
        UnsupportedProgram: if no family is registered for the site's distribution.
    """
    likelihood = likelihood_of(fn)
    if likelihood is None:
        kind = type(seen_through(fn)[0])
        raise UnsupportedProgram(
            f"observed site {name!r} has a {kind.__name__} distribution, whose link is not known (known: "
            f"{', '.join(sorted({cls.__name__ for cls in FAMILIES}))}): its program cannot be linearised. Draw "
            "through the nonlinear program instead, or register a family with pyro_laplace.likelihood.register"
        )
    return likelihood
