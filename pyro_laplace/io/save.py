"""`save`: a posterior to a file."""

import time
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import pyro.infer

from pyro_laplace._errors import InvalidOption
from pyro_laplace.io.file import write
from pyro_laplace.io.records import plain_explored, plain_laplace, plain_sites
from pyro_laplace.linearized.predictor import LinearizedPredictive
from pyro_laplace.linearized.program import LinearizedProgram
from pyro_laplace.nested.guide import NestedLaplace
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.scores.prediction import Forecaster
from pyro_laplace.state import packed


def save(guide: Any, path: str | PathLike[str]) -> None:
    """Write a posterior to a file that `load` makes it of again, for the same model.

    The file holds the sites' layout, the posterior precision, the sums over data and the prior's curvature (so that a
    loaded posterior can be updated, and have another prior), the hyperparameters it was built at, and the versions it
    was made by; not the data, and not the model. It is a safetensors file with a JSON document in its header and a
    checksum, written as a whole or not at all. Reading it runs nothing.

    Args:
        guide: from `fit_laplace`, `maximize_evidence`, `tune`, `update` or `fit_nested_laplace`: an `AutoLaplace` or a
            mixture of them.
        path: of the file, which is replaced if it is there.

    Raises:
        InvalidOption: if it is no such guide, or has a site whose support files have no name for.
        InvalidData: if the folder is not there.
    """
    if isinstance(guide, Forecaster):
        raise InvalidOption(
            f"save takes a posterior, not its predictions ({guide}): save the guide that they were made of, pl.save("
            "guide, path), and write temperatures and scales down beside it. pl.calibrate of what pl.load gives, on "
            "the same held-out data, finds them again"
        )
    if isinstance(guide, LinearizedPredictive | pyro.infer.Predictive | LinearizedProgram):
        raise InvalidOption(
            f"save takes a posterior, not the {type(guide).__name__} made of one: save its guide, pl.save(guide, "
            "path), and make the other anew of what pl.load gives"
        )
    if not isinstance(guide, AutoLaplace | LaplaceMixture):
        raise InvalidOption(
            f"save takes a posterior of fit_laplace or fit_nested_laplace, not {type(guide).__name__}: the params "
            "of other guides are in pyro.get_param_store(), and arviz.to_netcdf draws of any posterior"
        )
    tree = {
        "provenance": {
            "saved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **{name: version(name) for name in ("pyro-laplace", "pyro-ppl", "torch")},
        },
        "sites": plain_sites(guide.latents),
        "posterior": _plain_posterior(guide),
    }
    write(Path(path), packed(tree))


def _plain_posterior(guide: AutoLaplace | LaplaceMixture) -> dict[str, Any]:
    if isinstance(guide, AutoLaplace):
        return {"kind": "AutoLaplace", **plain_laplace(guide)}
    own: dict[str, Any] = {
        "kind": type(guide).__name__,
        "components": [plain_laplace(each) for each in guide.components],
    }
    own |= {"weights": guide.weights, "weighting": guide.weighting, "fit_seconds": getattr(guide, "fit_seconds", None)}
    return {**own, "nested": plain_explored(guide.explored) if isinstance(guide, NestedLaplace) else None}
