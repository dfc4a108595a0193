"""What a block of a posterior precision is: a square root with the few operations that everything else needs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._typing import Draws, Matrix, Scalar, Theta


@dataclass(frozen=True, eq=False)
class Basis:
    """A basis in which Sigma is diagonal, and rows ``g (x) a`` of a Jacobian are still such products.

    ``(J Sigma J')[nk, ml] = sum_oi v[o,i] g[n,k,o] a[n,i] g[m,l,o] a[m,i]`` for g and a in that basis.

    Attributes:
        outputs: what g [..., o] is multiplied by, [o, o]; None for nothing.
        inputs: what a [..., i] is multiplied by, [i, i].
        variances: v [o, i].
    """

    outputs: Tensor | None
    inputs: Tensor | None
    variances: Tensor

    def rotate(self, gradients: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """g and a in the basis."""
        return (
            gradients if self.outputs is None else gradients @ self.outputs,
            inputs if self.inputs is None else inputs @ self.inputs,
        )


class Block(torch.nn.Module, ABC):
    """A symmetric positive definite precision Lambda = R'R over a group of coordinates of theta.

    A block is a module only so that its tensors are buffers, which move and are saved with the guide. They are float64;
    results have the dtype of what is passed in.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of coordinates."""

    @abstractmethod
    def log_det(self) -> Scalar:
        """Log determinant of Lambda."""

    @abstractmethod
    def color(self, white: Draws) -> Draws:
        """White noise z [draws, params] to R^-1 z, which has covariance Lambda^-1."""

    @abstractmethod
    def whiten(self, deviation: Draws) -> Draws:
        """The inverse of `color`: R d for deviations d [draws, params]."""

    @abstractmethod
    def solve(self, vector: Tensor) -> Tensor:
        """Lambda^-1 v for v [..., params]."""

    @abstractmethod
    def variance(self) -> Theta:
        """Marginal variances, the diagonal of Lambda^-1, [params]."""

    @abstractmethod
    def to_dense(self) -> Matrix:
        """Lambda [params, params]."""

    @abstractmethod
    def push(self, rows: Tensor) -> Tensor:
        """R'^-1 j for each row j [..., params] of a Jacobian J: ``J Sigma J'`` is the result times its transpose."""

    def covariance_at(self, row: Tensor, col: Tensor) -> Tensor:
        """Entries of Lambda^-1 [entries].

        Args:
            row: of each entry.
            col: of each entry.

        Returns:
            the entries, in float64.
        """
        columns, where = col.unique(return_inverse=True)
        unit = torch.zeros(len(columns), self.size, dtype=torch.float64, device=col.device)
        return self.solve(unit.scatter_(1, columns.unsqueeze(1), 1.0))[where, row]

    def placed(self) -> list[tuple[Tensor, "Block"]]:
        """The independent blocks that it consists of, with their coordinates: itself."""
        device = next((buffer.device for buffer in self.buffers()), None)
        return [(torch.arange(self.size, device=device), self)]

    def diagonal_basis(self, index: Tensor, dtype: torch.dtype) -> Basis | None:
        """The basis in which Sigma is diagonal and rows ``g (x) a`` stay products, where there is one.

        Args:
            index: coordinates [o, i] of the block that the rows cover, each once; -1 for one that is not in it.
            dtype: of the basis.

        Returns:
            the basis, or None.
        """
        return None
