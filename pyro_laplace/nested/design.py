"""Weighted points over many hyper coordinates: quasi-random draws of a density like the posterior's, and their ratio.

A grid has too many points from about four coordinates on. The density begins with the mode's curvature and scales
looked for far out along each coordinate, where the tails are; it is fitted anew to the points so far until these tell
the posterior's means and sds. The points of all rounds count (Cornuet et al. 2012, "Adaptive multiple importance
sampling"); of them, few enough are kept that the inner approximations at them are affordable.
"""

import math
import warnings
from typing import NoReturn

import torch
from torch import Tensor

from pyro_laplace._errors import LaplaceWarning, NotAMode
from pyro_laplace.nested.skewed import Skewed, correlation_root, fitted_to
from pyro_laplace.nested.surface import HyperMode, HyperSurface, Weighted, smoothing_kernel, tell_of_failed
from pyro_laplace.settings import settings


def by_weighted_draws(surface: HyperSurface, mode: HyperMode) -> Weighted:
    """Quasi-random draws of a density like the surface, weighted by the ratio of both.

    Args:
        surface: log p(y, h).
        mode: its mode.

    Returns:
        the points.
    """
    first = _looked_for(surface, mode)
    proposals = [first]
    batches = [surface.at(first.draw(settings.design_points, 0))]
    while True:
        h = torch.cat([batch.h for batch in batches])
        value = torch.cat([batch.value for batch in batches])
        if not bool(value.isfinite().any()):
            _refuse_nowhere(surface, len(value))
        # of all proposals so far, whichever drew
        log_q = torch.stack([each.log_density(h) for each in proposals]).logsumexp(0) - math.log(len(proposals))
        log_w = value - log_q
        weights = log_w.softmax(0)
        error = _standard_errors(h, weights)
        enough = len(batches) > 1 and float(error.max()) <= settings.design_error
        if enough or len(batches) >= settings.design_rounds:
            break
        proposals.append(fitted_to(h, weights, first))
        batches.append(surface.at(proposals[-1].draw(settings.design_points, len(batches))))
    tell_of_failed(surface, mode, batches, log_w)
    _tell_of_error(surface, error, len(h))
    log_evidence = float(log_w.logsumexp(0)) - math.log(len(log_w))
    chosen, kept = _chosen(h, weights, settings.design_kept)
    return Weighted.of(batches, chosen, kept, log_evidence, smoothing_kernel(h[chosen], kept))


def _refuse_nowhere(surface: HyperSurface, count: int) -> NoReturn:
    raise NotAMode(
        f"no mode of the inner sites {list(surface.of.inner)[:5]} was found at any of {count:,} points around the mode "
        f"of the hyper sites {list(surface.of.hyper)}: name fewer or other hyper sites, hyper=[...], or work in float64"
    )


def _looked_for(surface: HyperSurface, mode: HyperMode) -> Skewed:
    """With the largest of the scales that drops of the surface tell, near and far, on each side of each coordinate.

    Along each coordinate by itself, and with the others where the curvature has them, given it: the one way goes along
    a tail, the other along a ridge.

    Returns:
        the density.
    """
    covariance = mode.axes @ mode.axes.mT
    sd = covariance.diagonal().sqrt()
    rays = torch.cat([torch.diag(sd), covariance / sd.unsqueeze(1)])  # 2q q
    far = settings.design_look * 2.0 ** torch.arange(settings.design_looks).to(sd)
    signs = torch.tensor([-1.0, 1.0]).to(sd)
    moves = signs.reshape(2, 1, 1, 1) * far.reshape(1, -1, 1, 1) * rays  # side distance ray q
    drop = mode.value - surface.at(mode.h + moves.reshape(-1, len(sd))).value.reshape(moves.shape[:-1])
    scale = far.unsqueeze(-1) / (2 * drop.clamp(min=torch.finfo(drop.dtype).eps)).sqrt()
    scale = scale.unflatten(-1, (2, -1)).amax((1, 2)).clamp(1 / settings.design_scale, settings.design_scale)
    left, right = sd * scale
    return Skewed(mode.h, correlation_root(covariance), left, right)


def _standard_errors(h: Tensor, weights: Tensor) -> Tensor:
    """Of the weighted means, in sd, and of the logarithms of the sds [2, q]: of points in a tail these depend most."""
    z = _standardised(h, weights)
    return torch.stack([weights.square() @ z.square(), weights.square() @ (z.square() - 1).square() / 4]).sqrt()


def _standardised(h: Tensor, weights: Tensor) -> Tensor:
    """The points in weighted sds from the weighted mean [b, q]."""
    away = h - weights @ h
    return away / (weights @ away.square()).sqrt()


def _chosen(h: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Some of the points, the heavy and the far ones rather than others, with weights of the same means and sds.

    Returns:
        which, and their weights.
    """
    some = weights.nonzero()[:, 0]
    if len(some) <= count:
        return some, weights[some]
    z = _standardised(h, weights)
    radius = z.square().mean(1)
    share = weights * (1 + radius)
    certain = torch.zeros_like(weights, dtype=torch.bool)
    chance = share
    while True:  # ends: each time there are more certain ones
        left = count - int(certain.sum())
        chance = torch.where(certain, torch.ones_like(share), share / share[~certain].sum() * left)
        if not bool((chance > 1).any()):
            break
        certain = certain | (chance > 1)
    order = radius.argsort()
    ends = chance[order].cumsum(0)
    levels = torch.arange(round(float(ends[-1]))).to(ends) + 0.5
    chosen = order[torch.searchsorted(ends, levels).clamp(max=len(h) - 1)].unique()
    kept = weights[chosen] / chance[chosen]
    return chosen, _balanced(z[chosen], kept / kept.sum())


def _balanced(z: Tensor, weights: Tensor) -> Tensor:
    """The nearest weights with which the points have mean 0 and mean square 1 (Hainmueller 2012, "Entropy balancing").

    Returns:
        the weights; as they were where there are none.
    """
    moments = torch.cat([z, z.square() - 1], 1)
    log_w = weights.log()
    for _ in range(settings.design_balance):
        now = log_w.softmax(0)
        mean = now @ moments
        covariance = ((moments - mean) * now.unsqueeze(1)).mT @ (moments - mean)
        step, info = torch.linalg.solve_ex(covariance, mean)
        if bool(info) or not bool(step.isfinite().all()):
            return weights
        log_w = log_w - moments @ step
    balanced = log_w.softmax(0)
    # fewer points that count would be a high price
    lost = float(balanced.square().sum() / weights.square().sum())
    return balanced if lost <= settings.design_balance_most else weights


def _tell_of_error(surface: HyperSurface, error: Tensor, count: int) -> None:
    """Warn where the rounds ended before the points told the posterior's means and sds."""
    of, worst = surface.of, error.amax(0)
    if float(worst.max()) <= settings.design_doubt:
        return
    sites = [name for name in of.hyper for _ in range(of.program.latents[name].size)]
    warnings.warn(
        f"{count:,} points over the {len(worst)} coordinates of the hyper sites {list(of.hyper)} tell the mean and the "
        f"logarithm of the sd of {sites[int(worst.argmax())]!r} no better than to {float(worst.max()):.2f}, in "
        "posterior sd: few of the points lie where the posterior does. Use outer='nuts', or name fewer hyper sites, or "
        "allow more rounds by pl.settings.design_rounds",
        LaplaceWarning,
        stacklevel=5,
    )
