"""Importance weights of draws, Pareto-smoothed, and what they say of the draws' means and deviations.

Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto smoothed importance sampling".
"""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights ``p(y, theta) / q(theta)`` of draws from q.

    Attributes:
        log_ratio: log p - log q [draws], in nats and float64; minus infinity where p is zero.
        normalised: the weights, their tail smoothed, which sum to one [draws].
        khat: shape of the generalised Pareto distribution of their tail, as ArviZ estimates it: minus infinity where
            all weights are equal, infinity where all are zero.
    """

    log_ratio: Tensor
    normalised: Tensor
    khat: float

    @staticmethod
    def of(log_ratio: Tensor) -> "Weights":
        """Smooth the weights.

        Args:
            log_ratio: log p - log q [draws]; what is not a number counts as minus infinity.

        Returns:
            the weights.
        """
        ratio = log_ratio.double()
        ratio = torch.where(ratio.isnan(), -math.inf, ratio)
        top = ratio.max()
        if not bool(top.isfinite()):
            return Weights(ratio, torch.full_like(ratio, 1 / len(ratio)), math.inf)
        if float(top - ratio.min()) <= settings.equal_weights:
            return Weights(ratio, torch.softmax(ratio, 0), -math.inf)
        import numpy as np
        from arviz_stats.base.array import array_stats  # takes a second to load

        lowest = torch.finfo(torch.float64).min / 2  # what ArviZ subtracts from must be finite
        raw = torch.softmax(ratio, 0)
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")  # it is told otherwise
                smoothed, khat = array_stats.psislw(-ratio.clamp(min=lowest).cpu().numpy())  # of minus log weights
        except ValueError:  # a tail of one value, zero: one draw outweighs all others
            return Weights(ratio, raw, math.inf)
        normalised = torch.softmax(torch.as_tensor(smoothed).to(ratio), 0)
        if not bool(normalised.isfinite().all()) or math.isnan(float(khat)):
            return Weights(ratio, raw, math.inf)
        return Weights(ratio, normalised, float(khat))

    @cached_property
    def ess(self) -> float:
        """Kish's effective number of draws, ``1 / sum w^2``; zero where none has a weight."""
        return float(1 / self.normalised.square().sum()) if bool(self.log_ratio.max().isfinite()) else 0.0

    @property
    def trusted(self) -> bool:
        """Whether k-hat is at most `settings.bad_k`, and no less than `settings.least_effective` of the draws count.

        The estimate of k is too small where the draws never came to what they miss; few effective ones give it away.
        """
        return self.khat <= settings.bad_k and self.ess >= settings.least_effective * len(self.normalised)

    @property
    def is_efficient(self) -> bool:
        """Whether they can be trusted, and a good part of the draws counts."""
        return self.trusted and self.ess >= settings.good_share * len(self.normalised)

    def better_than(self, other: "Weights") -> bool:
        """Whether these can be trusted and others can not, or else have more effective draws."""
        return self.ess > other.ess if self.trusted == other.trusted else self.trusted

    def tempered(self, share: float) -> Tensor:
        """``w^beta`` with the largest beta of at most one that leaves a share of the draws effective.

        Koblents and Miguez 2015, "A population Monte Carlo scheme with transformed weights".

        Args:
            share: of the draws.

        Returns:
            the weights, which sum to one [draws].
        """
        finite = self.log_ratio.isfinite()
        least = share * float(finite.sum())
        if self.ess >= least:
            return self.normalised
        log_weight = self.log_ratio.where(finite, -math.inf)

        def weight(beta: float) -> Tensor:
            return torch.softmax((beta * log_weight).where(finite, -math.inf), 0)

        low, high = 0.0, 1.0
        for _ in range(settings.bisections):
            beta = (low + high) / 2
            low, high = (beta, high) if float(1 / weight(beta).square().sum()) >= least else (low, beta)
        return weight(low)

    @property
    def log_mean(self) -> float:
        """Log of the mean weight: an estimate of log p(y), unbiased before the logarithm."""
        return float(self.log_ratio.logsumexp(0)) - math.log(len(self.log_ratio))

    @property
    def log_mean_error(self) -> float:
        """Its Monte Carlo standard error, by the delta method."""
        raw = torch.softmax(self.log_ratio, 0)
        return float((raw.square().sum() - 1 / len(raw)).clamp(min=0).sqrt())

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted mean and standard deviation of values [draws, entries], each [entries]."""
        mean = self.normalised @ values
        return mean, (self.normalised @ (values - mean).square()).sqrt()


@dataclass(frozen=True, eq=False)
class Shift:
    """How far weights move the mean of draws, and how they scale their deviation.

    Attributes:
        mean: the move, in deviations of the weighted draws [entries].
        mean_error: its Monte Carlo standard error.
        log_std: log of the weighted deviation over that of the draws.
        log_std_error: its Monte Carlo standard error.
    """

    mean: Tensor
    mean_error: Tensor
    log_std: Tensor
    log_std_error: Tensor

    @staticmethod
    def by(weights: Weights, values: Tensor) -> "Shift":
        """Of draws by weights of their own.

        The errors are those of self-normalised sums, ``sum (w_i (x_i - m_w) - (x_i - m) / S)^2``: what both means have
        in common cancels.

        Args:
            weights: of the draws.
            values: [draws, entries].

        Returns:
            the shift; zero for entries that do not vary.
        """
        values = values.double()
        equal = 1 / len(values)
        mean, std = weights.moments(values)
        centred, plain = values - mean, values - values.mean(0)
        spread = plain.square().mean(0).sqrt()
        weighted = weights.normalised.unsqueeze(-1)
        error = (weighted * centred - equal * plain).square().sum(0).sqrt()
        second = weighted * ((centred / std).square() - 1) - equal * ((plain / spread).square() - 1)
        return Shift._where_varying(
            spread, (mean - values.mean(0)) / std, error / std, (std / spread).log(), second.square().sum(0).sqrt() / 2
        )

    @staticmethod
    def between(values: Tensor, weights: Weights, others: Tensor) -> "Shift":
        """Of draws by other draws, with weights.

        Args:
            values: the draws [draws, entries].
            weights: of the others.
            others: [other draws, entries].

        Returns:
            the shift.
        """
        values, others = values.double(), others.double()
        mean, std = weights.moments(others)
        spread = values.std(0, correction=0)
        own_error = spread / len(values) ** 0.5
        error = (weights.normalised.unsqueeze(-1) * (others - mean)).square().sum(0).sqrt()
        second = (weights.normalised.unsqueeze(-1) * (((others - mean) / std).square() - 1)).square().sum(0)
        log_std_error = (second / 4 + 1 / (2 * len(values))).sqrt()
        errors = (error.square() + own_error.square()).sqrt()
        return Shift._where_varying(
            spread, (mean - values.mean(0)) / std, errors / std, (std / spread).log(), log_std_error
        )

    @staticmethod
    def _where_varying(spread: Tensor, *parts: Tensor) -> "Shift":
        return Shift(*(torch.where(spread > 0, part, 0.0) for part in parts))
