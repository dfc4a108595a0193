"""`fit_laplace`: from a Pyro program, its data and its mode to a Gaussian posterior guide."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, overload

import torch
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, check_option
from pyro_laplace.data import as_data
from pyro_laplace.posterior.expected import tell_of_expected
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mass import tell_of_far_mass
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.posterior.mode_check import LONGER, report
from pyro_laplace.posterior.request import Request
from pyro_laplace.posterior.several import fit_mixture
from pyro_laplace.posterior.subset import Subset
from pyro_laplace.settings import settings
from pyro_laplace.structure.options import Structure


@overload
def fit_laplace(
    model: Callable[..., Any],
    data: Any,
    map_guide: AutoGuide | Mapping[str, Tensor] | None = None,
    *,
    subset: Subset = "all",
    structure: Structure = "full",
    curvature: str = "auto",
    jacobian: bool = True,
    polish: bool | str = "auto",
    on_not_a_mode: str = "warn",
    progress: bool = True,
    weights: None = None,
) -> AutoLaplace: ...


@overload
def fit_laplace(
    model: Callable[..., Any],
    data: Any,
    map_guide: list[Any] | tuple[Any, ...] | LaplaceMixture,
    *,
    subset: Subset = "all",
    structure: Structure = "full",
    curvature: str = "auto",
    jacobian: bool = True,
    polish: bool | str = "auto",
    on_not_a_mode: str = "warn",
    progress: bool = True,
    weights: str | None = None,
) -> LaplaceMixture: ...


def fit_laplace(
    model: Callable[..., Any],
    data: Any,
    map_guide: AutoGuide | Mapping[str, Tensor] | list[Any] | tuple[Any, ...] | None = None,
    *,
    subset: Subset = "all",
    structure: Structure = "full",
    curvature: str = "auto",
    jacobian: bool = True,
    polish: bool | str = "auto",
    on_not_a_mode: str = "warn",
    progress: bool = True,
    weights: str | None = None,
) -> AutoLaplace | LaplaceMixture:
    """Turn a Pyro program at its mode into a Gaussian posterior guide.

    The posterior is ``N(theta*, Lambda^-1)`` over the latent sites in unconstrained space, with
    ``Lambda = sum_n J_n' I_n J_n + H_prior`` (MacKay 1992, "A practical Bayesian framework for backpropagation
    networks"; Daxberger et al. 2021, "Laplace Redux").

    Args:
        model: a Pyro program.
        data: a batch (tuple, dict or tensor), or a re-iterable of batches. Observed sites are those that have a value.
        map_guide: an `AutoDelta` at the mode, however it was trained, or a mapping of site values; None fits it first.
            A list or tuple of them, or an ensemble, gives a `LaplaceMixture`, a Gaussian around each.
        subset: the random sites, the others are held at the mode: "all", "last_layer", site names or globs, a callable
            of the site name, or a `Subnetwork` of single coordinates.
        structure: of the precision: "full"; "block" (dense for each site); "kron" (a Kronecker product per layer,
            dense blocks for sites in no layer), or `Kron("expand")`, which it is, or `Kron("reduce")`, for weights
            that several positions share; "diag"; "sparse" (that of "full", by the entries that are not zero: of
            hierarchies with many groups, and of random walks); `LowRank(rank)` (a diagonal prior and the likelihood's
            leading eigenpairs); or a mapping of site globs to these, in which the first match wins, every random site
            is matched, and the curvature between its groups is dropped.
        curvature: of the log likelihood: "auto" (the observed information, the exact Hessian, of a program of at most
            `settings.small` coordinates that is no network, where it is positive definite; else "ggn"; the posterior's
            `curvature` says which), "ggn" (Fisher information of the data's distribution: in closed form where
            there is one, by enumeration of a small support, or else by Monte Carlo, with labels that are the same at
            every call on the same data; what cannot be drawn from, and a `pyro.factor`, has its exact Hessian),
            "mc_fisher" (the Fisher information's unbiased estimate from four labels drawn for each datum, of any
            distribution; `pyro.set_rng_seed` reproduces it), "empirical_fisher" (the gradients at the data's own
            labels: one row a datum) or "hessian".
        jacobian: True builds the Gaussian at the mode of the density of theta, ``log |dx/dtheta|`` included; False at
            AutoDelta's, the mode of the density of the constrained values.
        polish: True moves the point to the mode, False leaves it, "auto" moves it where it must: sites with constraints
            and `jacobian=True`, or a program of at most `settings.small` coordinates. A trained network is measured,
            not retrained.
        on_not_a_mode: what to do about a point further than 0.1 sqrt(P) posterior standard deviations from the mode:
            "warn", "raise" or "ignore".
        progress: whether to show a progress bar while the mode is fitted, and for passes over the data that last.
        weights: of a mixture: "evidence" (the default: softmax of the log evidences) or "equal".

    Returns:
        the posterior as a Pyro guide.

    Raises:
        InvalidOption: for an option's unknown value, or `weights` without several starts.
        UnsupportedProgram: if the program has no Laplace approximation, naming the site and what to do.
        NotAMode: if the point is not a mode and `on_not_a_mode="raise"`.
        IndefiniteCurvature: if the precision is not positive definite, naming the sites to blame.
    """
    start = time.perf_counter()
    map_guide = map_guide.points if isinstance(map_guide, LaplaceMixture) else map_guide
    if isinstance(map_guide, list | tuple):
        chosen = {"subset": subset, "structure": structure, "curvature": curvature, "jacobian": jacobian}
        chosen |= {"polish": polish, "on_not_a_mode": on_not_a_mode, "progress": progress}
        return fit_mixture(partial(fit_laplace, model, data, **chosen), map_guide, subset, weights)
    if weights is not None:
        raise InvalidOption(f"weights={weights!r} is for a mixture: give map_guide a list of mode guides")
    check_option("polish", polish, (True, False, "auto"))
    check_option("on_not_a_mode", on_not_a_mode, ("warn", "raise", "ignore"))
    request = Request.of(model, subset, structure, curvature, jacobian, progress)
    data, given = as_data(data), map_guide is not None
    values = request.point(data, map_guide)
    with undisturbed(), torch.no_grad():
        begun = request.begin(data, values, polish, given, ignore=on_not_a_mode == "ignore")
        mode = begun.posterior.judged(begun.moved, begun.stopped)
        remedy = LONGER if given else "give a map_guide trained longer"
        others = None if mode.is_mode else begun.search.unlike_passes(begun.posterior)
        report(mode, on_not_a_mode, remedy, others)
        if mode.is_mode:
            tell_of_expected(begun.search, begun.posterior, curvature, begun.statistical)
            if len(begun.posterior.theta) <= settings.small and structure == "full":
                tell_of_far_mass(begun.search, begun.posterior, begun.statistical)
        guide = begun.search.guide(begun.posterior, mode, begun.search.hyperparameters().values)
    guide.fit_seconds = time.perf_counter() - start
    return guide
