"""Curvature of the log joint: a root A'A of generalised Gauss-Newton or Fisher kind, or the exact Hessian."""

from pyro_laplace.curvature.accumulate import (
    CURVATURES,
    likelihood_blocks,
    likelihood_curvature,
    likelihood_diagonal,
    likelihood_gram,
    likelihood_matrix,
)
from pyro_laplace.curvature.assemble import Gram
from pyro_laplace.curvature.data_pass import Pass, Tally
from pyro_laplace.curvature.few_rows import FewRows
from pyro_laplace.curvature.first_run import FirstRun
from pyro_laplace.curvature.kronecker import KronFactors, kron_factors
from pyro_laplace.curvature.point import Point
from pyro_laplace.curvature.prior import Prior
from pyro_laplace.curvature.products import LikelihoodProduct, likelihood_product
from pyro_laplace.curvature.root import Curvature, Root

__all__ = [
    "CURVATURES",
    "Curvature",
    "FewRows",
    "FirstRun",
    "Gram",
    "KronFactors",
    "LikelihoodProduct",
    "Pass",
    "Point",
    "Prior",
    "Root",
    "Tally",
    "kron_factors",
    "likelihood_blocks",
    "likelihood_curvature",
    "likelihood_diagonal",
    "likelihood_gram",
    "likelihood_matrix",
    "likelihood_product",
]
