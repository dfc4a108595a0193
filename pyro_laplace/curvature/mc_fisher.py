"""Monte Carlo Fisher: 1/L sum_l g_nl g_nl', with g_nl the gradient of datum n's log likelihood at a label drawn for it.

Its expectation is the Fisher information of any distribution that has a log density and can be drawn from; for many
classes it is cheaper than the exact one, whose root has a column for each (Kunstner et al. 2019, "Limitations of the
empirical Fisher approximation").
"""

from torch import Tensor

from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.curvature.labels import draw_labels
from pyro_laplace.curvature.root import FIRST, Draw, Root, of_data
from pyro_laplace.curvature.scores import score_root
from pyro_laplace.likelihood import check_informative
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Run, Site
from pyro_laplace.settings import settings


def root(program: Program, run: Run, chunk: Chunk, draw: Draw = FIRST) -> Root:
    """The root of every observed site, a row for each datum and label."""
    sites = {name: of_data(site) for name, site in run.observed.items() if name not in program.derived}
    return Root(program, chunk, {name: score_root(site, chunk, _labels(site, draw)) for name, site in sites.items()})


def _labels(site: Site, draw: Draw) -> Tensor:
    check_informative(site.name, site.fn)
    try:
        return draw_labels(site, settings.mc_labels, draw)
    except NotImplementedError:
        raise UnsupportedProgram(
            f"curvature='mc_fisher' draws labels for the observed site {site.name!r}, whose {type(site.fn).__name__} "
            "distribution cannot be sampled: use curvature='empirical_fisher' or 'hessian', or write the term as a "
            "pyro.factor"
        ) from None
