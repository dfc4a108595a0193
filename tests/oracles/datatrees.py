"""What trees are compared with: the exact posterior of the program `zoo.linear`, in closed form.

Beside it a guide of such a program, fitted without a progress bar, and the sizes of a tree's variables.
"""

import torch
import xarray as xr
from programs import zoo as programs
from torch import Tensor

import pyro_laplace as pl

NOISE, PRIOR_STD = 0.7, 1.3


def linear_posterior(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the weights."""
    precision = x.T @ x / NOISE**2 + torch.eye(x.shape[1]) / PRIOR_STD**2
    covariance = torch.linalg.inv(precision)
    return covariance @ x.T @ y / NOISE**2, covariance


def fit(case: programs.Case, **options) -> pl.AutoLaplace:
    return pl.fit_laplace(case.model, case.data, progress=False, **options)


def shapes(tree: xr.DataTree, group: str) -> dict[str, dict[str, int]]:
    return {str(name): dict(variable.sizes) for name, variable in tree[group].data_vars.items()}
