"""Which program a posterior's draws are predicted with: the model itself, or the model linearised at the mode."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import LaplaceWarning, check_option
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import Data, as_data
from pyro_laplace.likelihood import likelihood_of
from pyro_laplace.linearized.program import LinearizedProgram, linearize
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.posterior.own import own_params
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.program.sites import unpack
from pyro_laplace.settings import settings


def predictive_model(
    model: Callable[..., Any], posterior: Any, data: Any, linearized: bool | str = "auto"
) -> Callable[..., Any]:
    """The program that the likelihood of a posterior's draws is to be read off.

    Args:
        model: the Pyro program, or one that is linearised already; that one is used as it is.
        posterior: whatever the draws come from.
        data: the data, by which the observed sites' distributions are known.
        linearized: "auto" linearises for an `AutoLaplace` with a `nonlinearity` above `settings.linear`; True or False
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
    if sums_discrete(model, posterior, data):
        return model
    bent = bend_of(model, posterior, as_data(data))
    if bent <= settings.linear:
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


def bend_of(model: Callable[..., Any], posterior: Any, data: Data) -> float:
    """The largest `nonlinearity` of a posterior's components; 0 of points, and of one that is the program's own."""
    if getattr(posterior, "follows_program", False):
        return 0.0
    components = posterior.components if isinstance(posterior, LaplaceMixture) else [posterior]
    ours = (each for each in components if isinstance(each, AutoLaplace) and each.curvature != "none")
    return max((nonlinearity(model, each, data) for each in ours), default=0.0)


def nonlinearity(model: Callable[..., Any], guide: AutoLaplace, data: Data) -> float:
    """``|g(theta) - g(theta*) - J (theta - theta*)| / |J (theta - theta*)|`` at one posterior draw.

    g are the likelihood's parameters in Fisher's metric, of the first batch; J is its Jacobian at the mode theta*.

    Args:
        model: the Pyro program.
        guide: its posterior.
        data: the data; observed values need not be among them.

    Returns:
        the relative size of what a linear program would leave out: 0 is linear. 0 too where no distribution of the
        data has a known Fisher information.
    """
    params = own_params(model, guide)
    program = Program(model, guide.latents, guide.observed, start=guide.theta, params=params)
    chunk, step = Chunk(data.first()), settings.nonlinearity_step
    with undisturbed(), torch.no_grad():
        root = CURVATURES["ggn"].root(program, program.run(guide.theta, chunk), chunk)
        assert root is not None
        white = torch.randn(1, guide.latent_dim, generator=torch.Generator().manual_seed(0)).to(guide.theta)
        (deviation,) = guide.precision.color(white)

        def moved(fraction: float) -> torch.Tensor:
            return root(guide.theta.index_add(0, guide.index, fraction * deviation)) - at_mode

        at_mode = root(guide.theta)
        straight = moved(step) / step
        bent = moved(1.0) - straight
    return float(bent.norm() / straight.norm()) if bool(straight.any()) else 0.0


def _without_link(model: Callable[..., Any], guide: AutoLaplace | LaplaceMixture, data: Any) -> list[str]:
    data = as_data(data)
    program = Program.trace(model, data, unpack(guide.latents, guide.theta), own_params(model, guide), guide.observed)
    run = program.run(program.start, next(program.chunks(data)))
    return [
        f"{name!r} ({type(site.fn).__name__})" for name, site in run.observed.items() if likelihood_of(site.fn) is None
    ]


def sums_discrete(model: Callable[..., Any], posterior: Any, data: Any) -> bool:
    """Whether discrete sites are summed out: that has no link, and the program predicts itself."""
    params = own_params(model, posterior)
    return Program.trace(model, as_data(data), posterior.median(), params, posterior.observed).nesting is not None
