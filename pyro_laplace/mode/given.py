"""What a guide or a mapping gives: the values of latent sites."""

from collections.abc import Mapping
from typing import Any

from pyro.infer.autoguide.guides import AutoGuide, AutoLaplaceApproximation
from torch import Tensor, as_tensor, get_default_dtype

from pyro_laplace._errors import InvalidOption
from pyro_laplace.data import Data


def values_given(given: Any, data: Data, option: str = "map_guide") -> dict[str, Tensor]:
    """Site name to value.

    Args:
        given: an `AutoDelta` or another autoguide that was trained, or a mapping of site values.
        data: what a guide is called with.
        option: the name of what was given, as the caller writes it.

    Returns:
        the values that the guide has as its median, without gradient.

    Raises:
        InvalidOption: for anything else, and for a guide that was never run.
    """
    if isinstance(given, Mapping):
        return {name: _as_real(as_tensor(value).detach()) for name, value in given.items()}
    if not isinstance(given, AutoGuide):
        raise InvalidOption(
            f"{option} is a {type(given).__name__}: give a Pyro AutoDelta or another autoguide, a mapping of site "
            "values, or None"
        )
    if given.prototype_trace is None:
        raise InvalidOption(
            f"{option} is an {type(given).__name__} that has never been run: train it with SVI, or leave {option} out, "
            "and a start is found"
        )
    batch = data.first()
    # Pyro's guide of this name is a point until its curvature is taken, and has no median: it gives the point itself
    value_of = given if isinstance(given, AutoLaplaceApproximation) else given.median
    return {name: value.detach() for name, value in value_of(*batch.args, **batch.kwargs).items()}


def _as_real(value: Tensor) -> Tensor:
    """An integer as the number that it is."""
    return value if value.is_floating_point() else value.to(get_default_dtype())
