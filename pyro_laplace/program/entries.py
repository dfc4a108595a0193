"""Which entries of an observed value count, and which of them its distribution's support holds.

A datum is an element of the batch shape; its entries are those of its event, or the one that it is.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, constraints, transform_to
from torch.distributions.constraints import Constraint

from pyro_laplace._compat.pyro import mask_of
from pyro_laplace.settings import settings
from pyro_laplace.unwrap import innermost, peel


def counted_entries(fn: Any, value: Tensor, mask: Any = None, scale: Any = 1.0) -> Tensor:
    """Which entries neither `poutine.mask`, a scale of zero nor a mask of the distribution's own leaves out.

    Args:
        fn: the distribution.
        value: of it.
        mask: of `poutine.mask`, or None.
        scale: of `poutine.scale`.

    Returns:
        bool, of the shape of the value, expanded to the distribution's.
    """
    inner = len(fn.event_shape)
    keep = torch.ones(torch.broadcast_shapes(fn.shape(), value.shape), dtype=torch.bool, device=value.device)
    for each in (mask, None if isinstance(scale, float) and scale else torch.as_tensor(scale) != 0):
        if each is not None:
            keep = keep & _over_events(each, inner, value)
    for wrapper in peel(fn):
        if isinstance(wrapper, Independent):
            inner -= wrapper.reinterpreted_batch_ndims
        elif isinstance(wrapper, dist.MaskedDistribution):
            keep = keep & _over_events(mask_of(wrapper), inner, value)
    return keep


def without_masked_nan(value: Tensor, mask: Any, fn: Any) -> Tensor:
    """Data whose masked entries have a density: the gradient of a NaN is one, and a class -100 has none, masked or not.

    Args:
        value: of an observed site.
        mask: of `poutine.mask`.
        fn: the site's distribution.

    Returns:
        the data, the same where nothing is to be replaced.
    """
    own = any(isinstance(each, dist.MaskedDistribution) for each in peel(fn))
    if not own and (mask is None or mask is True):
        return value
    support = Support.of(fn).of_no_tensor()
    regular = support.regular(value)
    if bool(regular.all()):
        return value
    keep = counted_entries(fn, value, mask).long().sum_to_size(value.shape) > 0  # one value may be of several data
    counted = support.by_check(keep)
    seen = value[counted & regular]
    fill = seen[0] if len(seen) and not support.is_discrete else support.inner(value)
    bad = ~counted & ~regular
    return torch.where(bad.reshape(bad.shape + (1,) * support.event_dim), fill, value)


class Support:
    """The support of a distribution within its wrappers, checked entry by entry.

    Args:
        constraint: of one entry; None where the distribution does not say it.

    Attributes:
        constraint: the same.
    """

    def __init__(self, constraint: Constraint | None) -> None:
        self.constraint = constraint

    @staticmethod
    def of(fn: Any) -> "Support":
        """That of a distribution."""
        base = innermost(fn)
        try:
            constraint = base.support
            while isinstance(constraint, constraints.independent):
                constraint = constraint.base_constraint
            if isinstance(constraint, _MULTINOMIAL):  # its totals are the data's own
                constraint = constraints.nonnegative_integer
            if constraints.is_dependent(constraint) or constraint.event_dim > len(base.event_shape):
                constraint = None
        except (NotImplementedError, AttributeError, ValueError):
            constraint = None
        return Support(constraint)

    @property
    def event_dim(self) -> int:
        """How many axes of a value are checked as one."""
        return 0 if self.constraint is None else self.constraint.event_dim

    @property
    def is_discrete(self) -> bool:
        """Whether it holds whole numbers."""
        return self.constraint is not None and self.constraint.is_discrete

    @property
    def bounds(self) -> dict[str, Tensor]:
        """The bounds, by name, that may be another datum's, or depend on a parameter: they are tensors."""
        return {name: each for name, each in self._bounds.items() if isinstance(each, Tensor)}

    def of_no_tensor(self) -> "Support":
        """One that holds it, and that no parameter has a part in: a number of trials may be one of `torch.func`'s."""
        if not self.bounds:
            return self
        return Support(constraints.nonnegative_integer if self.is_discrete else None)

    def holds(self, value: Tensor) -> Tensor:
        """Whether values are within it, bool `[*shape]` without the axes that are checked as one."""
        value = value.long() if value.dtype == torch.bool else value
        if self.constraint is None:
            return torch.ones_like(value, dtype=torch.bool)
        try:
            inside = self.constraint.check(value).expand(self.by_check(value).shape)
        except (NotImplementedError, RuntimeError, ValueError):  # a constraint of the user's own may take other values
            return torch.ones_like(self.by_check(value), dtype=torch.bool)
        if not value.is_floating_point():
            return inside
        close = settings.rounding * torch.finfo(value.dtype).eps
        if self.constraint is constraints.simplex:
            return inside | (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < close)
        if isinstance(self.constraint, _SPHERE):
            return inside | ((value.norm(dim=-1) - 1).abs() < close)
        return inside

    def on_border(self, value: Tensor) -> Tensor:
        """Whether continuous values lie on its border, where most densities are zero or infinite."""
        if self.constraint is constraints.simplex:
            return (value == 0).any(-1)
        border = torch.zeros_like(self.by_check(value), dtype=torch.bool)
        for bound in () if self.is_discrete or self.event_dim else self._bounds.values():
            border = border | (value == bound)
        return border

    def regular(self, value: Tensor) -> Tensor:
        """Whether values are finite, and inside."""
        finite = value.isfinite()
        return self.by_check(finite, every=True) & self.holds(value) & ~self.on_border(value)

    def inner(self, value: Tensor) -> Tensor:
        """A value in its middle, for what is masked."""
        if self.is_discrete or self.constraint is None or self.event_dim > 1:
            low = next(iter(self._bounds.values()), 0) if self.is_discrete else 0
            return torch.as_tensor(low).to(value)
        size = value.shape[value.dim() - self.event_dim :]
        try:
            transform = transform_to(self.constraint)
            return transform(torch.zeros(transform.inverse_shape(size))).to(value)
        except NotImplementedError:
            return torch.zeros_like(value)

    def by_check(self, entries: Tensor, every: bool = False) -> Tensor:
        """Something of each entry, without the axes that are checked as one: its first, or whether it is so of all."""
        for _ in range(self.event_dim):
            entries = entries.all(-1) if every else entries[..., 0]
        return entries

    @property
    def _bounds(self) -> dict[str, Any]:
        found = {name: getattr(self.constraint, name, None) for name in ("lower_bound", "upper_bound")}
        return {name: each for name, each in found.items() if each is not None}


_MULTINOMIAL = type(constraints.multinomial(0))

_SPHERE = type(dist.constraints.sphere)


def _over_events(mask: Any, inner: int, value: Tensor) -> Tensor:
    mask = torch.as_tensor(mask, device=value.device)
    return mask.reshape(mask.shape + (1,) * inner) != 0
