"""Curvature of the log joint at a point, summed over one pass of the data: dense, or the diagonal alone.

Everything here is a sum over data in float64, over the coordinates `index` of theta; the others are held.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyro_laplace._autodiff import column_blocks, hessian, hessian_diagonal, jacobian, push_forward
from pyro_laplace._errors import TooLarge
from pyro_laplace._memory import refuse_too_large
from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.curvature.assemble import add_diagonal, add_matrix
from pyro_laplace.curvature.empirical_fisher import root as empirical_fisher
from pyro_laplace.curvature.ggn import root as ggn
from pyro_laplace.curvature.hessian import negative_log_lik
from pyro_laplace.curvature.mc_fisher import root as mc_fisher
from pyro_laplace.curvature.point import Point
from pyro_laplace.curvature.restrict import factors_over, restrict
from pyro_laplace.curvature.root import Curvature, Root
from pyro_laplace.data import Data
from pyro_laplace.program import Chunk, Program

HESSIAN_LIMIT = 5_000
"""Coordinates up to which a dense exact Hessian of a likelihood is computed."""


CURVATURES = {
    "ggn": Curvature("ggn", ggn),
    "empirical_fisher": Curvature("empirical_fisher", empirical_fisher),
    "mc_fisher": Curvature("mc_fisher", mc_fisher, seed=0),
    "hessian": Curvature("hessian", None),
}


def likelihood_matrix(curvature: Curvature, program: Program, point: Point, data: Data) -> Matrix:
    """Curvature of minus the log likelihood over the free coordinates, [params, params]."""
    size = len(point.index)
    refuse_too_large(size**2, 8, f"the dense curvature [{size}, {size}]", "use structure='diag' or a subset of sites")
    total = torch.zeros(size, size, dtype=torch.float64, device=point.theta.device)
    for chunk, root in curvature.roots(program, point.theta, data):
        captured = factors_over(program, point, chunk, root) if root is not None else None
        for factors in captured or []:
            add_matrix(total, factors)
        _add_uncaptured(total, curvature, root, captured is None, program, point, chunk)
    return total


def likelihood_blocks(
    curvature: Curvature, program: Program, point: Point, data: Data, groups: list[Tensor]
) -> list[Matrix]:
    """Diagonal blocks of `likelihood_matrix` in one pass over the data, without what lies between them.

    Args:
        curvature: how the likelihood's curvature is measured.
        program: the traced program.
        point: theta and its free coordinates.
        data: the data, visited once.
        groups: each block's coordinates [g], by their ascending place among the free ones.

    Returns:
        each block [g, g], in float64.
    """
    totals = []
    for group in groups:
        size = len(group)
        refuse_too_large(
            size**2, 8, f"a dense block [{size}, {size}] of the curvature", "use structure='kron' or 'diag'"
        )
        totals.append(torch.zeros(size, size, dtype=torch.float64, device=point.theta.device))
    for chunk, root in curvature.roots(program, point.theta, data):
        captured = factors_over(program, point, chunk, root) if root is not None else None
        for group, total in zip(groups, totals, strict=True):
            part = point.only(group)
            for factors in captured or []:
                add_matrix(total, restrict(factors, group, len(point.index)))
            _add_uncaptured(total, curvature, root, captured is None, program, part, chunk)
    return totals


def _add_uncaptured(
    total: Matrix, curvature: Curvature, root: Root | None, dense: bool, program: Program, point: Point, chunk: Chunk
) -> None:
    """Add what captured factors do not hold: the root's dense rows if `dense`, and exact Hessians of other terms."""
    for whitened in _active(root, point) if root is not None and dense else []:
        rows = jacobian(whitened, point.part).double()
        total += rows.T @ rows
    for rest in _rests(curvature, root, program, point, chunk):
        total += hessian(rest, point.part)


