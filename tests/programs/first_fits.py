"""Fits of small programs of several kinds, to be called in a process that has done nothing yet."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from programs.posteriordb import eight_schools
from programs.zoo import linear_data, linear_unknown_noise, logistic
from torch import nn

import pyro_laplace as pl

X, Y = linear_data()


def _schools() -> Any:
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return _fitted(eight_schools, (errors, effects))


def _correlated() -> Any:
    """What torch's own distributions and transforms load: common shapes of matrices, and a bounded site."""

    def model(x, y=None):
        w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 0.5))
        scale = pyro.sample("scale", dist.Uniform(0.01, 5.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, scale), obs=y)

    return _fitted(model, (X, Y))


def _network(hidden: int = 5, **options: Any) -> Any:
    net = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    model = pl.bayesianize(net, prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.Regression(0.7))
    return _fitted(model, (X, Y), **options)


def _fitted(model: Callable, data: Any, **options: Any) -> Any:
    return pl.fit_laplace(model, data, on_not_a_mode="ignore", progress=False, **options)


FITS: dict[str, Callable[[], Any]] = {
    "linear regression": lambda: _fitted(linear_unknown_noise().model, (X, Y)),
    "logistic regression": lambda: _fitted(logistic().model, logistic().data),
    "eight schools": _schools,
    "correlated prior": _correlated,
    "gauss-newton": lambda: _fitted(linear_unknown_noise().model, (X, Y), curvature="ggn"),
    "network, full": partial(_network, structure="full"),
    "network, kron": partial(_network, structure="kron"),
    "network, low rank": partial(_network, structure=pl.LowRank(4)),
    "network, last layer": partial(_network, structure="full", subset="last_layer"),
    "network, hessian": partial(_network, curvature="hessian"),
}
"""By name; each searches for the mode itself."""


def trained() -> Any:
    """A network too large for Newton's method: it is trained by Adam, and its mode is found by L-BFGS."""
    return _network(hidden=50, structure="diag")
