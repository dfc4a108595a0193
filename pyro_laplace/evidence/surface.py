"""The log evidence as a function of the hyperparameters, theta held, from one sum over data.

What enters priors costs a run of the program on a few rows and a posterior, however many data there are. A noise that
is one number is a factor on its term. All else takes a pass over the data, and two more a number for the gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption
from pyro_laplace._typing import Scalar, Theta, Values
from pyro_laplace.capture.loop import Loop
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.evidence.log_det import LogDet, Solved, log_det_of
from pyro_laplace.evidence.noise import LikelihoodAt, Noise
from pyro_laplace.posterior.search import PosteriorAt, Search
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.reading.hyperparameters import Hyperparameters
from pyro_laplace.reading.prior import Prior
from pyro_laplace.reading.prior_curve import PriorAt, PriorCurve
from pyro_laplace.settings import settings
from pyro_laplace.structure.likelihood_sum import LikelihoodSum
from pyro_laplace.structure.precision import Precision


@dataclass(frozen=True, eq=False)
class EvidenceAt:
    """Laplace's log evidence at some hyperparameters, in nats, with the graph that leads to these.

    Attributes:
        log_lik: log p(y | theta).
        prior: at theta.
        solved: log det Lambda, and the rise to the mode of the quadratic model.
    """

    log_lik: Scalar
    prior: PriorAt
    solved: Solved

    @property
    def value(self) -> Scalar:
        """``log p(y | theta) + log p(theta) + P/2 log 2 pi - 1/2 log det Lambda``, plus the rise."""
        size = self.prior.anchor.size
        volume = 0.5 * size * math.log(2 * math.pi) - 0.5 * self.solved.log_det
        return self.log_lik + self.prior.log_density + volume + self.solved.rise


@dataclass(frozen=True, eq=False)
class Surface:
    """The log evidence around one anchor.

    Attributes:
        loop: the program and its data.
        likelihood: the sum over data.
        prior: at the anchor's hyperparameters.
        found: the hyperparameters.
        few: some data, for what no datum matters to.
        curve: gives the prior at others.
        noise: gives the log likelihood at others, of the terms that it covers.
        log_det: gives the log determinant at others.
        measure: makes the sum over data at other hyperparameters; used for those that `noise` does not cover.
        rises: whether the mode follows the prior, as far as the quadratic model at the anchor goes.
    """

    loop: Loop
    likelihood: LikelihoodSum
    prior: Prior
    found: Hyperparameters
    few: Chunk
    curve: PriorCurve
    noise: Noise
    log_det: LogDet
    measure: Callable[[Values], LikelihoodSum]
    rises: bool

    @staticmethod
    def around(search: Search, posterior: PosteriorAt, found: Hyperparameters, rises: bool = False) -> "Surface":
        """Find out how each hyperparameter enters.

        Args:
            search: how the posterior is made, at the hyperparameters that it was made at.
            posterior: the sum over data and the prior.
            found: the hyperparameters.
            rises: whether the mode follows the prior.

        Returns:
            the surface.

        Raises:
            InvalidOption: if too many numbers would take a pass each.
        """
        likelihood, prior = posterior.likelihood, posterior.prior
        loop = search.loop.at(posterior.theta, found.held)

        def measure(values: Values) -> LikelihoodSum:
            return search.at(posterior.theta, values).summed(posterior.theta, prior, double=likelihood.double)

        anchor, few = likelihood.anchor, loop.few_rows()
        run = CapturedRun.make(loop.program, anchor, few, captured=False, params=found.values)
        normals = PriorCurve.normals_of(run)
        moving = any(site not in normals for sites in found.sites.values() for site in sites)
        curve = PriorCurve.of(run, prior, search.jacobian, moving)
        noise = Noise.of(loop, likelihood, found, search.curvature.noise_power, few)
        surface = Surface(
            loop, likelihood, prior, found, few, curve, noise, log_det_of(likelihood, prior, bool(noise.terms)),
            measure, rises,
        )  # fmt: skip
        numbers = sum(found.values[name].numel() for name in surface.measured)
        if numbers > settings.measured_hyperparameters:
            raise InvalidOption(
                f"hyperparameters: {list(surface.measured)} hold {numbers} numbers that enter the likelihood in other "
                "ways than a homoscedastic Normal noise, and each would take passes over the data at every step: name "
                f"fewer, or raise pl.settings.measured_hyperparameters ({settings.measured_hyperparameters})"
            )
        return surface

    @property
    def measured(self) -> tuple[str, ...]:
        """Hyperparameters whose every value takes a pass over the data."""
        names, found = self.found.names, self.found
        return tuple(
            n for n in names if not self.noise.covers(found.terms[n]) or (found.terms[n] and n in found.located)
        )

    @property
    def start(self) -> Tensor:
        """The hyperparameters that the sum was made at, as a vector."""
        return self.found.flat(self.found.values)

    def at(self, flat: Tensor) -> EvidenceAt:
        """The log evidence.

        Args:
            flat: the hyperparameters as a vector of unconstrained numbers.

        Returns:
            its terms.
        """
        return self.at_values(self.found.unflatten(flat), flat)

    def at_values(self, values: Values, flat: Tensor | None = None) -> EvidenceAt:
        """The log evidence.

        Args:
            values: of the hyperparameters, with the graph that leads to what is to be differentiated.
            flat: the same as a vector.

        Returns:
            its terms.
        """
        with undisturbed(rng=False):
            run = self._run(values)
            prior = self.curve.at(run)
            if self.measured:
                return self._by_passes(values, prior)
            return self._joined(prior, self.noise.at(run.run, self.likelihood), self.log_det)

    def posterior_at(self, values: Values) -> tuple[Precision, Theta | None]:
        """The posterior precision at other hyperparameters, by a pass over the data where one is needed.

        Args:
            values: of the hyperparameters.

        Returns:
            the precision; and where the mode follows the prior, the step ``Lambda^-1 g`` to it [params].
        """
        run = self._run(values)
        prior = self.curve.at(run).numbers(self.prior)
        if self.measured:
            likelihood = self.measure(values)
            precision, gradient = likelihood.posterior(prior), likelihood.gradient
        else:
            at = self.noise.at(run.run, self.likelihood)
            factors = {name: float(factor) for name, factor in at.factors.items()}
            precision, gradient = self.likelihood.posterior(prior, factors), at.gradient
        if not self.rises or gradient is None:
            return precision, None
        return precision, precision.solve(gradient + prior.log_gradient)

    def likelihood_at(self, values: Values) -> LikelihoodSum:
        """The sum over data at other hyperparameters: scaled where noise alone has changed, else by a pass."""
        entering = [name for name in self.found.names if self.found.terms[name]]
        changed = [name for name in entering if not torch.equal(values[name], self.found.values[name])]
        if not changed:
            return self.likelihood
        with undisturbed(rng=False), torch.no_grad():
            run = self._run(values)
            if not self.measured and len(self.likelihood.statistics) == 1:
                (scale,) = self.noise.ratios(run.run).values()
                return self.likelihood.under_noise(scale, self.noise.power)
        return self.measure(values)

    def _run(self, values: Values) -> CapturedRun:
        """Of the program at theta on a few rows, whose free sites are leaves where the prior takes them."""
        anchor = self.likelihood.anchor
        still = anchor if self.curve.moving else replace(anchor, index=anchor.index[:0])
        return CapturedRun.make(self.loop.program, still, self.few, captured=False, params=values)

    def _joined(self, prior: PriorAt, likelihood: LikelihoodAt, log_det: LogDet) -> EvidenceAt:
        gradient = None
        if self.rises and likelihood.gradient is not None:
            gradient = likelihood.gradient + prior.log_gradient
        return EvidenceAt(likelihood.log_lik, prior, log_det.at(prior, likelihood.factors, gradient))

    def _by_passes(self, values: Values, prior: PriorAt) -> EvidenceAt:
        """With the sum over data made anew; its derivatives are taken by further passes, where they are asked for."""

        def at(likelihood: LikelihoodSum, prior: PriorAt) -> EvidenceAt:
            log_lik = prior.log_density.new_tensor(likelihood.log_lik).detach()
            here = LikelihoodAt(log_lik, likelihood.gradient, {})
            return self._joined(prior, here, log_det_of(likelihood, self.prior, False))

        numbers = prior.held()

        def at_other(other: Values) -> float:
            with torch.no_grad():
                return float(at(self.measure({**plain(values), **other}), numbers).value)

        found = at(self.measure(plain(values)), prior)
        entering = {name: values[name] for name in self.found.names if self.found.terms[name]}
        change = _ByDifferences.apply(at_other, tuple(entering), *entering.values())
        return replace(found, log_lik=found.log_lik + change)


class _ByDifferences(torch.autograd.Function):
    """Zero, with the gradient of a function of tensors by central differences."""

    @staticmethod
    def forward(ctx: Any, fn: Callable[[Values], float], names: tuple[str, ...], *values: Tensor) -> Tensor:
        ctx.fn, ctx.names = fn, names
        ctx.save_for_backward(*values)
        return torch.zeros((), dtype=torch.float64)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values = ctx.saved_tensors
        given = dict(zip(ctx.names, values, strict=True))
        grads = []
        for name, value in given.items():
            step = torch.finfo(value.dtype).eps ** (1 / 3)
            flat = value.detach().reshape(-1)
            slopes = []
            for number in range(len(flat)):
                size = step * (abs(float(flat[number])) or 1.0)
                ends = []
                for sign in (1, -1):
                    moved = flat.clone()
                    moved[number] += sign * size
                    ends.append((ctx.fn({**given, name: moved.reshape(value.shape)}), float(moved[number])))
                slopes.append((ends[0][0] - ends[1][0]) / (ends[0][1] - ends[1][1]))
            grads.append(grad_outputs[0].to(value) * value.new_tensor(slopes).reshape(value.shape))
        return (None, None, *grads)


def plain(values: Values) -> dict[str, Tensor]:
    """Values without their graph."""
    return {name: value.detach() for name, value in values.items()}
