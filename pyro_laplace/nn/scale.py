"""A scale: a number, or one that is random, or computed as the program runs."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_laplace._compat.torch import cast_like
from pyro_laplace._errors import InvalidOption

type Scale = float | Tensor | Distribution | Callable[[], Tensor]
"""A positive number or tensor; a distribution, which makes it a latent site; or a function of nothing that is called
each time the program runs, such as ``lambda: pyro.param("std", torch.tensor(1.0), constraint=positive)``."""


def check_scale(option: str, scale: Any) -> None:
    """Refuse what is no scale.

    Args:
        option: what the caller writes, such as ``"Isotropic: std"``.
        scale: what was given.

    Raises:
        InvalidOption: naming the option, the value and what is possible.
    """
    if isinstance(scale, Distribution):
        support: Any = scale.support
        if support.is_discrete or (support.event_dim == 0 and bool(torch.as_tensor(support.check(-torch.ones(()))))):
            raise InvalidOption(
                f"{option}={scale!r} has the support {support}, and a scale is positive: use a distribution of "
                "positive numbers, such as dist.HalfNormal(1.0)"
            )
        return
    if isinstance(scale, Tensor) or (isinstance(scale, int | float) and not isinstance(scale, bool)):
        value = torch.as_tensor(scale)
        if not bool(((value > 0) & value.isfinite()).all()):
            raise InvalidOption(f"{option}={scale!r} is not positive and finite")
        return
    if not callable(scale):
        raise InvalidOption(
            f"{option}={scale!r} is none of a positive number, a tensor, a distribution of positive numbers, and a "
            "function of nothing that returns one of the first two"
        )


def scale_value(site: str, scale: Scale, like: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """The scale as the program runs: a latent site if it is a distribution.

    Args:
        site: the name of that site.
        scale: what was given.
        like: a tensor of its dtype and device.
        shape: to expand a scale's distribution to.

    Returns:
        its value.
    """
    if isinstance(scale, Distribution):
        fn = cast_like(scale, like)
        fn = fn.expand(shape) if shape else fn
        return pyro.sample(site, fn.to_event(len(fn.batch_shape)))
    return torch.as_tensor(scale() if callable(scale) else scale, dtype=like.dtype, device=like.device)
