"""The one table of structures, and how each is built from the curvature of likelihood and prior."""

import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from pyro_laplace._compat import LinAlgError
from pyro_laplace._errors import IndefiniteCurvature, InvalidOption, LaplaceWarning, UnsupportedProgram
from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.curvature import (
    Curvature,
    KronFactors,
    Point,
    kron_factors,
    likelihood_blocks,
    likelihood_diagonal,
    likelihood_matrix,
    likelihood_product,
    prior_coupled,
    prior_diagonal,
    prior_matrix,
)
from pyro_laplace.data import Data
from pyro_laplace.precision.block import Block
from pyro_laplace.precision.dense import Dense
from pyro_laplace.precision.diag import Diag
from pyro_laplace.precision.kron import Kron
from pyro_laplace.precision.low_rank import DiagLowRank, whitened_eigenpairs
from pyro_laplace.precision.precision import Precision
from pyro_laplace.precision.structure import LowRank, Single, Structure, group_sites
from pyro_laplace.program import Program
from pyro_laplace.subset import names_of


def build_precision(
    structure: Structure, curvature: Curvature, program: Program, point: Point, data: Data, jacobian: bool
) -> Precision:
    """The posterior precision over the free coordinates of a point.

    Args:
        structure: a structure, or a mapping of site globs to structures. Each group is then fitted with the others
            held: the curvature between groups is dropped.
        curvature: how the likelihood's curvature is measured.
        program: the traced program.
        point: theta and its free coordinates.
        data: the data.
        jacobian: whether the density is that of theta.

    Returns:
        Lambda, as independent blocks.

    Raises:
        IndefiniteCurvature: if the point is no maximum in some direction, naming the sites that form it.
        InvalidOption: if the structure does not go with the curvature, or a mapping not with the sites.
    """
    check_combination(structure, curvature)
    if not isinstance(structure, Mapping):
        placed = _build(structure, curvature, program, point, data, jacobian)
        return Precision(placed, point.theta.dtype)
    placed: _Placed = []
    for part, sites in group_sites(structure, names_of(program, point.index)):
        chosen = _of_sites(sites, program, point)
        blocks = _build(part, curvature, program, point.only(chosen), data, jacobian)
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
    if "kron" in parts and curvature.root is None:
        raise InvalidOption(f"structure='kron' has no curvature={curvature.name!r}: use 'ggn', or another structure")


_Placed = list[tuple[Tensor, Block]]
"""Blocks with their free coordinates."""


def _build(
    structure: Single, curvature: Curvature, program: Program, point: Point, data: Data, jacobian: bool
) -> _Placed:
    if isinstance(structure, LowRank):
        return _low_rank(structure.rank, curvature, program, point, data, jacobian)
    return STRUCTURES[structure](curvature, program, point, data, jacobian)


def _full(curvature: Curvature, program: Program, point: Point, data: Data, jacobian: bool) -> _Placed:
    likelihood = likelihood_matrix(curvature, program, point, data)
    prior = prior_matrix(program, point, data, jacobian)
    return [(torch.arange(len(point.index)), _dense(likelihood, prior, curvature, program, point))]


def _block(curvature: Curvature, program: Program, point: Point, data: Data, jacobian: bool) -> _Placed:
    """A dense block for each site, whatever layer it belongs to."""
    groups = [_of_sites([name], program, point) for name in names_of(program, point.index)]
    matrices = likelihood_blocks(curvature, program, point, data, groups)
    diagonal, is_diagonal = prior_diagonal(program, point, data, jacobian)
    placed: _Placed = []
    for group, likelihood in zip(groups, matrices, strict=True):
        part = point.only(group)
        prior = diagonal[group].diag() if is_diagonal else prior_matrix(program, part, data, jacobian)
        placed.append((group, _dense(likelihood, prior, curvature, program, part)))
    return placed


