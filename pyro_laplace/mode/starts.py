"""The mode of a small program: Newton's method from its start, checked by searches from other points of the prior.

A search ends at the nearest mode, which may have next to none of the posterior's mass (the period of an oscillation
missed, the data explained as noise). A second search from elsewhere shows it. Modes are compared by their mass, not by
their height: a narrow spike is high.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._errors import LaplaceWarning
from pyro_laplace._typing import Theta
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import Data
from pyro_laplace.mode.collapse import Collapse
from pyro_laplace.mode.concave import is_concave
from pyro_laplace.mode.objective import Objective
from pyro_laplace.mode.quadratic import quadratic
from pyro_laplace.mode.reached import Reached
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Recorder, run_model
from pyro_laplace.settings import settings

_SHARES = (1.0, 1.0, 0.5, 0.25)
"""How far on the way to a prior draw further searches start: a vague prior's own draws are far from all data."""

_NEARER = (0.1, 0.01)
"""Shares of its own start from which a search that found nothing begins again, near the unconstrained origin."""


@dataclass(frozen=True)
class Found:
    """Where a search ended.

    Attributes:
        theta: the point.
        log_mass: Laplace's log integral of the joint density around it; minus infinity if it is no strict mode.
    """

    theta: Theta
    log_mass: float

    @property
    def settled(self) -> bool:
        """Whether the search reached a strict mode."""
        return self.log_mass > -math.inf


type Search = Callable[[Objective, int], Reached]
"""From the objective's own theta to its minimum, in at most so many steps."""


def search(objective: Objective, by: Search) -> Found:
    """The mode that `objective` reaches from its own theta, or one with more mass that other starts lead to.

    Where the first search reaches a mode, another one is left for only if it has e^5 times its mass; and none is looked
    for where the log joint is concave.

    Args:
        objective: minus the log joint, over all of theta.
        by: one search.

    Returns:
        the best point found, settled or not.

    Raises:
        Collapse: if a scale collapses to zero from the objective's own theta.
    """
    best = _search_from(objective, objective.theta, by, settings.first_search_steps)
    if not objective.loop.data.one_batch or (best.settled and is_concave(objective.loop, best.theta)):
        return best
    for start in other_starts(objective.loop, objective.theta):
        try:
            other = _search_from(objective, start, by, settings.other_search_steps)
        except Collapse:
            continue
        if other.log_mass > best.log_mass + (settings.negligible_nats if best.settled else 0.0):
            best = other
    for share in () if best.settled else _NEARER:
        best = _search_from(objective, share * objective.theta, by, settings.first_search_steps)
        if best.settled:
            break
    return best


def _search_from(objective: Objective, theta: Theta, by: Search, steps: int) -> Found:
    moved = replace(objective, theta=theta)
    part = by(moved, steps).part
    return Found(moved.embed(part), log_mass(moved, part))


def log_mass(objective: Objective, part: Theta) -> float:
    """``log p(y, x*) + log |dx / dtheta| + P/2 log 2 pi - 1/2 logdet H`` at a mode, with H in theta.

    Args:
        objective: minus the log joint.
        part: its free coordinates.

    Returns:
        the log mass in nats; minus infinity where H is not positive definite or the gradient does not vanish.
    """
    value, gradient = objective.value_and_gradient(part)
    if not bool(value.isfinite()):
        return -math.inf
    model = quadratic(objective, part, gradient)
    if float(model.curvature.min()) <= 0 or not model.decrement <= settings.mode_decrement * len(part) ** 0.5:
        return -math.inf
    height, _ = replace(objective, jacobian=True).value_and_gradient(part)
    log_det = float(model.curvature.log().sum() + 2 * model.scale.log().sum())
    return -float(height) + 0.5 * len(part) * math.log(2 * math.pi) - 0.5 * log_det


def other_starts(loop: Loop, theta: Theta) -> Iterator[Theta]:
    """Points on the way from theta to draws from the prior: at each distance the one that makes the data likeliest.

    The random state stays as it is.

    Args:
        loop: the traced program and its data, one batch.
        theta: its own start.

    Yields:
        theta, unconstrained.
    """
    with undisturbed(), torch.no_grad():
        draws = [_draw_prior(loop.program, loop.data, theta) for _ in range(settings.search_draws)]
    for share in _SHARES:
        with undisturbed(), torch.no_grad():
            log_lik = [_log_lik_at(loop, theta + share * (draw - theta)) for draw in draws]
        best = log_lik.index(max(log_lik))
        if log_lik[best] > -math.inf:
            yield theta + share * (draws.pop(best) - theta)


def _draw_prior(program: Program, data: Data, theta: Theta) -> Theta:
    """A draw of all latent sites; within 2 of theta, as Stan starts, where a prior cannot be drawn from."""

    def draw(msg: Mapping[str, Any]) -> Tensor:
        latent = program.latents[msg["name"]]
        try:
            with warnings.catch_warnings():  # of what a draw is: this one is but a start
                warnings.simplefilter("ignore")
                return msg["fn"].sample()
        except NotImplementedError:
            near = theta[latent.slice]
            return latent.constrain(near + 4 * torch.rand_like(near) - 2)

    run = run_model(program.model, data.first(), Recorder({}, frozenset(program.observed), fill=draw))
    drawn = program.pack({name: site.value for name, site in run.latents.items()})
    return torch.where(drawn.isfinite(), drawn, theta)


def _log_lik_at(loop: Loop, theta: Theta) -> float:
    """Log likelihood of all data; minus infinity where it cannot be computed."""
    try:
        total = sum(float(loop.program.log_joint(theta, chunk, prior=0.0)) for chunk in loop.chunks())
    except LinAlgError:
        return -math.inf
    return total if math.isfinite(total) else -math.inf


def tell_many_sites(program: Program) -> None:
    """Warn of a program that has a sample statement for each datum: every run is a loop in Python, and its gradient.

    A network's weights are sites of many numbers each, however many there are, and are not counted.

    Args:
        program: the traced program.
    """
    data = [name for name in program.observed if name not in program.derived]
    numbers = [name for name, latent in program.latents.items() if latent.size == 1]
    if (count := len(data) + len(numbers)) > settings.many_sites:
        most = data if len(data) >= len(numbers) else numbers
        some, stem = ", ".join(map(repr, most[:2])), most[0].rstrip("_0123456789") or "y"
        obs = ", obs=y[1:]" if most is data else ""
        warnings.warn(
            f"the program has {count} sample statements of data or single numbers ({some}, ...): "
            "each run of it is a loop in Python over them, and a search for the mode makes hundreds. Write one site "
            "over all steps, with the recursion in plain tensors: mean = torch.stack([...]), then "
            f"pyro.sample({stem!r}, dist.Normal(mean[1:], scale).to_event(1){obs}), or the same in a "
            "pyro.plate without to_event",
            LaplaceWarning,
            skip_file_prefixes=(_PACKAGE,),
        )


_PACKAGE = str(Path(__file__).parents[1])
"""Where the lines are that the warning does not point to."""
