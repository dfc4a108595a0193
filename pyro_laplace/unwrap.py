"""Distributions seen through what is wrapped around them: the one place outside the likelihoods that peels.

`to_event`, `mask` and `expand` are wrappers, which leave the distribution what it is. A transform is more: what lies
within it is another distribution, in another space.
"""

from collections.abc import Iterator
from typing import Any

from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, Transform, TransformedDistribution

WRAPPERS = (Independent, MaskedDistribution, ExpandedDistribution)
"""What leaves a distribution what it is."""


def peel(fn: Any, masks: bool = True) -> Iterator[Any]:
    """A distribution, and what it wraps.

    Args:
        fn: the distribution.
        masks: whether masks are seen through too.

    Yields:
        the distributions, outermost first; the last one wraps nothing.
    """
    yield fn
    while isinstance(fn, WRAPPERS) and (masks or not isinstance(fn, MaskedDistribution)):
        fn = fn.base_dist
        yield fn


def innermost(fn: Any) -> Any:
    """The distribution within all wrappers."""
    *_, base = peel(fn)
    return base


def innermost_unmasked(fn: Any) -> Any:
    """The distribution within `to_event` and `expand`: a mask, which takes entries out of the density, stays."""
    *_, base = peel(fn, masks=False)
    return base


def core(fn: Any) -> Any:
    """The distribution that wraps no other, transforms and whatever else holds one seen through."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def tensors_of(fn: Any) -> list[Tensor]:
    """The tensors that a distribution is made of, those of distributions and transforms within it included."""
    found: list[Tensor] = []
    seen: set[int] = set()
    pending = [fn]
    while pending:
        part = pending.pop()
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, list | tuple):
            pending += part
        elif isinstance(part, Distribution | Transform) and id(part) not in seen:
            seen.add(id(part))
            pending += vars(part).values()
    return found


def parameter_of(fn: Any) -> Tensor | None:
    """One of the parameters that the core of a distribution was given, for its dtype and device."""
    base = core(fn)
    given = (vars(base).get(name) for name in base.arg_constraints)  # a property would compute the other form
    return next((value for value in given if isinstance(value, Tensor)), None)


def where_loc_is(fn: Any, value: Tensor) -> tuple[Any, Tensor]:
    """The distribution that loc and scale belong to, and a value in its space: of a LogNormal, a Normal's log y.

    Args:
        fn: the distribution.
        value: of it.

    Returns:
        the distribution within wrappers, and within transforms whose loc is its own, and the value there.
    """
    fn = innermost(fn)
    if isinstance(fn, TransformedDistribution):
        base, loc = innermost(fn.base_dist), getattr(fn, "loc", None)
        if loc is not None and loc is getattr(base, "loc", None):  # a Gumbel's own are in the space of y
            transforms: Any = reversed(fn.transforms)
            for transform in transforms:
                value = transform.inv(value)
            return base, value
    return fn, value
