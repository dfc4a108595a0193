"""Monte Carlo Fisher: 1/L sum_l g_nl g_nl', with g_nl the gradient of datum n's log likelihood at a label drawn for it.

Its expectation is the Fisher information of any distribution that has a log density and can be drawn from; for many
classes it is cheaper than the exact one, whose root has a column for each (Kunstner et al. 2019, "Limitations of the
empirical Fisher approximation").
"""

import torch

from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace._typing import Theta
from pyro_laplace.curvature.empirical_fisher import score_root
from pyro_laplace.curvature.root import Root
from pyro_laplace.program import Chunk, Program, Site

LABELS = 4
"""Labels drawn for each datum."""


def root(program: Program, theta: Theta, chunk: Chunk) -> Root:
    """The root of every observed site, a row for each datum and label; labels come from torch's global generator."""
    observed = program.run(theta, chunk).observed
    sites = {
        name: score_root(site, chunk, _labels(site)) for name, site in observed.items() if name not in program.derived
    }
    return Root(program, chunk, sites)


def _labels(site: Site) -> torch.Tensor:
    """Draws from the likelihood `[labels, *batch, *event]`."""
    try:
        with torch.no_grad():
            return site.fn.sample(torch.Size((LABELS,)))
    except NotImplementedError:
        raise UnsupportedProgram(
            f"curvature='mc_fisher' draws labels for the observed site {site.name!r}, whose {type(site.fn).__name__} "
            "distribution cannot be sampled: use curvature='empirical_fisher' or 'hessian', or write the term as a "
            "pyro.factor"
        ) from None
