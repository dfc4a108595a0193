"""`to_datatree`: a Pyro program, its data and any posterior of it as an ArviZ `DataTree`."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import LaplaceWarning, check_option
from pyro_laplace.data import Data, as_data
from pyro_laplace.draws.over_draws import View, map_rows
from pyro_laplace.linearized.choose import predictive_model
from pyro_laplace.linearized.program import LinearizedProgram
from pyro_laplace.program.run import Recorder, run_model
from pyro_laplace.report.names import axes_of_module
from pyro_laplace.report.posterior import draws_with_density, theta_of
from pyro_laplace.report.provenance import attributes
from pyro_laplace.settings import settings

if TYPE_CHECKING:
    import xarray


_OF_DATA = ("observed_data", "posterior_predictive", "prior_predictive", "predictions")
"""Groups of values of the observed sites."""

_OF_LATENTS = ("posterior", "warmup_posterior", "prior", "unconstrained_posterior")
"""Groups of values of the latent sites."""


def to_datatree(
    model: Callable[..., Any],
    posterior: Any,
    data: Any,
    num_samples: int = 1000,
    *,
    linearized: bool | str = "auto",
    num_prior_samples: int = 500,
    predictions_data: Any = None,
    large_sites: bool = False,
    coords: Mapping[str, Sequence[Any]] | None = None,
    progress: bool = True,
) -> "xarray.DataTree":
    """Everything that ArviZ wants to know of a posterior.

    Groups: `posterior` (latent and `pyro.deterministic` sites), `log_likelihood` (per datum, as the program scales and
    masks it), `log_prior` (of each latent site), `posterior_predictive`, `observed_data`, `constant_data` (the model's
    other tensor arguments), `sample_stats`, `prior` and `prior_predictive` (left out where a prior cannot be drawn);
    `unconstrained_posterior`, theta; of an `MCMC` of `fit_nuts` `warmup_posterior`; and with `predictions_data`
    `predictions` and `predictions_constant_data`.

    Data that are counts, classes or yes and no have an integer dtype, draws of them too.

    `sample_stats` holds `lp`, the log joint density of theta (unconstrained, log-Jacobian included) under the program
    that `log_likelihood` is of; for a guide with a density also `lp_approx`, its own log density of theta, with which
    ``arviz.loo_approximate_posterior(tree, tree.sample_stats.lp, tree.sample_stats.lp_approx)`` corrects for the
    approximation; for an `MCMC` also `diverging`, and the acceptance rate of each chain as an attribute.

    Batch dims are named by their plates, those of a network's parameters by their module (``net.0_out``, which weight
    and bias share), and the others ``{site}_dim_{i}``. Draws that are independent of one another get
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
        predictions_data: new inputs, observed values not among them, whose predictions the tree shall hold too.
        large_sites: whether latent sites of more than `settings.tree_entries` numbers are among the draws that the tree
            holds. They are left out otherwise, and the attribute `left_out` names them; nothing else depends on it.
        coords: labels of dims, as in ``arviz_base.from_dict``.
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        the tree, which netCDF and zarr take as it is. Its root's attributes say where it comes from: versions, the
        posterior, its structure, curvature, subset and hyperparameters, the seed, and whether predictions are
        linearised.

    Raises:
        InvalidOption: for an option's unknown value, or a posterior that is none of the above.
        InvalidData: if `data` cannot be iterated anew, or hold values outside their distribution's support.
        UnsupportedProgram: if the program cannot be traced, or the posterior lacks one of its sites.
    """
    from arviz_base import dict_to_dataset, from_dict  # takes a second to load
    from xarray import DataTree

    check_option("large_sites", large_sites, (True, False))
    data = as_data(data).held()
    draws = draws_with_density(model, posterior, data, num_samples)
    predictive = predictive_model(model, posterior, data, linearized)
    view = View.of(predictive, data, draws, progress)
    observed = view.observed  # first, as it refuses data that have no density
    enough = draws.at_least(num_samples) if draws.is_point else draws.values
    groups = {
        "posterior": {**view.latents(draws.values), **view.deterministic(draws.values)},
        "log_likelihood": view.log_lik(draws.values),
        "posterior_predictive": view.replicated(enough),
        "unconstrained_posterior": {"theta": theta_of(view.program, draws)},
    }
    groups = {group: {k: draws.by_chain(v) for k, v in values.items()} for group, values in groups.items()}
    groups["warmup_posterior"] = dict(draws.warm_up)
    groups["sample_stats"] = {"lp": draws.by_chain(view.log_joint(draws.values)), **draws.stats}
    if draws.log_q is not None:
        groups["sample_stats"]["lp_approx"] = draws.by_chain(draws.log_q)
    if num_prior_samples:
        groups |= _prior_groups(predictive, view, data, num_prior_samples)
    left_out = {} if large_sites else _large(view)
    for group in _OF_LATENTS:
        groups[group] = {name: value for name, value in groups.get(group, {}).items() if name not in left_out}
    groups["observed_data"] = observed
    groups["constant_data"] = view.constant
    pred_dims: dict[str, list[str]] = {}
    if predictions_data is not None:
        new = View(replace(view.program, external={}), as_data(predictions_data).held(), progress)
        pred_dims = _dims(new, predictive)
        groups["predictions"] = {n: draws.by_chain(value) for n, value in new.replicated(enough).items()}
        groups["predictions_constant_data"] = new.constant
    groups = {group: values for group, values in groups.items() if values}
    tree = from_dict(
        {
            group: {n: _as_numpy(value, group in _OF_DATA and n in view.counts) for n, value in values.items()}
            for group, values in groups.items()
        },
        dims=_dims(view, predictive),
        coords=dict(coords or {}),
        pred_dims=pred_dims,
        pred_coords=_fitting(coords or {}, groups.get("predictions", {}), pred_dims),
        save_warmup=True,
        attrs=attributes(posterior, predictive, draws, groups, left_out),
    )
    prior = {name: _as_numpy(draws.by_chain(value)) for name, value in view.log_prior(draws.values).items()}
    tree["log_prior"] = DataTree(dict_to_dataset(prior))  # one number a draw, whatever dims the sites have
    return tree


def _dims(view: View, model: Callable[..., Any]) -> dict[str, list[str]]:
    """Variable to the names of its axes: of a network's parameters, those of its module."""
    dims = dict(view.dims)
    for name, latent in view.program.latents.items():
        own = axes_of_module(model, name, len(latent.shape))
        dims[name] = dims[name] if own is None or latent.frames else own
    return dims


def _large(view: View) -> dict[str, int]:
    """Latent sites that a tree does not hold unless it is asked to, and theta where there is one; with their sizes."""
    sizes = {name: latent.size for name, latent in view.program.latents.items()} | {"theta": view.program.num_params}
    return {name: size for name, size in sizes.items() if size > settings.tree_entries}


def _fitting(
    coords: Mapping[str, Sequence[Any]], values: Mapping[str, Tensor], dims: Mapping[str, list[str]]
) -> dict[str, Any]:
    """The labels whose dim has as many elements in some values [chain, draw, *dims] as there are labels."""
    sizes = {dim: size for n, value in values.items() for dim, size in zip(dims[n], value.shape[2:], strict=True)}
    return {name: labels for name, labels in coords.items() if sizes.get(name, len(labels)) == len(labels)}


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
