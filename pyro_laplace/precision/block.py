"""What a block of a posterior precision is: a square root with the few operations that everything else needs."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pyro_laplace._typing import Draws, Matrix, Scalar, Theta


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
