"""`LinearizedPredictive`: distributions of the observed sites, under the linearised program, without weight draws."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace._compat import undisturbed
from pyro_laplace._errors import InvalidOption, UnsupportedProgram, check_option
from pyro_laplace.data import Batch
from pyro_laplace.guide import AutoLaplace
from pyro_laplace.mixture import LaplaceMixture
from pyro_laplace.predictive.functional import Functional
from pyro_laplace.predictive.jacobian import ELEMENTS, Linearized, Linearizer, elements_of_draw, moved
from pyro_laplace.predictive.linearized import LinearizedProgram
from pyro_laplace.predictive.links import LINKS, FunctionMixture, laplace_bridge, probit
from pyro_laplace.predictive.mixture import MixturePredictive
from pyro_laplace.predictive.modules_kept import modules_kept
from pyro_laplace.predictive.written_logits import CLASSES
from pyro_laplace.program import Chunk

_ONE_LOGIT = (torch.distributions.Bernoulli, torch.distributions.Binomial)
_ONE_CLASS = (torch.distributions.Categorical, torch.distributions.OneHotCategorical)


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


class LinearizedPredictive:
    """The predictive of ``eta(x) + J(x) (theta - theta*)``, the program that a Gauss-Newton posterior belongs to.

    Called with the model's arguments, it gives the distribution of y at each observed site. Eta, the likelihood's
    unconstrained parameters, is Gaussian with covariance ``J Sigma J'``, and y has

    - Normal data: a Normal with variance ``J Sigma J' + E sigma^2``, noise included, multivariate for ``to_event(1)``.
      A scale that depends on random sites is log-normal: ``E sigma^2 = exp(2 mean + 2 variance)`` of its logarithm, and
      mean and variance of y are exact, its shape is that of a Normal.
    - MultivariateNormal data of known covariance: a MultivariateNormal, exactly.
    - Bernoulli and Binomial data: logits ``f / sqrt(1 + pi/8 v)``.
    - Categorical, OneHotCategorical and Multinomial data: as `link` says.
    - others: a `FunctionMixture` over draws of eta.

    `to_event`, masks and fixed transforms around a distribution stay around it. The values of observed sites, if they
    are given, are not looked at. Nothing of the model is changed, also when it raises: modes, buffers, parameters.

    Args:
        model: the Pyro program.
        guide: a posterior of it, from `fit_laplace`. A `LaplaceMixture` gives a `MixturePredictive`, each component
            linearised at its own mode.
        link: of classes: "probit", "bridge" (the Laplace bridge), "bridge_norm" (the same of scaled logits), or
            "sample", the mean of the likelihood over draws in function space, also for Bernoulli and Binomial data. The
            first three depend on the constant that a softmax does not see: it is that of the logits that the program
            computes; normalised logits and probabilities are centred first.
        num_samples: draws in function space, where these are needed.
        differentiable: whether gradients flow from means and variances to the inputs. It takes a dense Jacobian.

    Raises:
        InvalidOption: if the guide is not an `AutoLaplace`, or an option has a value that it cannot have.
        UnsupportedProgram: when called, if a likelihood's link is not known, or the program cannot be differentiated.
    """

    def __new__(cls, model: Any = None, guide: Any = None, **options: Any) -> Any:
        """Of a mixture, the predictive that mixes those of its components."""
        if isinstance(guide, LaplaceMixture):
            parts = [cls(model, component, **options) for component in guide.components]
            return MixturePredictive(guide.weights, parts)
        return super().__new__(cls)

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Any,
        *,
        link: str = "probit",
        num_samples: int = 1000,
        differentiable: bool = False,
    ) -> None:
        if not isinstance(guide, AutoLaplace):
            raise InvalidOption(f"LinearizedPredictive takes a guide from fit_laplace, not a {type(guide).__name__}")
        check_option("link", link, LINKS)
        check_option("differentiable", differentiable, (True, False))
        self.model = model.model if isinstance(model, LinearizedProgram) else model
        self.guide, self.link, self.differentiable = guide, link, differentiable
        self.num_samples = _positive("num_samples", num_samples)
        self._linearizer = Linearizer(self.model, guide, differentiable)
        self._functional = Functional(guide.precision)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The predictive distribution of y at each observed site.

        Args:
            *args: the model's.
            **kwargs: the model's.

        Returns:
            site name to a distribution of the site's batch and event shape.
        """
        with self._linearized(args, kwargs) as sites:
            return {name: self._distribution(name, linear) for name, linear in sites.items()}

    def sample(self, num_samples: int, latent: bool = False) -> Callable[..., dict[str, Tensor]]:
        """Draws in function space; one draw is one function, at all inputs.

        Args:
            num_samples: number of draws.
            latent: whether of the linear predictor, as `latent` lays it out, instead of y.

        Returns:
            a function of the model's arguments that gives site name to draws `[num_samples, *shape]`.
        """
        return partial(self._sample, _positive("num_samples", num_samples), latent)

    def latent(self, *args: Any, joint: bool = False, **kwargs: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and covariance ``J Sigma J'`` of the linear predictor, without observation noise.

        Its outputs are the likelihood's parameters in link space (a logit, log rate, location and log scale), of each
        entry of a ``to_event``, one entry after the other. One that depends on no random site (the log of a known noise
        scale) is left out.

        Args:
            *args: the model's.
            joint: whether the covariance is over all inputs together.
            **kwargs: the model's.

        Returns:
            site name to mean `[*batch, outputs]` and covariance `[*batch, outputs, outputs]`; if `joint`, with N data,
            mean [N * outputs] and covariance [N * outputs, N * outputs], the outputs of a datum beside one another.
        """
        with self._linearized(args, kwargs) as sites:
            return {name: self._moments(linear, joint) for name, linear in sites.items()}

    def decompose(self, *args: Any, **kwargs: Any) -> dict[str, Decomposition]:
        """What of the uncertainty about y is the data's, and what the parameters'.

        Variances of Normal data are closed forms. Entropies, and variances of other data, are means over `num_samples`
        draws in function space.

        Args:
            *args: the model's.
            **kwargs: the model's.

        Returns:
            site name to the parts: variances `[*batch, *event]`, or for Bernoulli and classes entropies `[*base]`.
        """
        with self._linearized(args, kwargs) as sites:
            return {name: self._decomposition(linear) for name, linear in sites.items()}

    @contextmanager
    def _linearized(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[dict[str, Linearized]]:
        """The observed sites at the given arguments; what is drawn from inside advances the user's generator."""
        chunk = Chunk(Batch(args, kwargs))
        with undisturbed(rng=False), torch.set_grad_enabled(self.differentiable), modules_kept(self.model):
            try:
                yield self._linearizer.at(chunk)
            except RuntimeError as error:
                if "in-place operation" not in str(error):
                    raise
                raise UnsupportedProgram(
                    "the program changes a tensor of its own in place while it runs (a batch normalisation in training "
                    "mode, say), and cannot be differentiated as a function: call .eval() on its modules"
                ) from error

    def _moments(self, linear: Linearized, joint: bool) -> tuple[Tensor, Tensor]:
        if joint:
            return linear.mean.flatten(), self._functional.joint(linear)
        covariance = linear.by_datum(self._functional.covariance(linear))
        return linear.mean.reshape(*linear.batch, covariance.shape[-1]), covariance

    def _sample(self, num_samples: int, latent: bool, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        with self._linearized(args, kwargs) as sites, torch.no_grad():
            changes = self._changes(sites, num_samples)
            if latent:
                means = {name: self._moments_shape(linear) for name, linear in sites.items()}
                return {n: (sites[n].mean + change).reshape(num_samples, *means[n]) for n, change in changes.items()}
            return {
                name: linear.likelihood.distribution(linear.eta + linear.embed(changes[name])).sample()
                for name, linear in sites.items()
            }

    @staticmethod
    def _moments_shape(linear: Linearized) -> torch.Size:
        """`[*batch, outputs]` of a linear predictor."""
        return torch.Size((*linear.batch, linear.mean.numel() // max(1, linear.batch.numel())))

    def _deviation(self, num_samples: int) -> Tensor:
        """Draws of theta - theta* [draws, params]."""
        loc = self.guide.loc
        white = torch.randn(num_samples, len(loc), dtype=loc.dtype, device=loc.device)
        return self.guide.precision.color(white)

    def _changes(self, sites: dict[str, Linearized], num_samples: int) -> dict[str, Tensor]:
        """By site, ``J (theta - theta*)`` [draws, n, k] at draws of theta that the sites share; some at a time."""
        largest = max(elements_of_draw(next(linear.pieces())) for linear in sites.values())
        step = max(1, ELEMENTS // (len(self.guide.loc) + largest))
        parts: dict[str, list[Tensor]] = {name: [] for name in sites}
        for start in range(0, num_samples, step):
            deviation = self._deviation(min(step, num_samples - start))
            for name, linear in sites.items():
                parts[name].append(torch.cat([moved(products, deviation) for products in linear.pieces()], 1))
        return {name: torch.cat(each) for name, each in parts.items()}

    def _eta(self, linear: Linearized) -> Tensor:
        """Draws of eta `[draws, *base, outputs]`."""
        return linear.eta + linear.embed(self._changes({"": linear}, self.num_samples)[""])

    def _distribution(self, name: str, linear: Linearized) -> Any:
        base = linear.likelihood.base
        if isinstance(base, torch.distributions.Normal):
            return self._normal(linear)
        if isinstance(base, torch.distributions.MultivariateNormal) and len(linear.kept) <= base.event_shape[0]:
            return self._multivariate_normal(linear)
        if isinstance(base, (*_ONE_LOGIT, *CLASSES)):
            return self._logits(name, linear)
        return FunctionMixture(self._eta(linear), linear.likelihood.distribution)

    def _normal(self, linear: Linearized) -> Any:
        """Normal with the variances of predictor and noise added up."""
        mean, variance, noise = self._normal_moments(linear)
        wrappers = linear.likelihood.wrappers
        event_dims = [w.reinterpreted_batch_ndims for w in wrappers if isinstance(w, torch.distributions.Independent)]
        if event_dims == [1] and len(wrappers) == 1 and type(linear.likelihood.base) is dist.Normal:
            entries, outputs = linear.base[-1], linear.kept.tolist()
            covariance = linear.by_datum(self._functional.covariance(linear))
            whole = covariance.reshape(*linear.batch, entries, len(outputs), entries, len(outputs))
            of_loc = whole[..., 0, :, 0] if outputs[0] == 0 else torch.zeros_like(whole[..., 0, :, 0])
            return dist.MultivariateNormal(mean, of_loc + noise.diag_embed())
        return linear.likelihood.distribution(torch.stack([mean, (variance + noise).log() / 2], -1))

    def _normal_moments(self, linear: Linearized) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of the location, and the expected variance of the noise, `[*base]` each."""
        spread = linear.embed(self._functional.variance(linear))
        loc, log_scale = linear.eta.unbind(-1)
        return loc, spread[..., 0], (2 * log_scale + 2 * spread[..., 1]).exp()

    def _multivariate_normal(self, linear: Linearized) -> Any:
        base = linear.likelihood.base
        covariance = linear.by_entry(self._functional.covariance(linear))
        whole = base.covariance_matrix.expand(*linear.base, -1, -1).clone()
        index = linear.kept
        whole[..., index[:, None], index] += covariance
        fn = dist.MultivariateNormal(linear.eta[..., : base.event_shape[0]], whole)
        return linear.likelihood.distribution(linear.likelihood.family.link(fn))

    def _logits(self, name: str, linear: Linearized) -> Any:
        """Bernoulli, categories and their sums: the likelihood at moderated logits."""
        make = linear.likelihood.distribution
        one_logit = isinstance(linear.likelihood.base, _ONE_LOGIT)
        if self.link == "sample":
            eta = self._eta(linear)
            return make(eta.sigmoid().mean(0).logit() if one_logit else eta.softmax(-1).mean(0).log())
        if self.link == "probit":
            return make(probit(linear.eta, linear.embed(self._functional.variance(linear))))
        if one_logit:
            raise InvalidOption(
                f"link={self.link!r} is for classes, and the observed site {name!r} has one logit: use 'probit' or "
                "'sample'"
            )
        covariance = self._whole(linear, linear.by_entry(self._functional.covariance(linear)))
        return make(laplace_bridge(linear.eta, covariance, normalised=self.link == "bridge_norm").log())

    @staticmethod
    def _whole(linear: Linearized, covariance: Tensor) -> Tensor:
        """Covariances of the kept outputs as those of all, `[*base, outputs, outputs]`."""
        outputs = linear.eta.shape[-1]
        if len(linear.kept) == outputs:
            return covariance
        whole = covariance.new_zeros(*covariance.shape[:-2], outputs, outputs)
        return whole.index_put((..., linear.kept[:, None], linear.kept), covariance)  # pyright: ignore

    def _decomposition(self, linear: Linearized) -> Decomposition:
        base, wrappers = linear.likelihood.base, linear.likelihood.wrappers
        transformed = any(isinstance(w, torch.distributions.TransformedDistribution) for w in wrappers)
        if isinstance(base, torch.distributions.Normal) and not transformed:
            _, variance, noise = self._normal_moments(linear)
            return Decomposition("variance", aleatoric=noise, epistemic=variance)
        eta = self._eta(linear)
        if isinstance(base, torch.distributions.Bernoulli):
            eta = torch.cat([torch.zeros_like(eta), eta], -1)
        if isinstance(base, (torch.distributions.Bernoulli, *_ONE_CLASS)):
            log_p = eta.log_softmax(-1)
            aleatoric = _entropy(log_p).mean(0)
            total = _entropy(log_p.exp().mean(0).log())
            return Decomposition("entropy", aleatoric=aleatoric, epistemic=(total - aleatoric).clamp(min=0))
        fn = linear.likelihood.distribution(eta)
        return Decomposition("variance", aleatoric=fn.variance.mean(0), epistemic=fn.mean.var(0, correction=0))


def _entropy(log_p: Tensor) -> Tensor:
    """In nats, of log probabilities `[*batch, classes]`."""
    return -torch.where(log_p.isneginf(), 0.0, log_p.exp() * log_p).sum(-1)


def _positive(option: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidOption(f"{option}={value!r}: give a positive number of draws")
    return value
