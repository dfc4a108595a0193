"""Points over the hyper sites' posterior with their weights: a grid along the curvature's axes, or weighted draws.

A grid (Rue, Martino and Chopin 2009) goes on in each direction until the density has dropped, so that it is as wide as
the posterior is skewed; its sum is the trapezoid rule, of which a smooth density's error falls faster than any power
of the step. Its points are too many from about four coordinates on. There, quasi-random points of a heavy-tailed
two-piece density are weighted by the ratio, and the density fitted to them anew until the weights are even.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace.nested.surface import HyperMode, HyperSurface, Points
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Weighted:
    """Points of the hyper sites' posterior.

    Attributes:
        points: where the surface was evaluated, in batches.
        batch: which batch each one is of [points].
        row: which row of it [points].
        weights: summing to 1 [points].
        log_evidence: log of the surface's integral.
        kernel: covariance of what lies between a point and the next, in h [q, q].
    """

    points: list[Points]
    batch: Tensor
    row: Tensor
    weights: Tensor
    log_evidence: float
    kernel: Tensor


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
    batches, value = _flooded(surface, mode, step, drop)
    for _ in range(settings.grid_again):
        near = int((value > value.max() - settings.grid_drop).sum())
        if near > settings.grid_points:
            step = 2 * step
        elif near < settings.grid_fewest * 3 ** (size - 1):
            step = step / 2
        else:
            break
        batches, value = _flooded(surface, mode, step, drop)
    batch = torch.cat([torch.full((len(b.h),), i) for i, b in enumerate(batches)])
    row = torch.cat([torch.arange(len(b.h)) for b in batches])
    kept = value > value.max() - settings.grid_kept
    log_evidence = float(value.logsumexp(0)) + size * math.log(step) + mode.log_volume
    kernel = (settings.grid_kernel * step) ** 2 * mode.axes @ mode.axes.mT
    return Weighted(batches, batch[kept], row[kept], value[kept].softmax(0), log_evidence, kernel)


def _flooded(surface: HyperSurface, mode: HyperMode, step: float, drop: float) -> tuple[list[Points], Tensor]:
    """From the mode outwards, the neighbours of every point that is within `drop` of the highest, and all values."""
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
            if known[place] > top - drop:
                for axis, side in itertools.product(range(size), (-1, 1)):
                    beside = (*place[:axis], place[axis] + side, *place[axis + 1 :])
                    if beside not in known:
                        ring[beside] = None
        frontier = list(ring)
    return batches, torch.cat([batch.value for batch in batches])


def by_weighted_draws(surface: HyperSurface, mode: HyperMode) -> Weighted:
    """Quasi-random draws of a density like the surface, weighted by the ratio of both.

    Args:
        surface: log p(y, h).
        mode: its mode.

    Returns:
        the points.
    """
    proposals: list[_TwoPiece] = [_two_piece(surface, mode)]
    batches = [surface.at(proposals[0].draw(settings.design_points, 0))]
    while True:
        all_h = torch.cat([batch.h for batch in batches])
        value = torch.cat([batch.value for batch in batches])
        # of all proposals so far, whichever drew (Cornuet et al. 2012, "Adaptive multiple importance sampling")
        log_q = torch.stack([each.log_density(all_h) for each in proposals]).logsumexp(0) - math.log(len(proposals))
        log_w = value - log_q
        weights = log_w.softmax(0)
        enough = float(1 / weights.square().sum()) >= settings.design_effective
        if enough or len(batches) >= settings.design_rounds:
            break
        mean = weights @ all_h
        covariance = ((all_h - mean) * weights.unsqueeze(-1)).mT @ (all_h - mean)
        proposals.append(_of_moments(mean, covariance, mode))
        batches.append(surface.at(proposals[-1].draw(settings.design_points, len(batches))))
    log_evidence = float(log_w.logsumexp(0)) - math.log(len(log_w))
    batch = torch.cat([torch.full((len(b.h),), i) for i, b in enumerate(batches)])
    row = torch.cat([torch.arange(len(b.h)) for b in batches])
    kept = log_w > log_w.max() - settings.grid_kept
    weights = log_w[kept].softmax(0)
    kernel = smoothing_kernel(torch.cat([b.h for b in batches])[kept], weights)
    return Weighted(batches, batch[kept], row[kept], weights, log_evidence, kernel)


def smoothing_kernel(h: Tensor, weights: Tensor) -> Tensor:
    """Silverman's kernel covariance ``k^2 S``, ``k = (4 / (n (q + 2)))^(1 / (q + 4))``, of weighted points h [n, q]."""
    mean = weights @ h
    covariance = ((h - mean) * weights.unsqueeze(-1)).mT @ (h - mean)
    effective, size = 1 / weights.square().sum(), h.shape[1]
    width = (4 / (float(effective) * (size + 2))) ** (1 / (size + 4))
    return width**2 * covariance


@dataclass(frozen=True, eq=False)
class _TwoPiece:
    """Student's t in coordinates z whose axes have a scale on each side: ``h = center + axes z``."""

    center: Tensor
    axes: Tensor
    left: Tensor
    right: Tensor

    def draw(self, count: int, seed: int) -> Tensor:
        """Quasi-random points [count, q]."""
        import scipy.stats

        size = len(self.center)
        sobol = torch.quasirandom.SobolEngine(size + 1, scramble=True, seed=seed)
        uniform = sobol.draw(count, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        freedom = settings.design_freedom
        chi = torch.as_tensor(scipy.stats.chi2.ppf(uniform[:, -1].numpy(), freedom)) / freedom
        e = torch.special.ndtri(uniform[:, :-1]) / chi.sqrt().unsqueeze(-1)
        e = e.to(self.center)
        return self.center + (e * torch.where(e < 0, self.left, self.right)) @ self.axes.mT

    def log_density(self, h: Tensor) -> Tensor:
        """At points h [b, q], [b]."""
        size, freedom = len(self.center), settings.design_freedom
        z = torch.linalg.solve(self.axes, (h - self.center).mT).mT
        scale = torch.where(z < 0, self.left, self.right)
        constant = math.lgamma((freedom + size) / 2) - math.lgamma(freedom / 2) - size / 2 * math.log(freedom * math.pi)
        tail = -(freedom + size) / 2 * torch.log1p((z / scale).square().sum(-1) / freedom)
        return constant + tail - scale.log().sum(-1) - torch.linalg.slogdet(self.axes)[1]


def _two_piece(surface: HyperSurface, mode: HyperMode) -> _TwoPiece:
    """With the scales of a normal density that drops as the surface does, on each side of each axis."""
    eye, far = torch.eye(len(mode.h)).to(mode.h), settings.design_look
    drop = mode.value - surface.at(mode.place(torch.cat([-far * eye, far * eye]))).value
    scale = far / (2 * drop.clamp(min=1e-3)).sqrt()
    left, right = scale.nan_to_num(nan=1.0).clamp(1 / settings.design_scale, settings.design_scale).split(len(mode.h))
    return _TwoPiece(mode.h, mode.axes, left, right)


def _of_moments(mean: Tensor, covariance: Tensor, mode: HyperMode) -> _TwoPiece:
    floor = 1e-2 * mode.axes @ mode.axes.mT
    root = torch.linalg.cholesky(covariance + floor)
    return _TwoPiece(mean, root, torch.ones_like(mean), torch.ones_like(mean))
