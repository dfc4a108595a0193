"""A start that a search can go on from: where the log joint is finite, and not on a slope beyond any polynomial's."""

import torch

from pyro_laplace._errors import InvalidData, NotAMode
from pyro_laplace._typing import Theta
from pyro_laplace.mode.objective import Objective
from pyro_laplace.program.arguments import trouble_with
from pyro_laplace.settings import settings


def feasible_start(objective: Objective) -> Theta:
    """The objective's own theta, or the first point halfway to the unconstrained origin, half of that, and so on.

    A vague prior's draws are far from all data, where a link overflows, or from where a search walks back a unit a
    step. The direction stays that of the draw, since the origin itself is a symmetric point of a network.

    Args:
        objective: minus the log joint, over all of theta.

    Returns:
        theta: its own, where minus the log joint is finite and falls by less than `settings.start_steep` times on
        the way to its half; else shorter; the origin only if nothing on the way to it will do.

    Raises:
        NotAMode: if the log joint is finite nowhere on that way, naming the sites of which it is not.
        InvalidData: if it is not because the first batch has values that are not finite.
    """
    theta = objective.theta
    here = _height(objective, theta)
    for _ in range(settings.start_halvings):
        half = 0.5 * theta
        there = _height(objective, half)
        if here < settings.start_steep * max(there, 1.0):
            return theta
        theta, here = half, there
    origin = torch.zeros_like(theta)
    if _height(objective, origin) < torch.inf:
        return origin
    trouble = trouble_with(objective.loop.data.first())
    if trouble is not None:
        raise InvalidData(f"the log joint is finite nowhere, and {trouble}")
    raise NotAMode(
        f"no start was found: the log joint is not finite at a draw of the prior, nor on the way from there to where "
        f"all sites {list(objective.program.latents)} are zero (in unconstrained space). Say where to start: "
        "pyro.sample(name, prior, infer={'start': value}) at a site, or map_guide={site: value} to fit_laplace; or "
        "scale the inputs and parametrise by logarithms (logits=, a log rate), so that nothing overflows"
    )


def _height(objective: Objective, theta: Theta) -> float:
    """Minus the log joint; infinite where it or its gradient is not finite."""
    value, gradient = objective.value_and_gradient(theta[objective.index])
    return float(value) if bool(value.isfinite() and gradient.isfinite().all()) else float("inf")
