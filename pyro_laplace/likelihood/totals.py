"""Counts whose totals are the data's own: what there is to know of given data depends on no other total.

The density of a row of counts given its total is the same whatever `total_count` says, and so is its Fisher
information, which is proportional to the total that was observed. Without data, in prediction, `total_count` holds.
"""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent

from pyro_laplace._compat.pyro import mask_of
from pyro_laplace.unwrap import peel


class MultinomialOfTotals(dist.Multinomial):
    """A Multinomial whose rows have totals of their own.

    Args:
        totals: `[*batch]`.
        logits: `[*batch, classes]`.

    Attributes:
        totals: the same, of the whole batch.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, totals: Tensor, logits: Tensor) -> None:
        shape = torch.broadcast_shapes(totals.shape, logits.shape[:-1])
        super().__init__(1, logits=logits.expand(*shape, -1), validate_args=False)
        self.totals = totals.expand(shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MultinomialOfTotals":
        """The same in a larger batch."""
        return MultinomialOfTotals(self.totals.expand(batch_shape), self.logits.expand(*batch_shape, -1))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Counts `[*sample_shape, *batch, classes]`: of each class among what the classes before it have left."""
        probs = self.probs.expand(torch.Size(sample_shape) + self.batch_shape + self.event_shape)
        left = self.totals.to(probs).expand(probs.shape[:-1]).contiguous()
        rest = probs.flip(-1).cumsum(-1).flip(-1)
        counts = []
        for p, tail in zip(probs[..., :-1].unbind(-1), rest[..., :-1].unbind(-1), strict=True):
            share = torch.where(tail > 0, p / tail, 0.0).clamp(max=1.0).contiguous()
            counts.append(torch.binomial(left, share))
            left = left - counts[-1]
        return torch.stack([*counts, left], -1)


class DirichletMultinomialOfTotals(dist.DirichletMultinomial):
    """A DirichletMultinomial whose rows have totals of their own.

    Args:
        concentration: `[*batch, classes]`.
        totals: `[*batch]`.
    """

    def __init__(self, concentration: Tensor, totals: Tensor) -> None:
        concentration = concentration.expand(*totals.shape, -1)
        super().__init__(concentration, validate_args=False)
        self.totals = totals

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DirichletMultinomialOfTotals":
        """The same in a larger batch."""
        return DirichletMultinomialOfTotals(
            self.concentration.expand(*batch_shape, -1), self.totals.expand(batch_shape)
        )

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Counts `[*sample_shape, *batch, classes]`."""
        probs = dist.Dirichlet(self.concentration).sample(torch.Size(sample_shape))
        return MultinomialOfTotals(self.totals, probs.log()).sample()


def of_totals(fn: Any, value: Tensor) -> Any:
    """The distribution that data are of which are given, with their own totals where it is of counts that have one.

    Args:
        fn: an observed site's distribution.
        value: its data; what is masked has any total.

    Returns:
        the distribution, the same where it is of something else.
    """
    *wrappers, base = peel(fn)
    density = type(base).log_prob
    if density not in (dist.Multinomial.log_prob, dist.DirichletMultinomial.log_prob):
        return fn
    totals = value.sum(-1).to(value if value.is_floating_point() else torch.get_default_dtype())
    totals = totals.nan_to_num(0.0, 0.0, 0.0).clamp(min=0.0)
    if density == dist.Multinomial.log_prob:
        fn = MultinomialOfTotals(totals, base.logits)
    else:
        shape = torch.broadcast_shapes(totals.shape, base.batch_shape)
        fn = DirichletMultinomialOfTotals(base.concentration, totals.expand(shape))
    for wrapper in reversed(wrappers):
        if isinstance(wrapper, Independent):
            fn = fn.to_event(wrapper.reinterpreted_batch_ndims)
        elif isinstance(wrapper, dist.MaskedDistribution):
            fn = fn.mask(mask_of(wrapper))
    return fn
