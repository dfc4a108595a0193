"""Laplace approximations for any Pyro program."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_laplace import datasets, nn
from pyro_laplace._errors import (
    IndefiniteCurvature,
    InvalidData,
    InvalidOption,
    LaplaceError,
    LaplaceWarning,
    NotAMode,
    NotAModeWarning,
    TooLarge,
    UnsupportedProgram,
)
from pyro_laplace.calibration import CalibratedPredictive, calibrate
from pyro_laplace.diagnostics.diagnose import diagnose
from pyro_laplace.diagnostics.diagnosis import Diagnosis
from pyro_laplace.diagnostics.importance import ImportanceDraws, importance_resample
from pyro_laplace.evidence.evidence import Evidence, log_evidence
from pyro_laplace.evidence.maximize import maximize_evidence
from pyro_laplace.inference import (
    AutoLaplaceApproximation,
    DropoutPosterior,
    fit_ensemble,
    fit_nuts,
    fit_svi,
    fit_swag,
    mc_dropout,
)
from pyro_laplace.io.load import load
from pyro_laplace.io.save import save
from pyro_laplace.linearized.predictor import LinearizedPredictive
from pyro_laplace.linearized.program import linearize
from pyro_laplace.mode.fit_map import fit_map
from pyro_laplace.nested.fit import fit_nested_laplace
from pyro_laplace.nested.guide import NestedLaplace
from pyro_laplace.nested.marginal import LaplaceMarginal, laplace_marginal
from pyro_laplace.nn import bayesianize
from pyro_laplace.posterior.fit import fit_laplace
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.posterior.subset import Subnetwork
from pyro_laplace.posterior.update import update
from pyro_laplace.program.start import init_to_start
from pyro_laplace.report.compare import compare
from pyro_laplace.report.datatree import to_datatree
from pyro_laplace.report.loo import loo, unconstrained
from pyro_laplace.sampled.discrete import discrete_posterior
from pyro_laplace.sampled.predictive import Predictive
from pyro_laplace.scores import scores
from pyro_laplace.settings import settings
from pyro_laplace.structure.options import Kron, LowRank
from pyro_laplace.tuning.tune import tune

if TYPE_CHECKING:
    from pyro_laplace import plots

__version__ = "0.1.0"

__all__ = [
    "AutoLaplace",
    "AutoLaplaceApproximation",
    "CalibratedPredictive",
    "Diagnosis",
    "DropoutPosterior",
    "Evidence",
    "ImportanceDraws",
    "IndefiniteCurvature",
    "InvalidData",
    "InvalidOption",
    "Kron",
    "LaplaceError",
    "LaplaceMarginal",
    "LaplaceMixture",
    "LaplaceWarning",
    "LinearizedPredictive",
    "LowRank",
    "NestedLaplace",
    "NotAMode",
    "NotAModeWarning",
    "Predictive",
    "Subnetwork",
    "TooLarge",
    "UnsupportedProgram",
    "bayesianize",
    "calibrate",
    "compare",
    "datasets",
    "diagnose",
    "discrete_posterior",
    "fit_ensemble",
    "fit_laplace",
    "fit_map",
    "fit_nested_laplace",
    "fit_nuts",
    "fit_svi",
    "fit_swag",
    "importance_resample",
    "init_to_start",
    "laplace_marginal",
    "linearize",
    "load",
    "log_evidence",
    "loo",
    "maximize_evidence",
    "mc_dropout",
    "nn",
    "plots",
    "save",
    "scores",
    "settings",
    "to_datatree",
    "tune",
    "unconstrained",
    "update",
]


def __getattr__(name: str) -> Any:
    """`plots` is loaded when it is first used: matplotlib takes a second."""
    if name == "plots":
        return import_module("pyro_laplace.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
