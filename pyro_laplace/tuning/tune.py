"""`tune`: the hyperparameters under which the linearised program predicts held-out data best."""

import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_laplace._compat.pyro import StoreState, undisturbed
from pyro_laplace._errors import InvalidOption, LaplaceWarning, check_option
from pyro_laplace._progress import progress_bar
from pyro_laplace.data import Data, as_data
from pyro_laplace.evidence.ascent import Box
from pyro_laplace.evidence.checks import refuse_not_finite
from pyro_laplace.evidence.rounds import Maximum, under
from pyro_laplace.evidence.surface import Surface
from pyro_laplace.likelihood.links import LINKS
from pyro_laplace.mode.path import Path
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.request import Begun, Request
from pyro_laplace.posterior.search import PosteriorAt
from pyro_laplace.posterior.subset import Subset
from pyro_laplace.reading.hyperparameters import Hyperparameters, Names, require
from pyro_laplace.scores import OBJECTIVES
from pyro_laplace.settings import settings
from pyro_laplace.structure.options import Structure
from pyro_laplace.structure.sum import NeedsDouble
from pyro_laplace.tuning.held_out import refuse_what_does_not_run, rows_of, split
from pyro_laplace.tuning.search import TrialScore, Tried, search_for
from pyro_laplace.tuning.trials import Objective, Trials


def tune(
    model: Callable[..., Any],
    data: Any,
    validation_data: Any = None,
    *,
    map_guide: Any = None,
    objective: Objective = "log_lik",
    hyperparameters: Names = "auto",
    subset: Subset = "all",
    structure: Structure = "full",
    curvature: str = "auto",
    jacobian: bool = True,
    link: str = "probit",
    refit: bool | str = "auto",
    trials: int = 30,
    validation_share: float = 0.2,
    seed: int = 0,
    keep: bool = True,
    on_not_a_mode: str = "warn",
    progress: bool = True,
) -> AutoLaplace:
    """The hyperparameters under which the linearised predictive scores best on held-out data, and the posterior there.

    Where the evidence misleads (a Kronecker-factored posterior over all weights of a large classifier), data that the
    mode has not seen do not. The sum over the training data and the held-out rows' products with it are had once: a
    trial is a posterior of that sum and its predictions, without a pass over the training data.

    Args:
        model: a Pyro program with hyperparameters: pyro.params that priors depend on, and noise.
        data: a batch (tuple, dict or tensor), or a re-iterable of batches.
        validation_data: held-out data of the same kind, observed values included, which the mode was not fitted to.
            None splits a share of `data` off, finds the mode on the rest, tunes there, and gives the posterior of all
            data at the mode of all data.
        map_guide: an `AutoDelta` at the mode of `data`, or a mapping of site values; None fits it first.
        objective: "log_lik" (mean log density), "crps", "brier" or "ece", as `scores` defines them; or a function of
            ``{site: [Prediction, ...]}``, each with `distribution`, `observed` and `counted`, of which more is better.
        hyperparameters: as `maximize_evidence` takes it.
        subset: as `fit_laplace` takes it.
        structure: as `fit_laplace` takes it.
        curvature: as `fit_laplace` takes it.
        jacobian: as `fit_laplace` takes it.
        link: of classes, as `LinearizedPredictive` takes it.
        refit: True lets the mode follow the prior, in the trials as far as the quadratic model goes, and finds it again
            in the end; False leaves it where it is; "auto" follows in programs of at most `settings.small` coordinates,
            none of them held.
        trials: how many there are: two thirds along a common factor of all prior scales, the rest around the best.
        validation_share: of the data that are split off.
        seed: of the split.
        keep: whether the param store holds the new values afterwards; False leaves it as it was.
        on_not_a_mode: what to do about a point that is no mode under its new prior: "warn", "raise" or "ignore".
        progress: whether to say how the search goes, and by how much the score improved.

    Returns:
        the posterior, with `hyperparameters`, and with the trials in `path`.

    Raises:
        InvalidOption: for an option's unknown value, a program without hyperparameters, or a name that matches nothing.
        InvalidData: if data have no rows to be split, or the log likelihood is not finite.
        NotAMode: if the point is no mode under its new prior, and that is to be raised.
    """
    start = time.perf_counter()
    check_option("link", link, LINKS)
    check_option("refit", refit, ("auto", True, False))
    check_option("keep", keep, (True, False))
    check_option("on_not_a_mode", on_not_a_mode, ("warn", "raise", "ignore"))
    if not callable(objective):
        check_option("objective", objective, tuple(OBJECTIVES))
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise InvalidOption(f"trials={trials!r}: give a positive number")
    request = Request.of(model, subset, structure, curvature, jacobian, progress)
    task = _Task(request, hyperparameters, objective, link, request.refit(refit), trials)
    data, before = as_data(data), StoreState()
    with before.restored_on_error():
        if validation_data is None:
            rest, held = split(data, validation_share, seed, rows_of(model, data))
            refuse_what_does_not_run(model, rest)
            tuned = task.begun(rest, None).tuned(held)
            before.restore()
            all_data = task.begun(data, map_guide)
        else:
            all_data = task.begun(data, map_guide)
            tuned = all_data.tuned(as_data(validation_data))
            all_data = replace(all_data, begun=replace(all_data.begun, posterior=tuned.posterior))
        guide = all_data.guide(tuned, on_not_a_mode, keep)
    before.end(model, tuned.values if keep else {}, all_data.found.constraints)
    tuned.tell(objective, progress)
    guide.fit_seconds = time.perf_counter() - start
    return guide


