"""What an inner problem is: at given hyper points, Laplace's approximation over all other sites.

``log p(y | h) ~ log p(y, x* | h) + P/2 log 2 pi - 1/2 log det H(x*, h)``, with x*(h) the mode and H minus the Hessian
there (Tierney and Kadane 1986; Rue, Martino and Chopin 2009, "Approximate Bayesian inference for latent Gaussian
models"). Letters: b rows, i inner coordinates, q hyper coordinates.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.settings import settings
from pyro_laplace.structure.block import Block


class InnerSolved(ABC):
    """The inner approximations at some hyper points.

    Attributes:
        h: the points [b, q].
        x: inner modes [b, i].
        value: log p(y | h) [b]; minus infinity where there is no inner mode.
    """

    h: Tensor
    x: Tensor
    value: Tensor

    @abstractmethod
    def gradient(self) -> Tensor:
        """Of the value in h, by the implicit function theorem [b, q]."""

    @abstractmethod
    def response(self, row: int) -> Tensor:
        """``dx* / dh`` of one row [i, q]."""

    @abstractmethod
    def shift(self, row: int) -> Tensor:
        """The distance of the inner mean from the mode, to first order, of one row [i]."""

    def mean(self, row: int) -> Tensor:
        """The inner mean of one row [i]: mode and shift, the latter as far as the first term of a series may go."""
        shift = self.shift(row)
        size = float(self.block(row).whiten(shift.unsqueeze(0)).norm()) / max(1, len(shift)) ** 0.5
        return self.x[row] + shift * min(1.0, settings.shift_most / max(size, 1e-300))

    @abstractmethod
    def block(self, row: int) -> Block:
        """H of one row."""


class Inner(ABC):
    """How the inner problem is solved.

    Attributes:
        of: the conditional density.
        curvature: of the log likelihood, by name.
        differentiable: whether gradients in h are to be had.
    """

    of: Conditional
    curvature: str
    differentiable: bool

    @property
    @abstractmethod
    def elements(self) -> int:
        """Numbers that the precision at one point takes."""

    @abstractmethod
    def moved(self, of: Conditional) -> "Inner":
        """The same problem from another start, without a memory."""

    @abstractmethod
    def solve(self, h: Tensor) -> InnerSolved:
        """The inner approximations at points h [b, q]."""


@dataclass(eq=False)
class Memory:
    """Inner modes found so far: where the next searches begin.

    Attributes:
        start: the first of all starts [i].
        h: hyper points [m, q].
        x: their inner modes [m, i].
    """

    start: Tensor
    h: Tensor
    x: Tensor

    @staticmethod
    def of(conditional: Conditional) -> "Memory":
        """An empty one."""
        x, h = conditional.start
        return Memory(x, h.new_zeros(0, len(h)), x.new_zeros(0, len(x)))

    def nearest(self, h: Tensor) -> Tensor:
        """Starts [b, i] for points h [b, q]."""
        if not len(self.h):
            return self.start.expand(len(h), -1).clone()
        return self.x[torch.cdist(h, self.h).argmin(1)].clone()

    def keep(self, h: Tensor, x: Tensor) -> None:
        """Remember modes, the last `settings.inner_memory` of all."""
        kept = max(1, min(settings.inner_memory, settings.pass_elements // max(1, x.shape[1])))
        self.h, self.x = (torch.cat([old, new])[-kept:] for old, new in ((self.h, h), (self.x, x)))
