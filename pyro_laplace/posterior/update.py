"""`update`: further data for a posterior, which moves to their common mode by Newton steps."""

import math
import time
from dataclasses import dataclass, replace
from typing import Any, overload

import torch

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, UnsupportedProgram, check_option
from pyro_laplace._typing import Theta
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import as_data
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import WEIGHTS, LaplaceMixture
from pyro_laplace.posterior.mode_check import report
from pyro_laplace.posterior.own import own_params
from pyro_laplace.posterior.search import PosteriorAt, Search
from pyro_laplace.program.program import Program
from pyro_laplace.reading.prior import Prior
from pyro_laplace.settings import settings
from pyro_laplace.structure.build import moved, sum_over_data
from pyro_laplace.structure.likelihood_sum import LikelihoodSum
from pyro_laplace.structure.sum import NeedsDouble


@overload
def update(
    guide: AutoLaplace, data: Any, *, move: bool = True, on_not_a_mode: str = "warn", progress: bool = True
) -> AutoLaplace: ...


@overload
def update(
    guide: LaplaceMixture, data: Any, *, move: bool = True, on_not_a_mode: str = "warn", progress: bool = True
) -> LaplaceMixture: ...


def update(
    guide: Any, data: Any, *, move: bool = True, on_not_a_mode: str = "warn", progress: bool = True
) -> AutoLaplace | LaplaceMixture:
    """A posterior of further data too, without those that it was fitted to.

    The sum over the old data, which the posterior has kept, is a quadratic model of their log likelihood. With the new
    data and the prior it has another mode, which Newton steps lead to: exactly that of all data where the program is
    linear and Gaussian, and as far as the quadratic model holds elsewhere. With ``move=False`` the sums are added
    at the old mode, as in online Laplace for continual learning (Ritter et al. 2018, "Online structured Laplace
    approximations for overcoming catastrophic forgetting"), which equals the joint fit at that point.

    Args:
        guide: the posterior, or a mixture, of which each component is updated and weighted anew; it is not changed.
        data: the new data, as `fit_laplace` takes them; none that the posterior has seen.
        move: whether the random coordinates move to the mode of all data; False leaves them.
        on_not_a_mode: what to do about a posterior that sits more than 0.1 sqrt(P) posterior standard deviations beside
            that mode: "warn", "raise" or "ignore".
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        a new posterior.

    Raises:
        InvalidOption: for something that is not a posterior from `fit_laplace`, that has lost its model, or that was
            too large to keep its sum over data.
        UnsupportedProgram: if the program on the new data is not that of the posterior.
        InvalidData: if these lack values of an observed site, or have some that are not finite.
        NotAMode: if the posterior sits beside the mode and `on_not_a_mode="raise"`.
    """
    start = time.perf_counter()
    check_option("move", move, (True, False))
    check_option("on_not_a_mode", on_not_a_mode, ("warn", "raise", "ignore"))
    if isinstance(guide, LaplaceMixture) and guide.weighting not in WEIGHTS:
        raise InvalidOption(
            f"update has no step for a {type(guide).__name__}, whose hyper points follow the data: fit all data anew, "
            "fit_nested_laplace(model, all_data)"
        )
    if isinstance(guide, LaplaceMixture):
        options = {"move": move, "on_not_a_mode": on_not_a_mode, "progress": progress}
        components = [update(component, data, **options) for component in guide.components]
        mixture = LaplaceMixture(components, weights=guide.weighting)
        mixture.fit_seconds = time.perf_counter() - start
        return mixture
    if not isinstance(guide, AutoLaplace):
        raise InvalidOption(f"update takes a posterior from fit_laplace, not a {type(guide).__name__}")
    with undisturbed(), torch.no_grad():
        further = _Further.of(guide, data, progress)
        found = further.at(guide.theta)
        found = further.moved(found) if move else found
        mode = found.judged(guide.mode.moved or not torch.equal(found.theta, guide.theta), None)
        others = None if mode.is_mode else further.unlike_passes(found)
        remedy = "fit all data jointly from here: fit_laplace(model, all_data, guide.median())"
        report(mode, on_not_a_mode, remedy, others)
        updated = further.search.guide(found, mode, guide.hyperparameters)
    updated.fit_seconds = time.perf_counter() - start
    return updated


