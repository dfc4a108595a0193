"""Other ways to the posterior of the same program and data: VI, Hamiltonian Monte Carlo, ensembles, SGD and dropout.

What they share with a Laplace approximation is the program as it was traced, and the loop that trains a mode. Each
gives a posterior that predictions, reports and figures take as any other, and none of these asks which one it is.
"""

from pyro_laplace.inference.drop_in import AutoLaplaceApproximation
from pyro_laplace.inference.dropout import DropoutPosterior, mc_dropout
from pyro_laplace.inference.ensemble import fit_ensemble
from pyro_laplace.inference.nuts import fit_nuts
from pyro_laplace.inference.svi import fit_svi
from pyro_laplace.inference.swag import fit_swag

__all__ = [
    "AutoLaplaceApproximation",
    "DropoutPosterior",
    "fit_ensemble",
    "fit_nuts",
    "fit_svi",
    "fit_swag",
    "mc_dropout",
]
