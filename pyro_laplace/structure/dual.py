"""A full precision with fewer rows than coordinates, by a system of the rows' number (the dual form).

``Lambda = D (I + Z'Z) D`` with a diagonal D, whose square the prior is, and the whitened root Z [rows, params]. With
``LL' = I + ZZ'`` its root is ``R = M^-1 D`` for

    M = I - Z'W Z,  W = L'^-1 (L + I)^-1,  M M' = (I + Z'Z)^-1,  M^-1 = I + Z'(L' + I)^-1 Z:

the square root of Andrews (1968), "A square root formulation of the Kalman covariance equations", which needs no
eigenvectors. M is applied to both sides where Woodbury's formula would cancel: that loses digits by the square root of
the condition number of ``I + ZZ'``, not by all of it.
"""

import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature
from pyro_laplace._memory import refuse_too_large
from pyro_laplace._typing import Draws, Matrix, Scalar, Theta
from pyro_laplace.settings import settings
from pyro_laplace.structure.block import Block


class Dual(Block):
    """Lambda = D (I + Z'Z) D."""

    scale: Tensor
    rows: Tensor
    scale_tril: Tensor

    def __init__(self, scale: Theta, rows: Tensor, gram: Tensor | None = None) -> None:
        """Factorise ``I + ZZ'``.

        Args:
            scale: the diagonal of D [params], positive.
            rows: Z [rows, params].
            gram: ``ZZ'`` [rows, rows] where it is known; it is used up.

        Raises:
            IndefiniteCurvature: if D is not positive, or Z not finite.
        """
        super().__init__()
        scale, rows = scale.double(), rows.double()
        gram = rows @ rows.mT if gram is None else gram
        trace = float(gram.diagonal().sum())
        if not bool((scale > 0).all()) or not trace < torch.inf:  # also catches nan
            raise IndefiniteCurvature("the posterior precision is not positive definite, or not finite")
        if trace > settings.dual_trace:
            eye = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
            upper = torch.linalg.qr(torch.cat([rows.mT, eye]), mode="r").R
            factor = (upper * upper.diagonal().sign().unsqueeze(1)).mT.contiguous()
        else:
            gram.diagonal().add_(1.0)
            factor = torch.linalg.cholesky(gram)
        self.register_buffer("scale", scale)
        self.register_buffer("rows", rows)
        self.register_buffer("scale_tril", factor)

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.scale)

    def log_det(self) -> Scalar:
        """2 sum log D_ii + 2 sum log L_ii."""
        return 2 * (self.scale.log().sum() + self.scale_tril.diagonal().log().sum())

    def color(self, white: Draws) -> Draws:
        """D^-1 M z."""
        return (self._shrunk(white.to(self.scale)) / self.scale).to(white)

    def whiten(self, deviation: Draws) -> Draws:
        """M^-1 D d."""
        x = deviation.to(self.scale) * self.scale
        weights = torch.linalg.solve_triangular(self._shifted().mT, self.rows @ x.mT, upper=True)
        return (x + weights.mT @ self.rows).to(deviation)

    def solve(self, vector: Tensor) -> Tensor:
        """D^-1 M M' D^-1 v."""
        pushed = self._pushed(vector.to(self.scale).reshape(-1, self.size))
        return (self._shrunk(pushed) / self.scale).reshape(vector.shape).to(vector)

    def variance(self) -> Theta:
        """``(1 - |L^-1 Z e_i|^2) / D_ii^2``; where little is left, the norm of row i of M."""
        left = torch.cat([self._left(columns) for columns in self.rows.split(self._step(len(self.rows)), 1)])
        cancelled = (left < settings.dual_left).nonzero()[:, 0]
        for some in cancelled.split(self._step(self.size)):
            unit = self.scale.new_zeros(len(some), self.size)
            unit[torch.arange(len(some), device=some.device), some] = self.scale[some]
            left[some] = self._pushed(unit).square().sum(1)
        return left / self.scale.square()

    def to_dense(self) -> Matrix:
        """D (I + Z'Z) D."""
        refuse_too_large(self.size**2, 8, f"the dense precision [{self.size}, {self.size}]", "use its operations")
        root = self.rows * self.scale
        dense = root.mT @ root
        dense.diagonal().add_(self.scale.square())
        return dense

    def push(self, rows: Tensor) -> Tensor:
        """M'D^-1 j."""
        return self._pushed(rows.to(self.scale).reshape(-1, self.size)).reshape(rows.shape).to(rows)

    def _shrunk(self, x: Tensor) -> Tensor:
        """M x for rows x."""
        inner = torch.linalg.solve_triangular(self._shifted(), self.rows @ x.mT, upper=False)
        weights = torch.linalg.solve_triangular(self.scale_tril.mT, inner, upper=True)  # W Z x
        return x - weights.mT @ self.rows

    def _pushed(self, vectors: Tensor) -> Tensor:
        """M'D^-1 v for rows v."""
        x = vectors / self.scale
        inner = torch.linalg.solve_triangular(self.scale_tril, self.rows @ x.mT, upper=False)
        weights = torch.linalg.solve_triangular(self._shifted().mT, inner, upper=True)  # W'Z x
        return x - weights.mT @ self.rows

    def _left(self, columns: Tensor) -> Tensor:
        return 1 - torch.linalg.solve_triangular(self.scale_tril, columns, upper=False).square().sum(0)

    def _shifted(self) -> Tensor:
        """L + I."""
        shifted = self.scale_tril.clone()
        shifted.diagonal().add_(1.0)
        return shifted

    @staticmethod
    def _step(per_item: int) -> int:
        return max(1, settings.row_elements // max(1, per_item))
