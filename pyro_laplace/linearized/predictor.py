"""`LinearizedPredictive`: distributions of the observed sites, under the linearised program, without weight draws."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, check_option
from pyro_laplace.data import Batch
from pyro_laplace.linearized.covariance import Functional
from pyro_laplace.linearized.jacobian import ELEMENTS, Linearized, Linearizer, elements_of_draw, moved
from pyro_laplace.linearized.links import LINKS
from pyro_laplace.linearized.mixture import MixturePredictive
from pyro_laplace.linearized.observation import Decomposition, Observation
from pyro_laplace.linearized.program import LinearizedProgram
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.module_state import in_place_refused, modules_kept


class LinearizedPredictive:
    """The predictive of ``eta(x) + J(x) (theta - theta*)``, the program that a Gauss-Newton posterior belongs to.

    Called with the model's arguments, it gives the distribution of y at each observed site. Eta, the likelihood's
    unconstrained parameters, is Gaussian with covariance ``J Sigma J'``, and y has

    - Normal data: a Normal with variance ``J Sigma J' + E sigma^2``, noise included, multivariate over what `to_event`
      puts into one datum. A scale that depends on random sites is log-normal: ``E sigma^2 = exp(2 mean + 2 variance)``
      of its logarithm, and mean and variance of y are exact, its shape is that of a Normal.
    - MultivariateNormal data of known covariance: a MultivariateNormal, exactly.
    - Bernoulli and Binomial data: logits ``f / sqrt(1 + pi/8 v)``. It is the probability that is averaged: a sum of
      several trials has the right mean, and too little variance, but with ``link="sample"``.
    - Categorical, OneHotCategorical and Multinomial data: as `link` says.
    - others: a `FunctionMixture` over draws of eta.

    `to_event`, masks and fixed transforms around a distribution stay around it. The values of observed sites, if they
    are given, are not looked at. Nothing of the model is changed, also when it raises: modes, buffers, parameters.

    Args:
        model: the Pyro program.
        guide: a posterior of it, from `fit_laplace`. A `LaplaceMixture` gives a `MixturePredictive`, each component
            linearised at its own mode.
        link: of classes: "probit", "bridge" (the Laplace bridge), "bridge_norm" (the same of scaled logits), or
            "sample", the mean of the likelihood over draws in function space, also for Bernoulli and Binomial data: of
            one class per datum the averaged probabilities, of several (or sums of them) a `FunctionMixture`. The
            first three depend on the constant that a softmax does not see: it is that of the logits that the program
            computes; normalised logits and probabilities are centred first.
        num_samples: draws in function space, where these are needed.
        differentiable: whether gradients flow from means and variances to the inputs. It takes a dense Jacobian.

    Raises:
        InvalidOption: if the guide is not an `AutoLaplace`, or an option has a value that it cannot have.
        UnsupportedProgram: when called, if a likelihood's link is not known, the program cannot be differentiated, its
            predictor is random (dropout in training mode), or a site has no data.
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
            raise InvalidOption(f"LinearizedPredictive takes a guide from fit_laplace, not {type(guide).__name__}")
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
            return {name: self._observation(name, linear).distribution(self.link) for name, linear in sites.items()}

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
        draws in function space; of data whose moments are not known in closed form, over two draws of y at each.

        Args:
            *args: the model's.
            **kwargs: the model's.

        Returns:
            site name to the parts: variances `[*batch, *event]`, or for Bernoulli and classes entropies `[*base]`.
        """
        with self._linearized(args, kwargs) as sites:
            return {name: self._observation(name, linear).decomposition() for name, linear in sites.items()}

    @contextmanager
    def _linearized(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[dict[str, Linearized]]:
        """The observed sites at the given arguments; what is drawn from inside advances the user's generator."""
        chunk = Chunk(Batch(args, kwargs))
        with (
            undisturbed(rng=False),
            torch.set_grad_enabled(self.differentiable),
            modules_kept(self.model),
            in_place_refused(),
        ):
            yield self._linearizer.at(chunk)

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

    def _observation(self, name: str, linear: Linearized) -> Observation:
        def draw() -> Tensor:
            return linear.eta + linear.embed(self._changes({"": linear}, self.num_samples)[""])

        return Observation(name, linear, self._functional, draw)


def _positive(option: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidOption(f"{option}={value!r}: give a positive number of draws")
    return value
