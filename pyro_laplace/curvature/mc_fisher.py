"""Monte Carlo Fisher: 1/L sum_l g_nl g_nl', with g_nl the gradient of datum n's log likelihood at a label drawn for it.

Its expectation is the Fisher information of any distribution that has a log density and can be drawn from; for many
classes it is cheaper than the exact one, whose root has a column for each (Kunstner et al. 2019, "Limitations of the
empirical Fisher approximation").
"""

import torch
from torch import Tensor

from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.curvature.empirical_fisher import score_root
from pyro_laplace.curvature.root import Root
from pyro_laplace.likelihood import can_be_drawn, check_informative, marginalises_nan
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Run, Site

LABELS = 4
"""Labels drawn for each datum."""


def root(program: Program, run: Run, chunk: Chunk) -> Root:
    """The root of every observed site, a row for each datum and label, which torch's global generator draws."""
    sites = {
        name: score_root(site, chunk, _labels(site))
        for name, site in run.observed.items()
        if name not in program.derived
    }
    return Root(program, chunk, sites)


def draw_labels(site: Site, count: int) -> Tensor:
    """Draws from the likelihood, missing where the data are.

    Args:
        site: an observed site.
        count: how many for each datum.

    Returns:
        the labels `[count, *batch, *event]`.

    Raises:
        NotImplementedError: if the distribution cannot be sampled.
    """
    if not can_be_drawn(site.fn):
        raise NotImplementedError(f"draws of {site.fn}")
    with torch.no_grad():
        labels = site.fn.sample(torch.Size((count,)))
    return torch.where(site.value.isnan(), site.value, labels) if marginalises_nan(site.fn) else labels


def _labels(site: Site) -> Tensor:
    check_informative(site.name, site.fn)
    try:
        return draw_labels(site, LABELS)
    except NotImplementedError:
        raise UnsupportedProgram(
            f"curvature='mc_fisher' draws labels for the observed site {site.name!r}, whose {type(site.fn).__name__} "
            "distribution cannot be sampled: use curvature='empirical_fisher' or 'hessian', or write the term as a "
            "pyro.factor"
        ) from None
