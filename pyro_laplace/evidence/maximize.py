"""`maximize_evidence`: the hyperparameters of the highest evidence, post hoc, and the posterior under them."""

import time
from collections.abc import Callable
from typing import Any

import torch

from pyro_laplace._compat.pyro import StoreState, undisturbed
from pyro_laplace._errors import check_option
from pyro_laplace.data import as_data
from pyro_laplace.evidence.rounds import maximum
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.request import Request
from pyro_laplace.posterior.subset import Subset
from pyro_laplace.reading.hyperparameters import Names, require
from pyro_laplace.structure.options import Structure

METHODS = ("posthoc",)
"""How the evidence may be maximised."""

REFITS = ("auto", True, False, "linearized")
"""What may become of the mode under a new prior."""


def maximize_evidence(
    model: Callable[..., Any],
    data: Any,
    map_guide: Any = None,
    *,
    hyperparameters: Names = "auto",
    method: str = "posthoc",
    refit: bool | str = "auto",
    keep: bool = True,
    subset: Subset = "all",
    structure: Structure = "full",
    curvature: str = "auto",
    jacobian: bool = True,
    on_not_a_mode: str = "warn",
    progress: bool = True,
) -> AutoLaplace:
    """The hyperparameters at which Laplace's evidence is highest, and the posterior there (type-II maximum likelihood).

    The sum over data is made once at a mode; the evidence of other prior scales follows from it without the data, and
    that of another homoscedastic noise from the residual statistics (MacKay 1992; Immer et al. 2021, "Scalable marginal
    likelihood estimation for model selection in deep learning"). It is climbed by L-BFGS in the logarithms of positive
    hyperparameters, from several starts. With `refit` the mode is then found again under the new prior, and both are
    repeated until neither moves; meanwhile the evidence counts that the mode follows the prior, as far as the quadratic
    model goes: exactly for linear-Gaussian programs, which take one round.

    Args:
        model: a Pyro program with hyperparameters: pyro.params that priors depend on, and noise.
        data: a batch (tuple, dict or tensor), or a re-iterable of batches.
        map_guide: an `AutoDelta` at the mode under the values that the store holds, or a mapping of site values; None
            fits it first.
        hyperparameters: "auto", those that the priors of random sites depend on and those that enter a distribution's
            dispersion and not its location; or names and globs of pyro.params. Never a network's weights.
        method: "posthoc", after training.
        refit: True finds the mode of the random sites again under each new prior, the others held; False leaves it
            where it is; "auto" finds it again where no site is held and the program is small: at most `settings.small`
            coordinates, or coordinates times data at most `settings.refit_work`. A trained network is left where it
            stands, whole or its last layer; "linearized" leaves it too, and maximises the evidence of the linearised
            program at that program's own mode (Antoran et al. 2022, "Adapting the linearised Laplace model evidence for
            modern deep learning"), which networks with normalisation layers need: exact for Normal data, by its
            quadratic model for others.
        keep: whether the param store holds the new values afterwards; False leaves it as it was.
        subset: as `fit_laplace` takes it. Hyperparameters of sites that are held are left out.
        structure: as `fit_laplace` takes it.
        curvature: as `fit_laplace` takes it.
        jacobian: as `fit_laplace` takes it.
        on_not_a_mode: what to do about a point that is no mode under its new prior: "warn", "raise" or "ignore".
        progress: whether passes over the data that last show a progress bar.

    Returns:
        the posterior at the mode, with `hyperparameters`, `evidence_path` and `path`.

    Raises:
        InvalidOption: for an option's unknown value, a program without hyperparameters, or a name that matches nothing.
        InvalidData: if the log likelihood is not finite.
        NotAMode: if the point is no mode under its new prior, and that is to be raised.
    """
    start = time.perf_counter()
    check_option("method", method, METHODS)
    check_option("refit", refit, REFITS)
    check_option("keep", keep, (True, False))
    check_option("on_not_a_mode", on_not_a_mode, ("warn", "raise", "ignore"))
    request = Request.of(model, subset, structure, curvature, jacobian, progress)
    refit, data, before = request.refit(refit), as_data(data), StoreState()
    with before.restored_on_error():
        values = request.point(data, map_guide, hyperparameters)
        with undisturbed(), torch.no_grad():
            stays = map_guide is not None and refit in (False, "linearized")
            begun = request.begin(data, values, False if stays else "auto", map_guide is not None)
            found = begun.search.hyperparameters(hyperparameters)
            require(found, begun.search.loop.program)
            guide = maximum(begun, found, refit).guide(on_not_a_mode, keep)
    before.end(model, {name: guide.hyperparameters[name] for name in found.names if keep}, found.constraints)
    guide.fit_seconds = time.perf_counter() - start
    return guide
