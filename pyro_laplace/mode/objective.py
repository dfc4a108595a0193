"""The log joint of theta as an objective: value, gradient and Hessian, summed over the data in float64."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyro_laplace._autodiff import hessian
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._errors import LaplaceError
from pyro_laplace._typing import Matrix, Scalar, Theta
from pyro_laplace.capture.loop import Loop
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program


@dataclass(frozen=True)
class Objective:
    """Minus the log joint as a function of some coordinates of theta.

    Attributes:
        loop: the program and its data; every evaluation is one pass.
        jacobian: whether the density is that of theta, or of the constrained values.
        theta: where the other coordinates are held.
        index: the free coordinates.
    """

    loop: Loop
    jacobian: bool
    theta: Tensor
    index: Tensor

    @property
    def program(self) -> Program:
        """The traced program."""
        return self.loop.program

    @property
    def start(self) -> Theta:
        """The free coordinates of `theta` in float64."""
        return self.theta[self.index].double()

    @property
    def resolution(self) -> float:
        """Relative rounding error of an evaluation, which is made in theta's own dtype."""
        return torch.finfo(self.theta.dtype).eps

    def embed(self, part: Tensor) -> Theta:
        """theta with the free coordinates replaced."""
        return self.theta.index_copy(0, self.index, part.to(self.theta))

    def value_and_gradient(self, part: Tensor) -> tuple[Scalar, Theta]:
        """Minus log joint and its gradient; infinite where the program cannot be evaluated."""
        theta = self.embed(part)
        try:
            value, gradient = self._sum(theta)
        except (LinAlgError, ValueError) as error:  # of a factorisation, or of parameters that a distribution refuses
            if isinstance(error, LaplaceError):
                raise
            value = torch.full((), torch.inf, dtype=torch.float64)
            gradient = torch.zeros_like(theta, dtype=torch.float64)
        return value, gradient[self.index]

    def hessian(self, part: Tensor) -> Matrix:
        """Hessian of minus log joint over the free coordinates."""
        total = torch.zeros(len(part), len(part), dtype=torch.float64, device=part.device)
        with undisturbed(), torch.no_grad():
            for chunk, prior in self._terms():
                total += hessian(partial(self._negative_of_part, chunk=chunk, prior=prior), part.to(self.theta))
        return total

    def _sum(self, theta: Theta) -> tuple[Scalar, Theta]:
        value = torch.zeros((), dtype=torch.float64, device=theta.device)
        gradient = torch.zeros_like(theta, dtype=torch.float64)
        leaf = theta.clone().requires_grad_()
        with undisturbed(), torch.enable_grad():
            for chunk, prior in self._terms():
                term = self._negative(leaf, chunk, prior)
                (step,) = torch.autograd.grad(term, leaf)
                value, gradient = value + term.detach(), gradient + step.double()
        return value, gradient

    def _terms(self) -> Iterator[tuple[Chunk, float]]:
        """The chunks of a pass, the prior counted with the first."""
        for i, chunk in enumerate(self.loop.chunks()):
            yield chunk, float(i == 0)

    def _negative(self, theta: Tensor, chunk: Chunk, prior: float) -> Scalar:
        return -self.program.log_joint(theta, chunk, self.jacobian, prior)

    def _negative_of_part(self, part: Tensor, chunk: Chunk, prior: float) -> Scalar:
        return self._negative(self.embed(part), chunk, prior)
