"""Posterior precisions, held by a square root."""

from pyro_laplace.precision.block import Block
from pyro_laplace.precision.build import build_precision, check_combination
from pyro_laplace.precision.dense import Dense
from pyro_laplace.precision.diag import Diag
from pyro_laplace.precision.dual import Dual
from pyro_laplace.precision.kron import Kron as KronBlock
from pyro_laplace.precision.low_rank import DiagLowRank
from pyro_laplace.precision.precision import Precision
from pyro_laplace.precision.structure import Kron, LowRank, Structure, check_structure

__all__ = [
    "Block",
    "Dense",
    "Diag",
    "DiagLowRank",
    "Dual",
    "Kron",
    "KronBlock",
    "LowRank",
    "Precision",
    "Structure",
    "build_precision",
    "check_combination",
    "check_structure",
]
