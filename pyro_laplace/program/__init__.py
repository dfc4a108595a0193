"""The Pyro program, traced once: its latent and observed sites, and its densities as functions of theta."""

from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.initial import init_to_start
from pyro_laplace.program.program import Program, datum_weight, log_lik_of, sum_log_lik
from pyro_laplace.program.run import Run, Site
from pyro_laplace.program.sites import Latent

__all__ = ["Chunk", "Latent", "Program", "Run", "Site", "datum_weight", "init_to_start", "log_lik_of", "sum_log_lik"]
