"""Fisher information and link of observed distributions."""

from pyro_laplace.likelihood import discrete, normal
from pyro_laplace.likelihood.registry import Family, Likelihood, likelihood_of, register, require_likelihood

__all__ = ["Family", "Likelihood", "discrete", "likelihood_of", "normal", "register", "require_likelihood"]
