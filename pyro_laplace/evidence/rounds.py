"""From a mode under one prior to the prior of highest evidence, and to the mode under that, until neither moves."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature, LaplaceWarning, NotAMode
from pyro_laplace._typing import Values
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.evidence.ascent import INTERRUPTED, Box, Climb, climb, running_away
from pyro_laplace.evidence.checks import refuse_not_finite, tell_of_improper
from pyro_laplace.evidence.surface import Surface, plain
from pyro_laplace.mode.path import Path
from pyro_laplace.mode.reached import Stopped
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mode_check import report
from pyro_laplace.posterior.request import Begun
from pyro_laplace.posterior.search import PosteriorAt, Search
from pyro_laplace.reading.hyperparameters import Hyperparameters
from pyro_laplace.reading.prior import prior_of
from pyro_laplace.settings import settings
from pyro_laplace.structure.options import Kron, Structure


@dataclass(frozen=True, eq=False)
class Maximum:
    """Where a search for hyperparameters ended.

    Attributes:
        search: how the posterior is made, at these hyperparameters.
        posterior: at the mode under them.
        found: them.
        path: the steps of the search.
        log_evidence: of the linearised program, where it was that one's that was searched for.
        stopped: why the search for the mode ended; None where it was left where it was.
        moved: whether it was moved.
    """

    search: Search
    posterior: PosteriorAt
    found: Hyperparameters
    path: Path
    log_evidence: float | None = None
    stopped: Stopped | None = None
    moved: bool = False

    def refitted(self, values: Values) -> "Maximum":
        """The same with the mode found again under other hyperparameters.

        Args:
            values: theirs.

        Returns:
            the posterior at that mode.
        """
        search = self.search.at(self.posterior.theta, values)
        theta, stopped = search.mode_again()
        search = search.at(theta, values)
        posterior = search.gauss_newton(search.measured(theta))
        moved = self.moved or not torch.equal(theta, self.posterior.theta)
        found = replace(self.found, values=values)
        return Maximum(search.at(posterior.theta, values), posterior, found, self.path, None, stopped, moved)

    def guide(self, on_not_a_mode: str, keep: bool) -> AutoLaplace:
        """The posterior as a guide.

        Args:
            on_not_a_mode: what to do about a point that is no mode under its new prior.
            keep: whether the param store is to hold the hyperparameters.

        Returns:
            the guide.
        """
        mode = self.posterior.judged(self.moved, self.stopped)
        if self.log_evidence is None:  # else it is the linearised program's mode that counts
            others = None if mode.is_mode else self.search.unlike_passes(self.posterior)
            again = "find it again under the new prior: refit=True"
            further = "search on from there: fit_laplace(model, data, guide.median())"
            report(mode, on_not_a_mode, again if self.stopped is None else further, others)
        known = self.search.hyperparameters().values
        guide = self.search.guide(self.posterior, mode, {**known, **self.found.values})
        guide.path = replace(self.path, kept=keep)
        if self.log_evidence is not None:
            guide.register_buffer("_log_evidence", torch.tensor(self.log_evidence, dtype=torch.float64))
        return guide


def maximum(begun: Begun, found: Hyperparameters, refit: bool | str) -> Maximum:
    """Climb the evidence, from a posterior and the hyperparameters that it was made at.

    Args:
        begun: the posterior.
        found: the hyperparameters.
        refit: what becomes of the mode, as `maximize_evidence` takes it.

    Returns:
        the maximum.
    """
    posterior = begun.posterior
    refuse_not_finite(posterior)
    tell_of_improper(begun.search.loop, posterior.likelihood.anchor.touched, found)
    search = begun.search.at(posterior.theta, found.values)
    linearized, rounds = refit == "linearized", refits(posterior, refit)
    if (linearized or rounds) and not posterior.likelihood.double and _is_kron(search.structure):
        search = replace(search, double=True)  # a prior's pull on theta cancels in the rise to the mode
        posterior = search.measured(posterior.theta)
    here = Maximum(search, posterior, found, Path(), None, begun.stopped, begun.moved)
    start, reach = found.flat(found.values), found.reach(settings.evidence_range)
    box = start - reach, start + reach
    return _in_rounds(here, box) if rounds and not linearized else _at_one_point(here, box, linearized)


def _is_kron(structure: Structure) -> bool:
    """Whether some of the sums may be made in the sites' own dtype."""
    parts = structure.values() if isinstance(structure, Mapping) else [structure]
    return any(part == "kron" or isinstance(part, Kron) for part in parts)


def refits(posterior: PosteriorAt, refit: bool | str) -> bool:
    """Whether the mode is found again under each new prior.

    Args:
        posterior: at the mode under the old one.
        refit: True or False; "auto" for what is cheap to refit.

    Returns:
        the answer.
    """
    if refit != "auto":
        return refit is True
    size = len(posterior.theta)
    return size <= settings.small or size * posterior.likelihood.num_data <= settings.refit_work


