"""Posteriors as plain values, and made again for a model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pyro_laplace._errors import InvalidData, InvalidOption
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.io.blocks import plain_precision, precision_again
from pyro_laplace.io.sites import plain_site, site_again
from pyro_laplace.mode.mode import Mode
from pyro_laplace.mode.path import Path
from pyro_laplace.mode.reached import Stopped
from pyro_laplace.nested.guide import Explored
from pyro_laplace.nested.hyper import Reason
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.program.sites import Latent
from pyro_laplace.reading.prior import Prior
from pyro_laplace.reading.second_order import Stored
from pyro_laplace.sparse.symmetric import Symmetric
from pyro_laplace.structure.build import STRUCTURES, restore
from pyro_laplace.structure.likelihood_sum import LikelihoodSum
from pyro_laplace.structure.options import Kron, LowRank


def plain_laplace(guide: AutoLaplace) -> dict[str, Any]:
    """A posterior as plain values, without its sites, which several may share.

    Args:
        guide: the posterior.

    Returns:
        what it is made of, by name.
    """
    mode, kept = guide.mode, guide.likelihood_sum
    return {
        "index": guide.index,
        "mode": {**vars(mode), "stopped": None if mode.stopped is None else mode.stopped.name},
        "structure": _plain_structure(guide.structure),
        "curvature": guide.curvature,
        "observed": guide.observed,
        "log_evidence": guide.log_evidence,
        "sum": None if kept is None else {"anchor": _plain_anchor(kept.anchor), "state": kept.state()},
        "prior": None if guide.prior is None else _plain_prior(guide.prior),
        "precision": plain_precision(guide.precision),
        "hyperparameters": guide.hyperparameters,
        "jacobian": guide.jacobian,
        "path": vars(guide.path),
        "fit_seconds": getattr(guide, "fit_seconds", None),
    }


def laplace_again(saved: Mapping[str, Any], latents: Mapping[str, Latent], model: Callable[..., Any]) -> AutoLaplace:
    """What `plain_laplace` gave, as a guide of a model.

    Args:
        saved: by name.
        latents: the sites.
        model: the Pyro program.

    Returns:
        the guide.
    """
    mode = saved["mode"]
    structure = _structure_again(saved["structure"])
    guide = AutoLaplace(
        model,
        latents,
        saved["index"],
        Mode(**{**mode, "stopped": None if mode["stopped"] is None else Stopped[mode["stopped"]]}),
        precision_again(saved["precision"]),
        structure=structure,
        curvature=saved["curvature"],
        observed=saved["observed"],
        log_evidence=saved["log_evidence"],
        likelihood_sum=None if saved["sum"] is None else _sum_again(saved["sum"], latents, structure),
        prior=None if saved["prior"] is None else _prior_again(saved["prior"]),
        hyperparameters=saved["hyperparameters"],
        jacobian=saved["jacobian"],
    )
    guide.path = Path(**saved["path"])
    if saved["fit_seconds"] is not None:
        guide.fit_seconds = saved["fit_seconds"]
    return guide


def plain_explored(explored: Explored) -> dict[str, Any]:
    """What is known of hyper sites, as plain values."""
    reasons = {name: [reason.kind, list(reason.sites)] for name, reason in explored.reasons.items()}
    return {**vars(explored), "reasons": reasons}


def explored_again(saved: Mapping[str, Any]) -> Explored:
    """What `plain_explored` gave."""
    reasons = {name: Reason(kind, tuple(sites)) for name, (kind, sites) in saved["reasons"].items()}
    return Explored(**{**saved, "reasons": reasons})


def plain_sites(latents: Mapping[str, Latent]) -> list[dict[str, Any]]:
    """Latent sites in trace order."""
    return [plain_site(latent) for latent in latents.values()]


def sites_again(saved: list[dict[str, Any]]) -> dict[str, Latent]:
    """What `plain_sites` gave."""
    return {latent.name: latent for latent in map(site_again, saved)}


def _plain_structure(structure: Any) -> Any:
    if isinstance(structure, Mapping):
        return {"mapping": {glob: _plain_structure(part) for glob, part in structure.items()}}
    if isinstance(structure, str):
        return {"name": structure}
    if type(structure) in _OPTIONS.values() and type(structure) in STRUCTURES:
        return {"option": type(structure).__name__, "values": dict(vars(structure))}
    raise InvalidOption(f"structure={structure!r} cannot be saved: there is a form for names, {', '.join(_OPTIONS)}")


def _structure_again(saved: Mapping[str, Any]) -> Any:
    if "mapping" in saved:
        return {glob: _structure_again(part) for glob, part in saved["mapping"].items()}
    if "name" in saved:
        return saved["name"]
    if saved["option"] not in _OPTIONS:
        raise InvalidData(f"there is no structure {saved['option']!r}: there are {', '.join(_OPTIONS)}")
    return _OPTIONS[saved["option"]](**saved["values"])


_OPTIONS: dict[str, Any] = {each.__name__: each for each in (Kron, LowRank)}
"""Structures with options, by name."""


def _plain_anchor(anchor: Anchor) -> dict[str, Any]:
    return {
        "theta": anchor.theta,
        "index": anchor.index,
        "curvature": anchor.curvature,
        "hyperparameters": dict(anchor.hyperparameters),
    }


def _sum_again(saved: Mapping[str, Any], latents: Mapping[str, Latent], structure: Any) -> LikelihoodSum:
    return restore(saved["state"], Anchor(latents=latents, **saved["anchor"]), structure)


def _plain_prior(prior: Prior) -> dict[str, Any]:
    rest = prior.detached().rest
    assert isinstance(rest, Stored)
    sparse = None if rest.sparse is None else dict(vars(rest.sparse))
    return {**vars(prior), "hyperparameters": dict(prior.hyperparameters), "rest": {**vars(rest), "sparse": sparse}}


def _prior_again(saved: Mapping[str, Any]) -> Prior:
    rest = dict(saved["rest"])
    rest["sparse"] = None if rest["sparse"] is None else Symmetric(**rest["sparse"])
    return Prior(**{**saved, "rest": Stored(**rest)})


def moved_to(tree: Any, device: torch.device | str | None) -> Any:
    """Plain values with their tensors on a device."""
    if device is None:
        return tree
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {name: moved_to(each, device) for name, each in tree.items()}
    return type(tree)(moved_to(each, device) for each in tree) if isinstance(tree, list | tuple) else tree
