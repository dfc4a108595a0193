"""Predictions: Monte Carlo over draws, and the linearised program."""

from pyro_laplace.predictive.linearized import linearize
from pyro_laplace.predictive.monte_carlo import draw_deterministic, draw_log_lik, draw_observed

__all__ = ["draw_deterministic", "draw_log_lik", "draw_observed", "linearize"]
