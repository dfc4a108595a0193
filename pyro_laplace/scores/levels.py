"""What is kept of predictions of some data, until all are seen: marks, and the quantiles that are asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace.settings import settings

type Marks = Mapping[str, Tensor]
"""Of the data of one site that count: "log_prob" [data]; of classes "probs" `[entries, classes]` and "labels"; of
numbers "square" (the squared error of the mean), "crps", "variance" and "truth" [entries], and "quantiles" `[entries,
tails]`."""


@dataclass(frozen=True)
class Levels:
    """Central intervals of a prediction, and other quantiles of it.

    Attributes:
        levels: what each interval is to hold, between 0 and 1.
        grid: number of further quantiles, at the middles of equal parts.
    """

    levels: tuple[float, ...]
    grid: int = 0

    @staticmethod
    def usual() -> "Levels":
        """The one interval of `settings.coverage_level`."""
        return Levels((settings.coverage_level,))

    @property
    def probs(self) -> Tensor:
        """Of all quantiles [tails], in float64: of the lower bounds, of the upper ones, and of the grid."""
        tails = [(1 - level) / 2 for level in self.levels]
        grid = [(i + 0.5) / self.grid for i in range(self.grid)]
        return torch.tensor([*tails, *(1 - tail for tail in tails), *grid], dtype=torch.float64)

    def bounds(self, level: float, quantiles: Tensor) -> tuple[Tensor, Tensor]:
        """The interval of a level [entries], of quantiles `[entries, tails]`."""
        place = self.levels.index(level)
        return quantiles[:, place], quantiles[:, len(self.levels) + place]

    def of_grid(self, quantiles: Tensor) -> Tensor:
        """The quantiles of the grid `[entries, grid]`."""
        return quantiles[:, 2 * len(self.levels) :]


@dataclass(frozen=True, eq=False)
class Mixed:
    """What draws say of one chunk of data.

    Attributes:
        marks: by observed site.
        log_lik: log likelihood of each datum that counts at each draw `[draws, data]`, as the program weighs it: sites
            that share their axes describe one datum.
    """

    marks: Mapping[str, Marks]
    log_lik: Tensor
