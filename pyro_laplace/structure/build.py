"""The one table of structures, and how each is built from the curvature of likelihood and prior."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature, InvalidOption, UnsupportedProgram
from pyro_laplace.curvature.root import Curvature
from pyro_laplace.posterior.subset import names_of
from pyro_laplace.structure.accumulate import (
    likelihood_blocks,
    likelihood_curvature,
    likelihood_diagonal,
    likelihood_gram,
)
from pyro_laplace.structure.build_kron import kron
from pyro_laplace.structure.data_pass import Pass
from pyro_laplace.structure.diag import Diag
from pyro_laplace.structure.explain import advise, explain
from pyro_laplace.structure.gram import Gram
from pyro_laplace.structure.low_rank import DiagLowRank, leading_eigenpairs, whitened_eigenpairs
from pyro_laplace.structure.options import Kron, LowRank, Single, Structure, group_sites
from pyro_laplace.structure.part import Base, Part, Placed, of_sites, row_limit, whole_block
from pyro_laplace.structure.precision import Precision
from pyro_laplace.structure.previous import Previous
from pyro_laplace.structure.products import likelihood_product
from pyro_laplace.structure.rows import FewRows


def build_precision(
    structure: Structure, curvature: Curvature, visit: Pass, previous: Precision | None = None
) -> Precision:
    """The posterior precision over the free coordinates of a pass's point.

    Args:
        structure: a structure, or a mapping of site globs to structures. Each group is then fitted with the others
            held: the curvature between groups is dropped.
        curvature: how the likelihood's curvature is measured.
        visit: the pass over the data.
        previous: a precision of this structure that the data are added to; the prior's curvature if there is none.

    Returns:
        Lambda, as independent blocks.

    Raises:
        IndefiniteCurvature: if the point is no maximum in some direction, naming the sites that form it.
        InvalidOption: if the structure does not go with the curvature, or a mapping not with the sites.
    """
    check_combination(structure, curvature)
    program, point = visit.program, visit.point
    base: Base = visit.prior if previous is None else Previous(previous.size, previous.placed())
    if not isinstance(structure, Mapping):
        return Precision(_build(structure, Part(curvature, visit, point, base)), point.theta.dtype)
    placed: Placed = []
    for part, sites in group_sites(structure, names_of(program, point.index)):
        chosen = of_sites(sites, program, point)
        blocks = _build(part, Part(curvature, visit, point.only(chosen), base.over(chosen)))
        placed += [(chosen[index.to(chosen.device)], block) for index, block in blocks]
    return Precision(placed, point.theta.dtype)


def check_combination(structure: Structure, curvature: Curvature) -> None:
    """Refuse a structure that cannot hold a curvature.

    Args:
        structure: a structure, or a mapping of site globs to structures.
        curvature: how the likelihood's curvature is measured.

    Raises:
        InvalidOption: naming both.
    """
    parts = structure.values() if isinstance(structure, Mapping) else [structure]
    if any(part == "kron" or isinstance(part, Kron) for part in parts) and curvature.root is None:
        raise InvalidOption(f"structure='kron' has no curvature={curvature.name!r}: use 'ggn', or another structure")


def _build(structure: Single, part: Part) -> Placed:
    if isinstance(structure, LowRank):
        return _low_rank(structure.rank, part)
    return kron(part, structure.shared) if isinstance(structure, Kron) else STRUCTURES[structure](part)


def _full(part: Part) -> Placed:
    likelihood = partial(likelihood_curvature, part.curvature, part.visit, part.point)
    return [whole_block(likelihood, part.base, part, part.point)]


def _block(part: Part) -> Placed:
    """A block without structure for each site, whatever layer it belongs to."""
    groups = [of_sites([name], part.program, part.point) for name in names_of(part.program, part.point.index)]
    bases = [part.base.over(group) for group in groups]
    limits = [row_limit(part.curvature, base, len(group)) for base, group in zip(bases, groups, strict=True)]
    likelihood = partial(likelihood_blocks, part.curvature, part.visit, part.point)
    placed: Placed = []
    for group, base, made in zip(groups, bases, likelihood(groups, limits), strict=True):
        again = _first(made, lambda limit, group=group: likelihood([group], [limit])[0])
        order, block = whole_block(again, base, part, part.point.only(group))
        placed.append((group[order], block))
    return placed


def _first(made: FewRows | Gram, again: Callable[[int], FewRows | Gram]) -> Callable[[int], FewRows | Gram]:
    """Gives what has been made, and makes it anew when it is asked for once more."""
    known = [made]
    return lambda limit: known.pop() if known else again(limit)


def _diag(part: Part) -> Placed:
    prec = likelihood_diagonal(part.curvature, part.visit, part.point) + part.base.diagonal
    try:
        return [(part.everything, Diag(prec))]
    except IndefiniteCurvature:
        raise IndefiniteCurvature(explain(prec.diag(), part.program, part.point, part.curvature)) from None


def _low_rank(rank: int, part: Part) -> Placed:
    """The prior, and the leading eigenpairs of the likelihood's curvature that it whitens."""
    if isinstance(part.base, Previous):
        return _more_of_low_rank(rank, part, part.base)
    prior, is_diagonal = part.base.diagonal, part.base.is_diagonal
    coupled = ~(prior > 0) if is_diagonal else part.base.coupled
    if bool(coupled.any()):
        names = list(names_of(part.program, part.point.index[coupled]))
        raise UnsupportedProgram(
            f"structure=LowRank({rank}) needs a diagonal prior precision, and positive: that of sites {names} "
            f"{'is not positive' if is_diagonal else 'couples their coordinates'}. Use 'full' for them, by a mapping "
            "{site glob: structure}"
        )
    scale = prior.sqrt()
    if len(prior) <= max(4 * rank, _SMALL):
        matrix = likelihood_gram(part.curvature, part.visit, part.point).matrix() / scale / scale.unsqueeze(-1)
        values, vectors = torch.linalg.eigh(matrix)
        leading = values.abs().argsort(descending=True)[:rank]
        values, vectors = values[leading], vectors[:, leading]
    else:
        product = likelihood_product(part.curvature, part.visit, part.point)
        values, vectors = whitened_eigenpairs(product, scale, rank)
    if part.curvature.root is not None:
        values = values.clamp(min=0)  # what is negative is rounding
    if not bool((values > -1).all()):
        direction = vectors[:, values.argmin()].square()
        lowest = float(1 + values.min())
        raise IndefiniteCurvature(advise(direction, lowest, part.program, part.point, part.curvature))
    return [(part.everything, DiagLowRank(prior, vectors, values))]


