"""A homoscedastic noise: under another scale the log likelihood and its curvature are known without the data.

Of Normal data with residual statistics ``S = sum_n ((y_n - f_n) / sigma)^2`` and count N, a noise c times as large has
``log_lik + S (1 - c^-2) / 2 - N log c``, and its curvature in the location is multiplied by ``c^-2``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._typing import Scalar, Theta
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.loop import Loop
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.likelihood import likelihood_of
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.run import Run
from pyro_laplace.reading.hyperparameters import Hyperparameters
from pyro_laplace.settings import settings
from pyro_laplace.structure.likelihood_sum import LikelihoodSum


@dataclass(frozen=True, eq=False)
class LikelihoodAt:
    """The log likelihood at some hyperparameters, theta held, with the graph that leads to these.

    Attributes:
        log_lik: its value, in nats.
        gradient: over the free coordinates [params], in float64; None where it is not known.
        factors: by term, what the curvature of the sum is multiplied by.
    """

    log_lik: Scalar
    gradient: Theta | None
    factors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Noise:
    """Terms whose noise scale is one number of the hyperparameters.

    Attributes:
        terms: theirs, with the scale at the anchor of the datum that stands for all.
        power: of the scale in the curvature.
    """

    terms: Mapping[str, Tensor]
    power: int

    @staticmethod
    def of(loop: Loop, likelihood: LikelihoodSum, found: Hyperparameters, power: int, few: Chunk) -> "Noise":
        """Find the terms, and see that their noise is one for all data.

        Args:
            loop: the program and its data.
            likelihood: the sum over data: terms that are summed together have no factor of their own.
            found: the hyperparameters.
            power: of the noise scale in the curvature.
            few: some data.

        Returns:
            the noise; of no terms where none is of that kind.
        """
        anchor, alone = likelihood.anchor, {terms[0] for terms in likelihood.sums if len(terms) == 1}
        entered = {term for terms in found.terms.values() for term in terms} & alone
        with undisturbed(), torch.no_grad():
            run = CapturedRun.make(loop.program, anchor, few, captured=False, params=found.values)
            fixed = [name for name in entered if name in run.run.observed and not _is_random(run.run, name)]
            scales = {name: scale for name in fixed if (scale := _noise_scale(run.run, name)) is not None}
            if scales and not all(_is_one_number(scale) for scale in scales.values()):
                scales = _of_one_factor(loop, anchor, found, scales)
        return Noise({name: _first(scale).detach() for name, scale in scales.items()}, power)

    def covers(self, terms: tuple[str, ...]) -> bool:
        """Whether these terms are all among its own."""
        return set(terms) <= self.terms.keys()

    def ratios(self, run: Run) -> dict[str, Tensor]:
        """By term, how many times as large the noise is at the hyperparameters of a run."""
        scales = {name: _noise_scale(run, name) for name in self.terms}
        return {
            name: _first(each).double() / self.terms[name].double() for name, each in scales.items() if each is not None
        }

    def at(self, run: Run, likelihood: LikelihoodSum) -> LikelihoodAt:
        """The log likelihood at the hyperparameters of a run.

        Args:
            run: on some data, its params leaves of a graph.
            likelihood: the sum over data.

        Returns:
            value, gradient and factors.
        """
        log_lik = torch.tensor(likelihood.log_lik, dtype=torch.float64, device=likelihood.gradient.device)
        factors: dict[str, Tensor] = {}
        pulls: dict[str, Tensor] = {}
        for name, ratio in self.ratios(run).items():
            own = likelihood.statistics[name]
            assert own.squares is not None
            log_lik = log_lik + own.squares * (1 - ratio**-2) / 2 - own.count * ratio.log()
            factors[name], pulls[name] = ratio**-self.power, ratio**-2
        return LikelihoodAt(log_lik, self._gradient(likelihood, pulls), factors)

    def _gradient(self, likelihood: LikelihoodSum, pulls: Mapping[str, Tensor]) -> Theta | None:
        """The gradient, which was summed over all terms: known where one alone has another noise."""
        if not pulls:
            return likelihood.gradient
        return likelihood.gradient * next(iter(pulls.values())) if len(likelihood.statistics) == 1 else None


def _noise_scale(run: Run, name: str) -> Tensor | None:
    """The noise scale of Normal data; None of others."""
    site = run.observed.get(name)
    likelihood = None if site is None else likelihood_of(site.fn)
    if site is None or likelihood is None or likelihood.standardised(site.value) is None:
        return None
    return likelihood.base.scale


def _is_random(run: Run, name: str) -> bool:
    """Whether the noise scale depends on latent sites, in a run whose params are held."""
    likelihood = likelihood_of(run.observed[name].fn)
    moving = None if likelihood is None else likelihood.moving()
    return moving is None or bool(moving[1])


def _is_one_number(scale: Tensor) -> bool:
    """Whether a scale is one number that was expanded, or that is the same for all these data and their entries."""
    return scale.numel() > 0 and not any(scale.stride())


def _first(scale: Tensor) -> Scalar:
    return scale[(0,) * scale.dim()]


def _of_one_factor(
    loop: Loop, anchor: Anchor, found: Hyperparameters, scales: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The scales that other hyperparameters multiply by one factor for all data; by one pass without gradients."""
    generator = torch.Generator().manual_seed(0)
    flat = found.flat(found.values)
    other = found.unflatten(flat + torch.rand(flat.shape, generator=generator, dtype=flat.dtype))
    ratios: dict[str, Tensor] = {}
    kept = dict(scales)
    for chunk in loop.chunks():
        runs = [
            loop.program.run_at(loop.program.unpack(anchor.theta), chunk, params=each) for each in (found.values, other)
        ]
        for name in list(kept):
            one, two = (_noise_scale(run, name) for run in runs)
            if one is None or two is None or not one.numel():
                continue
            ratio = two.double() / one.double()
            ratios.setdefault(name, ratio.reshape(-1)[0])
            if not torch.allclose(ratio, ratios[name], rtol=settings.noise_apart):
                del kept[name]
    return kept