def likelihood_diagonal(curvature: Curvature, program: Program, point: Point, data: Data) -> Theta:
    """The diagonal of `likelihood_matrix`, [params]."""
    total = torch.zeros(len(point.index), dtype=torch.float64, device=point.theta.device)
    for chunk, root in curvature.roots(program, point.theta, data):
        captured = factors_over(program, point, chunk, root) if root is not None else None
        for factors in captured or []:
            add_diagonal(total, factors)
        for whitened in _active(root, point) if root is not None and captured is None else []:
            for columns, block in column_blocks(whitened, point.part):
                total[columns] += block.double().square().sum(1)
        for rest in _rests(curvature, root, program, point, chunk):
            total += hessian_diagonal(rest, point.part)[0]
    return total


def uncovered(root: Root | None, program: Program) -> frozenset[str]:
    """The terms of the log likelihood that a root does not cover."""
    return program.terms - frozenset(root.sites if root is not None else ())


def prior_matrix(program: Program, point: Point, data: Data, jacobian: bool) -> Matrix:
    """Minus the Hessian of the log prior over the free coordinates, [params, params]."""
    negative = _negative_log_prior(program, point, data, jacobian)
    diagonal, is_diagonal = hessian_diagonal(negative, point.part)
    return (diagonal.diag() if is_diagonal else hessian(negative, point.part)).double()


def prior_diagonal(program: Program, point: Point, data: Data, jacobian: bool) -> tuple[Theta, bool]:
    """The diagonal of `prior_matrix` [params], and whether it is all of it."""
    diagonal, is_diagonal = hessian_diagonal(_negative_log_prior(program, point, data, jacobian), point.part)
    return diagonal.double(), is_diagonal


def prior_coupled(program: Program, point: Point, data: Data, jacobian: bool) -> Tensor:
    """Which free coordinates the log prior's Hessian couples with others, [params], by one product with it."""
    negative = _negative_log_prior(program, point, data, jacobian)
    diagonal, _ = hessian_diagonal(negative, point.part)
    probe = torch.rand(len(point.index), generator=torch.Generator().manual_seed(0)).to(point.theta) + 0.5
    rest = torch.func.vjp(torch.func.grad(negative), point.part)[1](probe)[0] - diagonal * probe
    return rest.abs() > 1e3 * torch.finfo(point.theta.dtype).eps * diagonal.abs().max()


def _negative_log_prior(program: Program, point: Point, data: Data, jacobian: bool) -> Callable[[Tensor], Tensor]:
    chunk = next(program.chunks(data))
    return point.on(lambda theta: -program.log_prior(theta, chunk, jacobian))


def _active(root: Root, point: Point) -> Iterator[Callable[[Tensor], Tensor]]:
    """A chunk's root without the rows that do not depend on the free coordinates (a known noise scale, say)."""
    whitened = point.on(root)
    direction = torch.randn(len(point.index), generator=torch.Generator().manual_seed(0)).to(point.theta)
    active = push_forward(whitened, point.part, direction)[1] != 0
    rows = int(active.sum())
    refuse_too_large(
        rows * len(point.index), 12, f"the Jacobian [{rows}, {len(point.index)}] of one batch", "give smaller batches"
    )
    if rows:
        yield lambda part: whitened(part)[active]


def _rests(
    curvature: Curvature, root: Root | None, program: Program, point: Point, chunk: Chunk
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Minus the log likelihood of the terms that the root does not cover."""
    terms = uncovered(root, program)
    if terms:
        if len(point.index) > HESSIAN_LIMIT:
            raise TooLarge(
                f"curvature={curvature.name!r} needs the exact Hessian of {sorted(terms)} over {len(point.index)} "
                f"coordinates (limit {HESSIAN_LIMIT}): use a subset of sites, or, for observed sites, "
                "curvature='empirical_fisher' or 'mc_fisher', or register the Fisher information of their distribution "
                "with pyro_laplace.likelihood.register for 'ggn'"
            )
        yield point.on(negative_log_lik(program, chunk, terms))
