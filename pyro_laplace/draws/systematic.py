"""Systematic resampling: as many of some draws as are wanted, each as often as its weight says."""

import torch
from torch import Tensor


def systematic(weights: Tensor, count: int, shift: float = 0.5) -> Tensor:
    """Which draws are taken, to the next whole number as often as the weights say (Kitagawa 1996).

    Args:
        weights: of the draws, which sum to one [draws].
        count: how many are taken.
        shift: where in a step of 1 / count the first one lies, from 0 to 1.

    Returns:
        numbers of the draws, ascending [count].
    """
    levels = ((torch.arange(count, dtype=torch.float64) + shift) / count).to(weights.device)
    return torch.searchsorted(weights.double().cumsum(0), levels).clamp(max=len(weights) - 1)
