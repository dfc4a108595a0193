"""The posterior precision of the random coordinates: independent blocks, one after the other."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from pyro_laplace._typing import Draws, Matrix, Scalar, Theta
from pyro_laplace.structure.block import Block


class Precision(Block):
    """Block-diagonal Lambda, up to the order of the coordinates.

    Attributes:
        blocks: the blocks.
        order: coordinates of the blocks' entries, one block after the other [params].
    """

    blocks: Iterable[Block]
    order: Tensor

    def __init__(self, placed: list[tuple[Tensor, Block]], dtype: torch.dtype = torch.float64) -> None:
        """Join blocks.

        Args:
            placed: each block with its coordinates [block size].
            dtype: of `variance` and `to_dense`, that of the sites.
        """
        super().__init__()
        self.blocks = cast(Iterable[Block], torch.nn.ModuleList([block for _, block in placed]))
        self.sizes = [block.size for _, block in placed]
        self.register_buffer("order", torch.cat([index for index, _ in placed]))
        self.dtype = dtype
        self._sorted = bool((self.order[1:] > self.order[:-1]).all())

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
        return self._place(torch.cat([block.variance() for block in self.blocks])).to(self.dtype)

    def covariance_at(self, row: Tensor, col: Tensor) -> Tensor:
        """Of the blocks; zero between them."""
        place = torch.empty_like(self.order).index_copy(
            0, self.order, torch.arange(self.size, device=self.order.device)
        )
        row, col = place[row], place[col]
        found = torch.zeros(len(row), dtype=torch.float64, device=row.device)
        start = 0
        for size, block in zip(self.sizes, self.blocks, strict=True):
            own = (torch.minimum(row, col) >= start) & (torch.maximum(row, col) < start + size)
            found[own] = block.covariance_at(row[own] - start, col[own] - start).to(found)
            start += size
        return found

    def to_dense(self) -> Matrix:
        """Lambda [params, params]."""
        dense = torch.block_diag(*(block.to_dense() for block in self.blocks))
        return self._place(self._place(dense).mT).mT.to(self.dtype)

    def push(self, rows: Tensor) -> Tensor:
        """R'^-1 j for rows j [..., params] of a Jacobian."""
        return self._each("push", rows)

    @staticmethod
    def of(block: Block, dtype: torch.dtype) -> "Precision":
        """A block that may consist of several as these, with their results in a dtype."""
        return Precision(block.placed(), dtype)

    def placed(self) -> list[tuple[Tensor, Block]]:
        """Each block with its coordinates [block size]."""
        return list(zip(self.order.split(self.sizes), self.blocks, strict=True))

    def _each(self, operation: str, x: Tensor) -> Tensor:
        """Apply a block's operation to its coordinates of x [..., params]."""
        taken = x if self._sorted else x.index_select(-1, self.order)
        parts = zip(self.blocks, taken.split(self.sizes, -1), strict=True)
        return self._place(torch.cat([getattr(block, operation)(part) for block, part in parts], -1))

    def _place(self, joined: Tensor) -> Tensor:
        """Blocks' entries [..., params] to their coordinates."""
        return joined if self._sorted else torch.empty_like(joined).index_copy(-1, self.order, joined)
