"""Points over the hyper sites' posterior with their weights: a grid along the curvature's axes.

A grid (Rue, Martino and Chopin 2009) goes on in each direction until the density has dropped, so that it is as wide as
the posterior is skewed; its sum is the trapezoid rule, of which a smooth density's error falls faster than any power
of the step. A point at which the inner search failed is stepped over: it is no end of the posterior.
"""

import itertools
import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._errors import LaplaceWarning
from pyro_laplace.nested.surface import HyperMode, HyperSurface, Points, Weighted, tell_of_failed
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class _Flood:
    """The surface at a regular grid's points.

    Attributes:
        batches: where it was evaluated.
        value: log p(y, h) at all of them [points].
        ended: whether it had dropped on all sides.
    """

    batches: list[Points]
    value: Tensor
    ended: bool


def on_grid(surface: HyperSurface, mode: HyperMode) -> Weighted:
    """The surface on a regular grid around the mode, as far as it matters.

    Args:
        surface: log p(y, h).
        mode: its mode.

    Returns:
        the points.
    """
    size = len(mode.h)
    step, drop = settings.grid_step * size, max(settings.grid_drop, settings.grid_drop_line / size)
    flood = _flooded(surface, mode, step, drop)
    for _ in range(settings.grid_again):
        near = int((flood.value > flood.value.max() - settings.grid_drop).sum())
        if near > settings.grid_points:
            step = 2 * step
        elif near < settings.grid_fewest * 3 ** (size - 1):
            step = step / 2
        else:
            break
        flood = _flooded(surface, mode, step, drop)
    batches, value = flood.batches, flood.value
    tell_of_failed(surface, mode, batches, value)
    if not flood.ended:
        _tell_of_end(surface, len(value), drop)
    kept = (value > value.max() - settings.grid_kept).nonzero()[:, 0]
    log_evidence = float(value.logsumexp(0)) + size * math.log(step) + mode.log_volume
    kernel = (settings.grid_kernel * step) ** 2 * mode.axes @ mode.axes.mT
    return Weighted.of(batches, kept, value[kept].softmax(0), log_evidence, kernel)


def _flooded(surface: HyperSurface, mode: HyperMode, step: float, drop: float) -> _Flood:
    """From the mode outwards, the neighbours of every point that is within `drop` of the highest."""
    known: dict[tuple[int, ...], float] = {}
    batches: list[Points] = []
    size = len(mode.h)
    frontier = [(0,) * size]
    top = mode.value
    while frontier and len(known) < settings.grid_most:
        z = torch.tensor(frontier, dtype=torch.float64).to(mode.h) * step
        points = surface.at(mode.place(z))
        batches.append(points)
        known |= dict(zip(frontier, points.value.tolist(), strict=True))
        top = max(top, max(known.values()))
        ring = {}
        for place in frontier:
            for axis, side in itertools.product(range(size), (-1, 1)):
                behind, beside = (_neighbour(place, axis, way) for way in (-side, side))
                high = known[place] > top - drop
                # one point without a density says nothing of those beyond it; two do
                over = known[place] == -math.inf and known.get(behind, -math.inf) > top - drop
                if (high or over) and beside not in known:
                    ring[beside] = None
        frontier = list(ring)
    return _Flood(batches, torch.cat([batch.value for batch in batches]), not frontier)


def _neighbour(place: tuple[int, ...], axis: int, by: int) -> tuple[int, ...]:
    return (*place[:axis], place[axis] + by, *place[axis + 1 :])


def _tell_of_end(surface: HyperSurface, count: int, drop: float) -> None:
    of = surface.of
    warnings.warn(
        f"the grid over the hyper sites {list(of.hyper)} ended at {count:,} points, before their posterior had dropped "
        f"by {drop:.0f} nats on all sides: what lies beyond is left out. Use outer='nuts', or allow more by "
        "pl.settings.grid_most",
        LaplaceWarning,
        stacklevel=5,
    )
