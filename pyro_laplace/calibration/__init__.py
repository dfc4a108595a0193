"""Whether predictions can be believed, and predictions that are made so on held-out data: `calibrate`, and curves.

What is predicted stays what a predictive says; a temperature or a scale is put on it afterwards. Scores are made in the
room before this one, and figures of the curves in `plots`.
"""

from pyro_laplace.calibration.calibrate import CalibratedPredictive, calibrate

__all__ = ["CalibratedPredictive", "calibrate"]
