"""`update`: further data for a posterior, at the mode that it has."""

import math
import time
from typing import Any

import torch

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, UnsupportedProgram, check_option
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import as_data
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mode_check import judge, report
from pyro_laplace.posterior.own import own_params
from pyro_laplace.program.program import Program
from pyro_laplace.reading.prior import Prior
from pyro_laplace.settings import settings
from pyro_laplace.structure.build import sum_over_data
from pyro_laplace.structure.likelihood_sum import LikelihoodSum
from pyro_laplace.structure.sum import NeedsDouble


def update(guide: Any, data: Any, *, on_not_a_mode: str = "warn", progress: bool = True) -> AutoLaplace:
    """A posterior of further data too, at the same mode: what `fit_laplace` would give on all data at that point.

    The sum over the new data is added to that of the old, which the posterior has kept, as in online Laplace for
    continual learning (Ritter et al. 2018, "Online structured Laplace approximations for overcoming catastrophic
    forgetting"). It equals the joint fit at this point, for every structure.

    Args:
        guide: the posterior; it is not changed.
        data: the new data, as `fit_laplace` takes them; none that the posterior has seen.
        on_not_a_mode: what to do where the new data move the mode by more than 0.1 sqrt(P) posterior standard
            deviations, so that the posterior sits beside it: "warn", "raise" or "ignore".
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        a new posterior.

    Raises:
        InvalidOption: for something that is not a posterior from `fit_laplace`, that has lost its model, or that was
            too large to keep its sum over data.
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
    kept, prior = _kept(guide)
    data = as_data(data)
    measure = CURVATURES[guide.curvature].drawn()
    with undisturbed(), torch.no_grad():
        own_params(model, guide)
        program = Program.trace(model, data, guide.median(), guide.hyperparameters)
        if set(program.observed) != set(guide.observed):
            raise UnsupportedProgram(
                f"the posterior was fitted to the observed sites {sorted(guide.observed)}, and these data observe "
                f"{sorted(program.observed)}"
            )
        options = {"prior": prior, "first": kept.num_data, "progress": progress}
        parts = Loop(program, data), kept.anchor, measure, guide.structure
        new = sum_over_data(*parts, double=kept.double, **options).likelihood
        try:
            likelihood = kept.merged(new)
            precision = likelihood.posterior(prior)
        except NeedsDouble:
            likelihood = kept.merged(sum_over_data(*parts, double=True, **options).likelihood)
            with settings.using(kron_rounding=math.nextafter(math.inf, 0)):  # the fit found that of `kept` small enough
                precision = likelihood.posterior(prior)
        gradient = guide.mode.gradient + new.gradient
        mode = judge(guide.theta, guide.mode.log_joint + new.log_lik, gradient, precision, guide.mode.moved)
        report(mode, on_not_a_mode, "fit all data jointly from here: fit_laplace(model, all_data, guide.median())")
        evidence = guide.log_evidence + new.log_lik
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
            likelihood_sum=likelihood,
            prior=prior,
            hyperparameters=guide.hyperparameters,
            jacobian=guide.jacobian,
        )
    updated.fit_seconds = time.perf_counter() - start
    return updated


def _kept(guide: AutoLaplace) -> tuple[LikelihoodSum, Prior]:
    """The sum over data and the prior that a posterior was made of, on the device where it is now."""
    if guide.likelihood_sum is None or guide.prior is None:
        raise InvalidOption(
            "this posterior has not kept the sum over data that new data are added to: it was larger than "
            f"pyro_laplace.settings.keep_sum_bytes ({settings.keep_sum_bytes / 2**30:.3g} GiB), or there was none. "
            "Raise that before the fit, or fit all data jointly"
        )
    return guide.likelihood_sum, guide.prior
