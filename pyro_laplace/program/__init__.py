"""The Pyro program, traced once: its latent and observed sites, and its densities as functions of theta."""

from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.graph import LastLayer, last_layer
from pyro_laplace.program.initial import init_to_start
from pyro_laplace.program.program import Program, add_up, datum_weight, log_lik_of, sum_log_lik
from pyro_laplace.program.run import Run, Site, Watcher, is_enumerated, without_masked_nan
from pyro_laplace.program.sites import Latent
from pyro_laplace.program.supports import FromTriangle, LowerTriangle

__all__ = [
    "Chunk",
    "FromTriangle",
    "LastLayer",
    "Latent",
    "LowerTriangle",
    "Program",
    "Run",
    "Site",
    "Watcher",
    "add_up",
    "datum_weight",
    "init_to_start",
    "is_enumerated",
    "last_layer",
    "log_lik_of",
    "sum_log_lik",
    "without_masked_nan",
]
