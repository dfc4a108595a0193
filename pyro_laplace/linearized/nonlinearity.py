"""How far a program is from linear within its posterior."""

from collections.abc import Callable
from typing import Any

import torch

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import Data
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program

_STEP = 0.02
"""Fraction of the deviation over which the directional derivative is a difference quotient."""


def bend_of(model: Callable[..., Any], posterior: Any, data: Data) -> float:
    """The largest `nonlinearity` of a posterior's components; 0 of those that no Gauss-Newton curvature made."""
    components = posterior.components if isinstance(posterior, LaplaceMixture) else [posterior]
    ours = (each for each in components if isinstance(each, AutoLaplace) and each.curvature not in ("hessian", "none"))
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
    program = Program(model, guide.latents, guide.observed, start=guide.theta)
    chunk = Chunk(data.first())
    with undisturbed(), torch.no_grad():
        root = CURVATURES["ggn"].root(program, program.run(guide.theta, chunk), chunk)
        assert root is not None
        white = torch.randn(1, guide.latent_dim, generator=torch.Generator().manual_seed(0)).to(guide.theta)
        (deviation,) = guide.precision.color(white)

        def moved(fraction: float) -> torch.Tensor:
            return root(guide.theta.index_add(0, guide.index, fraction * deviation)) - at_mode

        at_mode = root(guide.theta)
        straight = moved(_STEP) / _STEP
        bent = moved(1.0) - straight
    return float(bent.norm() / straight.norm()) if bool(straight.any()) else 0.0
