"""`diagnose`: whether a posterior is right, by weighing its draws with the program."""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, LaplaceWarning
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.network import is_network
from pyro_laplace.data import Data, as_data
from pyro_laplace.diagnostics.case import Case, heaviest
from pyro_laplace.diagnostics.determined import AtMode, Determined
from pyro_laplace.diagnostics.diagnosis import Diagnosis
from pyro_laplace.diagnostics.drawn import Drawn, program_at, refuse_without_density
from pyro_laplace.diagnostics.verdict import TRUSTED, Findings, next_step, verdict_of
from pyro_laplace.draws.draws import PosteriorDraws
from pyro_laplace.draws.over_draws import View
from pyro_laplace.linearized.choose import bend_of, predictive_model
from pyro_laplace.linearized.program import LinearizedProgram
from pyro_laplace.nested.guide import NestedLaplace
from pyro_laplace.nested.hyper import PREDICTOR, PRIOR, find_hyper
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.program.sites import unpack
from pyro_laplace.settings import settings


def diagnose(
    model: Callable[..., Any], guide: Any, data: Any, *, max_draws: int | None = None, progress: bool = True
) -> Diagnosis:
    """Say whether a posterior is right, why, and what to do next.

    Draws of the posterior are weighed by ``p(y, theta) / q(theta)``, Pareto-smoothed (Vehtari et al. 2024, "Pareto
    smoothed importance sampling"; Yao et al. 2018, "Yes, but did it work?"). Where the shape k of the weights' tail is
    at most 0.7 they can be trusted, and the verdict is what they say: "wrong" if they move a mean by more than 0.3
    posterior standard deviations, or change a standard deviation by a factor of 1.3, of a site or of its unconstrained
    coordinates; else "trusted". Where k is larger, or few draws count, draws with heavier tails and matched moments
    (`importance_resample`) are asked, and the verdict is "wrong" if these can be trusted and say so, or if the
    gradients of the log joint say that the mass is elsewhere; else "unsure". It starts with 1,000 draws and doubles
    them until the verdict is clear or `max_draws` are spent.

    It inspects alone: the random state is afterwards what it was, and the same posterior has the same verdict.

    Args:
        model: the Pyro program, or what `linearize` makes of one.
        guide: a posterior of `fit_laplace`, over all sites or some, a mixture, or any Pyro guide with a density.
        data: what it was fitted to: a batch (tuple, dict or tensor), or a re-iterable of batches.
        max_draws: most draws that are weighed, each by one evaluation of the log joint of all data. By default 16,000
            (`settings.diagnose_most`), and 2,000 (`settings.diagnose_one_by_one`) of a program that `vmap` cannot run
            on many draws at once. For a large program there are fewer than were asked for, so that all evaluations make
            at most `settings.diagnose_elements` numbers.
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        the diagnosis, which prints as a report.

    Raises:
        InvalidOption: if the guide has no density (an `MCMC`, draws, a point), or is of other sites.
        UnsupportedProgram: if the program cannot be traced.
        InvalidData: if `data` cannot be iterated anew, lack values of an observed site, or hold some that are not
            finite.
    """
    start = time.perf_counter()
    refuse_without_density(guide)
    whole = isinstance(max_draws, int) and not isinstance(max_draws, bool)
    if max_draws is not None and not (whole and max_draws >= settings.fewest_draws):
        raise InvalidOption(f"max_draws={max_draws!r}: give a whole number, at least {settings.fewest_draws}")
    data = as_data(data)
    with undisturbed(), torch.no_grad():
        program = program_at(model, guide, data)
        case = Case(guide, Loop(program, data), data, progress)
        pyro.set_rng_seed(0)
        most = case.budget(max_draws)
        drawn, own = case.grown(most)
        bends = _bends(model, case)
        corrected = None if own.weights.is_efficient or bends else case.corrected(drawn, most)
        far = {} if own.weights.trusted else case.far()
        linearized, ours = isinstance(model, LinearizedProgram), isinstance(guide, AutoLaplace)
        laplace = heaviest(guide)
        at_mode = _at_mode(guide, case.loop)
        more = case.budget(settings.diagnose_most)
        found = Findings(
            own=own,
            corrected=corrected,
            far=far,
            at_mode=at_mode,
            bends=bends,
            linearized=linearized,
            preconditions=ours,
            laplace=laplace,
            more_draws=more if more > most else None,
        )
        verdict, reason = verdict_of(found)
        step, advice = next_step(verdict, found, () if verdict == TRUSTED else _hyper_sites(case))
        return Diagnosis(
            verdict=verdict,
            subject=_subject(model, case),
            reason=reason,
            next_step=step,
            advice=advice,
            khat=own.weights.khat,
            ess=own.weights.ess,
            num_draws=len(drawn),
            log_ratios=own.weights.log_ratio,
            corrected_khat=None if corrected is None else corrected.weights.khat,
            moved=found.trusted or own,
            shapes={name: latent.shape for name, latent in program.latents.items()},
            at_mode=at_mode,
            determined=None if laplace is None else Determined.of(laplace, case.loop),
            predictive=_predictive(model, guide, data, drawn) if bends else {},
            posterior=_in_words(guide),
            seconds=time.perf_counter() - start,
        )


