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


NESTED = {
    "Beta": (2, lambda f: dist.Beta(f[:, 0].exp(), f[:, 1].exp())),
    "MixtureSameFamily": (
        4,
        lambda f: dist.MixtureSameFamily(dist.Categorical(logits=f[:, :2]), dist.Normal(f[:, 2:], 0.5)),
    ),
    "AffineTransform": (
        2,
        lambda f: dist.TransformedDistribution(
            dist.Logistic(torch.zeros(len(f)), 1.0), [dist.transforms.AffineTransform(f[:, 0], f[:, 1].exp())]
        ),
    ),
    "ZeroInflatedPoisson": (2, lambda f: dist.ZeroInflatedPoisson(f[:, 0].exp(), gate=f[:, 1].sigmoid())),
    "BetaBinomial": (2, lambda f: dist.BetaBinomial(f[:, 0].exp(), f[:, 1].exp(), 5)),
}


@pytest.mark.parametrize("name", NESTED)
def test_the_last_layer_is_seen_through_what_its_output_goes_into(name):
    outputs, likelihood = NESTED[name]
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))
    model = pl.bayesianize(net, prior=pl.nn.Isotropic(1.0), likelihood=likelihood)
    data = as_data((X, Y.clamp(0.1, 0.9).round() if "Po" in name or "Bin" in name else Y.clamp(0.1, 0.9)))
    assert select("last_layer", Program.trace(model, data), data) == ("2.weight", "2.bias")


def test_the_last_layer_before_a_factor():
    def model(x, y=None):
        w1, w2 = pyro.sample("w1", normal(3, 4)), pyro.sample("w2", normal(4))
        b, sigma = pyro.sample("b", normal()), pyro.sample("sigma", dist.HalfNormal(1.0))
        f = torch.tanh(x @ w1) @ w2 - b
        with pyro.plate("data", len(x)):
            pyro.factor("y", -0.5 * ((y - f) / sigma) ** 2 - sigma.log())

    data = as_data((X, Y))
    assert select("last_layer", Program.trace(model, data), data) == ("w2", "b")


def test_data_from_elsewhere_have_a_last_layer_too():
    def model(y=None):
        w1, w2 = pyro.sample("w1", normal(3, 4)), pyro.sample("w2", normal(4))
        observe(torch.tanh(X @ w1) @ w2, y)

    data = as_data({"y": Y})
    assert select("last_layer", Program.trace(model, data), data) == ("w2",)


def test_a_projection_of_constants_is_a_parameter():
    project = torch.linspace(-1.0, 1.0, 8).reshape(4, 2)

    def model(x, y=None):
        w1, z = pyro.sample("w1", normal(3, 4)), pyro.sample("z", normal(2))
        observe(torch.tanh(x @ w1) @ (project @ z), y)

    data = as_data((X, Y))
    assert select("last_layer", Program.trace(model, data), data) == ("z",)
