"""Where a search for the mode starts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

_DRAWS = 15


def init_to_start(site: Mapping[str, Any]) -> Tensor:
    """The elementwise median of a few prior draws in unconstrained space; its origin where the prior cannot be drawn.

    The median of 15 draws is central and insensitive to heavy tails, yet random enough to break the symmetry of a
    network's hidden units. An improper prior (`dist.ImproperUniform`) is never sampled. It serves as an
    ``init_loc_fn`` of Pyro's autoguides.

    Args:
        site: a sample message or trace node, with its distribution under ``"fn"``.

    Returns:
        a value of shape `[*batch_shape, *event_shape]` within the support.
    """
    fn = site["fn"]
    transform = biject_to(fn.support)
    try:
        draws = transform.inv(fn.sample((_DRAWS,)))
        median = draws.median(dim=0).values
    except NotImplementedError:
        median = _origin(fn, transform)
    start = transform(torch.nan_to_num(median, nan=0.0, posinf=0.0, neginf=0.0)).detach().clone()
    start._pyro_custom_init = False  # tells Pyro's InitMessenger that this is a start, not a fixed value
    return start


def _origin(fn: Any, transform: Any) -> Tensor:
    shape = transform.inverse_shape(fn.shape())
    return torch.zeros(shape)
