"""Uncertainty about y in two parts: the data's, and the parameters'."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Uncertainty about y, in two parts that add up: of the data, and of the parameters.

    Attributes:
        kind: "variance"; for classes "entropy", in nats, of which the epistemic part is the mutual information.
        aleatoric: expected uncertainty of y given the parameters.
        epistemic: what knowing the parameters would take away.
    """

    kind: str
    aleatoric: Tensor
    epistemic: Tensor

    @property
    def total(self) -> Tensor:
        """Uncertainty of the predictive."""
        return self.aleatoric + self.epistemic

    @staticmethod
    def of_entropy(log_ps: Iterable[Tensor]) -> "Decomposition":
        """That of one class, by its log probabilities at some draws `[some, *batch, classes]` after the others."""
        count, entropies, probs = 0, 0.0, 0.0
        for log_p in log_ps:
            count += len(log_p)
            entropies = entropies + entropy(log_p).sum(0)
            probs = probs + log_p.exp().sum(0)
        aleatoric = torch.as_tensor(entropies / count)
        total = entropy(torch.as_tensor(probs / count).log())
        return Decomposition("entropy", aleatoric=aleatoric, epistemic=(total - aleatoric).clamp(min=0))

    @staticmethod
    def of_variance(fn: Any) -> "Decomposition":
        """That of numbers, by their distribution at draws of the parameters `[draws, *batch]`."""
        try:
            return Decomposition("variance", aleatoric=fn.variance.mean(0), epistemic=fn.mean.var(0, correction=0))
        except NotImplementedError:  # moments that are not known: those of two draws of y that share their parameters
            one, other = fn.sample(), fn.sample()
            shared = ((one - one.mean(0)) * (other - other.mean(0))).mean(0).clamp(min=0)
            return Decomposition("variance", aleatoric=(one - other).square().mean(0) / 2, epistemic=shared)


def entropy(log_p: Tensor) -> Tensor:
    """In nats, of log probabilities `[*batch, classes]`."""
    return -torch.where(log_p.isneginf(), 0.0, log_p.exp() * log_p).sum(-1)
