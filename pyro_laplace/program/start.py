"""Where a search for the mode starts."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_laplace._compat.pyro import as_start
from pyro_laplace._errors import InvalidOption
from pyro_laplace.settings import settings


def init_to_start(site: Mapping[str, Any]) -> Tensor:
    """The site's own start; else the elementwise median of a few prior draws in unconstrained space, or its origin.

    A site says where it starts by ``pyro.sample(name, prior, infer={"start": value})``, or by a function of nothing
    that computes the value. A trained network's weights start so.

    Otherwise the median of `settings.start_draws` draws is central and insensitive to heavy tails, yet random enough to
    break the symmetry of a network's hidden units; an improper prior (`dist.ImproperUniform`) is never sampled. This
    serves as an ``init_loc_fn`` of Pyro's autoguides.

    Args:
        site: a sample message or trace node, with its distribution under ``"fn"``.

    Returns:
        a value of shape `[*batch_shape, *event_shape]` within the support.

    Raises:
        InvalidOption: if the site's own start has another shape.
    """
    start = (site.get("infer") or {}).get("start")
    start = _central(site["fn"]) if start is None else _own(site, start)
    return as_start(start)


def _own(site: Mapping[str, Any], start: Any) -> Tensor:
    value, shape = torch.as_tensor(start() if callable(start) else start), site["fn"].shape()
    try:
        return value.expand(shape)
    except RuntimeError as error:
        raise InvalidOption(
            f"site {site['name']!r} has shape {list(shape)}, and its infer={{'start': value}} a value of shape "
            f"{list(value.shape)}"
        ) from error


def _central(fn: Any) -> Tensor:
    try:
        transform = biject_to(fn.support)
    except NotImplementedError:  # a sphere that a reparametrisation takes away
        return fn.sample()
    try:
        with warnings.catch_warnings():  # of what a draw is: this one is but a start
            warnings.simplefilter("ignore")
            draws = transform.inv(fn.sample((settings.start_draws,)))
        median = draws.median(dim=0).values
    except NotImplementedError:
        median = _origin(fn, transform)
    median = torch.nan_to_num(median, nan=0.0, posinf=0.0, neginf=0.0)
    if bool((median.abs() > settings.start_far).any()) and not torch.equal(transform(median), median):
        median = torch.where(median.abs() > settings.start_far, _of_mean(fn, transform).to(median), median)
    return transform(median)


def _of_mean(fn: Any, transform: Any) -> Tensor:
    """The prior mean in unconstrained space, or 0: draws of a Gamma(1e-4, 1e-4) are zero in floating point."""
    origin = _origin(fn, transform)
    try:
        mean = transform.inv(fn.mean)
    except NotImplementedError:
        return origin
    return torch.where(mean.isfinite(), mean, origin.to(mean))


def _origin(fn: Any, transform: Any) -> Tensor:
    shape = transform.inverse_shape(fn.shape())
    return torch.zeros(shape)
