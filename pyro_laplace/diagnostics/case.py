"""A posterior beside the program that it is judged by: its draws, weighed until that is clear, and corrected."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import Data
from pyro_laplace.diagnostics.correction import correct
from pyro_laplace.diagnostics.drawn import Drawn, around, draw_from
from pyro_laplace.diagnostics.moves import Moved, is_clear
from pyro_laplace.diagnostics.weights import Shift, Weights
from pyro_laplace.draws.density import elements_of_one, log_joint_at
from pyro_laplace.mode.objective import Objective
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mass import Mass
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.program.sites import Latent
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Case:
    """A posterior and the program that it is judged by.

    Attributes:
        guide: the posterior.
        loop: the program and its data.
        data: what a guide that is not ours is called with.
        progress: whether what lasts shows a progress bar.
    """

    guide: Any
    loop: Loop
    data: Data
    progress: bool

    def budget(self, max_draws: int | None) -> int:
        """Draws that may be weighed.

        Args:
            max_draws: those that were asked for; None for as many as take little time, fewer of a program that is run
                on one after the other.

        Returns:
            how many, which of a large program are fewer than were asked for.
        """
        few = settings.diagnose_most if self._vectorised else settings.diagnose_one_by_one
        return min(few if max_draws is None else max_draws, self._affordable())

    def grown(self, most: int) -> tuple[Drawn, Moved]:
        """Draws, and more of them until what their weights say is clear, or the budget is spent.

        Args:
            most: the budget.

        Returns:
            the draws, and how far their weights move the sites.
        """
        drawn = draw_from(self.guide, self.loop.program, self.data, min(settings.diagnose_draws, most))
        log_joint = self._log_joint(drawn)
        while True:
            weights = Weights.of(log_joint - drawn.log_q)
            moved = self._moved(drawn.theta, weights)
            looked_twice = len(drawn) >= 2 * settings.diagnose_draws
            clear = weights.khat > settings.clear_k or (weights.trusted and is_clear(moved))
            if len(drawn) >= most or (looked_twice and clear):
                return drawn, moved
            fresh = draw_from(self.guide, self.loop.program, self.data, min(len(drawn), most - len(drawn)))
            drawn, log_joint = drawn.and_more(fresh), torch.cat([log_joint, self._log_joint(fresh)])

    def corrected(self, drawn: Drawn, most: int) -> Moved:
        """The moves by draws with heavier tails and matched moments.

        Args:
            drawn: the posterior's own draws.
            most: the budget of these; the others take as many, and moment matching twice as many.

        Returns:
            how far the others' means are from theirs.
        """
        count = most if self._vectorised else len(drawn)
        gaussians = around(self.guide, self.loop.program, self.data)
        found = correct(self.loop, gaussians, count, "auto", self.progress)
        return self._moved(drawn.theta, found.weights, found.theta)

    def far(self) -> dict[str, float]:
        """Sites whose mass lies elsewhere than the mode, by gradients; none of what has no mode."""
        guide = heaviest(self.guide)
        if guide is None:
            return {}
        anchor = Anchor(guide.theta, guide.index, guide.latents)
        mass = Mass.around(Objective(self.loop, True, guide.theta, guide.index), anchor, guide.precision)
        return {} if mass is None else mass.far()

    @property
    def random(self) -> dict[str, Latent]:
        """The sites that the guide does not hold."""
        latents = self.loop.program.latents
        random = getattr(self.guide, "random", None)
        return {name: latent for name, latent in latents.items() if random is None or name in random}

    def _moved(self, theta: Tensor, weights: Weights, others: Tensor | None = None) -> Moved:
        """How far the means of draws are moved: by their own weights, or by other draws with weights."""

        def shift(of: Callable[[Tensor], Tensor]) -> Shift:
            values = of(theta).reshape(len(theta), -1)
            if others is None:
                return Shift.by(weights, values)
            return Shift.between(values, weights, of(others).reshape(len(others), -1))

        random = self.random.items()
        own = {name: shift(lambda at, site=site: site.constrain(at[:, site.slice])) for name, site in random}
        constrained = {name: site for name, site in random if site.constrained}
        return Moved(weights, own, {n: shift(lambda at, site=s: at[:, site.slice]) for n, s in constrained.items()})

    def _log_joint(self, drawn: Drawn) -> Tensor:
        return log_joint_at(self.loop, drawn.theta, "diagnosis" if self.progress else None)

    @cached_property
    def _vectorised(self) -> bool:
        """Whether the program can be run on several draws at once."""
        reasons: list[str] = []
        log_joint_at(self.loop, self.loop.program.start.expand(2, -1), on_loop=reasons.append)
        return not reasons

    def _affordable(self) -> int:
        """Draws that may be weighed, by the numbers that one evaluation makes and those that theta has."""
        made, held = elements_of_one(self.loop), len(self.loop.program.start)
        most = min(settings.diagnose_elements // made, settings.held_elements // held)
        return max(settings.fewest_draws, most)


def heaviest(guide: Any) -> AutoLaplace | None:
    """The Laplace posterior that a guide is, or is mostly made of; None of another guide."""
    if isinstance(guide, LaplaceMixture):
        return guide.components[int(guide.weights.argmax())]
    return guide if isinstance(guide, AutoLaplace) else None
