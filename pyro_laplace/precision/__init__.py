"""Posterior precisions, held by a square root."""

from pyro_laplace.precision.block import Block
from pyro_laplace.precision.build import STRUCTURES, build_precision
from pyro_laplace.precision.dense import Dense
from pyro_laplace.precision.diag import Diag
from pyro_laplace.precision.kron import Kron
from pyro_laplace.precision.precision import Precision

__all__ = ["STRUCTURES", "Block", "Dense", "Diag", "Kron", "Precision", "build_precision"]
