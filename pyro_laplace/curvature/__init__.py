"""Curvature of the log joint: generalised Gauss-Newton or exact Hessian, dense or diagonal."""

from pyro_laplace.curvature.accumulate import (
    CURVATURES,
    Curvature,
    likelihood_diagonal,
    likelihood_matrix,
    prior_diagonal,
    prior_matrix,
)
from pyro_laplace.curvature.kronecker import KronFactors, kron_factors
from pyro_laplace.curvature.point import Point

__all__ = [
    "CURVATURES",
    "Curvature",
    "KronFactors",
    "Point",
    "kron_factors",
    "likelihood_diagonal",
    "likelihood_matrix",
    "prior_diagonal",
    "prior_matrix",
]
