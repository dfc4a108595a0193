"""The one table of structures, and how each is built from the curvature of likelihood and prior."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature, InvalidOption, LaplaceWarning, UnsupportedProgram
from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.curvature import (
    Curvature,
    KronFactors,
    Point,
    kron_factors,
    likelihood_diagonal,
    likelihood_matrix,
    prior_diagonal,
    prior_matrix,
)
from pyro_laplace.data import Data
from pyro_laplace.precision.block import Block
from pyro_laplace.precision.dense import Dense
from pyro_laplace.precision.diag import Diag
from pyro_laplace.precision.kron import Kron
from pyro_laplace.precision.precision import Precision
from pyro_laplace.program import Program


def build_precision(
    structure: str, curvature: Curvature, program: Program, point: Point, data: Data, jacobian: bool
) -> Precision:
    """The posterior precision over the free coordinates of a point.

    Args:
        structure: a key of `STRUCTURES`.
        curvature: how the likelihood's curvature is measured.
        program: the traced program.
        point: theta and its free coordinates.
        data: the data.
        jacobian: whether the density is that of theta.

    Returns:
        Lambda, as independent blocks.

    Raises:
        IndefiniteCurvature: if the point is no maximum in some direction, naming the sites that form it.
    """
    return Precision(STRUCTURES[structure](curvature, program, point, data, jacobian))


_Placed = list[tuple[Tensor, Block]]
"""Blocks with their free coordinates."""


def _full(curvature: Curvature, program: Program, point: Point, data: Data, jacobian: bool) -> _Placed:
    return [(torch.arange(len(point.index)), _dense(curvature, program, point, data, jacobian))]


def _dense(curvature: Curvature, program: Program, point: Point, data: Data, jacobian: bool) -> Block:
    likelihood = likelihood_matrix(curvature, program, point, data)
    prior = prior_matrix(program, point, data, jacobian)
    try:
        return Dense(likelihood + prior)
    except IndefiniteCurvature:
        if curvature.root is None:
            raise IndefiniteCurvature(_explain(likelihood + prior, program, point, curvature)) from None
    # the likelihood part is positive semi-definite by construction, so the prior's convex directions are to blame
    values, vectors = torch.linalg.eigh(prior)
    projected = (vectors * values.clamp(min=0)) @ vectors.mT
    try:
        block = Dense(likelihood + projected)
    except IndefiniteCurvature:
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
    if curvature.root is None:
        raise InvalidOption(f"structure='kron' has no curvature={curvature.name!r}: use 'ggn', or another structure")
    products, dense_index, dense = kron_factors(program, point, data)
    diagonal, is_diagonal = prior_diagonal(program, point, data, jacobian)
    if not is_diagonal:
        _refuse_coupled(program, point, data, jacobian, products)
    placed: _Placed = [block for factors in products for block in _kron_blocks(factors, diagonal, program, point)]
    if len(dense_index):
        names = Point(point.theta, point.index[dense_index])
        prior = diagonal[dense_index].diag() if is_diagonal else prior_matrix(program, names, data, jacobian)
        placed.append((dense_index, Dense(dense + prior)))
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
            names = _names(point.index[part.index.reshape(-1)], program)
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
    if index.numel() and not prior_diagonal(program, point.only(index), data, jacobian)[1]:
        raise UnsupportedProgram(
            f"structure='kron': the prior couples the entries of sites {_names(point.index[index], program)}, which a "
            "Kronecker product cannot hold: use structure='full'"
        )


STRUCTURES: dict[str, Callable[[Curvature, Program, Point, Data, bool], _Placed]] = {
    "full": _full,
    "kron": _kron,
    "diag": _diag,
}


def _names(index: Tensor, program: Program) -> list[str]:
    """The sites that hold some coordinates of theta."""
    return [n for n, s in program.layout.items() if bool(((index >= s.start) & (index < s.stop)).any())]


def _explain(matrix: Matrix, program: Program, point: Point, curvature: Curvature) -> str:
    """Which sites form the direction in which the log density has no maximum, and what to do."""
    if not bool(matrix.isfinite().all()):
        return (
            "the curvature of the log joint is not finite at this point. A zero scale, a probability of 0 or 1, or an "
            "operation whose second derivative is undefined at the mode are usual causes"
        )
    scale = matrix.diagonal().abs().clamp(min=torch.finfo(matrix.dtype).tiny).sqrt()
    values, vectors = torch.linalg.eigh(matrix / scale / scale.unsqueeze(-1))
    direction = vectors[:, 0].square()
    index = point.index.to(direction.device)
    share = {
        name: float(direction[(index >= latent.slice.start) & (index < latent.slice.stop)].sum())
        for name, latent in program.latents.items()
    }
    sites = [name for name, s in sorted(share.items(), key=lambda item: -item[1]) if s > 0.05]
    exact = "the exact Hessian may be indefinite there: try curvature='ggn'. " if curvature.root is None else ""
    return (
        f"the log joint has no strict maximum along a direction of sites {sites} (scaled curvature "
        f"{values[0].item():.3g}). If the data do not determine them, give them a proper prior; if the point is not a "
        f"mode, train longer or use polish=True. {exact}A scale that collapses to zero wants the non-centred form: "
        "x = loc + scale * z with z ~ Normal(0, 1)"
    )
