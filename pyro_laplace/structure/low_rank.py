"""A diagonal precision and an update of low rank, in the basis that the diagonal whitens.

``Lambda = D^1/2 (I + Q diag(s) Q') D^1/2`` with orthonormal columns Q: its inverse and root are closed forms of the
same shape (Woodbury), at a cost of params times rank.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature, LaplaceError
from pyro_laplace._typing import Draws, Matrix, Scalar, Theta
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.products import LikelihoodProduct


class DiagLowRank(Block):
    """``Lambda = D^1/2 (I + Q diag(s) Q') D^1/2``; its root is ``R = (I + Q diag(sqrt(1 + s) - 1) Q') D^1/2``."""

    scale: Tensor
    basis: Tensor
    eigenvalues: Tensor

    def __init__(self, diagonal: Theta, basis: Tensor, eigenvalues: Tensor) -> None:
        """Hold the diagonal and the update.

        Args:
            diagonal: D [params], positive.
            basis: Q [params, rank], orthonormal columns.
            eigenvalues: s [rank], above -1.

        Raises:
            IndefiniteCurvature: if Lambda is not positive definite.
        """
        super().__init__()
        if not bool((diagonal > 0).all()) or not bool((eigenvalues > -1).all()):
            raise IndefiniteCurvature("the posterior precision is not positive definite")
        self.register_buffer("scale", diagonal.double().sqrt())
        self.register_buffer("basis", basis.double())
        self.register_buffer("eigenvalues", eigenvalues.double())

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.scale)

    def log_det(self) -> Scalar:
        """Sum log D + sum log(1 + s)."""
        return 2 * self.scale.log().sum() + self.eigenvalues.log1p().sum()

    def color(self, white: Draws) -> Draws:
        """D^-1/2 (z + Q ((1 + s)^-1/2 - 1) Q'z)."""
        change = (1 + self.eigenvalues).rsqrt() - 1
        return (self._changed(white.to(self.scale), change) / self.scale).to(white)

    def whiten(self, deviation: Draws) -> Draws:
        """X + Q (sqrt(1 + s) - 1) Q'x of x = D^1/2 d."""
        change = (1 + self.eigenvalues).sqrt() - 1
        return self._changed(deviation.to(self.scale) * self.scale, change).to(deviation)

    def solve(self, vector: Tensor) -> Tensor:
        """D^-1/2 (x - Q s/(1 + s) Q'x) of x = D^-1/2 v."""
        change = -self.eigenvalues / (1 + self.eigenvalues)
        return (self._changed(vector.to(self.scale) / self.scale, change) / self.scale).to(vector)

    def variance(self) -> Theta:
        """``(1 - Q^2 s/(1 + s)) / D``."""
        shrunk = self.basis.square() @ (self.eigenvalues / (1 + self.eigenvalues))
        return (1 - shrunk) / self.scale.square()

    def to_dense(self) -> Matrix:
        """D + D^1/2 Q diag(s) Q' D^1/2."""
        root = self.scale.unsqueeze(-1) * self.basis
        return self.scale.square().diag() + (root * self.eigenvalues) @ root.mT

    def push(self, rows: Tensor) -> Tensor:
        """X + Q ((1 + s)^-1/2 - 1) Q'x of x = D^-1/2 j."""
        change = (1 + self.eigenvalues).rsqrt() - 1
        return self._changed(rows.to(self.scale) / self.scale, change).to(rows)

    def _changed(self, x: Tensor, change: Tensor) -> Tensor:
        """X + Q diag(change) Q'x of x [..., params]."""
        return x + ((x @ self.basis) * change) @ self.basis.mT


def whitened_eigenpairs(curvature: LikelihoodProduct, scale: Theta, rank: int) -> tuple[Tensor, Tensor]:
    """The leading eigenpairs of ``D^-1/2 G D^-1/2``.

    With fewer rows of a root A than coordinates, they are those of the dual ``A D^-1 A'``, mapped back: Lanczos vectors
    are then as long as A has rows.

    Args:
        curvature: G.
        scale: D^1/2 [params].
        rank: how many.

    Returns:
        eigenvalues [r] and orthonormal eigenvectors [params, r] in float64, r at most the rank.
    """
    rows = curvature.rows
    if rows is None or rows >= len(scale):
        return leading_eigenpairs(lambda v: curvature(v / scale) / scale, rank, curvature.like)
    if rows <= 2 * rank:
        dual = torch.eye(rows, dtype=torch.float64, device=scale.device)
    else:
        like = torch.empty(rows, dtype=curvature.like.dtype, device=scale.device)
        dual = leading_eigenpairs(lambda u: curvature.push(curvature.pull(u) / scale.square()), rank, like)[1]
    back = torch.stack([curvature.pull(u) for u in dual.mT], 1).div_(scale.unsqueeze(-1))  # D^-1/2 A'U
    values, vectors = torch.linalg.eigh(back.mT @ back)
    values, vectors = values[-rank:], vectors[:, -rank:]
    kept = values > len(values) * torch.finfo(values.dtype).eps * values.max()
    return values[kept], back @ (vectors[:, kept] / values[kept].sqrt())


def leading_eigenpairs(product: Callable[[Tensor], Tensor], rank: int, like: Theta) -> tuple[Tensor, Tensor]:
    """The eigenpairs of largest magnitude of a symmetric matrix, by implicitly restarted Lanczos (ARPACK).

    Args:
        product: v -> M v, [params] to [params].
        rank: how many, fewer than params.
        like: a vector [params] of the dtype that the products are made in.

    Returns:
        eigenvalues [rank] and orthonormal eigenvectors [params, rank], in float64.

    Raises:
        LaplaceError: if the iteration does not converge.
    """
    size = len(like)

    def multiply(vector: np.ndarray) -> np.ndarray:
        v = torch.as_tensor(vector.reshape(-1), dtype=torch.float64, device=like.device)
        return product(v).cpu().numpy()

    operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    start = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    tolerance = torch.finfo(like.dtype).eps ** 0.75
    try:
        values, vectors = eigsh(operator, k=rank, which="LM", v0=start, tol=tolerance)
    except ArpackNoConvergence as error:
        raise LaplaceError(
            f"LowRank: {len(error.eigenvalues)} of {rank} eigenpairs of the curvature converged: give a lower rank"
        ) from error
    return torch.as_tensor(values).to(like.device), torch.as_tensor(vectors).to(like.device)
