"""Curvature that no factors are had of: a root that was not captured, and the exact Hessian of a term without one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_laplace._autodiff import (
    column_blocks,
    hessian,
    hessian_diagonal,
    jacobian,
    puller,
    push_forward,
    pusher,
    vmapped,
)
from pyro_laplace._errors import TooLarge
from pyro_laplace._memory import refuse_too_large
from pyro_laplace._typing import Matrix, Rows, Theta
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.curvature.hessian import negative_log_lik
from pyro_laplace.curvature.root import Root
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.settings import settings
from pyro_laplace.sparse.rows import sparse_rows, sparse_symmetric
from pyro_laplace.sparse.symmetric import Symmetric


class Rest(ABC):
    """A term's curvature on a chunk by automatic differentiation, in float64 over the anchor's free coordinates."""

    anchor: Anchor

    @abstractmethod
    def diagonal(self) -> Theta:
        """Its diagonal [params]."""

    @abstractmethod
    def times(self, vectors: Tensor) -> Tensor:
        """Its products with vectors [v, params]."""

    @abstractmethod
    def matrix(self) -> Matrix:
        """All of it, [params, params]."""

    @abstractmethod
    def symmetric(self) -> Symmetric:
        """Its entries that are not zero, where these are few."""

    @abstractmethod
    def over(self, chosen: Tensor) -> "Rest":
        """The same over some of the free coordinates, by their place among them; the others are held."""

    def rows(self) -> Iterator[Rows] | None:
        """Rows of its root, some after the other; None where there is no root."""
        return None


@dataclass(frozen=True, eq=False)
class DenseRoot(Rest):
    """``A'A`` of a root of operations that could not be captured.

    Attributes:
        root: of the curvature, A.
        anchor: theta and its free coordinates.
    """

    root: Root
    anchor: Anchor

    def diagonal(self) -> Theta:
        """Squared columns of A, summed."""
        total = torch.zeros(self.anchor.size, dtype=torch.float64, device=self.anchor.theta.device)
        for whitened in self._dense():
            for columns, block in column_blocks(whitened, self.anchor.free):
                total[columns] += block.double().square().sum(1)
        return total

    def times(self, vectors: Tensor) -> Tensor:
        """``A'(A v)``."""
        whitened, free = self.anchor.on(self.root), self.anchor.free
        value, push = pusher(whitened, free)
        _, pull = puller(whitened, free)
        return torch.stack([pull(push(v).to(value)) for v in vectors.to(free)]).double()

    def matrix(self) -> Matrix:
        """``A'A``."""
        total = torch.zeros(self.anchor.size, self.anchor.size, dtype=torch.float64, device=self.anchor.theta.device)
        for rows in self.rows():
            total.addmm_(rows.double().mT, rows.double())
        return total

    def rows(self) -> Iterator[Rows]:
        """A, without the rows that do not depend on the free coordinates (a known noise scale, say)."""
        for whitened in self._dense():
            yield jacobian(whitened, self.anchor.free)

    def symmetric(self) -> Symmetric:
        """``A'A`` of the entries of A."""
        size, free = self.anchor.size, self.anchor.free
        total = Symmetric.zeros(size, free.device)
        for whitened, rows in self._active():
            _, push = pusher(whitened, free)
            found = sparse_rows(lambda v, push=push: vmapped(push, v), rows, self.anchor.places, size, free)
            total = found.gram(rows, size)
        return total

    def over(self, chosen: Tensor) -> "DenseRoot":
        """The same root in fewer coordinates."""
        return replace(self, anchor=self.anchor.only(chosen))

    def _dense(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """The same as `_active`, of rows that are made one by one."""
        for whitened, rows in self._active():
            what = f"the Jacobian [{rows}, {self.anchor.size}] of one batch"
            refuse_too_large(rows * self.anchor.size, 12, what, "give smaller batches")
            yield whitened

    def _active(self) -> Iterator[tuple[Callable[[Tensor], Tensor], int]]:
        """The root as a function of the free coordinates, with so many rows: those that depend on them, if any."""
        whitened, size = self.anchor.on(self.root), self.anchor.size
        direction = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(self.anchor.theta)
        active = push_forward(whitened, self.anchor.free, direction)[1] != 0
        rows = int(active.sum())
        if rows:
            yield (lambda free: whitened(free)[active]), rows


@dataclass(frozen=True, eq=False)
class ExactHessian(Rest):
    """Minus the Hessian of the log likelihood of some terms.

    Attributes:
        program: the traced program.
        chunk: the data.
        terms: observed sites and factors.
        anchor: theta and its free coordinates.
    """

    program: Program
    chunk: Chunk
    terms: tuple[str, ...]
    anchor: Anchor

    def diagonal(self) -> Theta:
        """By two products where it is diagonal."""
        return hessian_diagonal(self._negative(), self.anchor.free)[0].double()

    def times(self, vectors: Tensor) -> Tensor:
        """By reverse over reverse mode."""
        _, product = puller(torch.func.grad(self.anchor.on(self._of_theta())), self.anchor.free)
        return torch.stack([product(v) for v in vectors.to(self.anchor.theta)]).double()

    def matrix(self) -> Matrix:
        """Dense."""
        return hessian(self._negative(), self.anchor.free).double()

    def symmetric(self) -> Symmetric:
        """By products, as far as these show its entries."""
        return sparse_symmetric(self.times, self.anchor.places, self.anchor.size, self.anchor.free)

    def over(self, chosen: Tensor) -> "ExactHessian":
        """The same terms in fewer coordinates."""
        return replace(self, anchor=self.anchor.only(chosen))

    def _of_theta(self) -> Callable[[Tensor], Tensor]:
        return negative_log_lik(self.program, self.chunk, frozenset(self.terms))

    def _negative(self) -> Callable[[Tensor], Tensor]:
        if self.anchor.size > settings.hessian_coordinates:
            raise TooLarge(
                f"curvature={self.anchor.curvature!r} needs the exact Hessian of {sorted(self.terms)} over "
                f"{self.anchor.size} coordinates (limit {settings.hessian_coordinates}): use a subset of sites, or, "
                "for observed sites, curvature='empirical_fisher' or 'mc_fisher', or register the Fisher information "
                "of their distribution with pyro_laplace.likelihood.register for 'ggn'"
            )
        return self.anchor.on(self._of_theta())
