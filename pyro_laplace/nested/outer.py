"""The hyper sites' posterior as weighted points, and the inner approximation at each."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pyro_laplace.draws.systematic import systematic
from pyro_laplace.inner.one_loop import OneLoop, one_loop
from pyro_laplace.inner.problem import InnerSolved
from pyro_laplace.nested.components import HyperPoint, OuterPosterior
from pyro_laplace.nested.correction import corrected
from pyro_laplace.nested.design import by_weighted_draws
from pyro_laplace.nested.grid import on_grid
from pyro_laplace.nested.particles import covariance_root, drawn_by_tempering
from pyro_laplace.nested.skewed import quasi_uniform
from pyro_laplace.nested.surface import (
    HyperMode,
    HyperSurface,
    Weighted,
    refuse_runaway,
    refuse_uninformed,
    smoothing_kernel,
    tell_of_failed,
)
from pyro_laplace.settings import settings
from pyro_laplace.structure.dense import Dense


def by_grid(surface: HyperSurface, mode: HyperMode) -> OuterPosterior:
    """On a grid over up to `settings.grid_coordinates` coordinates, else at weighted quasi-random points."""
    few = len(mode.h) <= settings.grid_coordinates
    return _mixed(surface, (on_grid if few else by_weighted_draws)(surface, mode), "grid")


def by_laplace(surface: HyperSurface, mode: HyperMode) -> OuterPosterior:
    """A Gaussian around the mode, at quasi-random points of equal weight."""
    size = len(mode.h)
    h = mode.place(torch.special.ndtri(quasi_uniform(settings.outer_points, size, 0)).to(mode.h))
    log_evidence = mode.value + 0.5 * size * math.log(2 * math.pi) + mode.log_volume
    return _mixed(surface, _equally(surface, mode, h, log_evidence), "laplace")


def by_draws(surface: HyperSurface, mode: HyperMode, draw: Callable[[], Tensor]) -> OuterPosterior:
    """At draws of the hyper sites' posterior, of equal weight; the evidence by bridge sampling from a Gaussian."""
    h = draw()
    even = torch.linspace(0, len(h) - 1, min(len(h), settings.outer_points)).round().long().unique()
    return _mixed(surface, _equally(surface, mode, h[even], _bridge(surface, h)), "nuts")


def by_particles(surface: HyperSurface) -> OuterPosterior:
    """At draws of the hyper sites' posterior by particles from their prior, with next to no kernel around each.

    Where there are several modes, as of a network's weights, a kernel as wide as all of them would blur each.

    Args:
        surface: log p(y, h), of which gradients are to be had.

    Returns:
        the mixture.
    """
    found = drawn_by_tempering(surface)
    points = surface.at(found.h)
    root = covariance_root(found.h)
    best = int(points.value.argmax())
    mode = HyperMode(points.h[best], float(points.value[best]), root)
    refuse_uninformed(surface, mode)
    equal = torch.full_like(points.value, 1 / len(points.value))
    kernel = settings.particle_kernel**2 * root @ root.mT
    return _mixed(surface, Weighted.of([points], torch.arange(len(equal)), equal, found.log_evidence, kernel), "smc")


def _equally(surface: HyperSurface, mode: HyperMode, h: Tensor, log_evidence: float) -> Weighted:
    points = surface.at(h)
    finite = points.value.isfinite()
    tell_of_failed(surface, mode, [points], finite.double().log())
    rows = finite.nonzero()[:, 0]
    weights = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64, device=h.device)
    kernel = smoothing_kernel(h[rows], weights)
    return Weighted.of([points], rows, weights, log_evidence, kernel)


def _bridge(surface: HyperSurface, h: Tensor) -> float:
    """Log of the surface's integral, from draws of it and of a Gaussian, by the optimal bridge (Meng and Wong 1996)."""
    fitted, used = h[::2], h[1::2][: settings.outer_points]
    gaussian = torch.distributions.MultivariateNormal(fitted.mean(0), fitted.mT.cov().reshape(h.shape[1], h.shape[1]))
    others = gaussian.sample((len(used),))
    ratio, other = (surface.at(rows).value - gaussian.log_prob(rows) for rows in (used, others))
    log_evidence = float(ratio.median())
    for _ in range(settings.bisections):
        above = (other - torch.logaddexp(other, other.new_tensor(log_evidence))).logsumexp(0)
        below = (-torch.logaddexp(ratio, ratio.new_tensor(log_evidence))).logsumexp(0)
        log_evidence = float(above - below)
    return log_evidence


