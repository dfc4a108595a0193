"""A Bayesian neural net on two real data sets: MAP, Laplace, variational inference and NUTS side by side.

One Pyro program per data set. Its mode is fitted with Pyro's AutoDelta and turned into Laplace posteriors over all weights and
over the last layer; mean-field VI and NUTS run on the very same program. Prints a table per data set and writes figures, netCDF
DataTrees and a report into a folder.

    python examples/compare_posteriors.py [--out compare_posteriors] [--quick]
"""

# %% Set-up
import argparse
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import pyro_laplace as pl


# %% The model: a network with priors on its weights, and the distribution of its data
class Net(PyroModule):
    """One hidden layer, with a Normal(0, 1 / fan-in) prior on every weight."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.net = PyroModule[nn.Sequential](PyroModule[nn.Linear](inputs, hidden), nn.Tanh(), PyroModule[nn.Linear](hidden, 1))
        for layer in (self.net[0], self.net[2]):
            std = layer.in_features**-0.5
            layer.weight = PyroSample(dist.Normal(0.0, std).expand(layer.weight.shape).to_event(2))
            layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand(layer.bias.shape).to_event(1))


class Regression(Net):
    """Normal data with unknown noise."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        loc = self.net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(loc, sigma), obs=y)


class Classification(Net):
    """Two classes."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = self.net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)
