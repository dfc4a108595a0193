"""`LinearizedPredictive`: distributions of the observed sites, under the linearised program, without weight draws."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, check_option
from pyro_laplace.data import Batch
from pyro_laplace.likelihood.decomposition import Decomposition
from pyro_laplace.likelihood.gaussian import GaussianEta
from pyro_laplace.likelihood.links import LINKS
from pyro_laplace.likelihood.mixing import divergence, mix
from pyro_laplace.likelihood.mixture import average, in_order
from pyro_laplace.linearized.expansion import Expansion
from pyro_laplace.linearized.jacobian import Linearized
from pyro_laplace.linearized.program import LinearizedProgram
from pyro_laplace.linearized.routes import first_route
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.program.arguments import told_of_arguments
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.module_state import in_place_refused, modules_kept
from pyro_laplace.settings import settings


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
    - OrderedLogistic data: ordered classes with probabilities averaged over draws of eta, whatever `link` is. Their
      `mean` and `variance` are those of the classes as the numbers 0, 1, ...
    - others: as their family says, if it was registered with a `predictive` of its own; else a `FunctionMixture` over
      draws of eta.
    - data of a mixture: `Bernoulli` and classes with averaged probabilities, else a `DistributionMixture`.

    Draws of eta are of each datum's own Gaussian, as `latent` gives it: their cost does not grow with the number of
    weights. Where draws of theta cost less (few draws, many outputs), theta is drawn. In neither case do they tell of
    several data together; those of `sample` do, each of which is one theta at all inputs.

    `to_event`, masks and fixed transforms around a distribution stay around it. The values of observed sites, if they
    are given, are not looked at. Nothing of the model is changed, also when it raises: modes, buffers, parameters.

    Args:
        model: the Pyro program.
        guide: a posterior of it, from `fit_laplace`. Each component of a `LaplaceMixture` is linearised at its own
            mode, and what they give is mixed: distributions exactly, moments by the laws of total expectation and
            covariance.
        link: of classes: "probit", "bridge" (the Laplace bridge), "bridge_norm" (the same of scaled logits), or
            "sample", the mean of the likelihood over draws of eta, also for Bernoulli and Binomial data: of
            one class per datum the averaged probabilities, of several (or sums of them) a `FunctionMixture`. The
            first three depend on the constant that a softmax does not see: it is that of the logits that the program
            computes; normalised logits and probabilities are centred first.
        num_samples: draws of eta, where these are needed; a component of a mixture whose weight is under
            `settings.whole_weight` has fewer, in proportion to it, but for those of `decompose`.
        differentiable: whether gradients flow from means and variances to the inputs. It takes a dense Jacobian.

    Raises:
        InvalidOption: if the guide is not an `AutoLaplace` or `LaplaceMixture`, or an option has a value that it
            cannot have.
        UnsupportedProgram: when called, if a likelihood's link is not known, the program cannot be differentiated, its
            predictor is random (dropout in training mode), or a site has no data.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Any,
        *,
        link: str = "probit",
        num_samples: int = 1000,
        differentiable: bool = False,
    ) -> None:
        if not isinstance(guide, AutoLaplace | LaplaceMixture):
            raise InvalidOption(f"LinearizedPredictive takes a guide from fit_laplace, not {type(guide).__name__}")
        check_option("link", link, LINKS)
        check_option("differentiable", differentiable, (True, False))
        self.model = model.model if isinstance(model, LinearizedProgram) else model
        self.guide, self.link, self.differentiable = guide, link, differentiable
        self.num_samples = _positive("num_samples", num_samples)
        components = guide.components if isinstance(guide, LaplaceMixture) else (guide,)
        self._components = [_Component(self.model, each, differentiable) for each in components]

    def __getstate__(self) -> dict[str, Any]:
        """What it was made of; the model too, which a guide alone would not bring."""
        return {name: getattr(self, name) for name in ("model", "guide", "link", "num_samples", "differentiable")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make it anew."""
        self.__init__(**state)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The predictive distribution of y at each observed site.

        Args:
            *args: the model's.
            **kwargs: the model's.

        Returns:
            site name to a distribution of the site's batch and event shape.
        """
        return self._mixed(mix, self._predictives(args, kwargs))

    def sample(self, num_samples: int, latent: bool = False) -> Callable[..., dict[str, Tensor]]:
        """Draws in function space; one draw is one function, at all inputs, of one component.

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
        scale) is left out. To the mean covariance within the components of a mixture comes that between them.

        Args:
            *args: the model's.
            joint: whether the covariance is over all inputs together.
            **kwargs: the model's.

        Returns:
            site name to mean `[*batch, outputs]` and covariance `[*batch, outputs, outputs]`; if `joint`, with N data,
            mean [N * outputs] and covariance [N * outputs, N * outputs], the outputs of a datum beside one another.
        """
        return self._mixed(_mix_moments, [each.moments(args, kwargs, joint) for each, _ in self._each()])

    def decompose(self, *args: Any, **kwargs: Any) -> dict[str, Decomposition]:
        """What of the uncertainty about y is the data's, and what the parameters'.

        Variances of Normal data are closed forms. Entropies, and variances of other data, are means over `num_samples`
        draws of eta; of data whose moments are not known in closed form, over two draws of y at each. To the
        mean epistemic part of the components of a mixture comes what lies between them: the variance of their means, or
        the Jensen-Shannon divergence of their class probabilities.

        Args:
            *args: the model's.
            **kwargs: the model's.

        Returns:
            site name to the parts: variances `[*batch, *event]`, or for Bernoulli and classes entropies `[*base]`.
        """
        parts = [each.decomposition(args, kwargs, self.num_samples) for each, _ in self._each()]
        if len(parts) == 1:
            return parts[0]
        predictives = self._predictives(args, kwargs)
        both = [{n: (part[n], found[n]) for n in part} for part, found in zip(parts, predictives, strict=True)]
        return self._mixed(_mix_decompositions, both)

    def _sample(self, num_samples: int, latent: bool, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        if len(self._components) == 1:
            return self._components[0].sample(args, kwargs, num_samples, latent)
        chosen = torch.multinomial(self.guide.weights, num_samples, replacement=True)
        drawn = []
        for number, component in enumerate(self._components):
            count = int((chosen == number).sum())
            draws = component.sample(args, kwargs, max(1, count), latent)  # one at least, for its shape
            drawn.append({name: value[:count] for name, value in draws.items()})
        return self._mixed(lambda _, parts: in_order(chosen, parts), drawn)

    def _predictives(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[dict[str, Any]]:
        return [each.predictive(args, kwargs, self.link, count) for each, count in self._each()]

    def _each(self) -> Iterator[tuple["_Component", int]]:
        """The components, each told what the one before it found out of the program, and their draws of eta."""
        before = None
        for component, count in zip(self._components, self._draws_of_eta, strict=True):
            if before is not None:
                component.learn(before)
            yield component, count
            before = component

    @property
    def _draws_of_eta(self) -> list[int]:
        """How many each component has, in proportion to its weight where that is small."""
        weights = self.guide.weights.tolist() if len(self._components) > 1 else [1.0]
        few = min(self.num_samples, settings.component_draws)
        shares = (min(1.0, weight / settings.whole_weight) for weight in weights)
        return [max(few, math.ceil(self.num_samples * share)) for share in shares]

    def _mixed[T](
        self, combine: Callable[[Tensor, Sequence[T]], T | Any], parts: Sequence[Mapping[str, T]]
    ) -> dict[str, Any]:
        """`combine` of the weights and of what the components have for each site; what there is of one component."""
        if len(parts) == 1:
            return dict(parts[0])
        return {name: combine(self.guide.weights, [part[name] for part in parts]) for name in parts[0]}


class _Component:
    """The predictive of one Gaussian posterior.

    Args:
        model: the Pyro program.
        guide: the posterior.
        differentiable: whether gradients flow to the inputs.
    """

    def __init__(self, model: Callable[..., Any], guide: AutoLaplace, differentiable: bool) -> None:
        self.model, self.guide, self.differentiable = model, guide, differentiable
        self._route = first_route(Expansion.of(model, guide), differentiable)

    def learn(self, other: "_Component") -> None:
        """Take over what another component has found out of the program's structures."""
        self._route = self._route.informed(other._route)

    def predictive(self, args: tuple[Any, ...], kwargs: dict[str, Any], link: str, num_samples: int) -> dict[str, Any]:
        """The distribution of y at each observed site."""
        with self._linearized(args, kwargs) as sites:
            return {
                name: linear.likelihood.predictive(self._gaussian(name, linear, num_samples), link)
                for name, linear in sites.items()
            }

    def decomposition(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], num_samples: int
    ) -> dict[str, Decomposition]:
        """Of the uncertainty about y at each observed site."""
        with self._linearized(args, kwargs) as sites:
            return {
                name: linear.likelihood.decomposition(self._gaussian(name, linear, num_samples))
                for name, linear in sites.items()
            }

    def moments(self, args: tuple[Any, ...], kwargs: dict[str, Any], joint: bool) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and covariance of the linear predictor at each observed site."""
        with self._linearized(args, kwargs) as sites:
            if joint:
                return {name: (linear.mean.flatten(), linear.covariance_of_all()) for name, linear in sites.items()}
            covariances = {name: linear.covariance_of_datum() for name, linear in sites.items()}
            return {n: (sites[n].mean.reshape(each.shape[:-1]), each) for n, each in covariances.items()}

    def sample(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], num_samples: int, latent: bool
    ) -> dict[str, Tensor]:
        """Draws of y, or of the linear predictor, at each observed site `[num_samples, *shape]`."""
        with self._linearized(args, kwargs) as sites, torch.no_grad():
            chunks = list(self._changes(sites, num_samples))
            changes = {name: torch.cat([chunk[name] for chunk in chunks]) for name in sites}
            if latent:
                return {
                    name: (linear.mean + changes[name]).reshape(num_samples, *linear.batch, linear.outputs_of_datum)
                    for name, linear in sites.items()
                }
            return {
                name: linear.likelihood.distribution(linear.eta + linear.embed(changes[name])).sample()
                for name, linear in sites.items()
            }

    @contextmanager
    def _linearized(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Mapping[str, Linearized]]:
        """The observed sites at the given arguments; what is drawn from inside advances the user's generator."""
        with (
            undisturbed(rng=False),
            torch.set_grad_enabled(self.differentiable),
            modules_kept(self.model),
            in_place_refused(),
        ):
            batch = Batch(args, kwargs)
            with told_of_arguments(self.model, batch, values=self.guide.median):
                step = self._route.at(Chunk(batch))
            self._route = step.route
            yield step.sites

    def _gaussian(self, name: str, linear: Linearized, num_samples: int) -> GaussianEta:
        """What a site's family is told of it."""
        return linear.gaussian(
            name, num_samples, lambda: (chunk[name] for chunk in self._changes({name: linear}, num_samples))
        )

    def _changes(self, sites: Mapping[str, Linearized], num_samples: int) -> Iterator[dict[str, Tensor]]:
        """By site, ``J (theta - theta*)`` [some, n, k] at draws of theta that the sites share, some at a time."""
        largest = max(linear.elements_of_draw() for linear in sites.values())
        step = max(1, settings.pass_elements // (len(self.guide.loc) + largest))
        for start in range(0, num_samples, step):
            deviation = self._deviation(min(step, num_samples - start))
            yield {name: linear.changes(deviation) for name, linear in sites.items()}

    def _deviation(self, num_samples: int) -> Tensor:
        """Draws of theta - theta* [draws, params]."""
        loc = self.guide.loc
        white = torch.randn(num_samples, len(loc), dtype=loc.dtype, device=loc.device)
        return self.guide.precision.color(white)


def _mix_moments(weights: Tensor, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and covariance: those within components, and between them."""
    mean = average(weights, [each for each, _ in parts])
    deviations = [each - mean for each, _ in parts]
    between = average(weights, [d.unsqueeze(-1) * d.unsqueeze(-2) for d in deviations])
    return mean, average(weights, [covariance for _, covariance in parts]) + between


def _mix_decompositions(weights: Tensor, parts: Sequence[tuple[Decomposition, Any]]) -> Decomposition:
    """Of decompositions and predictives: what lies between components is the parameters'."""
    decompositions, predictives = zip(*parts, strict=True)
    if decompositions[0].kind == "entropy":
        between = divergence(weights, predictives)
    else:
        means = [predictive.mean for predictive in predictives]
        mean = average(weights, means)
        between = average(weights, [(each - mean).square() for each in means])
    aleatoric = average(weights, [each.aleatoric for each in decompositions])
    within = average(weights, [each.epistemic for each in decompositions])
    return replace(decompositions[0], aleatoric=aleatoric, epistemic=within + between)


def _positive(option: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidOption(f"{option}={value!r}: give a positive number of draws")
    return value