def _mixed(surface: HyperSurface, found: Weighted, kind: str) -> OuterPosterior:
    """The mixture over the points: a kernel around each, and the points drawn together so that the spread stays.

    With S the weighted covariance of the points, ``A S A' + K = S`` (West 1993, "Approximating posterior distributions
    by mixtures").

    Returns:
        the mixture.
    """
    found = _thinned(found, surface)
    _refuse_endless(surface, found)
    loops = _one_loops(surface, found)
    if kind == "grid":
        found = corrected(surface, found, loops)
    h = found.h
    mean = found.weights @ h
    covariance = ((h - mean) * found.weights.unsqueeze(-1)).mT @ (h - mean)
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, found.kernel, upper=False)
    white = torch.linalg.solve_triangular(root, white.mT, upper=False)
    values, vectors = torch.linalg.eigh((white + white.mT) / 2)  # of L^-1 K L'^-1
    values = values.clamp(max=settings.kernel_most)
    shrink = root @ (vectors * (1 - values).sqrt()) @ vectors.mT
    shrink = torch.linalg.solve_triangular(root, shrink, upper=False, left=False)
    kernel = root @ vectors * values.sqrt()
    kernel = torch.linalg.cholesky(kernel @ kernel.mT)
    points = []
    for (i, j), loop in zip(found.places, loops, strict=True):
        batch = found.batches[i]
        center = mean + shrink @ (batch.h[j] - mean)
        points.append(_hyper_point(batch.solved, j, center, float(batch.value[j]), loop))
    return OuterPosterior(points, found.weights, kernel, found.log_evidence, kind, surface.failures)


def _refuse_endless(surface: HyperSurface, found: Weighted) -> None:
    """Refuse points, of weight, as far apart as no proper posterior's are."""
    h = found.h
    best = h[int(found.weights.argmax())]
    heavy = found.weights > settings.grid_lost * found.weights.max()
    far = (h - best).abs().amax(1).masked_fill(~heavy, 0.0)
    if not float(far.max()) <= settings.hyper_far:
        refuse_runaway(surface, h[int(far.argmax())], best)


def _one_loops(surface: HyperSurface, found: Weighted) -> list[OneLoop]:
    """Those of the inner Gaussians at all points, each that of the nearest one of a few: they are dear to compute."""
    if not surface.inner.differentiable:
        return [OneLoop.none(surface.of.start[0])] * len(found.places)
    effort = 32 * surface.of.inner_index.numel() ** 2 * surface.of.data_size
    count = max(1, min(settings.one_loop_points, settings.one_loop_elements // max(1, effort)))
    chosen = systematic(found.weights, count).unique().tolist()
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(found.kernel), found.h.mT, upper=False).mT
    nearest = torch.cdist(white, white[chosen]).argmin(1).tolist()
    some = [found.places[k] for k in chosen]
    computed = [one_loop(surface.of, found.batches[i].solved, j) for i, j in some]
    return [computed[k] for k in nearest]


def _hyper_point(solved: InnerSolved, row: int, center: Tensor, value: float, loop: OneLoop) -> HyperPoint:
    """A point with its inner Gaussian, as the next order changes it."""
    h, x = solved.h[row], solved.x[row]
    response = solved.response(row)
    if not len(x):
        return HyperPoint(h, value, center, x, response, None)
    block = solved.block(row)
    if loop.changes:
        block = Dense(block.to_dense() / loop.stretch / loop.stretch.unsqueeze(-1))
    mean = solved.mean(row) + loop.move + response @ (center - h)
    return HyperPoint(h, value, center, mean, response, block)


def _thinned(found: Weighted, surface: HyperSurface) -> Weighted:
    """As many of the points as memory holds, by systematic resampling."""
    most = max(settings.outer_fewest, settings.outer_elements // max(1, surface.inner.elements))
    if len(found.weights) <= most:
        return found
    unique, count = systematic(found.weights, most).unique(return_counts=True)
    return replace(found, places=[found.places[k] for k in unique.tolist()], weights=count.double() / most)
