"""The inner problem by the package's own passes over the data: any structure and curvature, without gradients in h."""

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature, NotAMode
from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.inner.newton_rows import search_rows
from pyro_laplace.inner.problem import Inner, InnerSolved, Memory
from pyro_laplace.inner.rows import expanded, values
from pyro_laplace.posterior.search import PosteriorAt, Search
from pyro_laplace.settings import settings
from pyro_laplace.structure.block import Block


@dataclass(eq=False)
class SearchedInner(Inner):
    """A search for the mode and one pass at it, for each point.

    Attributes:
        search: how a posterior over the inner sites is made.
    """

    of: Conditional
    search: Search
    curvature: str
    differentiable: bool = False
    memory: Memory = field(init=False)

    def __post_init__(self) -> None:
        """Begin with an empty memory."""
        self.memory = Memory.of(self.of)

    def moved(self, of: Conditional) -> "SearchedInner":
        """From another start."""
        return SearchedInner(of, self.search, self.curvature)

    @property
    def elements(self) -> int:
        """Of a dense factor, or of one by rows."""
        return self.memory.start.numel() * min(self.memory.start.numel(), self.of.data_size)

    def solve(self, h: Tensor) -> InnerSolved:
        """A small program from several modes known, the highest is taken; a large one from the nearest."""
        x = self._highest(h) if self.memory.start.numel() <= settings.small else self.memory.nearest(h)
        return SearchedSolved(h, [self._at(point, start) for point, start in zip(h, x, strict=True)], self.of)

    def _highest(self, h: Tensor) -> Tensor:
        """The inner mode [b, i] of highest density that searches from the best of the modes known lead to."""
        if not len(self.memory.h):
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(settings.inner_draws, len(self.memory.start), generator=generator, dtype=torch.float64)
            known = torch.cat([self.memory.start.unsqueeze(0), self.memory.start + noise.to(h)])
        else:
            known = self.memory.x.unique(dim=0)
        pairs = known.repeat(len(h), 1), h.repeat_interleave(len(known), 0)
        height = values(self.of, *pairs).reshape(len(h), len(known))
        count = min(len(known), settings.inner_starts if len(self.memory.h) else settings.inner_draws)
        starts = known[height.topk(count, 1).indices]  # b k i
        pairs = starts.flatten(0, 1), h.repeat_interleave(count, 0)
        modes = search_rows(partial(expanded, self.of), *pairs, self.of.eps, settings.inner_steps_network)
        height = torch.where(modes.found, -modes.value, -math.inf).reshape(len(h), count)
        return modes.x.reshape(len(h), count, -1)[torch.arange(len(h)), height.argmax(1)]

    def _at(self, h: Tensor, start: Tensor) -> PosteriorAt | None:
        search = self.search.at(self.of.theta(start, h), {})
        try:
            theta = search.loop.program.start if len(start) <= settings.small else search.mode_again()[0]
            posterior = search.gauss_newton(search.measured(theta))
        except (NotAMode, IndefiniteCurvature):
            return None
        decrement = float(posterior.precision.push(posterior.gradient).norm())
        if not decrement <= settings.mode_decrement * len(start) ** 0.5:
            return None
        self.memory.keep(h.unsqueeze(0), posterior.theta[self.of.inner_index].double().unsqueeze(0))
        return posterior


class SearchedSolved(InnerSolved):
    """By posteriors over the inner sites."""

    def __init__(self, h: Tensor, found: list[PosteriorAt | None], of: Conditional) -> None:
        self.h, self.found = h, found
        nothing = torch.full_like(of.start[0], math.nan)
        self.x = torch.stack([nothing if each is None else each.theta[of.inner_index].double() for each in found])
        self.value = h.new_tensor([-math.inf if each is None else each.log_evidence for each in found])

    def gradient(self) -> Tensor:
        """There is none.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("the inner curvature is not differentiated")

    def response(self, row: int) -> Tensor:
        """Not known, and taken for zero: between two points, the nearer one's mode is the best guess."""
        return self.x.new_zeros(self.x.shape[1], self.h.shape[1])

    def shift(self, row: int) -> Tensor:
        """Zero: draws are those of the linearised program, which has no third derivatives."""
        return torch.zeros_like(self.x[row])

    def block(self, row: int) -> Block:
        """The posterior precision."""
        posterior = self.found[row]
        assert posterior is not None
        return posterior.precision