def _bends(model: Callable[..., Any], case: Case) -> bool:
    """Whether the program is a network, and not linear within the posterior."""
    program, guide = case.loop.program, case.guide
    if isinstance(model, LinearizedProgram) or program.nesting is not None or heaviest(guide) is None:
        return False
    small = program.num_params <= settings.small
    if small and not is_network(program, program.start, next(case.loop.chunks())):
        return False
    return bend_of(model, guide, case.data) > settings.linear


def _hyper_sites(case: Case) -> tuple[str, ...]:
    """Sites that nested Laplace would explore, of a hierarchy; none of what is no hierarchy, or is nested already."""
    if isinstance(case.guide, NestedLaplace) or case.loop.program.nesting is not None or heaviest(case.guide) is None:
        return ()
    found = find_hyper(case.loop.program, next(case.loop.chunks()))
    scales = any(reason.kind in (PRIOR, PREDICTOR) for reason in found.values())
    return tuple(found) if scales and len(found) < len(case.random) else ()


def _at_mode(guide: Any, loop: Loop) -> AtMode | None:
    """The point of a Laplace posterior on these data; of a mixture the one farthest from its mode."""
    components = getattr(guide, "components", (guide,))
    if isinstance(guide, NestedLaplace) or not all(isinstance(each, AutoLaplace) for each in components):
        return None
    return max((AtMode.of(each, loop) for each in components), key=lambda at: at.newton_decrement / at.allowed)


def _predictive(model: Callable[..., Any], guide: Any, data: Data, drawn: Drawn) -> dict[str, float]:
    """Log density of the data under draws through the program, and through the linearised one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LaplaceWarning)
        linearized = predictive_model(model, guide, data)
    if linearized is model:  # a link is not known
        return {}
    draws = PosteriorDraws(unpack(guide.latents, drawn.theta[: settings.predictive_draws]), source=guide)
    return {"linearized": _log_density(linearized, data, draws), "sampled": _log_density(model, data, draws)}


def _log_density(model: Callable[..., Any], data: Data, draws: PosteriorDraws) -> float:
    """Log of the mean density over draws, mean over data."""
    pointwise = torch.cat([each.flatten(1) for each in View.of(model, data, draws).log_lik(draws.values).values()], 1)
    return float((pointwise.double().logsumexp(0) - math.log(len(draws))).mean())


def _subject(model: Callable[..., Any], case: Case) -> str:
    program = "the program"
    if isinstance(model, LinearizedProgram):
        own = heaviest(case.guide)
        there = own is None or torch.equal(model.guide.theta, own.theta)
        program = "the linearised program" if there else "the program linearised at another mode"
    held = [name for name in case.loop.program.latents if name not in case.random]
    if held:
        shown = ", ".join(map(repr, held[: settings.shown_names])) + (
            " ..." if len(held) > settings.shown_names else ""
        )
        return f"{program} with {shown} held at the mode"
    return f"{program} with some coordinates held" if getattr(heaviest(case.guide), "partial", ()) else program


def _in_words(guide: Any) -> str:
    kind = type(guide).__name__ if isinstance(guide, torch.nn.Module) else "a guide by hand"
    if isinstance(guide, LaplaceMixture):
        kind = f"{kind} of {len(guide.components)}"
    if getattr(guide, "outer", None) == "smc":
        return f"{kind} particles, taken as they are; judged is what was integrated out at each of them"
    laplace = heaviest(guide)
    if laplace is None:
        return kind
    return (
        f"{kind}, structure {laplace.structure!r}, curvature {laplace.curvature!r}, {laplace.latent_dim:,} coordinates"
    )
