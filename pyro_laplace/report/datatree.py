"""`to_datatree`: a Pyro program, its data and any posterior of it as an ArviZ `DataTree`."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import LaplaceWarning
from pyro_laplace.data import Data, as_data
from pyro_laplace.diagnostics.importance import ImportanceDraws
from pyro_laplace.draws.draws import PosteriorDraws, draws_of
from pyro_laplace.draws.over_draws import View, map_rows
from pyro_laplace.linearized.choose import predictive_model
from pyro_laplace.linearized.program import LinearizedProgram
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.program.run import Recorder, run_model

if TYPE_CHECKING:
    import xarray


_OF_DATA = ("observed_data", "posterior_predictive", "prior_predictive")
"""Groups of values of the observed sites."""


def to_datatree(
    model: Callable[..., Any],
    posterior: Any,
    data: Any,
    num_samples: int = 1000,
    *,
    linearized: bool | str = "auto",
    num_prior_samples: int = 500,
    coords: Mapping[str, Sequence[Any]] | None = None,
    progress: bool = True,
) -> "xarray.DataTree":
    """Everything that ArviZ wants to know of a posterior.

    Groups: `posterior` (latent and `pyro.deterministic` sites), `log_likelihood` (per datum, as the program scales and
    masks it), `log_prior` (of each latent site), `posterior_predictive`, `observed_data`, `constant_data` (the model's
    other tensor arguments), `sample_stats`, `prior` and `prior_predictive` (left out where a prior cannot be drawn).

    Data that are counts, classes or yes and no have an integer dtype, draws of them too.

    `sample_stats` holds `lp`, the log joint density of theta (unconstrained, log-Jacobian included) under the program
    that `log_likelihood` is of; for an `AutoLaplace` also `lp_approx`, its own log density of theta, with which
    ``arviz.loo_approximate_posterior(tree, tree.sample_stats.lp, tree.sample_stats.lp_approx)`` corrects for the
    approximation; for an `MCMC` also `diverging`, and the acceptance rate of each chain as an attribute.

    Batch dims are named by their plates, the others ``{site}_dim_{i}``. Draws that are independent of one another get
    one chain: give ArviZ's `loo` ``reff=1.0`` for them.

    Args:
        model: a Pyro program, or what `linearize` makes of one.
        posterior: any guide, a `pyro.infer.MCMC` that has run, or draws, a mapping of site name to
            `[draws, *shape]`. An `AutoDelta` gives one draw, its point, and `num_samples` draws of what that predicts.
        data: a batch (tuple, dict or tensor), or a re-iterable of batches, visited once each.
        num_samples: draws from a guide; an `MCMC` and a mapping keep theirs.
        linearized: whether `log_likelihood` and `posterior_predictive` are of the linearised program. "auto": for an
            `AutoLaplace` within which the program is not linear.
        num_prior_samples: draws of `prior` and `prior_predictive`; 0 leaves the groups out, and so does an improper
            prior, which has no draws.
        coords: labels of dims, as in ``arviz_base.from_dict``.
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        the tree. Its root's attributes name the library, the posterior, its structure and curvature, and whether
        predictions are linearised.

    Raises:
        InvalidOption: for an option's unknown value, or a posterior that is none of the above.
        InvalidData: if `data` cannot be iterated anew, or hold values outside their distribution's support.
        UnsupportedProgram: if the program cannot be traced, or the posterior lacks one of its sites.
    """
    from arviz_base import dict_to_dataset, from_dict  # takes a second to load
    from xarray import DataTree

    data = as_data(data).held()
    draws = draws_of(posterior, data, num_samples)
    predictive = predictive_model(model, posterior, data, linearized)
    view = View.of(predictive, data, draws, progress)
    observed = view.observed  # first, as it refuses data that have no density
    groups = {
        "posterior": {**view.latents(draws.values), **view.deterministic(draws.values)},
        "log_likelihood": view.log_lik(draws.values),
        "posterior_predictive": view.replicated(draws.at_least(num_samples) if draws.is_point else draws.values),
    }
    groups = {group: {k: draws.by_chain(v) for k, v in values.items()} for group, values in groups.items()}
    groups["sample_stats"] = {"lp": draws.by_chain(view.log_joint(draws.values)), **draws.stats}
    if draws.log_q is not None:
        groups["sample_stats"]["lp_approx"] = draws.by_chain(draws.log_q)
    if num_prior_samples:
        groups |= _prior_groups(predictive, view, data, num_prior_samples)
    groups["observed_data"] = observed
    groups["constant_data"] = view.constant
    groups = {group: values for group, values in groups.items() if values}
    tree = from_dict(
        {
            group: {n: _as_numpy(value, group in _OF_DATA and n in view.counts) for n, value in values.items()}
            for group, values in groups.items()
        },
        dims=view.dims,
        coords=dict(coords or {}),
        attrs=_attributes(posterior, predictive, draws, groups),
    )
    prior = {name: _as_numpy(draws.by_chain(value)) for name, value in view.log_prior(draws.values).items()}
    tree["log_prior"] = DataTree(dict_to_dataset(prior))  # one number a draw, whatever dims the sites have
    return tree


def _prior_groups(model: Any, view: View, data: Data, num_samples: int) -> dict[str, dict[str, Tensor]]:
    """Prior and prior predictive of the user's own program; nothing where the prior cannot be drawn."""
    if view.run.other_priors:
        return {}
    if isinstance(model, LinearizedProgram):
        view = View(replace(view.program, model=model.model), data, view.progress)
    program, chunk = view.plain, next(view.loop.chunks())

    def draw(_: Tensor) -> dict[str, Tensor]:
        recorder = Recorder({}, frozenset(program.observed), fill=lambda msg: msg["fn"].sample(), indices=chunk.indices)
        return {name: site.value for name, site in run_model(program.model, chunk.batch, recorder).latents.items()}

    try:
        with undisturbed(rng=False), torch.no_grad():
            prior = map_rows(draw, torch.arange(num_samples), program.num_params, "prior" if view.progress else None)
        return {
            "prior": {name: value[None] for name, value in view.latents(prior).items()},
            "prior_predictive": {name: value[None] for name, value in view.replicated(prior).items()},
        }
    except NotImplementedError:  # an improper prior
        return {}
    except (RuntimeError, ValueError) as error:
        warnings.warn(f"prior and prior_predictive are left out: {error}", LaplaceWarning, stacklevel=3)
        return {}


