"""Other ways to the posterior of the same program and data: variational inference and Hamiltonian Monte Carlo.

What they share with a Laplace approximation is the program as it was traced, and the loop that trains a mode.
"""

from pyro_laplace.inference.drop_in import AutoLaplaceApproximation
from pyro_laplace.inference.nuts import fit_nuts
from pyro_laplace.inference.svi import fit_svi

__all__ = ["AutoLaplaceApproximation", "fit_nuts", "fit_svi"]
