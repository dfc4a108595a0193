"""How good predictions of held-out data are: proper scores, calibration, and errors of the best guess.

`scores` is what users call. `score_of` is one number of predictions that are there already, for who chooses by it.
"""

from pyro_laplace.scores.held_out import scores
from pyro_laplace.scores.objectives import OBJECTIVES, Criterion, common_numbers, score_of
from pyro_laplace.scores.observed import predictions_of
from pyro_laplace.scores.prediction import Prediction

__all__ = ["OBJECTIVES", "Criterion", "Prediction", "common_numbers", "predictions_of", "score_of", "scores"]
