"""The posterior precision of the random coordinates: independent blocks, one after the other."""

import torch
from torch import Tensor

from pyro_laplace._typing import Draws, Matrix, Scalar, Theta
from pyro_laplace.precision.block import Block


class Precision(Block):
    """Block-diagonal Lambda; the blocks follow each other in the order of the coordinates.

    Attributes:
        blocks: the blocks.
    """

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(blocks)
        self.sizes = [block.size for block in blocks]

    @property
    def size(self) -> int:
        """Number of random coordinates."""
        return sum(self.sizes)

    def log_det(self) -> Scalar:
        """Sum over blocks."""
        return torch.stack([block.log_det() for block in self.blocks]).sum()

    def color(self, white: Draws) -> Draws:
        """White noise [draws, params] to deviations with covariance Lambda^-1."""
        return self._each("color", white)

    def whiten(self, deviation: Draws) -> Draws:
        """The inverse of `color`."""
        return self._each("whiten", deviation)

    def solve(self, vector: Tensor) -> Tensor:
        """Lambda^-1 v for v [..., params]."""
        return self._each("solve", vector)

    def variance(self) -> Theta:
        """Marginal variances [params]."""
        return torch.cat([block.variance() for block in self.blocks])

    def to_dense(self) -> Matrix:
        """Lambda [params, params]."""
        return torch.block_diag(*(block.to_dense() for block in self.blocks))

    def _each(self, operation: str, x: Tensor) -> Tensor:
        parts = zip(self.blocks, x.split(self.sizes, -1), strict=True)
        return torch.cat([getattr(block, operation)(part) for block, part in parts], -1)
