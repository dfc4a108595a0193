"""The posterior mode: training an AutoDelta, and the move to the mode of the density of theta."""

from pyro_laplace.mode.descent import descend
from pyro_laplace.mode.fit_map import SMALL, discard_params, fit_map
from pyro_laplace.mode.mode import Mode
from pyro_laplace.mode.newton import minimise
from pyro_laplace.mode.objective import Objective
from pyro_laplace.mode.training import train

__all__ = ["SMALL", "Mode", "Objective", "descend", "discard_params", "fit_map", "minimise", "train"]
