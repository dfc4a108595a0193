"""The potential energy of a program on all of its data, as Pyro's HMC calls it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._typing import Scalar, Theta
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program


@dataclass(eq=False)
class Potential:
    """U(theta) = -log p(y, theta), log-Jacobian included, of unconstrained site values.

    It takes float64 and gives float64; the program itself runs in its own dtype.

    Attributes:
        program: the traced program.
        chunks: one pass over the data; the prior is counted with the first.
        evaluations: how often it was evaluated.
    """

    program: Program
    chunks: tuple[Chunk, ...]
    evaluations: int = 0

    def __call__(self, values: Mapping[str, Tensor]) -> Scalar:
        """The potential at site name to unconstrained value."""
        self.evaluations += 1
        theta = torch.cat([values[name].reshape(-1) for name in self.program.latents])
        return self.term(theta, 0) if len(self.chunks) == 1 else _Accumulated.apply(theta, self)

    def term(self, theta: Theta, i: int) -> Scalar:
        """The share of chunk i."""
        return -self.program.log_joint(theta.to(self.program.start), self.chunks[i], prior=float(i == 0))

    def has_density(self, theta: Theta) -> bool:
        """Whether value and gradient are finite."""
        theta = theta.detach().double().requires_grad_()
        value = self({name: theta[latent.slice] for name, latent in self.program.latents.items()})
        (gradient,) = torch.autograd.grad(value, theta)
        return bool(value.isfinite() and gradient.isfinite().all())


class _Accumulated(torch.autograd.Function):
    """The sum over chunks and its gradient, one chunk after the other: memory is that of one."""

    @staticmethod
    def forward(ctx: Any, theta: Theta, potential: Potential) -> Scalar:
        total, gradient = torch.zeros_like(theta[:1]).sum(), torch.zeros_like(theta)
        for i in range(len(potential.chunks)):
            with torch.enable_grad():
                point = theta.detach().requires_grad_()
                term = potential.term(point, i)
                gradient += torch.autograd.grad(term, point)[0]
            total += term.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Theta, None]:
        (gradient,) = ctx.saved_tensors
        return outer[0] * gradient, None
