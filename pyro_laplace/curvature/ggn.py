"""Generalised Gauss-Newton: sum_n J_n' I_n J_n, with I_n = S_n S_n' the Fisher information of the data's distribution.

Its root is the Jacobian of ``S_n' eta_n(theta)`` with S_n held at the mode (Martens 2020, "New insights and
perspectives on the natural gradient method"). For canonical links it equals the Hessian of the negative log likelihood.
"""

from pyro_laplace._typing import Theta
from pyro_laplace.curvature.root import Root, SiteRoot, link_of
from pyro_laplace.likelihood import likelihood_of
from pyro_laplace.program import Chunk, Program, datum_weight


def root(program: Program, theta: Theta, chunk: Chunk) -> Root:
    """The root of the observed sites whose Fisher information has a closed form, and which are data."""
    sites = {}
    for name, site in program.run(theta, chunk).observed.items():
        likelihood = likelihood_of(site.fn)
        if likelihood is not None and name not in program.derived:
            fisher_root = likelihood.family.fisher_root(likelihood.link().detach().double())
            weight = likelihood.weight(datum_weight(site, chunk).to(fisher_root.device))
            sites[name] = SiteRoot(link_of, fisher_root * weight.sqrt()[..., None, None])
    return Root(program, chunk, sites)
