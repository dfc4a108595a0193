"""What a guide or a mapping gives: the values of latent sites."""

from collections.abc import Mapping
from typing import Any

from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor, as_tensor, get_default_dtype

from pyro_laplace._errors import InvalidOption
from pyro_laplace.data import Data


def values_given(map_guide: Any, data: Data) -> dict[str, Tensor]:
    """Site name to value.

    Args:
        map_guide: an `AutoDelta` or another autoguide that was trained, or a mapping of site values.
        data: what a guide is called with.

    Returns:
        the values that the guide has as its median, without gradient.

    Raises:
        InvalidOption: for anything else, and for a guide that was never run.
    """
    if isinstance(map_guide, Mapping):
        return {name: _as_real(as_tensor(value).detach()) for name, value in map_guide.items()}
    if not isinstance(map_guide, AutoGuide):
        raise InvalidOption(
            f"map_guide is a {type(map_guide).__name__}: give a Pyro AutoDelta, a mapping of site values, or None"
        )
    if map_guide.prototype_trace is None:
        raise InvalidOption(
            f"map_guide is an {type(map_guide).__name__} that has never been run: train it with SVI, or leave "
            "map_guide out and let fit_map do it"
        )
    batch = data.first()
    return {name: value.detach() for name, value in map_guide.median(*batch.args, **batch.kwargs).items()}


def _as_real(value: Tensor) -> Tensor:
    """An integer as the number that it is."""
    return value if value.is_floating_point() else value.to(get_default_dtype())
