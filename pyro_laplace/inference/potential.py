"""The potential energy of a program on all of its data, as Pyro's HMC calls it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._typing import Scalar, Theta
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.recording.recorded import Recorded, points_around, recorded_if_same


@dataclass(eq=False)
class Potential:
    """U(theta) = -log p(y, theta), log-Jacobian included, of unconstrained site values.

    It takes float64 and gives float64; the program itself runs in its own dtype.

    Attributes:
        program: the traced program.
        chunks: one pass over the data; the prior is counted with the first.
        evaluations: how often it was evaluated.
        recorded: value and gradient of each chunk as operations, once `record` has found them.
    """

    program: Program
    chunks: tuple[Chunk, ...]
    evaluations: int = 0
    recorded: tuple[Recorded, ...] = field(default=(), repr=False)

    def __call__(self, values: Mapping[str, Tensor]) -> Scalar:
        """The potential at site name to unconstrained value."""
        self.evaluations += 1
        theta = torch.cat([values[name].reshape(-1) for name in self.program.latents])
        if len(self.chunks) == 1 and not self.recorded:
            return self.term(theta, 0)
        return _Accumulated.apply(theta, self)

    def term(self, theta: Theta, i: int) -> Scalar:
        """The share of chunk i."""
        return -self.program.log_joint(theta.to(self.program.start), self.chunks[i], prior=float(i == 0))

    def of_chunk(self, theta: Theta, i: int) -> tuple[Scalar, Theta]:
        """The share of chunk i, and its gradient."""
        if self.recorded:
            value, gradient = self.recorded[i](theta)
            return value, gradient
        return self._by_program(theta, i)

    def record(self, theta: Theta) -> None:
        """Take the program's Python out of the evaluations, where it does the same at every theta.

        The operations must give, at theta and beside it, what the program gives; else everything stays as it is.

        Args:
            theta: where the density is finite, float64.
        """
        eps, points = torch.finfo(self.program.start.dtype).eps, points_around(theta)
        found = [
            recorded_if_same(lambda at, i=i: self._by_program(at, i), points, eps) for i in range(len(self.chunks))
        ]
        self.recorded = tuple(each for each in found if each is not None) if None not in found else ()

    def has_density(self, theta: Theta) -> bool:
        """Whether value and gradient are finite."""
        theta = theta.detach().double().requires_grad_()
        value = self({name: theta[latent.slice] for name, latent in self.program.latents.items()})
        (gradient,) = torch.autograd.grad(value, theta)
        return bool(value.isfinite() and gradient.isfinite().all())

    def _by_program(self, theta: Theta, i: int) -> tuple[Scalar, Theta]:
        with torch.enable_grad():
            point = theta.detach().requires_grad_()
            term = self.term(point, i)
            return term.detach(), torch.autograd.grad(term, point)[0]


class _Accumulated(torch.autograd.Function):
    """The sum over chunks and its gradient, one chunk after the other: memory is that of one."""

    @staticmethod
    def forward(ctx: Any, theta: Theta, potential: Potential) -> Scalar:
        parts = [potential.of_chunk(theta.detach(), i) for i in range(len(potential.chunks))]
        total, gradient = parts[0]
        for value, part in parts[1:]:
            total, gradient = total + value, gradient + part
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Theta, None]:
        (gradient,) = ctx.saved_tensors
        return outer[0] * gradient, None
