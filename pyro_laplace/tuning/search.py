"""A bounded search without gradients that spends a number of trials: first all scales together, then one at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class TrialScore:
    """What a trial came to.

    Attributes:
        value: the score, of which more is better.
        by_datum: whose mean it is; None where it is no mean.
    """

    value: float
    by_datum: Tensor | None = None

    def beats(self, other: "TrialScore") -> bool:
        """Whether it is better by anything to speak of: by more than the standard error, where that is known."""
        difference = self.value - other.value
        if self.by_datum is None or other.by_datum is None or len(self.by_datum) < 2:
            return difference > settings.tune_plateau
        apart = self.by_datum - other.by_datum
        return difference > max(settings.tune_plateau, float(apart.std()) / len(apart) ** 0.5)


@dataclass(eq=False)
class Tried:
    """The trials of a search.

    Attributes:
        steps: the vectors that were tried, the start first.
        scores: theirs.
        best: number of the trial that was chosen.
        interrupted: whether the user ended the search.
    """

    steps: list[Tensor] = field(default_factory=list)
    scores: list[TrialScore] = field(default_factory=list)
    best: int = 0
    interrupted: bool = False

    @property
    def vector(self) -> Tensor:
        """The one that was chosen."""
        return self.steps[self.best]


def search_for(
    score: Callable[[Tensor], TrialScore],
    start: Tensor,
    line: Tensor,
    directions: Sequence[Sequence[Tensor]],
    box: tuple[Tensor, Tensor],
    trials: int,
) -> Tried:
    """The best of so many trials.

    Two thirds of them go along a line, on which all prior scales have a common factor: a grid, and its best cell. The
    rest go a step along one direction at a time, further where that helps and back where it does not (Hooke and Jeeves
    1961, "Direct search solution of numerical and statistical problems"). On the line the best mean counts; a step by
    itself must beat it by more than the standard error of the difference, as few held-out data tell many numbers apart
    by chance alone.

    Args:
        score: the score of a vector.
        start: the first trial.
        line: the direction of the line; of zeros it is left out.
        directions: of the steps; those of the first group until they are short, and then those of the next.
        box: bounds.
        trials: how many.

    Returns:
        the trials, in their order.

    Raises:
        KeyboardInterrupt: from the first trial; later, the interrupt ends the search.
    """
    tried = Tried()

    def at(flat: Tensor) -> TrialScore:
        if len(tried.steps) >= trials:
            raise _Spent
        inside = torch.minimum(torch.maximum(flat, box[0]), box[1])
        found = score(inside)
        tried.steps.append(inside)
        tried.scores.append(found if np.isfinite(found.value) else TrialScore(-np.inf))
        return tried.scores[-1]

    try:
        at(start)
        if bool(line.any()):
            try:
                _along_a_line(lambda t: -at(start + t * line).value, _reach(start, line, box), trials * 2 // 3)
            finally:
                tried.best = _nearest_of_the_best(tried)
        for group in directions:
            _by_steps(tried, at, group)
    except _Spent:
        pass
    except KeyboardInterrupt:
        if not tried.steps:
            raise
        tried.interrupted = True
    return tried


def _nearest_of_the_best(tried: Tried) -> int:
    """Of the trials that no other beats by anything to speak of, the one next to the start: a plateau has no end."""
    top = max(each.value for each in tried.scores)
    best = [number for number, each in enumerate(tried.scores) if each.value >= top - settings.tune_plateau]
    return min(best, key=lambda number: float((tried.steps[number] - tried.steps[0]).abs().max()))


class _Spent(Exception):
    """All trials were made."""


def _reach(start: Tensor, together: Tensor, box: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """How far the line goes within the box, both ways."""
    moving = together != 0
    low, high = ((edge - start)[moving] / together[moving] for edge in box)
    return float(torch.minimum(low, high).max()), float(torch.maximum(low, high).min())


def _along_a_line(fn: Callable[[float], float], reach: tuple[float, float], trials: int) -> None:
    """A grid, and then within the best cell."""
    import scipy.optimize  # takes half a second to load

    grid = np.linspace(*reach, max(3, trials * 3 // 4))
    values = [fn(float(t)) for t in grid]
    best = int(np.argmin(values))
    bounds = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    left = max(1, trials - len(grid))
    scipy.optimize.minimize_scalar(fn, bounds=bounds, method="bounded", options={"maxiter": left})


def _by_steps(tried: Tried, at: Callable[[Tensor], TrialScore], directions: Sequence[Tensor]) -> None:
    """Along each direction in its turn, until all steps are short."""
    edges = [settings.tune_edge] * len(directions)
    while any(abs(edge) > settings.tune_short for edge in edges):
        for number, direction in enumerate(directions):
            better = at(tried.vector + edges[number] * direction).beats(tried.scores[tried.best])
            if better:
                tried.best = len(tried.steps) - 1
            edges[number] *= 1.5 if better else -0.5
