"""The hyperparameters that a posterior was built at: it is used at them too, whatever the store holds by then."""

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch

from pyro_laplace._compat.pyro import live_param
from pyro_laplace._errors import LaplaceWarning
from pyro_laplace._typing import Values
from pyro_laplace.settings import settings

_TOLD: WeakSet[Any] = WeakSet()
"""The posteriors whose user has been told that the store holds other values."""


def own_params(model: Callable[..., Any], posterior: Any) -> Values:
    """The pyro.params that a posterior is used at, in place of those that the store has.

    Of a posterior that was built at the store's values it is said, once, where these have changed since.

    Args:
        model: the Pyro program.
        posterior: anything; what is no posterior of `fit_laplace` has none.

    Returns:
        name to value; none where the store holds all of them.
    """
    guide: Any = getattr(posterior, "components", (posterior,))[0]  # of a mixture all were built at the same values
    if not hasattr(guide, "path") or not guide.hyperparameters:
        return {}
    live = {name: live_param(model, name) for name in guide.hyperparameters}
    changed = [
        name for name, value in guide.hyperparameters.items()
        if (now := live[name]) is not None and not _same(now.detach(), value.to(now))
    ]  # fmt: skip
    if changed and guide.path.kept and guide not in _TOLD:
        _TOLD.add(guide)
        warnings.warn(
            f"the posterior was built at other values of the pyro.params {changed} than the param store holds now, and "
            "is used at its own (guide.hyperparameters). Fit it anew to have it at those of the store",
            LaplaceWarning,
            stacklevel=4,
        )
    missing = any(now is None for now in live.values())
    return dict(guide.hyperparameters) if changed or missing else {}


def observed_of(posterior: Any) -> tuple[str, ...]:
    """The sites that a posterior of `fit_laplace` is conditioned on; none of what does not say so."""
    return tuple(posterior.observed) if hasattr(posterior, "latents") else ()


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for the way to the store's unconstrained value and back."""
    close = settings.probe_rounding * torch.finfo(one.dtype).eps if one.is_floating_point() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=close, atol=0.0)