def _dense(likelihood: Matrix, prior: Matrix, curvature: Curvature, program: Program, point: Point) -> Block:
    try:
        return Dense(likelihood + prior)
    except IndefiniteCurvature:
        if curvature.root is None:
            raise IndefiniteCurvature(_explain(likelihood + prior, program, point, curvature)) from None
    # the likelihood part is positive semi-definite by construction, so the prior's convex directions are to blame
    try:
        values, vectors = torch.linalg.eigh(prior)
        projected = (vectors * values.clamp(min=0)) @ vectors.mT
        block = Dense(likelihood + projected)
    except (IndefiniteCurvature, LinAlgError):
        raise IndefiniteCurvature(_explain(likelihood + prior, program, point, curvature)) from None
    warnings.warn(
        f"the log prior is convex at this point in {int((values < 0).sum())} directions, and the data do not make up "
        "for it; their curvature was set to zero. The posterior is wider there than this approximation can say",
        LaplaceWarning,
        stacklevel=4,
    )
    return block


def _diag(curvature: Curvature, program: Program, point: Point, data: Data, jacobian: bool) -> _Placed:
    likelihood = likelihood_diagonal(curvature, program, point, data)
    prior, _ = prior_diagonal(program, point, data, jacobian)
    try:
        return [(torch.arange(len(point.index)), Diag(likelihood + prior))]
    except IndefiniteCurvature:
        raise IndefiniteCurvature(_explain((likelihood + prior).diag(), program, point, curvature)) from None


def _kron(curvature: Curvature, program: Program, point: Point, data: Data, jacobian: bool) -> _Placed:
    whole = point.sites(program)
    partial = [name for name in names_of(program, point.index) if name not in whole]
    if partial:
        raise InvalidOption(
            f"structure='kron' covers whole sites, and the subset holds a part of sites {partial}: use 'full', 'block' "
            "or 'diag'"
        )
    products, dense_index, dense = kron_factors(curvature, program, point, data)
    diagonal, is_diagonal = prior_diagonal(program, point, data, jacobian)
    if products and not is_diagonal:
        _refuse_coupled(program, point, data, jacobian, products)
    placed: _Placed = [block for factors in products for block in _kron_blocks(factors, diagonal, program, point)]
    if len(dense_index):
        names = Point(point.theta, point.index[dense_index])
        prior = diagonal[dense_index].diag() if is_diagonal else prior_matrix(program, names, data, jacobian)
        placed.append((dense_index, _dense(dense, prior, curvature, program, names)))
    return placed


def _kron_blocks(factors: KronFactors, diagonal: Theta, program: Program, point: Point) -> _Placed:
    """One block for a weight and its bias where the prior factorises over both, else one for each."""
    prior = diagonal[factors.index]
    split = _outer(prior)
    if split is None and factors.has_bias:
        parts = factors.without_last_input()
        splits = [_outer(diagonal[part.index]) for part in parts]
    else:
        parts, splits = (factors,), [split]
    placed: _Placed = []
    for part, factor in zip(parts, splits, strict=True):
        if factor is None:
            names = list(names_of(program, point.index[part.index.reshape(-1)]))
            raise UnsupportedProgram(
                f"structure='kron': the prior precision of sites {names} is not an outer product of one vector over "
                "outputs and one over inputs: use structure='full' or 'diag', or a prior that is (isotropic, by "
                "output, by input)"
            )
        block = Kron(part.gradients / part.count, part.inputs, *factor)
        placed.append((part.index.reshape(-1), block))
    return placed


def _outer(prior: Tensor) -> tuple[Tensor, Tensor] | None:
    """Vectors with prior [out, in] = d_out d_in', or None."""
    if not bool((prior != 0).any()):
        return torch.zeros_like(prior[:, 0]), torch.zeros_like(prior[0])
    if not bool((prior > 0).all()):
        return None
    out_prior, in_prior = prior[:, 0] / prior[0, 0], prior[0]
    close = torch.allclose(out_prior.unsqueeze(-1) * in_prior, prior, rtol=1e-5)
    return (out_prior, in_prior) if close else None


def _refuse_coupled(program: Program, point: Point, data: Data, jacobian: bool, products: list[KronFactors]) -> None:
    """Refuse a prior whose Hessian couples the entries of captured weights, with one another or with other sites."""
    index = torch.cat([factors.index.reshape(-1) for factors in products])
    if not prior_diagonal(program, point.only(index), data, jacobian)[1]:
        names = list(names_of(program, point.index[index]))
        raise UnsupportedProgram(
            f"structure='kron': the prior couples the entries of sites {names}, which a Kronecker "
            "product cannot hold: use structure='full'"
        )