@dataclass(frozen=True, eq=False)
class _Task:
    """What is to be tuned, and how."""

    request: Request
    hyperparameters: Names
    objective: Objective
    link: str
    refit: bool | str
    trials: int

    def begun(self, data: Data, map_guide: Any) -> "_Begun":
        """The posterior at the mode, under the hyperparameters that the program has."""
        values = self.request.point(data, map_guide, self.hyperparameters)
        with undisturbed(), torch.no_grad():
            stays = map_guide is not None and self.refit is False
            begun = self.request.begin(data, values, False if stays else "auto", map_guide is not None)
            refuse_not_finite(begun.posterior)
            found = begun.search.hyperparameters(self.hyperparameters)
            require(found, begun.search.loop.program)
        search = begun.search.at(begun.posterior.theta, found.values)
        return _Begun(self, replace(begun, search=search), found)


@dataclass(frozen=True, eq=False)
class _Begun:
    """A task at a mode."""

    task: _Task
    begun: Begun
    found: Hyperparameters

    @property
    def refits(self) -> bool:
        """Whether the mode follows the prior."""
        if self.task.refit == "auto":
            return len(self.begun.posterior.theta) <= settings.small
        return self.task.refit is True

    def tuned(self, held: Data) -> "_Tuned":
        """The hyperparameters of the best trial; by sums in float64 where the best priors need them."""
        found = self._tuned(held, self.begun.posterior)
        if found.is_near_coarse():
            with undisturbed(), torch.no_grad():
                double = replace(self.begun.search, double=True).measured(self.begun.posterior.theta)
            found = self._tuned(held, double)
        return found

    def _tuned(self, held: Data, posterior: PosteriorAt) -> "_Tuned":
        task, found, search = self.task, self.found, self.begun.search
        with undisturbed(), torch.no_grad():
            guide = search.guide(posterior, posterior.judged(False, None), found.values)
            trials = Trials.of(
                guide, Surface.around(search, posterior, found, self.refits), held, task.objective, task.link
            )
            start, reach = found.flat(found.values), found.reach(settings.tune_range)
            reach = reach.clamp(max=math.log(settings.tune_range))
            box = start - reach, start + reach
            coarse: list[Tensor] = []
            with progress_bar("tune", task.trials, "trial", task.request.progress) as bar:

                def score(flat: Tensor) -> TrialScore:
                    bar.update()
                    try:
                        return trials.score(found.unflatten(flat))
                    except NeedsDouble:
                        coarse.append(flat)
                        return TrialScore(-torch.inf)

                tried = search_for(score, start, *_directions(found, start), box, task.trials)
        return _Tuned(found, tried, box, coarse, posterior)

    def guide(self, tuned: "_Tuned", on_not_a_mode: str, keep: bool) -> AutoLaplace:
        """The posterior under the best hyperparameters, at the mode."""
        search, posterior, values = self.begun.search, self.begun.posterior, tuned.values
        here = Maximum(search, posterior, self.found, Path(), None, self.begun.stopped, self.begun.moved)
        with undisturbed(), torch.no_grad():
            if self.refits:
                here = here.refitted(values)
            else:
                posterior = under(search, posterior, Surface.around(search, posterior, self.found), values)
                found = replace(self.found, values=values)
                here = replace(here, search=search.at(posterior.theta, values), posterior=posterior, found=found)
            guide = here.guide(on_not_a_mode, keep)
        guide.path = tuned.path(self.task.objective, keep)
        return guide


