"""Latent sites as plain values: their supports, by name, and their plates."""

from typing import Any

import pyro.distributions.constraints as of_pyro
import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_laplace._errors import InvalidData, InvalidOption
from pyro_laplace.program.sites import Latent

_FIXED: dict[str, Constraint] = {
    name: constraint
    for home in (of_pyro, constraints)
    for name, constraint in vars(home).items()
    if isinstance(constraint, Constraint) and not vars(constraint)
}
"""Supports without parameters, by name; torch's name where both have one."""

_WITH_BOUNDS = {
    "greater_than": constraints.greater_than,
    "greater_than_eq": constraints.greater_than_eq,
    "less_than": constraints.less_than,
    "interval": constraints.interval,
    "half_open_interval": constraints.half_open_interval,
}
"""Supports with bounds, which are numbers or tensors."""


def plain_site(latent: Latent) -> dict[str, Any]:
    """A site as plain values.

    Args:
        latent: the site.

    Returns:
        its attributes by name.
    """
    frames = [[f.name, f.dim, f.size, f.counter, f.full_size] for f in latent.frames]
    return {
        "name": latent.name,
        "support": _plain_support(latent.name, latent.support),
        "batch_shape": tuple(latent.batch_shape),
        "event_shape": tuple(latent.event_shape),
        "unconstrained_shape": tuple(latent.unconstrained_shape),
        "slice": latent.slice,
        "frames": frames,
    }


def site_again(saved: dict[str, Any]) -> Latent:
    """What `plain_site` gave, as a site.

    Args:
        saved: its attributes by name.

    Returns:
        the site.
    """
    shapes = {name: torch.Size(saved[name]) for name in ("batch_shape", "event_shape", "unconstrained_shape")}
    frames = tuple(CondIndepStackFrame(*frame) for frame in saved["frames"])
    support = _support_again(saved["support"])
    return Latent(name=saved["name"], support=support, slice=saved["slice"], frames=frames, **shapes)


def _plain_support(site: str, support: Constraint) -> dict[str, Any]:
    if isinstance(support, constraints.independent):
        inner = _plain_support(site, support.base_constraint)
        return {"independent": inner, "dims": support.reinterpreted_batch_ndims}
    for name, kind in _WITH_BOUNDS.items():
        if type(support) is kind:
            return {"bounds": name, **vars(support)}
    for name, constraint in _FIXED.items():
        if type(constraint) is type(support):
            return {"fixed": name}
    raise InvalidOption(
        f"site {site!r} has the support {support!r}, which files have no name for: transform the site to a real or "
        "positive one (dist.TransformedDistribution) to save its posterior"
    )


def _support_again(saved: dict[str, Any]) -> Constraint:
    if "independent" in saved:
        return constraints.independent(_support_again(saved["independent"]), saved["dims"])
    if "bounds" in saved:
        bounds = {name: value for name, value in saved.items() if name != "bounds"}
        return _with_bounds(saved["bounds"], bounds)
    if saved.get("fixed") not in _FIXED:
        raise InvalidData(f"there is no support {saved}")
    return _FIXED[saved["fixed"]]


def _with_bounds(name: str, bounds: dict[str, Any]) -> Constraint:
    if name not in _WITH_BOUNDS:
        raise InvalidData(f"there is no support {name!r}: there are {sorted(_WITH_BOUNDS)}")
    return _WITH_BOUNDS[name](**bounds)
