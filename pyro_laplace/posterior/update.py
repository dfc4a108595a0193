"""`update`: further data for a posterior, at the mode that it has."""

import time
from typing import Any

import torch

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, UnsupportedProgram, check_option
from pyro_laplace.capture.anchor import Point
from pyro_laplace.data import as_data
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mode_check import judge, report
from pyro_laplace.program.program import Program
from pyro_laplace.structure.accumulate import CURVATURES
from pyro_laplace.structure.build import build_precision
from pyro_laplace.structure.data_pass import Pass


def update(guide: Any, data: Any, *, on_not_a_mode: str = "warn") -> AutoLaplace:
    """A posterior of further data too, at the same mode: what `fit_laplace` would give on all data at that point.

    The likelihood's curvature of the new data is added to the precision, as in online Laplace for continual learning
    (Ritter et al. 2018, "Online structured Laplace approximations for overcoming catastrophic forgetting"). It equals
    the joint fit for every structure but `LowRank`, which keeps the leading eigenpairs of those it had and the new
    curvature together.

    Args:
        guide: the posterior; it is not changed.
        data: the new data, as `fit_laplace` takes them; none that the posterior has seen.
        on_not_a_mode: what to do where the new data move the mode by more than 0.1 sqrt(P) posterior standard
            deviations, so that the posterior sits beside it: "warn", "raise" or "ignore".

    Returns:
        a new posterior.

    Raises:
        InvalidOption: for something that is not a posterior from `fit_laplace`, or that has lost its model.
        UnsupportedProgram: if the program on the new data is not that of the posterior.
        NotAMode: if the mode has moved and `on_not_a_mode="raise"`.
    """
    start = time.perf_counter()
    if not isinstance(guide, AutoLaplace):
        raise InvalidOption(f"update takes a posterior from fit_laplace, not a {type(guide).__name__}")
    check_option("on_not_a_mode", on_not_a_mode, ("warn", "raise", "ignore"))
    model = guide.model
    if model is None:
        raise InvalidOption("update needs the posterior's model, which is not saved with it: fit it anew")
    data = as_data(data)
    measure = CURVATURES[guide.curvature].drawn()
    with undisturbed(), torch.no_grad():
        program = Program.trace(model, data, guide.median())
        if set(program.observed) != set(guide.observed):
            raise UnsupportedProgram(
                f"the posterior was fitted to the observed sites {sorted(guide.observed)}, and these data observe "
                f"{sorted(program.observed)}"
            )
        visit = Pass(program, Point(guide.theta, guide.index), data, prior=False)
        precision = build_precision(guide.structure, measure, visit, previous=guide.precision)
        tally = visit.tally
        gradient = guide.mode.gradient + tally.gradient
        mode = judge(guide.theta, guide.mode.log_joint + tally.log_lik, gradient, precision, guide.mode.moved)
        report(mode, on_not_a_mode, "fit all data jointly from here: fit_laplace(model, all_data, guide.median())")
        evidence = guide.log_evidence + tally.log_lik
        evidence += 0.5 * float(guide.precision.log_det()) - 0.5 * float(precision.log_det())
        updated = AutoLaplace(
            model,
            guide.latents,
            guide.index,
            mode,
            precision,
            structure=guide.structure,
            curvature=guide.curvature,
            observed=guide.observed,
            log_evidence=evidence,
        )
    updated.fit_seconds = time.perf_counter() - start
    return updated
