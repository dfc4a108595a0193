"""The one table of structures, and how each is built from the curvature of likelihood and prior."""

import warnings
from collections.abc import Callable

import torch

from pyro_laplace._errors import IndefiniteCurvature, LaplaceWarning
from pyro_laplace._typing import Matrix
from pyro_laplace.curvature import (
    Curvature,
    Point,
    likelihood_diagonal,
    likelihood_matrix,
    prior_diagonal,
    prior_matrix,
)
from pyro_laplace.data import Data
from pyro_laplace.precision.block import Block
from pyro_laplace.precision.dense import Dense
from pyro_laplace.precision.diag import Diag
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

    Raises:
        IndefiniteCurvature: if the point is no maximum in some direction, naming the sites that form it.
    """
    return Precision([STRUCTURES[structure](curvature, program, point, data, jacobian)])


def _full(curvature: Curvature, program: Program, point: Point, data: Data, jacobian: bool) -> Block:
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


def _diag(curvature: Curvature, program: Program, point: Point, data: Data, jacobian: bool) -> Block:
    likelihood = likelihood_diagonal(curvature, program, point, data)
    prior = prior_diagonal(program, point, data, jacobian)
    try:
        return Diag(likelihood + prior)
    except IndefiniteCurvature:
        raise IndefiniteCurvature(_explain((likelihood + prior).diag(), program, point, curvature)) from None


STRUCTURES: dict[str, Callable[[Curvature, Program, Point, Data, bool], Block]] = {"full": _full, "diag": _diag}


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
