"""A posterior's draws, with their density wherever it has one: what a report of it begins with."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from pyro.infer.autoguide.guides import AutoGuide

from pyro_laplace._errors import InvalidOption
from pyro_laplace.data import Data
from pyro_laplace.diagnostics.drawn import draw_from, refuse_without_density
from pyro_laplace.draws.draws import PosteriorDraws, draws_of
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.program.program import Program
from pyro_laplace.program.sites import unpack


def draws_with_density(model: Callable[..., Any], posterior: Any, data: Data, num_samples: int) -> PosteriorDraws:
    """Draw from a posterior, and say how dense it is there.

    Args:
        model: the Pyro program.
        posterior: as in `draws_of`.
        data: what a guide is called with.
        num_samples: draws from a guide.

    Returns:
        the draws; `log_q` is None of what has no density: an `MCMC`, draws, a point, and a guide whose own variables
        do not determine the latent sites.
    """
    ours = isinstance(posterior, AutoLaplace | LaplaceMixture)
    if ours or not isinstance(posterior, AutoGuide) or posterior.prototype_trace is None:
        return draws_of(posterior, data, num_samples)
    try:
        refuse_without_density(posterior)
        program = Program.trace(model, data)
        drawn = draw_from(posterior, program, data, num_samples)
    except (InvalidOption, NotImplementedError):
        return draws_of(posterior, data, num_samples)
    values = unpack(program.latents, drawn.theta)
    finite = bool(drawn.log_q.isfinite().all())
    return replace(PosteriorDraws(values), log_q=drawn.log_q if finite else None)


def theta_of(program: Program, draws: PosteriorDraws) -> torch.Tensor:
    """The draws in unconstrained space [draws, params]."""
    values = {name: draws.values[name].reshape(-1, *latent.shape) for name, latent in program.latents.items()}
    with torch.no_grad():
        return torch.func.vmap(program.pack)(values)
