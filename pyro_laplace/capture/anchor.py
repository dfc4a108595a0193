"""A point of theta with some of its coordinates free."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyro_laplace._typing import Theta
from pyro_laplace.posterior.subset import counts_of, free_index, names_of
from pyro_laplace.program.program import Program


@dataclass(frozen=True)
class Point:
    """A point theta, of which the coordinates `index`, in ascending order, are free."""

    theta: Tensor
    index: Tensor

    @property
    def part(self) -> Theta:
        """The free coordinates."""
        return self.theta[self.index]

    def on(self, fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A function of theta as a function of the free coordinates."""
        if len(self.index) == len(self.theta):
            return fn
        return lambda part: fn(self.theta.index_copy(0, self.index, part))

    def only(self, chosen: Tensor) -> "Point":
        """The same point with some of its free coordinates, chosen by their place among them, left free."""
        return Point(self.theta, self.index[chosen].sort().values)

    def whole(self, program: Program) -> "Point":
        """The same point with every site of which a coordinate is free left free as a whole."""
        counts = counts_of(program, self.index)
        if all(count in (0, program.latents[name].size) for name, count in counts.items()):
            return self
        return Point(self.theta, free_index(program, self.touched(program)))

    def touched(self, program: Program) -> tuple[str, ...]:
        """The sites of which a coordinate is free, in trace order."""
        return names_of(program, self.index)

    def spans(self, program: Program) -> dict[str, tuple[slice, slice | Tensor]]:
        """Of each site with free coordinates, where these lie among all free ones, and which of the site's they are."""
        found: dict[str, tuple[slice, slice | Tensor]] = {}
        start = 0
        for name, count in counts_of(program, self.index).items():
            if count:
                whole, span = count == program.latents[name].size, slice(start, start + count)
                found[name] = span, slice(None) if whole else self.index[span] - program.layout[name].start
                start += count
        return found

    @cached_property
    def _positions(self) -> Tensor:
        positions = torch.full((len(self.theta),), -1, device=self.index.device)
        return positions.index_copy(0, self.index, torch.arange(len(self.index), device=self.index.device))

    def positions(self) -> Tensor:
        """Where each coordinate of theta lies among the free ones [params]; -1 if it does not."""
        return self._positions

    def sites(self, program: Program) -> frozenset[str]:
        """The free sites; a site is free as a whole."""
        counts = counts_of(program, self.index)
        return frozenset(name for name, count in counts.items() if count == program.latents[name].size)
