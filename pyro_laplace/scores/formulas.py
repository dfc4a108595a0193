"""The formulas of scores, of what was predicted and what was observed: tensors in float64, masked data gone.

Letters: n a datum, or an entry of one, k a class, i a draw.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pyro_laplace.settings import settings


def brier_scores(probs: Tensor, labels: Tensor) -> Tensor:
    """``sum_k (p_nk - [y_n = k])^2``, between 0 and 2; of two classes too, where it is twice ``(p_n1 - y_n)^2``.

    It is a proper score (Brier 1950, "Verification of forecasts expressed in terms of probability").

    Args:
        probs: p `[n, classes]`.
        labels: y [n], whole numbers.

    Returns:
        the score of each [n].
    """
    return (probs - torch.nn.functional.one_hot(labels, probs.shape[-1])).square().sum(-1)


def calibration_error(probs: Tensor, labels: Tensor, num_bins: int) -> float:
    """``sum_b |B_b| / n |accuracy(B_b) - confidence(B_b)|``, the expected calibration error.

    The bins ((b - 1) / num_bins, b / num_bins] are of the probability of the most probable class (Guo et al. 2017, "On
    calibration of modern neural networks"). It is no proper score: base rates for every datum have an error of 0.

    Args:
        probs: `[n, classes]`.
        labels: [n].
        num_bins: number of bins.

    Returns:
        the error, NaN of no data.
    """
    guess = probs.argmax(-1)
    confidence = probs.gather(-1, guess.unsqueeze(-1)).squeeze(-1)
    edges = torch.linspace(0, 1, num_bins + 1, dtype=probs.dtype, device=probs.device)[1:-1]
    gaps = torch.zeros(num_bins, dtype=probs.dtype, device=probs.device)
    gaps = gaps.index_add(0, torch.bucketize(confidence, edges), (guess == labels).to(probs) - confidence)
    return float(gaps.abs().sum() / torch.tensor(len(labels)))


def roc_area(probs: Tensor, labels: Tensor) -> float:
    """The share of pairs of a datum of a class and one of another that its probability orders, ties counted half.

    By ranks (Hanley and McNeil 1982, "The meaning and use of the area under a receiver operating characteristic
    curve"). Of more than two classes, the mean over those that occur of one against the rest.

    Args:
        probs: `[n, classes]`.
        labels: [n].

    Returns:
        the area, NaN where only one class occurs, or none.
    """
    from scipy.stats import rankdata  # takes a second to load

    present = labels.unique().tolist()
    if len(present) < 2:
        return math.nan
    classes = [1] if probs.shape[-1] == 2 else present
    areas = []
    for label in classes:
        ranks = rankdata(probs[:, label].cpu().numpy())
        own = (labels == label).cpu().numpy()
        ones, rest = int(own.sum()), int((~own).sum())
        areas.append((ranks[own].sum() - ones * (ones + 1) / 2) / (ones * rest))
    return float(np.mean(areas))


def normal_crps(mean: Tensor, std: Tensor, truth: Tensor) -> Tensor:
    """``s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))`` with z = (y - m) / s, of a Normal.

    It is the continuous ranked probability score ``integral (F(x) - [y <= x])^2 dx``, in the units of y (Gneiting and
    Raftery 2007, "Strictly proper scoring rules, prediction, and estimation").

    Args:
        mean: m [n].
        std: s [n].
        truth: y [n].

    Returns:
        the score of each [n].
    """
    error = truth - mean
    z = error / std
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    return error * torch.erf(z / math.sqrt(2)) + std * (2 * density - 1 / math.sqrt(math.pi))


def fair_crps(draws: Tensor, truth: Tensor) -> Tensor:
    """``mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 S (S - 1))``, the same score of what S draws are from.

    It is unbiased, or fair: its expectation is the score of the distribution, whatever S (Ferro 2014, "Fair scores for
    ensemble forecasts"). With draws in ascending order the double sum is ``2 sum_i (2 i - S - 1) x_i``.

    Args:
        draws: x `[S, n]`, S at least 2.
        truth: y [n].

    Returns:
        the score of each [n].
    """
    count = len(draws)
    step = max(1, settings.density_elements // count)
    rank = 2 * torch.arange(1, count + 1, dtype=draws.dtype, device=draws.device) - count - 1
    parts = []
    for some, observed in zip(draws.split(step, 1), truth.split(step), strict=True):
        errors = some - observed  # of them, not of x: large numbers do not cancel
        parts.append(errors.abs().mean(0) - rank @ errors.sort(0).values / (count * (count - 1)))
    return torch.cat(parts)


def quantiles_of(draws: Tensor, probs: Tensor) -> Tensor:
    """Quantiles of draws, linear between two of them (the default of `numpy.quantile`).

    Args:
        draws: x `[S, n]`.
        probs: of which [tails].

    Returns:
        the values `[n, tails]`, in float64.
    """
    ordered = draws.double().sort(0).values
    place = probs.to(ordered) * (len(ordered) - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], (place - low).unsqueeze(-1)).mT
