"""What was predicted of an observed site on a batch, beside what was observed: all that a score is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from pyro_laplace._compat.pyro import mask_of
from pyro_laplace.data import Batch
from pyro_laplace.likelihood.mixture import DistributionMixture, FunctionMixture, average
from pyro_laplace.likelihood.normal import ArrayNormal
from pyro_laplace.likelihood.outcome import Outcome
from pyro_laplace.scores.formulas import fair_crps, normal_crps, quantiles_of
from pyro_laplace.scores.levels import Levels, Marks
from pyro_laplace.unwrap import core, innermost, peel

_NORMAL: tuple[type, ...] = (Normal, MultivariateNormal, LowRankMultivariateNormal, ArrayNormal)
"""Distributions whose entries are Normal, each by itself."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was predicted of an observed site on a batch, and what was observed.

    A datum is an element of the batch shape; its entries are those of its event, or the one that it is. What the
    distribution's own masks leave out, and NaN that it takes for missing, does not count either.

    Attributes:
        distribution: of y, batch shape as the site's.
        observed: the data.
        counted: bool `[*batch]`, False for data that are masked.
    """

    distribution: Any
    observed: Tensor
    counted: Tensor

    @property
    def is_class(self) -> bool:
        """Whether y is one class."""
        return self.outcome.is_class

    @cached_property
    def outcome(self) -> Outcome:
        """What y is; of a mixture, what it is in its components."""
        return Outcome.of(component_of_mixture(self.distribution))

    @cached_property
    def entries(self) -> Tensor:
        """Which entries count, bool `[*batch, *event]`; classes have no axis."""
        shape, fn = self._values.shape, component_of_mixture(self.distribution)
        if self.is_class:
            shape = shape[: len(shape) - len(self.outcome.base.event_shape)]
        inner = len(shape) - self._batch_dims
        keep = self.counted.reshape(self.counted.shape + (1,) * inner)
        over_draws = len(fn.batch_shape) > len(self.distribution.batch_shape)
        for wrapper in peel(fn):
            if isinstance(wrapper, Independent):
                inner -= wrapper.reinterpreted_batch_ndims
            elif isinstance(wrapper, dist.MaskedDistribution):
                mask = torch.as_tensor(mask_of(wrapper), device=keep.device)
                mask = mask[0] if over_draws and mask.dim() else mask  # the same at all draws
                keep = keep & mask.reshape(mask.shape + (1,) * inner)
        keep = keep.expand(shape)
        missing = isinstance(core(fn), dist.NanMaskedNormal | dist.NanMaskedMultivariateNormal)
        return keep & ~self._values.isnan() if missing else keep

    @cached_property
    def data(self) -> Tensor:
        """Which data have an entry that counts, bool `[*batch]`."""
        keep = self.entries
        return keep.flatten(self._batch_dims).any(-1) if keep.dim() > self._batch_dims else keep

    @property
    def log_prob(self) -> Tensor:
        """Log predictive density of each datum that counts [data]."""
        log_prob = self.distribution.log_prob(self.outcome.as_data(self.observed))
        return log_prob.expand(self.data.shape)[self.data].double()

    def classes(self, expected: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Probabilities of the classes, and which one was observed, of each entry that counts.

        Args:
            expected: as `Outcome.expected` has it, in place of the distribution's own.

        Returns:
            `[entries, classes]`, and [entries].
        """
        base, observed = self.outcome.base, self._values
        expected = expected_of(self.distribution) if expected is None else expected
        assert expected is not None  # class probabilities have a closed form
        if base.event_shape:  # one-hot
            return self._chosen(expected), observed.argmax(-1)[self.entries]
        if expected.dim() > observed.dim():
            return self._chosen(expected), observed[self.entries].long()
        ones = self.select(expected)
        return torch.stack([1 - ones, ones], -1), (observed[self.entries] > 0.5).long()

    @property
    def truth(self) -> Tensor:
        """The observed number of each entry that counts [entries]."""
        return self.select(self.observed)

    @property
    def mean(self) -> Tensor | None:
        """The predictive mean of each entry that counts [entries]; None without a closed form."""
        mean = expected_of(self.distribution)
        return None if mean is None else self.select(mean)

    @cached_property
    def normal(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of entries [entries] that are Normal; None of others."""
        base = innermost(self.distribution)
        if not isinstance(base, _NORMAL):
            return None
        return self.select(base.mean), self.select(base.variance).sqrt()

    @property
    def variance(self) -> Tensor | None:
        """The predictive variance of each entry that counts [entries]; None without a closed form."""
        try:
            return self.select(self.distribution.variance)
        except (NotImplementedError, AttributeError):
            return None

    def quantiles(self, probs: Tensor) -> Tensor | None:
        """Quantiles of y of each entry that counts.

        Args:
            probs: of which [tails], in float64.

        Returns:
            the values `[entries, tails]`; None where they have no closed form.
        """
        if self.normal is not None:
            mean, std = (each.unsqueeze(-1) for each in self.normal)
            return Normal(mean, std, validate_args=False).icdf(probs)
        base = innermost(self.distribution)
        if not all(each.bijective for each in getattr(base, "transforms", ())):
            return None  # of what is folded torch gives the quantiles before that
        try:
            return torch.stack([self.select(base.icdf(each)) for each in probs], -1)
        except NotImplementedError:
            return None

    def draws(self, num_samples: int) -> Tensor:
        """Draws of the entries that count `[num_samples, entries]`."""
        return self.select(self.distribution.sample((num_samples,)), lead=1)

    def crps(self, draws: Callable[[], Tensor]) -> Tensor:
        """The continuous ranked probability score of each entry that counts, in closed form or by draws.

        Args:
            draws: gives draws `[draws, entries]`.

        Returns:
            the scores [entries].
        """
        return fair_crps(draws(), self.truth) if self.normal is None else normal_crps(*self.normal, self.truth)

    def marks(self, num_samples: int, levels: Levels) -> Marks:
        """What scores are made of, where the distribution is known.

        Args:
            num_samples: draws of y, where something has no closed form.
            levels: of the intervals.

        Returns:
            the marks.
        """
        if self.is_class:
            probs, labels = self.classes()
            return {"log_prob": self.log_prob, "probs": probs, "labels": labels}
        draws = cache(partial(self.draws, num_samples))
        mean, variance, quantiles = self.mean, self.variance, self.quantiles(levels.probs)
        return {
            "log_prob": self.log_prob,
            "square": ((draws().mean(0) if mean is None else mean) - self.truth).square(),
            "crps": self.crps(draws),
            "quantiles": quantiles_of(draws(), levels.probs) if quantiles is None else quantiles,
            "variance": draws().var(0) if variance is None else variance,
            "truth": self.truth,
        }

    def marks_by_draws(self, drawn: Tensor, mean: Tensor | None, variance: Tensor | None, levels: Levels) -> Marks:
        """The same of numbers that draws predict, but for the density.

        Args:
            drawn: draws of y that count `[draws, entries]`.
            mean: of y [entries], where it is known better than by these.
            variance: of y, likewise.
            levels: of the intervals.

        Returns:
            the marks.
        """
        return {
            "square": ((drawn.mean(0) if mean is None else mean) - self.truth).square(),
            "crps": fair_crps(drawn, self.truth),
            "quantiles": quantiles_of(drawn, levels.probs),
            "variance": drawn.var(0) if variance is None else variance,
            "truth": self.truth,
        }

    def select(self, values: Tensor, lead: int = 0) -> Tensor:
        """What counts of values `[*lead, *batch, *event]`, in float64 `[*lead, entries]`."""
        return values.expand(*values.shape[:lead], *self.entries.shape)[..., self.entries].double()

    def _chosen(self, probs: Tensor) -> Tensor:
        return probs.expand(*self.entries.shape, -1)[self.entries].double()

    @cached_property
    def _values(self) -> Tensor:
        """The data in their whole shape."""
        shape = torch.Size(self.distribution.batch_shape) + torch.Size(self.distribution.event_shape)
        return self.observed.expand(torch.broadcast_shapes(shape, self.observed.shape))

    @property
    def _batch_dims(self) -> int:
        return self._values.dim() - len(self.distribution.event_shape)


@runtime_checkable
class Forecaster(Protocol):
    """What gives predictions of a batch by itself, as a calibrated predictive does."""

    def predictions(self, batch: Batch) -> Mapping[str, Prediction]:
        """Site name to what is predicted of it, beside the data that the batch holds."""
        ...


def component_of_mixture(fn: Any) -> Any:
    """The distribution; of a mixture one of its components, or all of them along a first axis."""
    if isinstance(fn, DistributionMixture):
        return component_of_mixture(fn.components[0])
    return fn.components if isinstance(fn, FunctionMixture) else fn


def expected_of(fn: Any) -> Tensor | None:
    """`Outcome.expected`, averaged over the components of a mixture."""
    if isinstance(fn, DistributionMixture):
        parts = [expected_of(component) for component in fn.components]
        return None if any(part is None for part in parts) else average(fn.weights, [p for p in parts if p is not None])
    expected = Outcome.of(component_of_mixture(fn)).expected
    return expected.mean(0) if isinstance(fn, FunctionMixture) and expected is not None else expected
