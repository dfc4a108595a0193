"""One component of a nested approximation: the hyper sites around a point, and the others given them.

``h ~ N(c, K)`` and ``x | h ~ N(m + J (h - c), H^-1)``: jointly Gaussian, held by the two roots.
"""

import math

import torch
from torch import Tensor

from pyro_laplace._typing import Draws, Matrix, Scalar, Theta
from pyro_laplace.structure.block import Block


class Node(Block):
    """The precision of h and x, in this order.

    Args:
        root: L [q, q], lower triangular, with K = L L'.
        response: J [i, q].
        inner: H, the precision of x given h [i, i].
    """

    root: Tensor
    response: Tensor

    def __init__(self, root: Tensor, response: Tensor, inner: Block | None) -> None:
        super().__init__()
        self.register_buffer("root", root.double())
        self.register_buffer("response", response.double())
        self.inner = inner

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.root) + len(self.response)

    def log_det(self) -> Scalar:
        """``log det H - log det K``."""
        outer = -2 * self.root.diagonal().log().sum()
        return outer if self.inner is None else outer + self.inner.log_det().to(outer)

    def color(self, white: Draws) -> Draws:
        """``h = L z_h``, ``x = J h + R^-1 z_x``."""
        z_h, z_x = self._parted(white)
        h = z_h @ self.root.mT
        x = z_x if self.inner is None else h @ self.response.mT + self.inner.color(z_x)
        return torch.cat([h, x], -1).to(white)

    def whiten(self, deviation: Draws) -> Draws:
        """``z_h = L^-1 h``, ``z_x = R (x - J h)``."""
        h, x = self._parted(deviation)
        z_h = torch.linalg.solve_triangular(self.root, h.mT, upper=False).mT
        z_x = x if self.inner is None else self.inner.whiten(x - h @ self.response.mT)
        return torch.cat([z_h, z_x], -1).to(deviation)

    def log_prob_of_inner(self, deviation: Draws) -> Tensor:
        """``log N(x; J h, H^-1)`` of deviations of h and x, [draws]."""
        white = self.whiten(deviation.double())[:, len(self.root) :]
        volume = 0.0 if self.inner is None else 0.5 * self.inner.log_det()
        return volume - 0.5 * (white.square() + math.log(2 * math.pi)).sum(1)

    def solve(self, vector: Tensor) -> Tensor:
        """``Sigma v``, with ``Sigma_hh = K``, ``Sigma_xh = J K`` and ``Sigma_xx = J K J' + H^-1``."""
        v_h, v_x = self._parted(vector)
        h = (v_h + v_x @ self.response) @ self.root @ self.root.mT  # K (v_h + J' v_x)
        x = v_x if self.inner is None else h @ self.response.mT + self.inner.solve(v_x)
        return torch.cat([h, x], -1).to(vector)

    def variance(self) -> Theta:
        """Of h those of K, of x those of ``J K J' + H^-1``."""
        of_h = self.root.square().sum(-1)
        if self.inner is None:
            return of_h
        of_x = (self.response @ self.root).square().sum(-1) + self.inner.variance().to(of_h)
        return torch.cat([of_h, of_x])

    def to_dense(self) -> Matrix:
        """``[[K^-1 + J' H J, -J' H], [-H J, H]]``."""
        of_h = torch.cholesky_inverse(self.root)
        if self.inner is None:
            return of_h
        dense = self.inner.to_dense().to(of_h)
        beside = -dense @ self.response
        of_h = of_h - self.response.mT @ beside
        return torch.cat([torch.cat([of_h, beside.mT], 1), torch.cat([beside, dense], 1)])

    def push(self, rows: Tensor) -> Tensor:
        """``[L' (j_h + J' j_x), R'^-1 j_x]`` for rows (j_h, j_x)."""
        j_h, j_x = self._parted(rows)
        of_h = (j_h + j_x @ self.response) @ self.root
        return torch.cat([of_h, j_x if self.inner is None else self.inner.push(j_x)], -1).to(rows)

    def _parted(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.to(self.root)
        return rows[..., : len(self.root)], rows[..., len(self.root) :]
