"""Leave-one-out by draws: each datum is taken out of all draws by weights, whose tails are smoothed."""

import math

import numpy as np
import torch
from torch import Tensor

from pyro_laplace._typing import Values
from pyro_laplace.settings import settings


def weighed(pointwise: Tensor, log_ratio: Tensor | None, efficiency: float) -> tuple[np.ndarray, np.ndarray]:
    """The log density of each datum without itself, by PSIS, and its Pareto k.

    A draw has the weight ``r_s / p(y_n | theta_s)`` for datum n, r_s = p / q where draws are from an approximation q
    (Vehtari, Gelman and Gabry 2017, "Practical Bayesian model evaluation using leave-one-out cross-validation and
    WAIC"; Magnusson et al. 2019, "Bayesian leave-one-out cross-validation for large data"). Weights whose tail is one
    value need no smoothing, and have no k: it is minus infinity.

    Args:
        pointwise: log likelihood [draws, data].
        log_ratio: log p - log q [draws]; None of draws from the posterior.
        efficiency: relative, of correlated draws; 1 of independent ones.

    Returns:
        both [data].
    """
    from arviz_stats.base.array import array_stats  # takes a second to load

    log_lik = pointwise.double()
    log_weight = -log_lik if log_ratio is None else log_ratio.double().unsqueeze(1) - log_lik
    k = np.full(log_lik.shape[1], -math.inf)
    smoothed = varied(-log_weight, efficiency, pointwise.dtype)
    raw = log_weight - log_weight.logsumexp(0)
    if bool(smoothed.any()):
        with np.errstate(all="ignore"):
            found, ks = array_stats.psislw(-log_weight[:, smoothed].cpu().numpy().T, r_eff=efficiency)  # pyright: ignore[reportArgumentType]
        raw[:, smoothed] = torch.as_tensor(found).to(raw).mT
        k[smoothed.cpu().numpy()] = ks
    return (raw + log_lik).logsumexp(0).cpu().numpy(), k


def varied(minus_log_weight: Tensor, efficiency: float, dtype: torch.dtype) -> Tensor:
    """Which data [data] have a tail of importance weights that is not one value but for rounding.

    It is ``min(S / 5, 3 sqrt(S / reff))`` of S draws (Vehtari et al. 2024, "Pareto smoothed importance sampling").

    Args:
        minus_log_weight: [draws, data].
        efficiency: reff.
        dtype: that the densities were computed in.

    Returns:
        bool [data].
    """
    count = len(minus_log_weight)
    tail = max(1, int(min(count / 5, 3 * (count / efficiency) ** 0.5)))
    lowest = minus_log_weight.topk(tail, dim=0, largest=False).values
    close = settings.rounding * torch.finfo(dtype).eps * lowest[0].abs().clamp(min=1.0)
    return lowest[-1] - lowest[0] > close


def relative_efficiency(by_chain: Values) -> float:
    """Mean effective sample size of the sites per draw, as ArviZ has it; ArviZ itself takes 1 for a single chain.

    Args:
        by_chain: site name to draws `[chains, draws, *shape]`.

    Returns:
        the number.
    """
    from arviz_stats.base.array import array_stats

    values = [value.cpu().numpy() for value in by_chain.values()]
    found = [np.ravel(array_stats.ess(each, chain_axis=0, draw_axis=1, method="mean")) for each in values]
    return float(np.concatenate(found).mean() / (values[0].shape[0] * values[0].shape[1]))
