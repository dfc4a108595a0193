"""Which sites a subset chooses; the last layer is read off the program, however it is written."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.zoo import pyro_module
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_laplace as pl
from pyro_laplace.data import as_data
from pyro_laplace.posterior.subset import select
from pyro_laplace.program.program import Program

X = torch.linspace(-1.0, 1.0, 6)[:, None] * torch.ones(3)
Y = torch.linspace(0.0, 1.0, 6)


def normal(*shape: int) -> TorchDistributionMixin:
    return dist.Normal(0.0, 1.0).expand_by(shape).to_event(len(shape))


def observe(loc, y, scale: float | torch.Tensor = 0.5):
    with pyro.plate("data", len(loc)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


def hand_written(x, y=None):
    w1, b1 = pyro.sample("w1", normal(3, 4)), pyro.sample("b1", normal(4))
    w2, b2 = pyro.sample("w2", normal(4, 1)), pyro.sample("b2", normal(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    observe((torch.tanh(x @ w1 + b1) @ w2 + b2).squeeze(-1), y, sigma)


def transposed_and_rescaled(x, y=None):
    w1 = pyro.sample("w1", normal(4, 3))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    raw = pyro.sample("raw", normal(1, 4))
    observe((torch.relu(x @ w1.T) @ (tau * raw).T)[:, 0], y)


def two_heads(x, y=None):
    w1 = pyro.sample("w1", normal(3, 4))
    hidden = torch.tanh(x @ w1)
    loc = hidden @ pyro.sample("w_loc", normal(4))
    scale = nn.functional.softplus(hidden @ pyro.sample("w_scale", normal(4)) + pyro.sample("b_scale", normal()))
    observe(loc, y, scale)


def residual(x, y=None):
    w1, w2 = pyro.sample("w1", normal(3, 3)), pyro.sample("w2", normal(3, 3))
    hidden = torch.tanh(x @ w1)
    hidden = hidden + torch.tanh(hidden @ w2)
    observe(hidden @ pyro.sample("w3", normal(3)), y)


def linear_regression(x, y=None):
    b, w = pyro.sample("b", dist.Normal(0.0, 1.0)), pyro.sample("w", normal(3))
    observe(b + x @ w, y)


class Module(PyroModule):
    def __init__(self):
        super().__init__()
        linear = pyro_module(nn.Linear)
        self.net = pyro_module(nn.Sequential)(linear(3, 4), nn.Tanh(), linear(4, 1))
        for layer in (self.net[0], self.net[2]):
            layer.weight = PyroSample(normal(*layer.weight.shape))
            layer.bias = PyroSample(normal(*layer.bias.shape))

    def forward(self, x, y=None):
        observe(self.net(x).squeeze(-1), y)


def convolution(x, y=None):
    images = x[:, None, :].expand(-1, 2, 3)
    hidden = torch.relu(nn.functional.conv1d(images, pyro.sample("kernel", normal(2, 2, 2))))
    observe(nn.functional.linear(hidden.flatten(1), pyro.sample("head", normal(1, 4)))[:, 0], y)


@pytest.mark.parametrize(
    ("model", "sites"),
    [
        (hand_written, ("w2", "b2")),
        (transposed_and_rescaled, ("tau", "raw")),
        (two_heads, ("w_loc", "w_scale", "b_scale")),
        (residual, ("w3",)),
        (linear_regression, ("b", "w")),
        (Module(), ("net.2.weight", "net.2.bias")),
        (convolution, ("head",)),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_last_layer(model, sites):
    data = as_data((X, Y))
    assert select("last_layer", Program.trace(model, data), data) == sites


@pytest.mark.parametrize(
    ("subset", "sites"),
    [
        ("all", ("w1", "b1", "w2", "b2", "sigma")),
        ("w?", ("w1", "w2")),
        (["sigma", "b*"], ("b1", "b2", "sigma")),
        (lambda name: name.endswith("1"), ("w1", "b1")),
    ],
)
def test_names_globs_and_callables(subset, sites):
    data = as_data((X, Y))
    assert select(subset, Program.trace(hand_written, data), data) == sites


@pytest.mark.parametrize("subset", ["nothing*", ["w1", "nothing"], lambda name: False, []])
def test_a_pattern_that_matches_nothing_lists_the_sites(subset):
    data = as_data((X, Y))
    with pytest.raises(pl.InvalidOption, match=r"'w1', 'b1', 'w2', 'b2', 'sigma'"):
        select(subset, Program.trace(hand_written, data), data)


def test_a_program_without_products_has_no_last_layer():
    def model(y=None):
        observe(pyro.sample("mu", dist.Normal(0.0, 1.0)).expand(6), y)

    data = as_data({"y": Y})
    with pytest.raises(pl.InvalidOption, match=r"no product .* name the sites .*'mu'"):
        select("last_layer", Program.trace(model, data), data)
