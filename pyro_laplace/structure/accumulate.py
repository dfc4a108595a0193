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
from pyro_laplace.capture.anchor import Point
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.curvature.empirical_fisher import root as empirical_fisher
from pyro_laplace.curvature.ggn import root as ggn
from pyro_laplace.curvature.hessian import negative_log_lik
from pyro_laplace.curvature.mc_fisher import root as mc_fisher
from pyro_laplace.curvature.root import Curvature, Root
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.reading.direct import direct_of
from pyro_laplace.reading.factors import STREAMED, Factors
from pyro_laplace.reading.restrict import factors_over, restrict
from pyro_laplace.structure.data_pass import Pass
from pyro_laplace.structure.gram import Gram, add_diagonal
from pyro_laplace.structure.rows import FewRows, FewRowsOrGram

HESSIAN_LIMIT = 5_000
"""Coordinates up to which a dense exact Hessian of a likelihood is computed."""


CURVATURES = {
    "ggn": Curvature("ggn", ggn),
    "empirical_fisher": Curvature("empirical_fisher", empirical_fisher),
    "mc_fisher": Curvature("mc_fisher", mc_fisher, seed=0),
    "hessian": Curvature("hessian", None),
}


def likelihood_gram(curvature: Curvature, visit: Pass, point: Point | None = None) -> Gram:
    """Curvature of minus the log likelihood over the free coordinates.

    Args:
        curvature: how it is measured.
        visit: the pass over the data.
        point: theta and its free coordinates, if not all of those of the pass.

    Returns:
        the matrix, in an order of its own.
    """
    total = likelihood_curvature(curvature, visit, visit.point if point is None else point, limit=0)
    assert isinstance(total, Gram)
    return total


def likelihood_curvature(curvature: Curvature, visit: Pass, point: Point, limit: int) -> FewRows | Gram:
    """`likelihood_gram`, or the rows of its root where these are few.

    Args:
        curvature: how it is measured.
        visit: the pass over the data.
        point: theta and its free coordinates.
        limit: how many are few.

    Returns:
        the rows if there are no more than the limit, else the matrix.
    """
    total = FewRowsOrGram(len(point.index), point.theta.device, limit, "use structure='diag' or a subset of sites")
    for run, root in curvature.roots(visit):
        captured = factors_over(run, root, point)
        for factors in captured or ():
            total.add(factors)
        _add_uncaptured(total, curvature, root, captured is None, run, point)
    return total.total()


def likelihood_matrix(curvature: Curvature, visit: Pass) -> Matrix:
    """`likelihood_gram` in the order of the free coordinates, [params, params]."""
    return likelihood_gram(curvature, visit).matrix()


def likelihood_blocks(
    curvature: Curvature, visit: Pass, point: Point, groups: list[Tensor], limits: list[int]
) -> list[FewRows | Gram]:
    """Diagonal blocks of `likelihood_matrix` in one pass over the data, without what lies between them.

    Args:
        curvature: how the likelihood's curvature is measured.
        visit: the pass over the data.
        point: theta and its free coordinates.
        groups: each block's coordinates [g], by their ascending place among the free ones.
        limits: rows up to which each is given by rows.

    Returns:
        each block, over its own coordinates.
    """
    totals = [
        FewRowsOrGram(len(group), point.theta.device, limit, "use structure='kron' or 'diag'")
        for group, limit in zip(groups, limits, strict=True)
    ]
    for run, root in curvature.roots(visit):
        captured = factors_over(run, root, point)
        for factors in captured or ():
            for group, total in zip(groups, totals, strict=True):
                total.add(restrict(factors, group, len(point.index)))
        for group, total in zip(groups, totals, strict=True):
            _add_uncaptured(total, curvature, root, captured is None, run, point.only(group))
    return [total.total() for total in totals]


def _add_uncaptured(
    total: FewRowsOrGram, curvature: Curvature, root: Root | None, dense: bool, run: CapturedRun, point: Point
) -> None:
    """What captured factors do not hold: the root's dense rows if `dense`, and exact Hessians of other terms."""
    for whitened in _active(root, point) if root is not None and dense else []:
        rows = jacobian(whitened, point.part).double()
        everything = torch.arange(len(point.index), device=rows.device)
        total.add(Factors([], everything, rows.unsqueeze(1), rows[:0]))
    for rest in _rests(curvature, root, run.program, point, run.chunk):
        total.add_symmetric(hessian(rest, point.part).double())


def likelihood_diagonal(curvature: Curvature, visit: Pass, point: Point | None = None) -> Theta:
    """The diagonal of `likelihood_matrix`, [params]."""
    point = visit.point if point is None else point
    total = torch.zeros(len(point.index), dtype=torch.float64, device=point.theta.device)
    layers: list[tuple[Tensor, Tensor]] = []
    for run, root in curvature.roots(visit):
        direct = direct_of(run, root, point)
        if direct is not None:
            if not layers or not torch.equal(layers[-1][0], direct.index):
                layers.append((direct.index, torch.zeros_like(direct.index, dtype=torch.float64)))
            layers[-1][1].add_(direct.diagonal())
            continue
        captured = factors_over(run, root, point, STREAMED)
        for factors in captured or ():
            add_diagonal(total, factors)
        for whitened in _active(root, point) if root is not None and captured is None else []:
            for columns, block in column_blocks(whitened, point.part):
                total[columns] += block.double().square().sum(1)
        for rest in _rests(curvature, root, run.program, point, run.chunk):
            total += hessian_diagonal(rest, point.part)[0]
    for index, sums in layers:
        total[index] += sums
    return total


def uncovered(root: Root | None, program: Program) -> frozenset[str]:
    """The terms of the log likelihood that a root does not cover."""
    return program.terms - frozenset(root.sites if root is not None else ())


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
