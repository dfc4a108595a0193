"""What a trajectory of stochastic gradient descent leaves: running moments, and the last deviations from the mean."""

from collections import deque

import torch
from torch import Tensor

from pyro_laplace._typing import Theta
from pyro_laplace.structure.low_rank_block import LowRankBlock


class Moments:
    """Mean, squares and last deviations of iterates, added one by one (Maddox et al. 2019, algorithm 1).

    Deviations are from the running mean, as the paper has them.

    Args:
        rank: number of deviations that are kept.
    """

    def __init__(self, rank: int) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self._scatter: Tensor = torch.zeros(())
        self._deviations: deque[Tensor] = deque(maxlen=rank)

    def add(self, theta: Theta) -> None:
        """Take in an iterate."""
        theta = theta.detach().double()
        self.count += 1
        before = theta - self.mean
        self.mean = self.mean + before / self.count
        after = theta - self.mean
        self._scatter = self._scatter + before * after
        self._deviations.append(after)

    @property
    def variance(self) -> Theta:
        """``mean(theta^2) - mean(theta)^2`` [params], by Welford's sums, which do not cancel."""
        return self._scatter / self.count

    @property
    def deviations(self) -> Tensor:
        """The last deviations D [rank, params]."""
        return torch.stack(list(self._deviations))


def block_of(moments: Moments, floor: float) -> LowRankBlock:
    """The precision whose covariance is ``(diag(v) + D' D / (K - 1)) / 2``, of K deviations D.

    With ``F = D' diag(v)^-1/2 / sqrt(K - 1)``, an eigenbasis of ``F F'`` gives ``v^1/2 (I + Q diag(l) Q') v^1/2 / 2``,
    whose inverse is of the same form.

    Args:
        moments: of the trajectory.
        floor: least variance of a coordinate, relative to the largest.

    Returns:
        the block.
    """
    variance = moments.variance
    variance = variance.clamp(min=float(floor * variance.max()))
    deviations = moments.deviations
    scaled = deviations / variance.sqrt() / max(1, len(deviations) - 1) ** 0.5
    _, singular, basis = torch.linalg.svd(scaled, full_matrices=False)
    shares = singular.square()
    return LowRankBlock(2 / variance, basis.mT, -shares / (1 + shares))
