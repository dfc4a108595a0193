"""Draws for a program with more groups than its posterior has seen: new ones come from their prior, draw by draw."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_laplace._compat.pyro import site_is_deterministic, site_is_factor, site_is_subsample, undisturbed
from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.data import Batch
from pyro_laplace.draws.vectorize import Widest, over_rows


class _Completed(Messenger):
    """Gives latent sites their values, those with more places than these have the rest from their own distribution."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.given = values
        self.latents: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        msg["stop"] = True
        name = msg["name"]
        if name in self.given:
            msg["value"], msg["done"] = _completed(name, self.given[name], msg["fn"]), True
            self.latents[name] = msg["value"]
        elif not (msg["is_observed"] or site_is_subsample(msg) or site_is_deterministic(msg) or site_is_factor(msg)):
            msg["value"], msg["done"] = msg["fn"].sample(), True  # what is predicted


def _completed(name: str, value: Tensor, fn: Any) -> Tensor:
    """The value, in the first places of each batch axis, and draws from the distribution in all others."""
    shape, batch = fn.shape(), len(fn.batch_shape)
    if tuple(value.shape) == tuple(shape):
        return value
    sizes = list(zip(value.shape, shape, strict=False))
    same_events = tuple(value.shape[batch:]) == tuple(shape[batch:])
    if value.dim() != len(shape) or not same_events or any(old > new for old, new in sizes):
        raise UnsupportedProgram(
            f"site {name!r} has the shape {list(shape)} on these arguments, and its posterior {list(value.shape)}: "
            "new groups come after the old ones along a plate's axis. What is one event (to_event, a multivariate "
            "distribution) is not continued; for fewer groups give arguments with all old ones, and index the draws"
        )
    try:
        drawn = fn.sample()
    except NotImplementedError:
        raise UnsupportedProgram(
            f"site {name!r} has more groups on these arguments than its posterior, and its prior cannot be drawn from, "
            "being improper. Give it a proper one; of a field whose prior is a pyro.factor, fit with the new places "
            "among the data, with no observation there"
        ) from None
    for dim, (old, new) in enumerate(sizes):
        if old < new:  # what the value has, and beside it, along this axis, what was drawn
            beside = drawn.narrow(dim, old, new - old)
            for other in range(dim + 1, len(sizes)):
                beside = beside.narrow(other, 0, value.shape[other])
            value = torch.cat([value, beside], dim)
    return value


def with_new_groups(model: Callable[..., Any], draws: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Complete draws of a program's latent sites by those of groups that the posterior has not seen.

    Args:
        model: the Pyro program.
        draws: its latent sites `[draws, *shape]`.
        batch: the arguments with more groups.

    Returns:
        site name to draws `[draws, *larger shape]`: at each draw, a new group's values come from their prior given the
        other sites' values of that draw.
    """
    count = len(next(iter(draws.values())))

    def at(row: dict[str, Tensor]) -> dict[str, Tensor]:
        with _Completed(row) as completed:
            model(*batch.args, **batch.kwargs)
        return {name: completed.latents[name] for name in draws}

    with undisturbed(rng=False), torch.no_grad(), pyro.validation_enabled(False):
        with Widest() as widest:
            at({name: value[0] for name, value in draws.items()})
        return over_rows(at, draws, count, widest.chunk_size)
