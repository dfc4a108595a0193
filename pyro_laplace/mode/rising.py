"""Points that are only as far as floating point goes: a direction along which the log joint never falls.

Classes that a linear predictor separates, and groups without an event, have no mode under a flat prior: the log joint
rises for ever, by less and less, until a search no longer resolves it. There the gradient and the curvature vanish
together, and nothing local tells the point from a mode. Going far along the direction does: from a mode, the log joint
falls by about half the square of the way in standard deviations, and more slowly, yet at last by more than rounding,
where a proper prior alone holds it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyro_laplace._autodiff import jvp
from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._errors import IndefiniteCurvature, NotAMode
from pyro_laplace._typing import Theta
from pyro_laplace.mode.objective import Objective
from pyro_laplace.mode.quadratic import NewtonModel, quadratic
from pyro_laplace.settings import settings

_FAR = (1.0, 10.0, 1e2, 1e3)
"""How far one goes, in standard deviations along the direction or, where these are none, in its own coordinates."""


class NoMode(NotAMode, IndefiniteCurvature):
    """The curvature is not positive definite, since the log joint never falls along a line."""


@dataclass(frozen=True)
class Rise:
    """A direction along which the log joint never falls.

    Attributes:
        where: site name to the coordinates (in its unconstrained space) and signs of the direction's main entries.
    """

    where: dict[str, list[tuple[int, float]]]

    @property
    def message(self) -> str:
        """What is wrong, and what to do."""
        along = ", ".join(f"{name!r} ({', '.join(map(_told, parts))})" for name, parts in self.where.items())
        return (
            f"the log joint has no maximum: it still rises, or stays, however far one goes along {along} (coordinates "
            "in unconstrained space), and the search ended where floating point does. Classes that the predictors "
            "separate, a group or class without any event, or a flat prior on what the data do not bound are usual "
            f"causes: give {' and '.join(map(repr, self.where))} a proper prior, such as Normal(0, 10)"
        )


def rising(objective: Objective, part: Theta) -> Rise | None:
    """Whether the end of a search is no mode because the log joint never falls along some line.

    Tried are Newton's step, which leads on for ever where there is no mode, its largest entry alone, the same in the
    space of the sites' values (cutpoints), the direction of least curvature, and the way from the origin to each
    site's value, and to that of all sites.

    Args:
        objective: minus the log joint.
        part: the free coordinates at which a search ended.

    Returns:
        the first such line, or None. The density of constrained values may well be highest at a border of their
        support (a scale of zero): that is its maximum, and is left out.
    """
    value, gradient = objective.value_and_gradient(part)
    if not bool(value.isfinite()):
        return None
    for line in _lines(objective, part, gradient):
        if (
            _never_falls(objective, line, float(value), 1.0)
            and not _never_falls(objective, line, float(value), -1.0)  # a ridge, of which the curvature tells
            and (objective.jacobian or not _at_border(objective, line))
        ):
            return Rise(_largest_entries(objective, line.along))
    return None


@dataclass(frozen=True)
class _Line:
    """Points ``at(t)``, from a point in a direction of unconstrained coordinates; a unit is a standard deviation."""

    along: Theta
    units: tuple[float, ...]
    at: Callable[[float], Theta]


def _lines(objective: Objective, part: Theta, gradient: Theta) -> list[_Line]:
    outwards = []
    for place in [slice(None), *objective.program.layout.values()]:
        chosen = torch.zeros_like(objective.theta, dtype=torch.bool)
        chosen[place] = True
        outwards.append(torch.where(chosen[objective.index], part, 0.0))
    if len(part) > settings.small:
        return [_straight(part, each) for each in outwards if bool(each.any())]
    model = quadratic(objective, part, gradient)
    step = model.step(0.0)[0]
    flattest = model.vectors[:, 0] / model.scale
    directions = [step, _largest(step), flattest, -flattest, _largest(flattest), -_largest(flattest), _largest(part)]
    lines = [_straight(part, each, model) for each in [*directions, *outwards] if bool(each.any())]
    if any(latent.constrained for latent in objective.program.latents.values()) and bool(step.any()):
        lines.insert(1, _straight_in_values(objective, part, step))
    return lines


def _largest(direction: Theta) -> Theta:
    return torch.where(direction.abs() == direction.abs().max(), direction, 0.0)


def _straight(part: Theta, direction: Theta, model: NewtonModel | None = None) -> _Line:
    own = 1 / float(direction.abs().max())
    units = (own * max(1.0, float(part.abs().max())), own)
    if model is not None:
        along = model.vectors.mT @ (direction * model.scale)
        units = (float((model.metric * along.square()).sum().rsqrt()), *units)
    return _Line(direction, units, lambda t: part + t * direction)


def _straight_in_values(objective: Objective, part: Theta, direction: Theta) -> _Line:
    program, theta = objective.program, objective.embed(part)
    values = program.unpack(theta)
    tangent = torch.zeros_like(theta).index_copy(0, objective.index, direction.to(theta))
    ways = jvp(program.unpack, theta, tangent)[1]
    longest = max(float(way.abs().max()) for way in ways.values())
    ways = {name: torch.where(way.abs() < settings.blamed_share * longest, 0.0, way) for name, way in ways.items()}
    size = max(float(value.abs().max()) for value in values.values())

    def at(t: float) -> Theta:
        moved = program.pack({name: value + t * ways[name] for name, value in values.items()})
        return moved[objective.index].double()

    return _Line(direction, (max(1.0, size) / longest if longest else math.inf,), at)


def _never_falls(objective: Objective, line: _Line, value: float, sign: float) -> bool:
    """Whether the log joint is nowhere lower on the line, at the first unit that leads to where it is finite."""
    rounding = settings.rounding * objective.resolution * max(abs(value), 1.0)
    for unit in line.units:
        reached = 0
        for far in _FAR:
            try:
                risen = _risen(objective, line.at(sign * far * unit), value)
            except LinAlgError:  # a matrix that left its support
                break
            if risen is None:
                break
            if risen < -rounding:
                return False
            reached += 1
        if reached > 1:
            return True
    return False


def _risen(objective: Objective, part: Theta, value: float) -> float | None:
    """By how much the log joint is higher at a point; None where it is not finite."""
    if not bool(part.to(objective.theta).isfinite().all()):
        return None
    there = float(objective.value_and_gradient(part)[0])
    return value - there if math.isfinite(there) else None


def _at_border(objective: Objective, line: _Line) -> bool:
    """Whether the sites' values come to an end along a line."""
    unit = next((unit for unit in line.units if math.isfinite(unit)), 1.0)
    places = (objective.program.unpack(objective.embed(line.at(far * unit))) for far in (0.0, *_FAR[-2:]))
    start, far, farther = (torch.cat([value.flatten() for value in place.values()]) for place in places)
    return bool(farther.isfinite().all()) and float((farther - far).abs().max()) <= float((far - start).abs().max())


def _largest_entries(objective: Objective, direction: Theta) -> dict[str, list[tuple[int, float]]]:
    whole = torch.zeros_like(objective.theta, dtype=torch.float64).index_copy(0, objective.index, direction)
    main = whole.abs() >= settings.blamed_share * whole.abs().max()
    return {
        name: [(i, float(whole[place][i])) for i in main[place].nonzero().flatten().tolist()]
        for name, place in objective.program.layout.items()
        if bool(main[place].any())
    }


def _told(entry: tuple[int, float]) -> str:
    place, sign = entry
    return f"[{place}] as it {'grows' if sign > 0 else 'falls'}"
