"""Which program a posterior's draws are predicted with: the model itself, or the model linearised at the mode."""

import warnings
from collections.abc import Callable
from typing import Any

from pyro_laplace._errors import LaplaceWarning, check_option
from pyro_laplace.data import as_data
from pyro_laplace.likelihood import likelihood_of
from pyro_laplace.linearized.nonlinearity import bend_of
from pyro_laplace.linearized.program import LinearizedProgram, linearize
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.program.program import Program
from pyro_laplace.program.sites import unpack

LINEAR = 0.1
"""`nonlinearity` up to which the program counts as linear within the posterior: it then predicts itself.

Measured: regressions, generalised linear models and last layers 0.000; a Dirichlet site 0.12, where both programs
predict the same to 1e-3 nats a datum; beyond, the linearised one is nearer to NUTS. Log density a datum (linearised,
sampled, NUTS): noncentred hierarchy, 0.9: -0.70, -0.75, -0.70; eight schools, 3.3: -3.74, -3.87, -3.73; Gaussian
process, 3.4: -2.75, -3.05, -2.74; network of 31 weights, 2.1: -0.95, -1.03, -0.93.
"""


def predictive_model(
    model: Callable[..., Any], posterior: Any, data: Any, linearized: bool | str = "auto"
) -> Callable[..., Any]:
    """The program that the likelihood of a posterior's draws is to be read off.

    Args:
        model: the Pyro program, or one that is linearised already; that one is used as it is.
        posterior: whatever the draws come from.
        data: the data, by which the observed sites' distributions are known.
        linearized: "auto" linearises for an `AutoLaplace` with a `nonlinearity` above `LINEAR`; True or False
            decide.

    Returns:
        the model, or `linearize(model, posterior)`.

    Raises:
        InvalidOption: if `linearized` has another value, or is True for a posterior that is no `AutoLaplace`.
    """
    check_option("linearized", linearized, (True, False, "auto"))
    if isinstance(model, LinearizedProgram) or linearized is False:
        return model
    if linearized is True:
        return linearize(model, posterior)
    if not isinstance(posterior, AutoLaplace | LaplaceMixture):
        return model
    if _is_enumerated(model, posterior, data):
        return model
    bent = bend_of(model, posterior, as_data(data))
    if bent <= LINEAR:
        return model
    unknown = _without_link(model, posterior, data)
    if not unknown:
        return linearize(model, posterior)
    warnings.warn(
        f"the program is not linear within the posterior (nonlinearity {bent:.2g}), but it cannot be "
        f"linearised: the link of {', '.join(unknown)} is not known. Its draws go through the nonlinear program, where "
        "a posterior over all weights of a network predicts badly; subset='last_layer' does not have that fault. "
        "linearized=False accepts it as it is",
        LaplaceWarning,
        stacklevel=3,
    )
    return model


def predictive_models(
    name: str, model: Callable[..., Any], posterior: Any, data: Any, linearized: bool | str = "auto"
) -> dict[str, Callable[..., Any]]:
    """What to show of a posterior: where "auto" linearises, the nonlinear program beside it, so that users see both.

    Args:
        name: of the posterior.
        model: the Pyro program.
        posterior: whatever the draws come from.
        data: the data.
        linearized: as in `predictive_model`.

    Returns:
        row name to program: `name`, and ``"{name} (sampled)"`` for the nonlinear one.
    """
    predictive = predictive_model(model, posterior, data, linearized)
    if linearized == "auto" and predictive is not model:
        return {name: predictive, f"{name} (sampled)": model}
    return {name: predictive}


def _without_link(model: Callable[..., Any], guide: AutoLaplace | LaplaceMixture, data: Any) -> list[str]:
    data = as_data(data)
    program = Program.trace(model, data, unpack(guide.latents, guide.theta))
    run = program.run(program.start, next(program.chunks(data)))
    return [
        f"{name!r} ({type(site.fn).__name__})" for name, site in run.observed.items() if likelihood_of(site.fn) is None
    ]


def _is_enumerated(model: Callable[..., Any], posterior: Any, data: Any) -> bool:
    """Whether discrete sites are summed out: that has no link, and the program predicts itself."""
    return Program.trace(model, as_data(data), posterior.median()).nesting is not None
