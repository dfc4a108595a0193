"""Curves that say how far predictions can be believed: what was promised, against what happened.

Letters: n a datum or an entry of one, k a class, b a bin, l a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace.scores.formulas import quantiles_of
from pyro_laplace.scores.objectives import common_numbers
from pyro_laplace.scores.prediction import Prediction


@dataclass(frozen=True)
class Reliability:
    """Confidence in the most probable class, and how often it was right, in bins of equally many data.

    Attributes:
        confidence: mean probability of each bin's guesses [bins].
        accuracy: share of them that was right [bins].
        confidences: of each datum [data].
    """

    confidence: Tensor
    accuracy: Tensor
    confidences: Tensor


@dataclass(frozen=True)
class Coverage:
    """Central predictive intervals at several levels.

    Attributes:
        levels: what each is to hold [levels].
        inside: the share of numbers that it holds [levels].
        width: its mean width, in the units of y [levels].
    """

    levels: Tensor
    inside: Tensor
    width: Tensor


def reliability_of(predictions: Sequence[Prediction], num_bins: int) -> Reliability:
    """The reliability of class predictions.

    Args:
        predictions: of batches.
        num_bins: number of bins, at most one for each datum.

    Returns:
        the curve.
    """
    pairs = [each.classes() for each in predictions]
    probs, labels = torch.cat([p for p, _ in pairs]), torch.cat([label for _, label in pairs])
    confidence, guess = probs.max(-1)
    order, right = confidence.argsort(stable=True), (guess == labels).double()
    bins = order.tensor_split(min(num_bins, len(order)))
    return Reliability(
        torch.stack([confidence[b].mean() for b in bins]), torch.stack([right[b].mean() for b in bins]), confidence
    )


def coverage_of(predictions: Sequence[Prediction], num_levels: int, num_samples: int) -> Coverage:
    """Coverage and sharpness of predictions of numbers.

    Args:
        predictions: of batches.
        num_levels: levels between 0 and 1, evenly spaced, without these.
        num_samples: draws of y, where quantiles have no closed form.

    Returns:
        the curves.
    """
    levels = torch.arange(1, num_levels + 1, dtype=torch.float64) / (num_levels + 1)
    tails = (1 - levels) / 2
    probs = torch.cat([tails, 1 - tails])
    inside, widths = [], []
    with common_numbers():
        for each in predictions:
            found = each.quantiles(probs)
            found = quantiles_of(each.draws(num_samples), probs) if found is None else found
            low, high = found.double().chunk(2, -1)  # n l
            truth = each.truth.unsqueeze(-1)
            inside.append((low <= truth) & (truth <= high))
            widths.append(high - low)
    return Coverage(levels, torch.cat(inside).double().mean(0), torch.cat(widths).mean(0))