def _low_rank(rank: int, curvature: Curvature, program: Program, point: Point, data: Data, jacobian: bool) -> _Placed:
    """The prior, and the leading eigenpairs of the likelihood's curvature that it whitens."""
    prior, is_diagonal = prior_diagonal(program, point, data, jacobian)
    coupled = ~(prior > 0) if is_diagonal else prior_coupled(program, point, data, jacobian)
    if bool(coupled.any()):
        names = list(names_of(program, point.index[coupled]))
        raise UnsupportedProgram(
            f"structure=LowRank({rank}) needs a diagonal prior precision, and positive: that of sites {names} "
            f"{'is not positive' if is_diagonal else 'couples their coordinates'}. Use 'full' for them, by a mapping "
            "{site glob: structure}"
        )
    scale = prior.sqrt()
    if len(prior) <= max(4 * rank, _SMALL):
        matrix = likelihood_matrix(curvature, program, point, data) / scale / scale.unsqueeze(-1)
        values, vectors = torch.linalg.eigh(matrix)
        leading = values.abs().argsort(descending=True)[:rank]
        values, vectors = values[leading], vectors[:, leading]
    else:
        product = likelihood_product(curvature, program, point, data)
        values, vectors = whitened_eigenpairs(product, scale, rank)
    if curvature.root is not None:
        values = values.clamp(min=0)  # what is negative is rounding
    if not bool((values > -1).all()):
        direction = vectors[:, values.argmin()].square()
        raise IndefiniteCurvature(_advise(direction, float(1 + values.min()), program, point, curvature))
    return [(torch.arange(len(prior)), DiagLowRank(prior, vectors, values))]


_SMALL = 200
"""Coordinates up to which eigenpairs come from the dense matrix."""


STRUCTURES: dict[str, Callable[[Curvature, Program, Point, Data, bool], _Placed]] = {
    "full": _full,
    "block": _block,
    "kron": _kron,
    "diag": _diag,
}


def _of_sites(names: Iterable[str], program: Program, point: Point) -> Tensor:
    """Where the coordinates of some sites lie among the free ones, ascending."""
    taken = torch.zeros(len(point.index), dtype=torch.bool, device=point.index.device)
    for name in names:
        place = program.layout[name]
        taken |= (point.index >= place.start) & (point.index < place.stop)
    return taken.nonzero()[:, 0]


_COLLAPSE = (
    "A scale that collapses to zero at the joint mode wants the non-centred form: x = loc + scale * z with z ~ "
    "Normal(0, 1)"
)


def _explain(matrix: Matrix, program: Program, point: Point, curvature: Curvature) -> str:
    """Which sites form the direction in which the log density has no maximum, and what to do."""
    scale = matrix.diagonal().abs().clamp(min=torch.finfo(matrix.dtype).tiny).sqrt()
    try:
        values, vectors = torch.linalg.eigh(matrix / scale / scale.unsqueeze(-1))
    except LinAlgError:
        return (
            "the curvature of the log joint is not finite at this point, or has no usable scale. A zero scale, a "
            "probability of 0 or 1, or an operation whose second derivative is undefined at the mode are usual causes. "
            f"{_COLLAPSE}"
        )
    return _advise(vectors[:, 0].square(), float(values[0]), program, point, curvature)


def _advise(shares: Tensor, value: float, program: Program, point: Point, curvature: Curvature) -> str:
    """The sites that have the largest shares [params] of a direction without a maximum, and what to do."""
    index = point.index.to(shares.device)
    share = {
        name: float(shares[(index >= latent.slice.start) & (index < latent.slice.stop)].sum())
        for name, latent in program.latents.items()
    }
    sites = [name for name, s in sorted(share.items(), key=lambda item: -item[1]) if s > 0.05]
    exact = "the exact Hessian may be indefinite there: try curvature='ggn'. " if curvature.root is None else ""
    return (
        f"the log joint has no strict maximum along a direction of sites {sites} (scaled curvature "
        f"{value:.3g}). If the data do not determine them, give them a proper prior; if the point is not a "
        f"mode, train longer or use polish=True. {exact}{_COLLAPSE}"
    )
