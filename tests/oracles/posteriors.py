"""What a posterior is compared with: its program, its data, and its exact moments.

The moments owe nothing to the library, to Pyro or to torch: `moments_of_regression` is conjugate given the noise,
`moments_on_grid` is a sum over a product grid of the density in the parameters' own space.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from programs.posteriordb import tensor

Moments = dict[str, tuple[np.ndarray, np.ndarray]]
"""Site to the mean and the standard deviation of its entries."""


@dataclass(frozen=True)
class Posterior:
    """A program, its data as arrays, the exact moments of its sites, and what Laplace can reach.

    `z` bounds max |mean error| / sd and `log_std` max |log sd ratio|, over the sites that `moments` names.
    `curvature` is the exact Hessian where Fisher information is not, means being far from linear in the sites.
    """

    model: Callable
    data: tuple
    moments: Callable[[], Moments]
    z: float
    log_std: float
    curvature: str = "auto"

    def arguments(self) -> tuple:
        """The data in the default dtype."""
        return tuple(tensor(item) if isinstance(item, np.ndarray) else item for item in self.data)


def moments_of_regression(
    x: np.ndarray, y: np.ndarray, log_prior: Callable, mean: np.ndarray | None = None, std: np.ndarray | None = None
) -> Moments:
    """``y ~ Normal(x beta, sigma)``, ``beta ~ Normal(mean, std)`` or flat, sigma by quadrature over its logarithm."""
    size = np.abs(x).max(0)  # columns of one size: 2013 and 2013^3 alike
    x, num_obs, num_columns = x / size, len(y), x.shape[1]
    prior_root = np.zeros((num_columns, num_columns)) if std is None else np.diag(1 / (std * size))
    prior_target = np.zeros(num_columns) if mean is None else prior_root @ (mean * size)
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    spread = 1 / math.sqrt(num_obs - num_columns)
    log_sigma = 0.5 * math.log(residual @ residual * spread**2) + spread * np.linspace(-8, 12, 1001)
    log_weight, means, variances = [], [], []
    for s in log_sigma:
        target = np.concatenate([y / np.exp(s), prior_target])
        q, r = np.linalg.qr(np.concatenate([x / np.exp(s), prior_root]))
        beta, rest = np.linalg.solve(r, q.T @ target), target - q @ (q.T @ target)
        log_det = np.log(np.abs(np.diag(r))).sum()
        log_weight.append(-num_obs * s - 0.5 * rest @ rest - log_det + log_prior(np.exp(s)) + s)
        means.append(beta)
        variances.append((np.linalg.inv(r) ** 2).sum(1))
    weight = np.exp(np.array(log_weight) - max(log_weight))
    weight, means, sigma = weight / weight.sum(), np.array(means), np.exp(log_sigma)
    beta, centre = weight @ means, weight @ sigma
    std = np.sqrt(weight @ (np.array(variances) + (means - beta) ** 2))
    return {"beta": (beta / size, std / size), "sigma": (centre, np.sqrt(weight @ (sigma - centre) ** 2))}


def moments_on_grid(
    log_density: Callable, axes: Mapping[str, tuple[float, float, int]], bounded: tuple[str, ...] = ()
) -> Moments:
    """Moments under a density, from the midpoints of a product grid.

    Axes are `(low, high, cells)`; those named in `bounded` end where the support does. Past the others' ends there
    must be nothing.
    """
    midpoints = {name: low + (np.arange(n) + 0.5) * (high - low) / n for name, (low, high, n) in axes.items()}
    points = dict(zip(axes, (p.ravel() for p in np.meshgrid(*midpoints.values(), indexing="ij")), strict=True))
    log_weight = log_density(**points)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    for name in axes.keys() - set(bounded):
        at_the_ends = np.isin(points[name], midpoints[name][[0, -1]])
        assert weight[at_the_ends].sum() < 1e-3, f"the grid cuts {name} off"
    means = {name: weight @ value for name, value in points.items()}
    return {name: (means[name], np.sqrt(weight @ (points[name] - means[name]) ** 2)) for name in axes}


def log_normal_density(x: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    return -0.5 * (x / scale) ** 2 - np.log(scale)
