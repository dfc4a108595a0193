"""A posterior precision in the prior's place: what the curvature of new data is added to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.diag import Diag


@dataclass(frozen=True, eq=False)
class Previous:
    """Independent blocks over some coordinates.

    Attributes:
        size: number of coordinates.
        placed: the blocks with their coordinates.
    """

    size: int
    placed: list[tuple[Tensor, Block]]

    def over(self, chosen: Tensor) -> "Previous":
        """The blocks that lie within some coordinates, in the numbering of these."""
        place = torch.full((self.size,), -1, device=chosen.device)
        place[chosen] = torch.arange(len(chosen), device=chosen.device)
        inside = [(place[index], block) for index, block in self.placed if bool((place[index] >= 0).all())]
        return Previous(len(chosen), inside)

    def block(self, index: Tensor) -> Block | None:
        """The block over exactly these coordinates, in this order."""
        return next((block for where, block in self.placed if torch.equal(where, index)), None)

    @property
    def diagonal(self) -> Theta:
        """The diagonal [params], in float64."""
        total = torch.zeros(self.size, dtype=torch.float64, device=self._device)
        for index, block in self.placed:
            total[index] = block.prec if isinstance(block, Diag) else block.to_dense().diagonal()
        return total

    @property
    def is_diagonal(self) -> bool:
        """Whether all blocks are."""
        return all(isinstance(block, Diag) for _, block in self.placed)

    @property
    def coupled(self) -> Tensor:
        """The coordinates of blocks that are not diagonal [params]."""
        total = torch.zeros(self.size, dtype=torch.bool, device=self._device)
        for index, block in self.placed:
            total[index] = not isinstance(block, Diag)
        return total

    def matrix(self) -> Matrix:
        """All of it, [params, params]."""
        total = torch.zeros(self.size, self.size, dtype=torch.float64, device=self._device)
        self.add_to(total, torch.arange(self.size, device=self._device))
        return total

    def add_to(self, total: Matrix, order: Tensor) -> None:
        """Add it to a matrix whose entry i is the coordinate `order[i]`."""
        back = torch.empty_like(order).index_copy(0, order, torch.arange(len(order), device=order.device))
        for index, block in self.placed:
            where = back[index]
            total[where.unsqueeze(1), where] += block.to_dense()

    @property
    def _device(self) -> torch.device:
        return self.placed[0][0].device
