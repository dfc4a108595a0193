"""Empirical Fisher: sum_n g_n g_n', with g_n the gradient of datum n's log likelihood at its own label.

One row a datum, whatever its number of outputs. It is not the Fisher information: it takes the labels that were seen
for draws from the program, and vanishes where they are fitted exactly (Kunstner et al. 2019, "Limitations of the
empirical Fisher approximation"). A datum is an element of the observed site's batch shape.
"""

from pyro_laplace.curvature.root import FIRST, Draw, Root
from pyro_laplace.curvature.scores import score_root
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Run


def root(program: Program, run: Run, chunk: Chunk, draw: Draw = FIRST) -> Root:
    """The root of every observed site, one row a datum; nothing is drawn."""
    sites = {
        name: score_root(site, chunk, site.value.unsqueeze(0))
        for name, site in run.observed.items()
        if name not in program.derived
    }
    return Root(program, chunk, sites)