def _at_one_point(here: Maximum, box: Box, linearized: bool) -> Maximum:
    """The hyperparameters of the highest evidence with theta where it is."""
    surface = Surface.around(here.search, here.posterior, here.found, rises=linearized)
    climbed = climb(lambda flat: surface.at(flat).value, _scale_starts(surface), box, not surface.measured)
    values = plain(surface.found.unflatten(climbed.best))
    if not climbed.converged:
        _tell_unfinished(climbed.reason)
    _tell_running(surface, climbed.best, box)
    posterior = under(here.search, here.posterior, surface, values)
    search = here.search.at(posterior.theta, values)
    found = replace(here.found, values=values)
    path = _path(found, [climbed])
    return replace(here, search=search, posterior=posterior, found=found, path=path,
                   log_evidence=climbed.values[-1] if linearized else None)  # fmt: skip


def _in_rounds(here: Maximum, box: Box) -> Maximum:
    """The same, with the mode found again under each new prior, until neither moves.

    Of a program that is not linear, a mode under a wide prior may stay an overfitted one however narrow the prior
    becomes: so the search also begins at modes under narrower ones. And how the curvature changes with the mode is no
    part of what is climbed: where that misleads it, the end is tried for what lies around it.

    Returns:
        the end of highest evidence.
    """
    ends = [_ascended(here, box)]
    start = here.found.flat(here.found.values)
    for move in [] if ends[0].is_exact else _moves(here.found):
        begin = None if ends[-1].interrupted else _refitted(here, start + move, box)
        ends += [] if begin is None else [_ascended(begin, box)]
    best = max(ends, key=lambda end: end.maximum.posterior.log_evidence)
    if best.misled:
        best = _tried_around(best, box)
    if best.interrupted or not best.converged:
        _tell_unfinished(INTERRUPTED if best.interrupted else _ROUNDS)
    surface = Surface.around(best.maximum.search, best.maximum.posterior, best.maximum.found, rises=True)
    _tell_running(surface, surface.start, box)
    return best.maximum


def _moves(found: Hyperparameters) -> list[Tensor]:
    """From the start to further ones: narrower priors, and with them a wider noise, which may have been fitted away."""
    scales, noise = _of_priors(found), torch.zeros_like(found.flat(found.values))
    for name in found.noises:
        noise[found.numbers_of(name)] = math.log(10.0)
    moves = [-0.5 * scales, -scales, noise - 0.5 * scales]
    return [move for number, move in enumerate(moves) if bool(scales.any()) and (number < 2 or bool(noise.any()))]


def _refitted(here: Maximum, flat: Tensor, box: Box) -> Maximum | None:
    """The mode under other hyperparameters; None where there is none."""
    inside = torch.minimum(torch.maximum(flat, box[0]), box[1])
    try:
        return here.refitted(plain(here.found.unflatten(inside)))
    except (NotAMode, IndefiniteCurvature):
        return None


def _tried_around(end: "_End", box: Box) -> "_End":
    """Steps along all scales together, and each number by itself, to modes of higher evidence."""
    here, steps = end.maximum, []
    line, single = _of_priors(here.found), torch.eye(len(box[0]), dtype=box[0].dtype).unbind()
    directions = [line / line.max(), *single] if int((line != 0).sum()) > 1 else list(single)
    edges, left = [settings.tune_edge] * len(directions), settings.evidence_tries
    while left > 0 and any(abs(edge) > settings.tune_short for edge in edges):
        for number, direction in enumerate(directions[:left]):
            further = _refitted(here, here.found.flat(here.found.values) + edges[number] * direction, box)
            gain = -math.inf if further is None else further.posterior.log_evidence - here.posterior.log_evidence
            if further is not None and gain > settings.evidence_gain:
                here = replace(further, path=here.path)
                steps.append((here.found.flat(here.found.values), here.posterior.log_evidence))
            edges[number] *= 1.5 if gain > settings.evidence_gain else -0.5
            left -= 1
    if not steps:
        return end
    vectors, values = zip(*steps, strict=True)
    further = _path(here.found, [Climb(vectors, values, True, "")])
    return replace(end, maximum=replace(here, path=end.maximum.path.followed_by(further)))


_ROUNDS = "it took more than pl.settings.evidence_rounds rounds of a new mode and a new prior"


@dataclass(frozen=True, eq=False)
class _End:
    """Where the rounds from one start ended.

    Attributes:
        maximum: the posterior there.
        converged: whether no further round would have helped.
        interrupted: whether the user ended them.
        is_exact: whether every climb brought what it promised, as those of a linear program do.
        misled: whether no climb, however short, brought any of it.
    """

    maximum: Maximum
    converged: bool
    interrupted: bool
    is_exact: bool
    misled: bool


