"""Minus the Hessian of a part of the log prior: along the graph of a run, or as numbers that were kept of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._errors import LaplaceError
from pyro_laplace._memory import refuse_too_large
from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.settings import settings
from pyro_laplace.sparse.rows import NotSparse, sparse_symmetric
from pyro_laplace.sparse.symmetric import Symmetric


class SecondOrder(ABC):
    """A symmetric matrix over some of the free coordinates, in float64."""

    @property
    @abstractmethod
    def index(self) -> Tensor:
        """The free coordinates [rest] that it covers."""

    @property
    @abstractmethod
    def diagonal(self) -> Theta:
        """Its diagonal [rest]."""

    @property
    @abstractmethod
    def is_diagonal(self) -> bool:
        """Whether everything beside the diagonal is zero."""

    @property
    @abstractmethod
    def coupled(self) -> Tensor:
        """Which of its coordinates are coupled with others [rest]."""

    @property
    @abstractmethod
    def matrix(self) -> Matrix:
        """All of it [rest, rest]."""

    @abstractmethod
    def moved(self, places: Tensor) -> "SecondOrder":
        """The same with the coordinate i now at ``places[i]``, -1 for one that is held from now on."""

    @property
    @abstractmethod
    def symmetric(self) -> Symmetric:
        """The entries of it that are not zero; raises `NotSparse` where these are many."""

    def stored(self) -> "Stored":
        """What is kept of it: the matrix where it is not diagonal and not too large, else its entries if few."""
        dense = not self.is_diagonal and len(self.index) ** 2 <= settings.row_elements
        if dense or self.is_diagonal:
            return Stored(self.index, self.diagonal, self.matrix if dense else None, None if dense else self.coupled)
        try:
            return Stored(self.index, self.diagonal, None, self.coupled, self.symmetric)
        except NotSparse:
            return Stored(self.index, self.diagonal, None, self.coupled)


@dataclass(frozen=True, eq=False)
class Stored(SecondOrder):
    """Numbers.

    Attributes:
        places: the coordinates.
        values: the diagonal.
        dense: the matrix; None where it is diagonal, or was too large to be kept.
        couples: which coordinates are coupled, where the matrix is not there to tell.
        sparse: the matrix by its entries, where there are few and it was too large to be kept dense.
    """

    places: Tensor
    values: Theta
    dense: Matrix | None
    couples: Tensor | None = None
    sparse: Symmetric | None = None

    @property
    def index(self) -> Tensor:
        """The free coordinates."""
        return self.places

    @property
    def diagonal(self) -> Theta:
        """Its diagonal."""
        return self.values

    @property
    def is_diagonal(self) -> bool:
        """Whether nothing is coupled."""
        return not bool(self.coupled.any())

    @property
    def coupled(self) -> Tensor:
        """Which coordinates have entries beside the diagonal."""
        if self.dense is not None:
            return ((self.dense != 0).sum(1) - (self.values != 0).long()) > 0
        return torch.zeros_like(self.values, dtype=torch.bool) if self.couples is None else self.couples

    @property
    def matrix(self) -> Matrix:
        """All of it.

        Raises:
            LaplaceError: if it was too large to be kept.
        """
        if self.dense is not None:
            return self.dense
        return self.values.diag() if self.is_diagonal else self.symmetric.matrix()

    @property
    def symmetric(self) -> Symmetric:
        """Its entries.

        Raises:
            LaplaceError: if they were too many to be kept.
        """
        if self.sparse is not None:
            return self.sparse
        if self.dense is not None:
            return Symmetric.of_dense(self.dense)
        if not self.is_diagonal:
            size = len(self.places)
            raise LaplaceError(
                f"the curvature [{size}, {size}] of the log prior was too large to be kept with the posterior: fit all "
                "data jointly, or raise pyro_laplace.settings.row_elements before the fit"
            )
        return Symmetric.of_diagonal(self.values)

    def moved(self, places: Tensor) -> "Stored":
        """The same at other coordinates."""
        where = places[self.places]
        kept = where >= 0
        return Stored(
            where[kept],
            self.values[kept],
            None if self.dense is None else self.dense[kept][:, kept],
            None if self.couples is None else self.couples[kept],
            None if self.sparse is None else self.sparse.moved(_renumbered(kept), int(kept.sum())),
        )


@dataclass(frozen=True, eq=False)
class Differentiated(SecondOrder):
    """By automatic differentiation, as much of it as is asked for.

    Attributes:
        gradient: of minus the log density, over the coordinates [rest] that it depends on, with its graph.
        leaves: these coordinates, of one site after the other.
        place: where each of them is among the free coordinates [rest]; -1 if it is held.
    """

    gradient: Tensor
    leaves: Sequence[Tensor]
    place: Tensor

    @property
    def index(self) -> Tensor:
        """Places of the free coordinates."""
        return self.place[self.place >= 0]

    @property
    def diagonal(self) -> Theta:
        """Its diagonal."""
        return self._summary[0]

    @property
    def is_diagonal(self) -> bool:
        """Whether two products with random vectors are those of a diagonal matrix."""
        return self._summary[1]

    @property
    def coupled(self) -> Tensor:
        """Which coordinates are coupled with others, by one product with a vector."""
        if self.is_diagonal:
            return torch.zeros_like(self.index, dtype=torch.bool)
        probe = _probes(1, len(self.index), self.gradient)[0]
        off = self._multiply(probe) - self.diagonal * probe.double()
        return off.abs() > settings.rounding * torch.finfo(self.gradient.dtype).eps * self.diagonal.abs().max()

    @property
    def matrix(self) -> Matrix:
        """All of it."""
        return self._matrix

    @property
    def symmetric(self) -> Symmetric:
        """By products, as far as these show its entries."""
        return self._entries

    @cached_property
    def _entries(self) -> Symmetric:
        sites = [slice(start, stop) for start, stop in self._sites()]
        return sparse_symmetric(self._multiply, sites, len(self.index), self.gradient)

    @cached_property
    def _matrix(self) -> Matrix:
        size = len(self.index)
        refuse_too_large(
            size**2,
            8,
            f"the Hessian [{size}, {size}] of the log prior",
            "use fewer coordinates: subset='last_layer', some sites, or a pl.Subnetwork",
        )
        dense = torch.cat([rows for _, rows in self._rows()])
        return (dense + dense.mT) / 2

    def moved(self, places: Tensor) -> "Differentiated":
        """The same at other coordinates."""
        return replace(self, place=places[self.place])

    @cached_property
    def _summary(self) -> tuple[Theta, bool]:
        """The diagonal, and whether it is all.

        For a diagonal H, ``(H v) / v = diag H`` for every v; two random ones that disagree disprove it.
        """
        size = len(self.index)
        if not size:
            return torch.zeros(0, dtype=torch.float64, device=self.gradient.device), True
        found = self._if_diagonal(0, size)
        if found is not None:
            return found, True
        if size > settings.small:
            try:
                return self.symmetric.diagonal, False
            except NotSparse:
                pass
        if size**2 <= settings.row_elements:
            return self.matrix.diagonal(), False
        return torch.cat([self._diagonal_of(start, stop) for start, stop in self._sites()]), False

    def _diagonal_of(self, start: int, stop: int) -> Theta:
        """The diagonal of some coordinates, which are independent of one another given the others in most programs."""
        found = self._if_diagonal(start, stop) if stop - start > 2 else None
        if found is not None:
            return found
        return torch.cat([rows.diagonal(begin) for begin, rows in self._rows(start, stop)])

    def _if_diagonal(self, start: int, stop: int) -> Theta | None:
        """The diagonal of the block of some coordinates, if the block is diagonal."""
        probes = torch.zeros(2, len(self.index), dtype=self.gradient.dtype, device=self.gradient.device)
        probes[:, start:stop] = _probes(2, stop - start, self.gradient)
        first, second = ((self._multiply(probe) / probe)[start:stop] for probe in probes)
        close = settings.probe_rounding * torch.finfo(self.gradient.dtype).eps
        alike = torch.allclose(first, second, rtol=close, atol=close * float(first.abs().max().nan_to_num()))
        return first if alike else None

    def _sites(self) -> Iterator[tuple[int, int]]:
        """Where the free coordinates of each site begin and end."""
        start = 0
        for part in self.place.split([leaf.numel() for leaf in self.leaves]):
            stop = start + int((part >= 0).sum())
            if stop > start:
                yield start, stop
            start = stop

    def _rows(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
        size = len(self.index)
        stop = size if stop is None else stop
        step = max(1, settings.row_elements // size)
        for begin in range(start, stop, step):
            yield begin, self._multiply(_unit_rows(begin, min(begin + step, stop), size, self.gradient))

    def _multiply(self, vectors: Tensor) -> Tensor:
        """Rows v [..., free] to H v, in float64."""
        free = self.place >= 0
        if not self.gradient.requires_grad:
            return torch.zeros_like(vectors, dtype=torch.float64)
        wide = vectors.new_zeros(*vectors.shape[:-1], len(free))
        wide[..., free] = vectors
        if vectors.dim() == 1:
            return self._pull(wide)[free].double()
        try:
            return self._pull(wide, is_grads_batched=True)[..., free].double()
        except RuntimeError:  # an operation that cannot be vectorised
            return torch.stack([self._pull(row) for row in wide])[..., free].double()

    def _pull(self, vectors: Tensor, **options: Any) -> Tensor:
        grads = torch.autograd.grad(
            self.gradient, self.leaves, vectors, retain_graph=True, allow_unused=True, materialize_grads=True, **options
        )
        return torch.cat(grads, -1)


def _renumbered(kept: Tensor) -> Tensor:
    """Where each coordinate lies among those that are kept; -1 where it is left out."""
    return torch.where(kept, kept.cumsum(0) - 1, -1)


def _probes(count: int, size: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, size, generator=generator, dtype=torch.float64) + 0.5).to(like)


def _unit_rows(start: int, stop: int, size: int, like: Tensor) -> Tensor:
    basis = torch.zeros(stop - start, size, dtype=like.dtype, device=like.device)
    basis[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
    return basis
