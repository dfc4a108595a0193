"""How far weights move all sites of a posterior, and whether that is clear."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pyro_laplace.diagnostics.weights import Shift, Weights
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Moved:
    """Corrected moves of all sites, and the weights that they rest on.

    Attributes:
        weights: of the draws that the correction is made by.
        by_site: the moves of each site's entries, flat.
        unconstrained: the moves of the coordinates of constrained sites, whose own mean or variance may not exist.
    """

    weights: Weights
    by_site: Mapping[str, Shift]
    unconstrained: Mapping[str, Shift]

    def bounds(self, errors: float) -> tuple[float, float]:
        """Of the largest move of a mean: least and most that it may be, by so many standard errors."""
        return _least_and_most([(each.mean, each.mean_error) for each in self._all.values()], errors)

    def scale_bounds(self, errors: float) -> tuple[float, float]:
        """The same of the largest log factor of a standard deviation."""
        return _least_and_most([(each.log_std, each.log_std_error) for each in self._all.values()], errors)

    def farthest(self) -> tuple[str, Shift, int]:
        """The site whose mean moves most, with the entry that does."""
        name, place = _largest_of({name: each.mean for name, each in self._all.items()})
        return name, self._all[name], place

    def most_scaled(self) -> tuple[str, Shift, int]:
        """The site whose standard deviation changes most, with the entry that does."""
        name, place = _largest_of({name: each.log_std for name, each in self._all.items()})
        return name, self._all[name], place

    @property
    def _all(self) -> dict[str, Shift]:
        """Both, as they are named in a sentence."""
        unconstrained = {f"{name!r} (unconstrained)": shift for name, shift in self.unconstrained.items()}
        return {repr(name): shift for name, shift in self.by_site.items()} | unconstrained


def _least_and_most(estimates: list[tuple[Tensor, Tensor]], errors: float) -> tuple[float, float]:
    """Least and most that the largest of some estimates may be, each with its standard error."""
    low = max(float((value.abs() - errors * error).max()) for value, error in estimates)
    high = max(float((value.abs() + errors * error).max()) for value, error in estimates)
    return max(low, 0.0), high


def _largest_of(values: Mapping[str, Tensor]) -> tuple[str, int]:
    """The name and the place of the entry farthest from zero."""
    name = max(values, key=lambda each: float(values[each].abs().max()))
    return name, int(values[name].abs().argmax())


def is_clear(moved: Moved) -> bool:
    """Whether more draws would not change what is said of the moves.

    Args:
        moved: the moves, by weights that can be trusted.

    Returns:
        whether each is on one side of its bound by some standard errors.
    """
    low, high = moved.bounds(settings.verdict_errors)
    least, most = moved.scale_bounds(settings.verdict_errors)
    wrong = low > settings.wrong_shift or least > math.log(settings.wrong_scale)
    right = high < settings.wrong_shift and most < math.log(settings.wrong_scale)
    return wrong or right
