"""Figures of posteriors and of what they predict: matplotlib figures, made without a display.

Each function returns a `matplotlib.figure.Figure`; save it with ``figure.savefig(path)``.
"""

from pyro_laplace.plots.believed import coverage, ood, reliability
from pyro_laplace.plots.calibration import calibration, pit
from pyro_laplace.plots.evidence import evidence
from pyro_laplace.plots.forest import posterior_forest
from pyro_laplace.plots.marginals import khat, posteriors
from pyro_laplace.plots.predictions import class_surface, predictive_bands
from pyro_laplace.plots.spectrum import spectrum
from pyro_laplace.plots.table import comparison

__all__ = [
    "calibration",
    "class_surface",
    "comparison",
    "coverage",
    "evidence",
    "khat",
    "ood",
    "pit",
    "posterior_forest",
    "posteriors",
    "predictive_bands",
    "reliability",
    "spectrum",
]
