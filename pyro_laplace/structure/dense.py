"""A full precision, by the Cholesky factor of its symmetrically scaled form.

Lambda = D C D with C of unit diagonal, C = L L'. The scaling takes the units of the coordinates out of the condition
number, which is then that of the correlations.
"""

import warnings

import torch
from torch import Tensor

from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._errors import IndefiniteCurvature, LaplaceWarning
from pyro_laplace._typing import Draws, Matrix, Scalar, Theta
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.reading.prior import Prior
from pyro_laplace.settings import settings
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.explain import explain


class Dense(Block):
    """Lambda = D L L' D; its root is R = L' D."""

    scale: Tensor
    scale_tril: Tensor

    def __init__(self, matrix: Matrix) -> None:
        """Factorise a precision.

        Args:
            matrix: Lambda, of which the lower triangle is read. It is used up: in float64, the factor takes its place.

        Raises:
            IndefiniteCurvature: if it is not positive definite.
        """
        super().__init__()
        matrix = matrix.double()
        diagonal = matrix.diagonal().clone()
        if not bool((diagonal > 0).all()):  # also catches nan
            raise IndefiniteCurvature("the posterior precision has a diagonal entry that is not positive")
        scale = diagonal.sqrt()
        matrix.div_(scale).div_(scale.unsqueeze(-1))
        info = torch.empty((), dtype=torch.int32, device=matrix.device)
        factor, info = torch.linalg.cholesky_ex(matrix, out=(matrix, info))
        if bool(info):
            raise IndefiniteCurvature("the posterior precision is not positive definite")
        self.register_buffer("scale", scale)
        self.register_buffer("scale_tril", factor)

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.scale)

    def log_det(self) -> Scalar:
        """2 sum log(D_ii L_ii)."""
        return 2 * (self.scale.log().sum() + self.scale_tril.diagonal().log().sum())

    def color(self, white: Draws) -> Draws:
        """D^-1 L'^-1 z."""
        rows = white.to(self.scale)
        upper = self.scale_tril.mT
        return (torch.linalg.solve_triangular(upper, rows.mT, upper=True).mT / self.scale).to(white)

    def whiten(self, deviation: Draws) -> Draws:
        """L' D d."""
        return ((deviation.to(self.scale) * self.scale) @ self.scale_tril).to(deviation)

    def solve(self, vector: Tensor) -> Tensor:
        """D^-1 C^-1 D^-1 v."""
        rows = (vector.to(self.scale) / self.scale).reshape(-1, self.size)
        solved = torch.cholesky_solve(rows.mT, self.scale_tril).mT / self.scale
        return solved.reshape(vector.shape).to(vector)

    def variance(self) -> Theta:
        """Column norms of L^-1, unscaled."""
        eye = torch.eye(self.size, dtype=self.scale.dtype, device=self.scale.device)
        inverse = torch.linalg.solve_triangular(self.scale_tril, eye, upper=False)
        return inverse.square().sum(0) / self.scale.square()

    def to_dense(self) -> Matrix:
        """D L L' D."""
        root = self.scale.unsqueeze(-1) * self.scale_tril
        return root @ root.mT

    def push(self, rows: Tensor) -> Tensor:
        """L^-1 D^-1 j."""
        scaled = (rows.to(self.scale) / self.scale).reshape(-1, self.size)
        return torch.linalg.solve_triangular(self.scale_tril, scaled.mT, upper=False).mT.reshape(rows.shape).to(rows)


def _resolved(block: Dense, anchor: Anchor) -> Dense:
    """The block, unless it is positive definite by rounding alone: data and prior leave a direction open."""
    exact = anchor.curvature == "hessian"  # made in the sites' own dtype; sums of a root are made in float64
    eps = torch.finfo(anchor.theta.dtype if exact else torch.float64).eps
    if float(block.scale_tril.diagonal().min().square()) < settings.flat_pivot * block.size * eps:
        raise IndefiniteCurvature
    return block


def dense_posterior(lower: Matrix, order: Tensor, prior: Prior, anchor: Anchor) -> Dense:
    """The precision of a likelihood's curvature and a prior.

    Args:
        lower: the likelihood's curvature, of which the lower triangle is read.
        order: coordinate of each of its rows.
        prior: what is added to it.
        anchor: whose coordinates these are.

    Returns:
        the block, its entries in that order.

    Raises:
        IndefiniteCurvature: if the point is no maximum in some direction, naming the sites that form it.
    """
    total = lower.clone()
    prior.add_to(total, order)
    try:
        return _resolved(Dense(total), anchor)
    except IndefiniteCurvature:
        places = torch.empty_like(order).index_copy(0, order, torch.arange(len(order)).to(order))
        total = (lower.tril() + lower.tril(-1).mT)[places.unsqueeze(1), places]
        total = total + prior.matrix()
        if anchor.curvature == "hessian":
            raise IndefiniteCurvature(explain(total, anchor)) from None
    # the likelihood part is positive semi-definite by construction, so the prior's convex directions are to blame
    try:
        values, vectors = torch.linalg.eigh(prior.matrix())
        convex = (vectors * values.clamp(max=0)) @ vectors.mT
        block = _resolved(Dense((total - convex)[order.unsqueeze(1), order]), anchor)
    except (IndefiniteCurvature, LinAlgError):
        raise IndefiniteCurvature(explain(total, anchor)) from None
    warnings.warn(
        f"the log prior is convex at this point in {int((values < 0).sum())} directions, and the data do not make up "
        "for it; their curvature was set to zero. The posterior is wider there than this approximation can say",
        LaplaceWarning,
        stacklevel=4,
    )
    return block
