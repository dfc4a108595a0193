"""What y is where its parameters are Gaussian: in closed form where there is one, else a mixture over draws of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.transforms import ReshapeTransform

from pyro_laplace._errors import InvalidOption
from pyro_laplace.likelihood import Likelihood
from pyro_laplace.likelihood.categorical import CategoricalFamily, MultinomialFamily
from pyro_laplace.likelihood.discrete import BernoulliFamily, BinomialFamily
from pyro_laplace.likelihood.location_scale import NormalFamily
from pyro_laplace.likelihood.multivariate import MultivariateNormalFamily
from pyro_laplace.linearized.covariance import Functional
from pyro_laplace.linearized.jacobian import Linearized
from pyro_laplace.linearized.links import FunctionMixture, laplace_bridge, probit


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Uncertainty about y, in two parts that add up: of the data, and of the parameters.

    Attributes:
        kind: "variance"; for classes "entropy", in nats, of which the epistemic part is the mutual information.
        aleatoric: expected uncertainty of y given the parameters.
        epistemic: what knowing the parameters would take away.
    """

    kind: str
    aleatoric: Tensor
    epistemic: Tensor

    @property
    def total(self) -> Tensor:
        """Uncertainty of the predictive."""
        return self.aleatoric + self.epistemic


@dataclass(frozen=True, eq=False)
class Observation:
    """An observed site behind a Gaussian predictor.

    Which form it has is its family's to say: a distribution may be a subclass of another and have other parameters, as
    `OrderedLogistic` is one of `Categorical`.

    Attributes:
        name: the site's.
        linear: mean and Jacobian of the predictor.
        functional: gives its covariances.
        draw: gives draws of eta `[draws, *base, outputs]`.
    """

    name: str
    linear: Linearized
    functional: Functional
    draw: Callable[[], Tensor]

    def distribution(self, link: str) -> Any:
        """The predictive distribution of y.

        Args:
            link: of classes and logits, one of `LINKS`.

        Returns:
            a distribution of the site's batch and event shape.
        """
        family = self._likelihood.family
        if isinstance(family, NormalFamily):
            return self._normal()
        if isinstance(family, MultivariateNormalFamily) and int(self.linear.kept.max()) < self._event_size:
            return self._multivariate_normal()
        if isinstance(family, CategoricalFamily | BernoulliFamily | BinomialFamily):
            return self._logits(link)
        return FunctionMixture(self.draw(), self._likelihood.distribution)

    def decomposition(self) -> Decomposition:
        """What of the uncertainty about y is the data's, and what the parameters'."""
        family, wrappers = self._likelihood.family, self._likelihood.wrappers
        transformed = any(isinstance(w, torch.distributions.TransformedDistribution) for w in wrappers)
        if isinstance(family, NormalFamily) and not transformed:
            _, variance, noise = self._normal_moments(self.functional.variance(self.linear))
            return Decomposition("variance", aleatoric=noise, epistemic=variance)
        eta = self.draw()
        if isinstance(family, BernoulliFamily):
            eta = torch.cat([torch.zeros_like(eta), eta], -1)
        if _is_one_draw(self._likelihood):
            log_p = eta.log_softmax(-1)
            aleatoric = _entropy(log_p).mean(0)
            total = _entropy(log_p.exp().mean(0).log())
            return Decomposition("entropy", aleatoric=aleatoric, epistemic=(total - aleatoric).clamp(min=0))
        fn = self._likelihood.distribution(eta)
        try:
            return Decomposition("variance", aleatoric=fn.variance.mean(0), epistemic=fn.mean.var(0, correction=0))
        except NotImplementedError:  # moments that are not known: those of two draws of y that share their parameters
            one, other = fn.sample(), fn.sample()
            shared = ((one - one.mean(0)) * (other - other.mean(0))).mean(0).clamp(min=0)
            return Decomposition("variance", aleatoric=(one - other).square().mean(0) / 2, epistemic=shared)

    @property
    def _likelihood(self) -> Likelihood:
        return self.linear.likelihood

    @property
    def _event_size(self) -> int:
        return self._likelihood.base.event_shape[0]

    def _normal(self) -> Any:
        """Normal with the variances of predictor and noise added up; the entries of an event have a covariance."""
        linear, likelihood = self.linear, self._likelihood
        event = linear.base[len(linear.base) - likelihood.event_dims :]
        if not event or _masks_entries(likelihood):
            mean, variance, noise = self._normal_moments(self.functional.variance(linear))
            return likelihood.distribution(torch.stack([mean, (variance + noise).log() / 2], -1))
        spread = self.functional.covariance(linear)
        mean, _, noise = self._normal_moments(spread.diagonal(dim1=-2, dim2=-1))
        entries, outputs = event.numel(), linear.kept.tolist()
        whole = linear.by_datum(spread).reshape(*linear.batch, entries, len(outputs), entries, len(outputs))
        of_loc = whole[..., 0, :, 0] if outputs[0] == 0 else torch.zeros_like(whole[..., 0, :, 0])
        nan_masked = isinstance(likelihood.base, dist.NanMaskedNormal)
        kind = dist.NanMaskedMultivariateNormal if nan_masked else dist.MultivariateNormal
        flat = (*linear.batch, entries)
        fn: Any = kind(mean.reshape(flat), of_loc + noise.reshape(flat).diag_embed())
        shaped = fn if len(event) == 1 else ArrayNormal(fn, [ReshapeTransform(fn.event_shape, event)])
        return likelihood.around(shaped, grouped=True)

    def _normal_moments(self, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and expected noise variance of the location `[*base]`, by the predictor's variance [n, k]."""
        spread = self.linear.embed(variance)
        loc, log_scale = self.linear.eta.unbind(-1)
        return loc, spread[..., 0], (2 * log_scale + 2 * spread[..., 1]).exp()

    def _multivariate_normal(self) -> Any:
        linear, base = self.linear, self._likelihood.base
        covariance = linear.by_entry(self.functional.covariance(linear))
        whole = base.covariance_matrix.expand(*linear.base, -1, -1).clone()
        index = linear.kept
        whole[..., index[:, None], index] += covariance
        fn = dist.MultivariateNormal(linear.eta[..., : self._event_size], whole)
        return self._likelihood.distribution(self._likelihood.family.link(fn))

    def _logits(self, link: str) -> Any:
        """Bernoulli, categories and their sums: the likelihood at moderated logits, or the mixture over draws."""
        linear, make = self.linear, self._likelihood.distribution
        one_logit = not isinstance(self._likelihood.family, CategoricalFamily)
        if link == "sample":
            eta = self.draw()
            if not _is_one_draw(self._likelihood) or self._likelihood.event_dims:  # what depends on one another
                return FunctionMixture(eta, make)
            return make(eta.sigmoid().mean(0).logit() if one_logit else eta.softmax(-1).mean(0).log())
        if link == "probit":
            return make(probit(linear.eta, linear.embed(self.functional.variance(linear))))
        if one_logit:
            raise InvalidOption(
                f"link={link!r} is for classes, and the observed site {self.name!r} has one logit: use 'probit' or "
                "'sample'"
            )
        covariance = self._whole(linear.by_entry(self.functional.covariance(linear)))
        return make(laplace_bridge(linear.eta, covariance, normalised=link == "bridge_norm").log())

    def _whole(self, covariance: Tensor) -> Tensor:
        """Covariances of the kept outputs as those of all, `[*base, outputs, outputs]`."""
        kept, outputs = self.linear.kept, self.linear.eta.shape[-1]
        if len(kept) == outputs:
            return covariance
        whole = covariance.new_zeros(*covariance.shape[:-2], outputs, outputs)
        return whole.index_put((..., kept[:, None], kept), covariance)  # pyright: ignore


class ArrayNormal(dist.TransformedDistribution):
    """A multivariate Normal whose draws have several event dims: one that is reshaped."""

    @property
    def mean(self) -> Tensor:
        """Of each entry."""
        return self.base_dist.mean.reshape(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Of each entry."""
        return self.base_dist.variance.reshape(self.batch_shape + self.event_shape)


def _is_one_draw(likelihood: Likelihood) -> bool:
    """Whether y is one class, whose mixture over draws has averaged probabilities; a sum of several is more spread."""
    family = likelihood.family
    several = isinstance(family, MultinomialFamily)
    return isinstance(family, BernoulliFamily | CategoricalFamily) and not several


def _masks_entries(likelihood: Likelihood) -> bool:
    """Whether a mask lies within a `to_event`, and so tells the entries of one datum apart."""
    inside = False
    for wrapper in likelihood.wrappers:  # outermost first
        inside = inside or isinstance(wrapper, torch.distributions.Independent)
        if inside and isinstance(wrapper, dist.MaskedDistribution):
            return True
    return False


def _entropy(log_p: Tensor) -> Tensor:
    """In nats, of log probabilities `[*batch, classes]`."""
    return -torch.where(log_p.isneginf(), 0.0, log_p.exp() * log_p).sum(-1)
