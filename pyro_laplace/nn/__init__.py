"""Networks as Pyro programs: `bayesianize`, the priors of their parameters, and the distributions of their data.

What comes out is a program like any other: nothing below this room knows of networks.
"""

from pyro_laplace.nn.convert import bayesianize
from pyro_laplace.nn.learned import learned
from pyro_laplace.nn.likelihoods import (
    BinaryClassification,
    Classification,
    Counts,
    HeteroscedasticRegression,
    Likelihood,
    Regression,
)
from pyro_laplace.nn.network import BayesianNetwork, NetworkProgram
from pyro_laplace.nn.priors import ARD, FanIn, Horseshoe, Isotropic, Prior, ScaleMixture, StudentT
from pyro_laplace.nn.scale import Learned, Scale
from pyro_laplace.nn.target import Target

__all__ = [
    "ARD",
    "BayesianNetwork",
    "BinaryClassification",
    "Classification",
    "Counts",
    "FanIn",
    "HeteroscedasticRegression",
    "Horseshoe",
    "Isotropic",
    "Learned",
    "Likelihood",
    "NetworkProgram",
    "Prior",
    "Regression",
    "Scale",
    "ScaleMixture",
    "StudentT",
    "Target",
    "bayesianize",
    "learned",
]
