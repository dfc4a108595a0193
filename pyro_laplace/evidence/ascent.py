"""The search for the hyperparameters of the highest evidence at one theta: L-BFGS in log scale, from several starts."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._errors import IndefiniteCurvature
from pyro_laplace._typing import Scalar
from pyro_laplace.settings import settings

type Box = tuple[Tensor, Tensor]
"""The lowest and the highest value of each number."""


@dataclass(frozen=True, eq=False)
class Climb:
    """What a search came to.

    Attributes:
        steps: the vectors that it went through, the start first, the best last.
        values: the function there.
        converged: whether it ended at a maximum.
        reason: why it ended, in the words of a message.
    """

    steps: tuple[Tensor, ...]
    values: tuple[float, ...]
    converged: bool
    reason: str

    @property
    def best(self) -> Tensor:
        """The best vector."""
        return self.steps[-1]

    @property
    def gain(self) -> float:
        """By how much the function rose."""
        return self.values[-1] - self.values[0]


def climb(fn: Callable[[Tensor], Scalar], starts: Sequence[Tensor], box: Box, look: bool = True) -> Climb:
    """The highest value of a function of a vector that may be found from some starts.

    Args:
        fn: the function; it may raise `IndefiniteCurvature` where it has no value.
        starts: where to search from, the first one first.
        box: bounds.
        look: whether to look again at numbers that ran to a bound, where the function has no slope left to show the way
            back: one that is better elsewhere is put there, and the search goes on.

    Returns:
        the best search; an interrupt by the user ends it with the best point so far.
    """
    best: Climb | None = None
    for start in starts:
        found = _from(fn, torch.minimum(torch.maximum(start, box[0]), box[1]), box)
        if best is None or found.values[-1] > best.values[-1] + settings.evidence_gain:
            best = found
        if found.reason == INTERRUPTED:
            return best
    assert best is not None
    for _ in range(settings.evidence_looks if look else 0):
        moved = _looked_again(fn, best, box)
        if moved is None:
            break
        found = _from(fn, moved, box)
        best = replace(found, steps=best.steps + found.steps, values=best.values + found.values)
        if found.reason == INTERRUPTED:
            break
    return best


def _looked_again(fn: Callable[[Tensor], Scalar], climbed: Climb, box: Box) -> Tensor | None:
    """The best vector with numbers that ran away put where the function is highest in them; None if that is there."""
    best, top = climbed.best, climbed.values[-1]
    low, high = box
    with torch.no_grad():
        for number in running_away(fn, best, box, range(len(best))):
            for place in torch.linspace(0, 1, settings.evidence_grid + 2).tolist()[1:-1]:
                moved = best.clone()
                moved[number] = low[number] + place * (high[number] - low[number])
                try:
                    value = float(fn(moved))
                except (IndefiniteCurvature, LinAlgError):
                    continue
                if value > top + settings.evidence_gain:
                    best, top = moved, value
    return None if best is climbed.best else best


INTERRUPTED = "it was interrupted"


def _from(fn: Callable[[Tensor], Scalar], start: Tensor, box: Box) -> Climb:
    import scipy.optimize  # takes half a second to load

    steps, values = [start.clone()], []
    lowest = math.inf

    def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal lowest
        flat = torch.from_numpy(x.copy()).requires_grad_()
        try:
            with torch.enable_grad():
                value = fn(flat)
            (gradient,) = torch.autograd.grad(value, flat)
        except (IndefiniteCurvature, LinAlgError):
            value, gradient = torch.tensor(-math.inf), torch.zeros_like(flat)
        number = -float(value.detach())
        if not math.isfinite(number):  # a wall that a line search steps back from
            number = (lowest if math.isfinite(lowest) else 0.0) + settings.evidence_wall
            gradient = torch.zeros_like(flat)
        lowest = min(lowest, number)
        if not values:
            values.append(-number)
        return number, -gradient.numpy()

    def keep(intermediate_result: scipy.optimize.OptimizeResult) -> None:
        steps.append(torch.from_numpy(intermediate_result.x.copy()))
        values.append(-float(intermediate_result.fun))

    pairs = zip(*(each.tolist() for each in box), strict=True)
    try:
        found = scipy.optimize.minimize(
            negative,
            start.numpy(),
            jac=True,
            method="L-BFGS-B",
            bounds=[
                (low if math.isfinite(low) else None, high if math.isfinite(high) else None) for low, high in pairs
            ],
            callback=keep,
            options={"maxiter": settings.evidence_steps, "ftol": 1e-12, "gtol": 1e-7},
        )
    except KeyboardInterrupt:
        if not values:
            raise
        return _best(steps, values, False, INTERRUPTED)
    reason = "it had made as many steps as it may" if found.status == 1 else "no step raised it any more"
    return _best(steps, values, found.status != 1, reason)


def _best(steps: list[Tensor], values: list[float], converged: bool, reason: str) -> Climb:
    """Up to the best step; L-BFGS never takes one down, but for rounding."""
    stop = int(np.argmax(values)) + 1
    pairs = list(itertools.islice(zip(steps, values, strict=False), stop))
    return Climb(tuple(step for step, _ in pairs), tuple(value for _, value in pairs), converged, reason)


def running_away(fn: Callable[[Tensor], Scalar], best: Tensor, box: Box, numbers: Sequence[int]) -> dict[int, str]:
    """Which numbers may as well be at their bounds.

    Args:
        fn: the function.
        best: where it is highest.
        box: bounds.
        numbers: those asked about.

    Returns:
        number to "0" or "infinity", for those that the function is no lower at the bound of.
    """
    with torch.no_grad():
        try:
            top = float(fn(best))
        except (IndefiniteCurvature, LinAlgError):
            return {}
        found = {}
        for number, (bound, name) in itertools.product(numbers, zip(box, ("0", "infinity"), strict=True)):
            if not bool(bound[number].isfinite()):
                continue
            moved = best.clone()
            moved[number] = bound[number]
            try:
                value = float(fn(moved))
            except (IndefiniteCurvature, LinAlgError):
                continue
            if value > top - settings.evidence_flat:
                found.setdefault(number, name)
        return found
