"""Other ways to the posterior of the same program and data: variational inference and Hamiltonian Monte Carlo."""

from pyro_laplace.inference.nuts import fit_nuts
from pyro_laplace.inference.svi import fit_svi

__all__ = ["fit_nuts", "fit_svi"]