def _ascended(here: Maximum, box: Box) -> _End:
    """Rounds of a climb and a new mode, within a radius in which the climb's promise is kept.

    What is climbed is the evidence as far as the quadratic model around the last mode goes: as in any trust-region
    method (Nocedal and Wright 2006), after a step that brings much less than it promised the next one is shorter.

    Returns:
        where that ended.
    """
    climbs: list[Climb] = []
    surface = Surface.around(here.search, here.posterior, here.found, rises=True)
    radius, converged, interrupted, exact = math.inf, False, False, True
    for _ in range(settings.evidence_rounds):
        near = torch.maximum(box[0], surface.start - radius), torch.minimum(box[1], surface.start + radius)
        starts = [surface.start] if climbs or radius < math.inf else _scale_starts(surface)
        climbed = climb(lambda flat, at=surface: at.at(flat).value, starts, near, not surface.measured)
        converged = climbed.gain <= settings.evidence_gain or radius < settings.evidence_radius
        interrupted = climbed.reason == INTERRUPTED
        if converged:
            break
        try:
            further = here.refitted(plain(surface.found.unflatten(climbed.best)))
            gain = further.posterior.log_evidence - here.posterior.log_evidence
        except (NotAMode, IndefiniteCurvature):
            further, gain = here, -math.inf
        except KeyboardInterrupt:
            interrupted = True
            break
        length = float((climbed.best - surface.start).abs().max())
        exact = exact and abs(gain - climbed.gain) <= settings.evidence_flat
        if gain < settings.kept_promise * climbed.gain:
            radius = length / 4
        elif length >= radius / 2:
            radius = 2 * radius
        if gain > 0:
            climbs.append(climbed)
            here = further
            surface = Surface.around(here.search, here.posterior, here.found, rises=True)
        if interrupted:
            break
    end = Climb((surface.start,), (here.posterior.log_evidence,), True, "")
    here = replace(here, path=_path(here.found, [*climbs, end]))
    return _End(here, converged, interrupted, exact, radius < settings.evidence_radius)


def under(search: Search, posterior: PosteriorAt, surface: Surface, values: Values) -> PosteriorAt:
    """The posterior at the same theta under other hyperparameters.

    Args:
        search: how it is made.
        posterior: at the hyperparameters of the surface.
        surface: around it.
        values: the others.

    Returns:
        the posterior there: without a pass over the data where none is needed.
    """
    moved = search.at(posterior.theta, values)
    anchor = replace(posterior.likelihood.anchor, hyperparameters={})
    run = CapturedRun.make(moved.loop.program, anchor, moved.loop.few_rows(), captured=False)
    prior = prior_of(run, search.jacobian)
    likelihood = surface.likelihood_at(values)
    likelihood = replace(likelihood, anchor=replace(anchor, hyperparameters=prior.hyperparameters))
    return moved.under(posterior.theta, likelihood, prior)


def _scale_starts(surface: Surface) -> list[Tensor]:
    """Where the hyperparameters are; with prior scales, all or if they are few each, ten times as large or as small.

    The evidence at one theta may have a maximum where the data say much and one where they say little.

    Returns:
        the starts.
    """
    start, scales = surface.start, _of_priors(surface.found)
    if surface.measured or not bool(scales.any()):
        return [start]
    moves = [scales]
    if 1 < int((scales != 0).sum()) <= settings.evidence_few and surface.likelihood.anchor.size <= settings.small:
        moves += [each for each in torch.diag(scales).unbind() if bool(each.any())]
    return [start, *(start + sign * move for move in moves for sign in (-1, 1))]


def _of_priors(found: Hyperparameters) -> Tensor:
    """The step by which all prior scales become ten times as large."""
    scales = torch.zeros_like(found.flat(found.values))
    for name in found.scales:
        scales[found.numbers_of(name)] = math.log(10.0)
    return scales


def _path(found: Hyperparameters, climbs: Sequence[Climb]) -> Path:
    steps = [step for each in climbs for step in each.steps]
    values = [found.unflatten(step) for step in steps]
    rounds, count = [], 0
    for each in climbs:
        rounds.append(count)
        count += len(each.steps)
    return Path(
        tuple(value for each in climbs for value in each.values),
        {name: torch.stack([each[name].detach() for each in values]) for name in found.names},
        tuple(rounds),
    )


def _tell_unfinished(reason: str) -> None:
    warnings.warn(
        f"the search for the hyperparameters ended before it converged: {reason}. What is returned is the best so far",
        LaplaceWarning,
        stacklevel=5,
    )


def _tell_running(surface: Surface, best: Tensor, box: Box) -> None:
    """Say which hyperparameters may as well be at their bounds."""
    numbers = [] if surface.measured else list(range(len(best)))
    away = running_away(lambda flat: surface.at(flat).value, best, box, numbers)
    for name in surface.found.names:
        place = surface.found.numbers_of(name)
        ends = sorted({away[number] for number in range(place.start, place.stop) if number in away})
        if not ends:
            continue
        sites, single = surface.found.sites[name], place.stop - place.start == 1
        some = name if single else f"{sum(n in away for n in range(place.start, place.stop))} entries of {name}"
        warnings.warn(
            f"the hyperparameter {some!r} runs to {' and '.join(ends)}: the evidence is no lower there"
            + (f". The data say nothing of {', '.join(map(repr, sites))} beyond the prior" if sites else ""),
            LaplaceWarning,
            stacklevel=5,
        )