@dataclass(frozen=True, eq=False)
class _Further:
    """Further data of a posterior.

    Attributes:
        search: how the posterior of the new data is made.
        kept: the sum over the old data.
        prior: at the old mode.
    """

    search: Search
    kept: LikelihoodSum
    prior: Prior

    @staticmethod
    def of(guide: AutoLaplace, data: Any, progress: bool) -> "_Further":
        """Trace the posterior's program on the new data."""
        model = guide.model
        if model is None:
            raise InvalidOption("update needs the posterior's model, which is not saved with it: fit it anew")
        kept, prior = _kept(guide)
        own_params(model, guide)
        data = as_data(data)
        program = Program.trace(model, data, guide.median(), guide.hyperparameters, guide.observed)
        if set(program.observed) != set(guide.observed):
            raise UnsupportedProgram(
                f"the posterior was fitted to the observed sites {sorted(guide.observed)}, and these data observe "
                f"{sorted(program.observed)}"
            )
        measure = CURVATURES[guide.curvature].drawn()
        loop, index = Loop(program, data), kept.anchor.index
        return _Further(Search(loop, index, guide.structure, measure, guide.jacobian, progress), kept, prior)

    def at(self, theta: Theta) -> PosteriorAt:
        """The posterior of all data at a point, the old ones by their quadratic model."""
        here = torch.equal(theta, self.kept.anchor.theta)
        kept = self.kept if here else moved(self.kept, theta)
        try:
            return self._merged(kept, theta, here, kept.double)
        except NeedsDouble:
            with settings.using(kron_rounding=math.nextafter(math.inf, 0)):  # the fit found that of `kept` small enough
                return self._merged(kept, theta, here, True)

    def moved(self, found: PosteriorAt) -> PosteriorAt:
        """Newton steps Lambda^-1 g with backtracking, until the decrement is well within that of a mode."""
        for _ in range(settings.gauss_newton_steps):
            step = found.precision.solve(found.gradient)
            slope = float(step @ found.gradient)
            if slope <= settings.update_slope * len(step):
                break
            start, value = found.theta, found.log_joint
            for halving in range(settings.update_halvings):
                theta = start.index_add(0, self.search.index, (0.5**halving * step).to(start))
                if self._log_joint(theta) - value > settings.sufficient_decrease * 0.5**halving * slope:
                    break
            else:
                break
            found = self.at(theta)
        return found

    def unlike_passes(self, found: PosteriorAt) -> str | None:
        """What to do about new data that are others at each pass; None where they are the same."""
        return self.search.unlike_passes(found, self.kept.at(found.theta).log_lik)

    def _log_joint(self, theta: Theta) -> float:
        objective = self.search.objective(theta, self.search.index)
        return self.kept.at(theta).log_lik - float(objective.value_and_gradient(objective.start)[0])

    def _merged(self, kept: LikelihoodSum, theta: Theta, here: bool, double: bool) -> PosteriorAt:
        anchor = replace(kept.anchor, theta=theta)
        new = sum_over_data(
            self.search.loop,
            anchor,
            self.search.curvature,
            self.search.structure,
            jacobian=self.search.jacobian,
            prior=self.prior if here else None,
            double=double,
            first=kept.num_data,
            progress=self.search.progress,
        )
        likelihood = kept.merged(new.likelihood)
        return PosteriorAt(likelihood, new.prior, likelihood.posterior(new.prior))


def _kept(guide: AutoLaplace) -> tuple[LikelihoodSum, Prior]:
    """The sum over data and the prior that a posterior was made of, on the device where it is now."""
    if guide.likelihood_sum is None or guide.prior is None:
        raise InvalidOption(
            "this posterior has not kept the sum over data that new data are added to: it was larger than "
            f"pyro_laplace.settings.keep_sum_bytes ({settings.keep_sum_bytes / 2**30:.3g} GiB), or there was none. "
            "Raise that before the fit, or fit all data jointly"
        )
    return guide.likelihood_sum, guide.prior
