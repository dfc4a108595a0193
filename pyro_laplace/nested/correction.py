"""What Laplace leaves out of ``log p(y | h)``: the points of a grid weighed by draws of their own inner Gaussians.

At each point, ``p(y | h) = E[p(y, x | h) / N(x; m, H^-1)]`` over draws x of the Gaussian around the inner mean m. The
white noise of the draws is that of all points alike, and antithetic, so that most of its error is common to them and
moves no weight. Where little is known of each inner site, as with a few Bernoulli data a group, the weights so found
are far better than Laplace's (compare Ferkingstad and Rue 2015, "Improving the INLA approach for approximate Bayesian
inference for latent Gaussian models"). Letters: b points, s draws, i inner coordinates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_laplace.inner.one_loop import OneLoop
from pyro_laplace.inner.rows import values
from pyro_laplace.nested.skewed import quasi_uniform
from pyro_laplace.nested.surface import HyperSurface, Weighted
from pyro_laplace.settings import settings


def corrected(surface: HyperSurface, found: Weighted, loops: Sequence[OneLoop]) -> Weighted:
    """The same points with better weights, where draws say what these are.

    They say nothing of many inner sites, of which a few draws outweigh all others; and need not be asked where the
    inner problem is Gaussian.

    Args:
        surface: of which the points are.
        found: the points, weighed by Laplace's approximation.
        loops: what the next order changes of the inner Gaussian of each.

    Returns:
        the points, with the weights and the evidence corrected, or as they were.
    """
    size, count = surface.of.inner_index.numel(), _draws_at_each(surface, len(found.weights))
    known = 0 < size <= torch.quasirandom.SobolEngine.MAXDIM  # of more sites so few draws say nothing
    if not known or not surface.inner.differentiable or count < settings.correction_fewest:
        return found
    draws = _Draws(surface, loops, _antithetic(count, size).to(found.weights))
    best = int(found.weights.argmax())
    log_ratio = draws.log_ratios(found, [best])[0]
    share = float(1 / log_ratio.softmax(0).square().sum()) / count
    if not share >= settings.correction_share or float(log_ratio.abs().max()) < settings.correction_least:
        return found
    step = max(1, settings.correction_rows // count)
    numbers = range(len(found.weights))
    parts = [draws.log_ratios(found, numbers[k : k + step]) for k in range(0, len(numbers), step)]
    left_out = _means_of_halves(torch.cat(parts))  # b 2
    log_w = found.weights.log() + left_out.logsumexp(1) - math.log(2)
    weights = log_w.softmax(0)
    between = left_out[:, 0] - left_out[:, 1]
    error = float((weights @ (between - weights @ between).square()).sqrt()) / 2
    if not error <= settings.correction_error:  # nan too
        return found
    return replace(found, weights=weights, log_evidence=found.log_evidence + float(log_w.logsumexp(0)))


def _draws_at_each(surface: HyperSurface, points: int) -> int:
    """How many draws at each point the budget allows, a multiple of four."""
    in_all = min(settings.correction_draws, settings.correction_elements // max(1, surface.of.data_size))
    return min(settings.correction_most, in_all // max(1, points)) // 4 * 4


def _antithetic(count: int, size: int) -> Tensor:
    """White noise [s, i] in two independent halves, quasi-random, each with every draw's opposite."""
    halves = []
    for seed in range(2):
        white = torch.special.ndtri(quasi_uniform(count // 4, size, seed))
        halves += [white, -white]
    return torch.cat(halves)


def _means_of_halves(log_ratios: Tensor) -> Tensor:
    """Logarithms of the mean ratios of each half of the draws [b, 2]."""
    halves = log_ratios.unflatten(1, (2, -1))
    return halves.logsumexp(2) - math.log(halves.shape[2])


@dataclass(frozen=True, eq=False)
class _Draws:
    """The draws of all points' Gaussians.

    Attributes:
        surface: of which the points are.
        loops: what the next order changes of each Gaussian.
        white: their noise [s, i].
    """

    surface: HyperSurface
    loops: Sequence[OneLoop]
    white: Tensor

    def log_ratios(self, found: Weighted, numbers: Sequence[int]) -> Tensor:
        """log p(y, x | h) over its Laplace approximation, at some points [b, s]; minus infinity without density."""
        of, count = self.surface.of, len(self.white)
        modes, rows, volumes = [], [], []
        for number in numbers:
            place, row = found.places[number]
            solved, loop = found.batches[place].solved, self.loops[number]
            modes.append(solved.x[row])
            drawn = solved.mean(row) + loop.move + loop.stretch * solved.block(row).color(self.white)
            rows.append((drawn, solved.h[row].expand(count, -1)))
            volumes.append(loop.stretch.log().sum())
        x, h = (torch.cat(parts) for parts in zip(*rows, strict=True))
        at_draws = values(of, x, h).reshape(-1, count)
        at_modes = values(of, torch.stack(modes), h[::count])
        log_q = torch.stack(volumes).unsqueeze(1) + 0.5 * self.white.square().sum(1)
        return (at_draws - at_modes.unsqueeze(1) + log_q).nan_to_num(nan=-torch.inf, posinf=-torch.inf)
