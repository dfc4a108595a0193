"""The one table of curvatures."""

from pyro_laplace.curvature import empirical_fisher, ggn, mc_fisher
from pyro_laplace.curvature.root import Curvature

CURVATURES = {
    "ggn": Curvature("ggn", ggn.root),
    "empirical_fisher": Curvature("empirical_fisher", empirical_fisher.root, noise_power=4),
    "mc_fisher": Curvature("mc_fisher", mc_fisher.root, seed=0),
    "hessian": Curvature("hessian", None),
}
"""What `curvature=` may be."""
