"""Where a tree comes from, as attributes that every format of file can hold: numbers, words, and lists of these."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from pyro.infer import MCMC

from pyro_laplace.diagnostics.importance import ImportanceDraws
from pyro_laplace.draws.draws import PosteriorDraws
from pyro_laplace.linearized.program import LinearizedProgram
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture


def attributes(
    posterior: Any, model: Any, draws: PosteriorDraws, groups: Mapping[str, Any], left_out: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Attributes of a tree's groups.

    Args:
        posterior: what was given.
        model: the program that it predicts with.
        draws: of it.
        groups: of the tree.
        left_out: name of a site that the tree does not hold, to its size.

    Returns:
        group to attributes; "/" is the root.
    """
    ours = isinstance(posterior, AutoLaplace | LaplaceMixture | ImportanceDraws)
    about: dict[str, Any] = {
        "inference_library": "pyro_laplace" if ours else "pyro-ppl",
        "inference_library_version": _version("pyro_laplace" if ours else "pyro-ppl"),
        "posterior": "draws" if isinstance(posterior, Mapping) else type(posterior).__name__,
        "linearized": int(isinstance(model, LinearizedProgram)),
        "num_draws": len(draws),
    }
    if isinstance(posterior, AutoLaplace | LaplaceMixture):
        about |= {
            "structure": str(posterior.structure),
            "curvature": posterior.curvature,
            "subset": list(posterior.layout),
            "log_evidence": float(posterior.log_evidence),
        }
        first = getattr(posterior, "components", (posterior,))[0]
        hyper = {name: value.tolist() for name, value in getattr(first, "hyperparameters", {}).items()}
        about |= {"hyperparameters": json.dumps(hyper)} if hyper else {}
    if isinstance(posterior, ImportanceDraws):
        names = ("khat", "ess", "log_evidence", "log_evidence_error")
        about |= {name: float(getattr(posterior, name)) for name in names}
    if isinstance(posterior, MCMC):
        about["kernel"] = type(posterior.kernel).__name__
    seconds = getattr(posterior, "fit_seconds", None)
    if seconds is not None:
        about["fit_seconds"] = float(seconds)
    root = {
        "creation_library": "pyro_laplace",
        "creation_library_version": _version("pyro_laplace"),
        "pyro_version": _version("pyro-ppl"),
        "torch_version": _version("torch"),
        "arviz_version": _version("arviz-base"),
        "python_version": platform.python_version(),
        "seed": str(torch.initial_seed()),  # a word: it may be larger than a signed integer
    }
    if left_out:
        sizes = ", ".join(f"{name} ({size:,} numbers a draw)" for name, size in left_out.items())
        root["left_out"] = f"{sizes}: to_datatree(..., large_sites=True) keeps them"
    attrs = {"/": root | about} | {group: dict(about) for group in ("posterior",) if group in groups}
    if draws.attrs and "sample_stats" in groups:
        attrs["sample_stats"] = dict(draws.attrs)
    return attrs


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
