"""A mixture of Laplace posteriors, fitted from several starts."""

import time
from collections.abc import Callable
from typing import Any

from pyro_laplace._errors import InvalidOption, check_option
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import WEIGHTS, LaplaceMixture, check_starts
from pyro_laplace.posterior.subset import Subnetwork, Subset


def fit_mixture(fit: Callable[..., AutoLaplace], starts: Any, subset: Subset, weights: str | None) -> LaplaceMixture:
    """A Laplace posterior from each start, and their mixture.

    Args:
        fit: gives the posterior from one start; it takes `curvature`.
        starts: list or tuple of mode guides or mappings.
        subset: of `fit_laplace`.
        weights: "evidence", "equal", or None for evidence.

    Returns:
        the mixture.

    Raises:
        InvalidOption: for an unknown weighting, if the starts are not mode guides, or if the random coordinates would
            be chosen at each.
    """
    start = time.perf_counter()
    check_option("weights", weights, (None, *WEIGHTS))
    check_starts("map_guide", starts)
    if isinstance(subset, Subnetwork) and subset.mask is None:
        raise InvalidOption(
            "subset=Subnetwork(size=...) chooses other coordinates at each mode, and a mixture needs the same: give "
            "Subnetwork(mask=...)"
        )
    components = [_from_start(fit, number, map_guide) for number, map_guide in enumerate(starts)]
    if len({each.curvature for each in components}) > 1:  # "auto" is one curvature, of all or of none
        components = [
            each if each.curvature == "ggn" else _from_start(fit, number, starts[number], curvature="ggn")
            for number, each in enumerate(components)
        ]
    mixture = LaplaceMixture(components, weights=weights or "evidence")
    mixture.fit_seconds = time.perf_counter() - start
    return mixture


def _from_start(fit: Callable[..., AutoLaplace], number: int, map_guide: Any, **options: str) -> AutoLaplace:
    try:
        return fit(map_guide, **options)
    except Exception as error:
        error.add_note(f"raised for map_guide[{number}]")
        raise
