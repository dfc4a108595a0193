"""The inner problem by dense exact Hessians, at all hyper points together.

Letters: b rows, i inner coordinates, q hyper coordinates.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.inner.newton_rows import Expand, Modes, search_rows
from pyro_laplace.inner.problem import Inner, InnerSolved, Memory
from pyro_laplace.inner.rows import Slopes, expanded, mixed_of, moving_gradients, slopes_of
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.dense import Dense


@dataclass(eq=False)
class DenseInner(Inner):
    """Newton's method with dense exact Hessians, all points at once.

    Attributes:
        expand: the density expanded at rows; None means by the program.
    """

    of: Conditional
    expand: Expand | None = None
    curvature: str = "hessian"
    differentiable: bool = True
    memory: Memory = field(init=False)

    def __post_init__(self) -> None:
        """Begin with an empty memory."""
        self.memory = Memory.of(self.of)

    def moved(self, of: Conditional) -> "DenseInner":
        """From another start."""
        return DenseInner(of)

    @property
    def elements(self) -> int:
        """Of a dense factor."""
        return self.memory.start.numel() ** 2

    def solve(self, h: Tensor) -> InnerSolved:
        """From the nearest modes known; where that fails, from the start."""
        expand, eps = self.expand or partial(expanded, self.of), self.of.eps
        modes = search_rows(expand, self.memory.nearest(h), h, eps)
        rows = (~modes.found).nonzero()[:, 0]
        if len(rows) and len(self.memory.h):
            modes.put(rows, search_rows(expand, self.memory.start.expand(len(rows), -1), h[rows], eps))
        self.memory.keep(h[modes.found], modes.x[modes.found])
        return DenseSolved(self.of, h, modes)


class DenseSolved(InnerSolved):
    """By dense Hessians.

    Args:
        of: the conditional density.
        h: the points [b, q].
        modes: found there.
        value: log p(y | h) [b], if it is known.
    """

    def __init__(self, of: Conditional, h: Tensor, modes: Modes, value: Tensor | None = None) -> None:
        self.of, self.h, self.x, self.modes = of, h, modes.x, modes
        self.value = log_marginal_of(modes) if value is None else value

    @cached_property
    def slopes(self) -> Slopes:
        """Derivatives at the modes."""
        return slopes_of(self.of, self.x, self.h, torch.eye(self.x.shape[1]).to(self.x), self.modes.inverse())

    @cached_property
    def _along(self) -> Tensor:
        """``H^-1 d log det H / dx`` [b, i]."""
        return self.modes.solve(self.slopes.log_det_x.unsqueeze(1))[:, 0]

    @cached_property
    def _responses(self) -> Tensor:
        """``dx* / dh`` transposed, of all rows at once [b, q, i]."""
        return self.modes.solve(mixed_of(self.of, self.x, self.h))

    def gradient(self) -> Tensor:
        """``d log p / dh - 1/2 (d log det H / dh + (dx* / dh)' d log det H / dx)``."""
        gradient = moving_gradients(self.of, self.x, self.h, self._along) - 0.5 * self.slopes.log_det_h
        return torch.where(self.value.isfinite().unsqueeze(-1), gradient, 0.0)

    def response(self, row: int) -> Tensor:
        """``H^-1 d^2 log p / dx dh``."""
        return self._responses[row].mT

    def shift(self, row: int) -> Tensor:
        """``-1/2 H^-1 d log det H / dx``: where the density falls slower on one side, the mean lies on that side."""
        return -0.5 * self._along[row]

    def block(self, row: int) -> Block:
        """H."""
        return Dense(self.modes.precision(row))


def log_marginal_of(modes: Modes) -> Tensor:
    """``log p(y, x* | h) + P/2 log 2 pi - 1/2 log det H``; minus infinity where no mode was found."""
    value = -modes.value + 0.5 * modes.x.shape[1] * math.log(2 * math.pi) - 0.5 * modes.log_det
    return torch.where(modes.found & value.isfinite(), value, -torch.inf)