def _more_of_low_rank(rank: int, part: Part, previous: Previous) -> Placed:
    """The leading eigenpairs of those that there are and the curvature of new data together."""
    ((index, block),) = previous.placed
    if not isinstance(block, DiagLowRank) or not torch.equal(index, part.everything):
        raise InvalidOption(f"LowRank({rank}) cannot add data to a {type(block).__name__} precision")
    scale, size = block.scale, block.size
    product = likelihood_product(part.curvature, part.visit, part.point)

    def both(v: Tensor) -> Tensor:
        return block.basis @ (block.eigenvalues * (block.basis.mT @ v)) + product(v / scale) / scale

    if size <= max(4 * rank, _SMALL):
        values, vectors = torch.linalg.eigh(torch.stack([both(v) for v in torch.eye(size).to(scale)]))
        leading = values.abs().argsort(descending=True)[:rank]
        values, vectors = values[leading], vectors[:, leading]
    else:
        values, vectors = leading_eigenpairs(both, rank, product.like)
    if part.curvature.root is not None:
        values = values.clamp(min=0)
    return [(part.everything, DiagLowRank(scale.square(), vectors, values))]


_SMALL = 200
"""Coordinates up to which eigenpairs come from the dense matrix."""


STRUCTURES: dict[str, Callable[[Part], Placed]] = {
    "full": _full,
    "block": _block,
    "kron": partial(kron, shared="expand"),
    "diag": _diag,
}