@dataclass(frozen=True, eq=False)
class _Tuned:
    """What the trials came to; `coarse` are those that sums in float64 would be needed for."""

    found: Hyperparameters
    tried: Tried
    box: Box
    coarse: list[Tensor]
    posterior: PosteriorAt

    def is_near_coarse(self) -> bool:
        """Whether the best trial lies near priors that the sums over data were too coarse for."""
        return any(
            float((flat - self.tried.vector).abs().max()) < math.log(settings.tune_range) / 2 for flat in self.coarse
        )

    @property
    def values(self) -> dict[str, Tensor]:
        """The hyperparameters of the best trial."""
        return {name: value.detach() for name, value in self.found.unflatten(self.tried.vector).items()}

    def path(self, objective: Objective, keep: bool) -> Path:
        """The trials, in their order."""
        steps = [self.found.unflatten(step) for step in self.tried.steps]
        values = {name: torch.stack([step[name] for step in steps]) for name in self.found.names}
        scores = tuple(each.value for each in self.tried.scores)
        return Path(scores, values, (0,), keep, _name_of(objective))

    def tell(self, objective: Objective, progress: bool) -> None:
        """By how much the score improved; and what the user has to know of where the search ended."""
        first, best = self.tried.scores[0].value, self.tried.scores[self.tried.best].value
        if progress:
            sign = -1 if isinstance(objective, str) and OBJECTIVES[objective].sign < 0 else 1
            better = f"{sign * first:.4g} to {sign * best:.4g}" if best > first else f"stays at {sign * first:.4g}"
            tqdm.write(
                f"tune: {_name_of(objective)} {better} on held-out data, {len(self.tried.scores)} trials",
                file=sys.stderr,
            )
        if self.tried.interrupted:
            warnings.warn(
                f"tune was interrupted after {len(self.tried.scores)} trials: what is returned is the best so far",
                LaplaceWarning,
                stacklevel=3,
            )
        place, close = self.tried.vector, settings.tune_short
        at_bound = (place <= self.box[0] + close) | (place >= self.box[1] - close)
        names = [name for name in self.found.names if bool(at_bound[self.found.numbers_of(name)].any())]
        if names:
            values = {name: self.values[name].tolist() for name in names}
            warnings.warn(
                f"the best values of {names} lie at a bound of the search, {values}: what lies beyond was not tried. "
                f"with pl.settings.using(tune_range={10 * settings.tune_range:g}) it goes further",
                LaplaceWarning,
                stacklevel=3,
            )


def _directions(found: Hyperparameters, start: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
    """All prior scales together; and those of the sites of one module, or every number by itself."""
    line, modules = torch.zeros_like(start), dict[str, Tensor]()
    for name in found.scales:
        place = found.numbers_of(name)
        line[place] = 1.0
        module = found.sites[name][0].rpartition(".")[0] or name
        modules.setdefault(module, torch.zeros_like(start))[place] = 1.0
    first = [n for name in found.names if name not in found.scales for n in _range(found.numbers_of(name))]
    eye = torch.eye(len(start), dtype=start.dtype)  # noise before the scales, of which there may be many
    single = [eye[number] for number in [*first, *(n for n in range(len(start)) if n not in first)]]
    grouped = list(modules.values()) if 1 < len(modules) < len(start) else []
    return line, [[eye[number] for number in first], grouped, single]


def _range(place: slice) -> range:
    return range(place.start, place.stop)


def _name_of(objective: Objective) -> str:
    return objective if isinstance(objective, str) else getattr(objective, "__name__", "objective")
