"""Curvature of the log joint at a point, summed over one pass of the data: dense, or the diagonal alone.

Everything here is a sum over data in float64, over the coordinates `index` of theta; the others are held.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._autodiff import column_blocks, hessian, hessian_diagonal, jacobian, pusher
from pyro_laplace._errors import TooLarge
from pyro_laplace._memory import refuse_too_large
from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.curvature.assemble import add_diagonal, add_matrix
from pyro_laplace.curvature.factors import factors_of
from pyro_laplace.curvature.ggn import covers, root
from pyro_laplace.curvature.hessian import negative_log_lik
from pyro_laplace.curvature.point import Point
from pyro_laplace.data import Data
from pyro_laplace.program import Chunk, Program, log_lik_of

HESSIAN_LIMIT = 5_000
"""Coordinates up to which a dense exact Hessian of a likelihood is computed."""


@dataclass(frozen=True)
class Curvature:
    """How the likelihood's curvature is measured.

    Attributes:
        name: the option's value.
        covers: the observed sites whose curvature comes from `root`; the others get their exact Hessian.
        root: the function of theta whose Jacobian A gives the curvature A'A of those sites.
    """

    name: str
    covers: Callable[[Program, Theta, Chunk], frozenset[str]]
    root: Callable[[Program, Theta, Chunk], Callable[[Tensor], Tensor]] | None


CURVATURES = {
    "ggn": Curvature("ggn", covers, root),
    "hessian": Curvature("hessian", lambda program, theta, chunk: frozenset(), None),
}


def likelihood_matrix(curvature: Curvature, program: Program, point: Point, data: Data) -> Matrix:
    """Curvature of minus the log likelihood over the free coordinates, [params, params]."""
    size = len(point.index)
    refuse_too_large(size**2, 8, f"the dense curvature [{size}, {size}]", "use structure='diag' or a subset of sites")
    total = torch.zeros(size, size, dtype=torch.float64, device=point.theta.device)
    for chunk in program.chunks(data):
        captured = factors_of(program, point, chunk) if curvature.root is not None else None
        for factors in captured or []:
            add_matrix(total, factors)
        for whitened in _roots(curvature, program, point, chunk) if captured is None else []:
            rows = jacobian(whitened, point.part).double()
            total += rows.T @ rows
        for rest in _rests(curvature, program, point, chunk):
            total += hessian(rest, point.part)
    return total


def likelihood_diagonal(curvature: Curvature, program: Program, point: Point, data: Data) -> Theta:
    """The diagonal of `likelihood_matrix`, [params]."""
    total = torch.zeros(len(point.index), dtype=torch.float64, device=point.theta.device)
    for chunk in program.chunks(data):
        captured = factors_of(program, point, chunk) if curvature.root is not None else None
        for factors in captured or []:
            add_diagonal(total, factors)
        for whitened in _roots(curvature, program, point, chunk) if captured is None else []:
            for columns, block in column_blocks(whitened, point.part):
                total[columns] += block.double().square().sum(1)
        for rest in _rests(curvature, program, point, chunk):
            total += hessian_diagonal(rest, point.part)[0]
    return total


def prior_matrix(program: Program, point: Point, data: Data, jacobian: bool) -> Matrix:
    """Minus the Hessian of the log prior over the free coordinates, [params, params]."""
    negative = _negative_log_prior(program, point, data, jacobian)
    diagonal, is_diagonal = hessian_diagonal(negative, point.part)
    return (diagonal.diag() if is_diagonal else hessian(negative, point.part)).double()


def prior_diagonal(program: Program, point: Point, data: Data, jacobian: bool) -> tuple[Theta, bool]:
    """The diagonal of `prior_matrix` [params], and whether it is all of it."""
    diagonal, is_diagonal = hessian_diagonal(_negative_log_prior(program, point, data, jacobian), point.part)
    return diagonal.double(), is_diagonal


def _negative_log_prior(program: Program, point: Point, data: Data, jacobian: bool) -> Callable[[Tensor], Tensor]:
    chunk = next(program.chunks(data))
    return point.on(lambda theta: -program.log_prior(theta, chunk, jacobian))


def _roots(curvature: Curvature, program: Program, point: Point, chunk: Chunk) -> Iterator[Callable[[Tensor], Tensor]]:
    """The chunk's root without the rows that do not depend on the free coordinates (a known noise scale, say)."""
    if curvature.root is None:
        return
    whitened = point.on(curvature.root(program, point.theta, chunk))
    direction = torch.randn(len(point.index), generator=torch.Generator().manual_seed(0)).to(point.theta)
    active = pusher(whitened, point.part)[1](direction) != 0
    rows = int(active.sum())
    refuse_too_large(
        rows * len(point.index), 12, f"the Jacobian [{rows}, {len(point.index)}] of one batch", "give smaller batches"
    )
    if rows:
        yield lambda part: whitened(part)[active]


def _rests(curvature: Curvature, program: Program, point: Point, chunk: Chunk) -> Iterator[Callable[[Tensor], Tensor]]:
    """Minus the log likelihood of the terms that the root does not cover."""
    terms = frozenset(log_lik_of(program.run(point.theta, chunk), chunk))
    terms -= curvature.covers(program, point.theta, chunk)
    if terms:
        if len(point.index) > HESSIAN_LIMIT:
            raise TooLarge(
                f"the observed sites {sorted(terms)} need an exact Hessian, over {len(point.index)} coordinates (limit "
                f"{HESSIAN_LIMIT}): use a subset of sites, or register the Fisher information of their distribution "
                "with pyro_laplace.likelihood.register"
            )
        yield point.on(negative_log_lik(program, chunk, terms))
