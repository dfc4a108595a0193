"""The one number that calibration finds: a temperature of logits, or a scale of deviations."""

import math
from collections.abc import Callable

from torch import Tensor

from pyro_laplace.settings import settings


def best_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """T that minimises ``-sum_n log softmax(l_n / T)[y_n]``.

    The sum is convex in 1 / T, and its derivative ``sum_n (sum_k p_nk l_nk - l_n[y_n])`` increases: its root is found
    by Newton's method between bounds, and a bound is taken where it has none, as with data that are all right (Guo et
    al. 2017, "On calibration of modern neural networks").

    Args:
        log_probs: l `[data, classes]`, unnormalised.
        labels: y [data].

    Returns:
        the temperature, between 1 / `settings.most_temperature` and that.
    """
    logits = log_probs.double()
    own = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)

    def slope(inverse: float) -> tuple[float, float]:
        probs = (inverse * logits).softmax(-1)
        mean = (probs * logits).sum(-1)
        curvature = (probs * (logits - mean.unsqueeze(-1)).square()).sum()
        return float((mean - own).sum()), float(curvature)

    low, high = 1 / settings.most_temperature, settings.most_temperature
    if slope(low)[0] >= 0:
        return 1 / low
    if slope(high)[0] <= 0:
        return 1 / high
    inverse = 1.0
    for _ in range(settings.temperature_steps):
        first, second = slope(inverse)
        low, high = (inverse, high) if first < 0 else (low, inverse)
        newton = inverse - first / second if second > 0 else math.nan
        moved = newton if low < newton < high else math.sqrt(low * high)
        if abs(moved - inverse) <= settings.temperature_rounding * inverse:
            break
        inverse = moved
    return 1 / inverse


def best_scale(nll: Callable[[float], float]) -> float:
    """s that minimises a negative log likelihood of deviations times s, by Brent's method in log s.

    Args:
        nll: of s, in nats.

    Returns:
        the scale, between 1 / `settings.most_temperature` and that.
    """
    from scipy.optimize import minimize_scalar  # takes a second to load

    bound = math.log(settings.most_temperature)
    found = minimize_scalar(
        lambda log_scale: nll(math.exp(log_scale)),
        bounds=(-bound, bound),
        method="bounded",
        options={"xatol": settings.scale_rounding},
    )
    return math.exp(found.x)


def normal_scale(deviations: Tensor) -> float:
    """``sqrt(mean z^2)`` of standardised deviations z [data]: what minimises the log loss of Normal data."""
    return float(deviations.double().square().mean().sqrt())