def _as_numpy(value: Tensor, whole: bool = False) -> np.ndarray:
    """An array; of whole numbers as integers, unless one is missing."""
    array = value.detach().cpu().numpy()
    return array.astype(np.int64) if whole and np.isfinite(array).all() else array


def _attributes(posterior: Any, model: Any, draws: PosteriorDraws, groups: Mapping[str, Any]) -> dict[str, dict]:
    ours = isinstance(posterior, AutoLaplace | LaplaceMixture | ImportanceDraws)
    about: dict[str, Any] = {
        "inference_library": "pyro_laplace" if ours else "pyro-ppl",
        "inference_library_version": _version("pyro_laplace" if ours else "pyro-ppl"),
        "posterior": "draws" if isinstance(posterior, Mapping) else type(posterior).__name__,
        "linearized": int(isinstance(model, LinearizedProgram)),
    }
    if isinstance(posterior, AutoLaplace | LaplaceMixture):
        about |= {
            "structure": str(posterior.structure),
            "curvature": posterior.curvature,
            "subset": list(posterior.layout),
            "log_evidence": float(posterior.log_evidence),
        }
    if isinstance(posterior, ImportanceDraws):
        names = ("khat", "ess", "log_evidence", "log_evidence_error")
        about |= {name: float(getattr(posterior, name)) for name in names}
    if isinstance(posterior, MCMC):
        about["kernel"] = type(posterior.kernel).__name__
    seconds = getattr(posterior, "fit_seconds", None)
    if seconds is not None:
        about["fit_seconds"] = float(seconds)
    root = {"creation_library": "pyro_laplace", "creation_library_version": _version("pyro_laplace")}
    attrs = {"/": root | about} | {group: dict(about) for group in ("posterior",) if group in groups}
    if draws.attrs and "sample_stats" in groups:
        attrs["sample_stats"] = dict(draws.attrs)
    return attrs


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
