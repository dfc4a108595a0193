"""Products of the likelihood's curvature with vectors, without the matrix.

``G v = A'(A v)`` for a root A, from captured pairs where these fit in memory (they are made once), else by forward and
reverse mode; terms without a root by Hessian-vector products.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyro_laplace._autodiff import puller, pusher
from pyro_laplace._typing import Theta
from pyro_laplace.capture.anchor import Point
from pyro_laplace.curvature.hessian import negative_log_lik
from pyro_laplace.curvature.root import Curvature
from pyro_laplace.reading.factors import Factors
from pyro_laplace.reading.restrict import factors_over
from pyro_laplace.structure.accumulate import uncovered
from pyro_laplace.structure.data_pass import Pass

HELD_ELEMENTS = 2**27
"""Elements of captured pairs that are kept from one product to the next."""

_Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Piece:
    """A term of the curvature: A'A, or a Hessian.

    Attributes:
        multiply: v -> G v, [params] to [params].
        elements: how many it holds.
        rows: of A.
        push: v -> A v, [params] to [rows]; None for a Hessian.
        pull: u -> A'u.
    """

    multiply: _Map
    elements: int
    rows: int = 0
    push: _Map | None = None
    pull: _Map | None = None


@dataclass(frozen=True, eq=False)
class LikelihoodProduct:
    """The likelihood's curvature G as a linear map over the free coordinates, in float64.

    Attributes:
        like: the free coordinates [params].
        pieces: gives its terms; every call is a pass over the data unless they are held.
        held: its terms, or empty where they are too large to be held.
    """

    like: Tensor
    pieces: Callable[[], Iterator[Piece]]
    held: tuple[Piece, ...]

    @property
    def rows(self) -> int | None:
        """Number of rows of the root A, where G = A'A is held."""
        rooted = self.held and all(piece.push is not None for piece in self.held)
        return sum(piece.rows for piece in self.held) if rooted else None

    def __call__(self, vector: Tensor) -> Theta:
        """V -> G v."""
        v, total = vector.to(self.like), torch.zeros_like(self.like, dtype=torch.float64)
        for piece in self.held or self.pieces():
            total += piece.multiply(v).double()
        return total

    def push(self, vector: Tensor) -> Tensor:
        """V -> A v, [params] to [rows]."""
        v = vector.to(self.like)
        return torch.cat([piece.push(v).double() for piece in self.held if piece.push is not None])

    def pull(self, weights: Tensor) -> Theta:
        """U -> A'u, [rows] to [params]."""
        total = torch.zeros_like(self.like, dtype=torch.float64)
        for piece, u in zip(self.held, weights.split([piece.rows for piece in self.held]), strict=True):
            if piece.pull is not None:
                total += piece.pull(u).double()
        return total


def likelihood_product(curvature: Curvature, visit: Pass, point: Point) -> LikelihoodProduct:
    """The likelihood's curvature as a linear map.

    Args:
        curvature: how it is measured.
        visit: the pass over the data; every product is one, unless the captured pairs are held.
        point: theta and its free coordinates.

    Returns:
        the map v -> G v.
    """
    held, total = [], 0
    for piece in _pieces(curvature, visit, point, factored=True):
        held.append(piece)
        total += piece.elements
        if total > HELD_ELEMENTS:
            held = []
            break
    again = partial(_pieces, curvature, visit, point, factored=False)
    return LikelihoodProduct(point.part, again, tuple(held))


def _pieces(curvature: Curvature, visit: Pass, point: Point, factored: bool) -> Iterator[Piece]:
    """The terms of G, chunk by chunk."""
    for run, root in curvature.roots(visit, captured=factored):
        captured = factors_over(run, root, point) if factored else None
        if captured is not None:
            yield from (_from_factors(factors, len(point.index)) for factors in captured)
        elif root is not None:
            yield _from_root(point.on(root), point.part)
        terms = uncovered(root, run.program)
        if terms:
            negative = point.on(negative_log_lik(run.program, run.chunk, terms))
            _, product = puller(torch.func.grad(negative), point.part)
            yield Piece(product, HELD_ELEMENTS)


def _from_root(whitened: _Map, part: Theta) -> Piece:
    """By automatic differentiation. One chunk's graph is held, and no second."""
    value, push = pusher(whitened, part)
    _, transpose = puller(whitened, part)

    def pull(u: Tensor) -> Tensor:
        return transpose(u.to(value))

    return Piece(lambda v: pull(push(v)), HELD_ELEMENTS, len(value), push, pull)


def _from_factors(factors: Factors, size: int) -> Piece:
    """By captured pairs, of letters n data, k columns, t positions, i inputs, o outputs, d dense coordinates."""
    dense, dense_only, index = factors.dense, factors.dense_only, factors.dense_index
    n, k = dense.shape[:2]

    def push(v: Tensor) -> Tensor:
        rows = dense @ v[index].to(dense)  # n k
        for product in factors.products:
            moved = product.inputs @ v[product.index].mT  # n t o
            rows = rows + torch.einsum("nkto,nto->nk", product.gradients, moved)
        return torch.cat([rows.flatten(), dense_only.to(rows) @ v[index].to(rows)])

    def pull(u: Tensor) -> Tensor:
        rows, rest = u[: n * k].reshape(n, k), u[n * k :]
        total = torch.zeros(size, dtype=torch.float64, device=u.device)
        for product in factors.products:
            weights = torch.einsum("nkto,nk->nto", product.gradients, rows.to(product.gradients))
            back = weights.flatten(0, 1).mT @ product.inputs.flatten(0, 1)  # o i
            total.index_add_(0, product.index.reshape(-1), back.reshape(-1).double())
        corner = torch.einsum("nkd,nk->d", dense, rows.to(dense)).double() + dense_only.double().mT @ rest.double()
        return total.index_add_(0, index, corner)

    pairs = sum(product.inputs.numel() + product.gradients.numel() for product in factors.products)
    elements = pairs + dense.numel() + dense_only.numel()
    return Piece(lambda v: pull(push(v)), elements, n * k + len(dense_only), push, pull)
