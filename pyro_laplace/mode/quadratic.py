"""The quadratic model of the objective at a point, in unit-free coordinates: what Newton's method steps by."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._typing import Theta
from pyro_laplace.mode.objective import Objective


@dataclass(frozen=True)
class NewtonModel:
    """The objective's quadratic model at a point, in the eigenbasis of its unit-free Hessian D^-1 H D^-1."""

    scale: Tensor
    vectors: Tensor
    curvature: Tensor
    slope: Tensor

    @property
    def metric(self) -> Tensor:
        """Absolute eigenvalues, so that a saddle repels (Dauphin et al. 2014)."""
        floor = 1e-14 * float(self.curvature.abs().max())
        return self.curvature.abs().clamp(min=max(floor, torch.finfo(torch.float64).tiny))

    @property
    def decrement(self) -> float:
        """``sqrt(g' |H|^-1 g)``, the distance to the minimum in posterior standard deviations."""
        return float((self.slope.square() / self.metric).sum().sqrt())

    def step(self, damping: float) -> tuple[Theta, float]:
        """The damped step, and the decrease of the objective that the model predicts."""
        move = -self.slope / (self.metric + damping)
        gain = -(self.slope * move).sum() - 0.5 * (self.curvature * move.square()).sum()
        return (self.vectors @ move) / self.scale, float(gain)


def quadratic(objective: Objective, part: Theta, gradient: Theta) -> NewtonModel:
    """The quadratic model of the objective at a point, where `gradient` is its gradient."""
    matrix = torch.nan_to_num(objective.hessian(part), nan=0.0, posinf=0.0, neginf=0.0)
    diagonal = matrix.diagonal().abs()
    scale = diagonal.clamp(min=1e-12 * float(diagonal.max().clamp(min=1e-300))).sqrt()
    values, vectors = torch.linalg.eigh(matrix / scale / scale.unsqueeze(-1))
    return NewtonModel(scale, vectors, values, vectors.mT @ (gradient / scale))
