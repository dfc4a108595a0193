"""Predictions: Monte Carlo over draws, and the linearised program."""

from pyro_laplace.predictive.linearized import linearize
from pyro_laplace.predictive.linearized_predictive import LinearizedPredictive
from pyro_laplace.predictive.monte_carlo import draw_deterministic, draw_log_lik, draw_observed
from pyro_laplace.predictive.predictive import Predictive

__all__ = ["LinearizedPredictive", "Predictive", "draw_deterministic", "draw_log_lik", "draw_observed", "linearize"]
