"""Last layers read off the autograd graph, and nothing remembered of a program that no longer holds."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_laplace as pl
from pyro_laplace.linearized import expansion, routes

pytestmark = pytest.mark.usefixtures("float64")
CLOSE = {"rtol": 1e-8, "atol": 1e-10}
FEATURES, CLASSES = 4, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(7, 2, generator=generator(), dtype=torch.float64)


def normal(*shape):
    return dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape))


def features(x):
    return torch.tanh(x @ torch.linspace(-1, 1, 2 * FEATURES).reshape(2, FEATURES))


def weight():
    return pyro.sample("w", normal(FEATURES, CLASSES))


def rows():
    return pyro.sample("w", normal(CLASSES, FEATURES))


def bias():
    return pyro.sample("b", normal(CLASSES))


SOME = pl.Subnetwork(mask={"w": torch.eye(CLASSES, FEATURES).bool(), "b": torch.tensor([False, True, False])})
SHIFT = torch.tensor([0.3, -0.2, 0.1])

LAYERS = {
    "linear": lambda a: nn.functional.linear(a, rows(), bias()),
    "no bias": lambda a: nn.functional.linear(a, rows()),
    "product": lambda a: a @ weight(),
    "sum": lambda a: a @ weight() + bias(),
    "sum, bias first": lambda a: bias() + a @ weight(),
    "transposed": lambda a: a @ rows().t() + bias(),
    "addmm": lambda a: torch.addmm(bias(), a, weight()),
    "fixed bias": lambda a: nn.functional.linear(a, rows(), SHIFT.to(a)),
    "fixed shift": lambda a: a @ weight() + SHIFT.to(a),
    "flat site": lambda a: a @ pyro.sample("w", normal(FEATURES * CLASSES)).reshape(FEATURES, CLASSES) + bias(),
    "row of biases": lambda a: a @ weight() + pyro.sample("b", normal(1, CLASSES)),
    "after a parameter": lambda a: (a * pyro.param("scale", torch.tensor(1.5))) @ weight() + bias(),
}

OTHERS = {
    "scaled bias": lambda a: torch.addmm(bias(), a, weight(), beta=2.0),
    "scaled product": lambda a: torch.addmm(bias(), a, weight(), alpha=2.0),
    "subtracted bias": lambda a: a @ weight() - bias(),
    "doubled": lambda a: 2 * (a @ weight() + bias()),
    "twice": lambda a: (lambda w: (a + w.sum()) @ w + bias())(weight()),
    "bias in the activation": lambda a: (lambda b: (a * b.sum()) @ weight() + b)(bias()),
    "weight as bias": lambda a: (lambda w: a @ w + w[0])(weight()),
    "part of a site": lambda a: a @ pyro.sample("w", normal(FEATURES + 1, CLASSES))[1:] + bias(),
    "reversed": lambda a: a @ weight().flip(0) + bias(),
    "one for all": lambda a: a @ weight() + pyro.sample("b", normal(1)),
    "one for each datum": lambda a: a[:CLASSES] @ weight() + pyro.sample("b", normal(CLASSES, 1)),
    "one row": lambda a: a[:1] @ weight() + torch.zeros(len(a), 1).to(a) + bias(),
    "two for one": lambda a: a @ pyro.sample("w", normal(FEATURES, CLASSES, 2)).sum(-1) + bias(),
    "reordered": lambda a: a @ rows().t().reshape(CLASSES, FEATURES).t() + bias(),
    "normalised": lambda a: (a @ weight() + bias()).log_softmax(-1),
}


def program(layer, activation=features):
    def model(x, y=None):
        f = layer(activation(x))
        with pyro.plate("data", len(f)):
            return pyro.sample("y", dist.Categorical(logits=f), obs=y)

    return model


def fitted(model, x=X, **options):
    pyro.set_rng_seed(4)
    y = model(x)
    options = {"polish": False, "on_not_a_mode": "ignore", "structure": "full"} | options
    trace = pyro.poutine.trace(model).get_trace(x, y)
    values = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes if name != "data"}
    return pl.fit_laplace(model, (x, y), values, **options)


def assert_exact(predictive, model, guide, x):
    """Against a new predictive that makes dense Jacobians."""
    dense = pl.LinearizedPredictive(model, guide, differentiable=True)
    for found, expected in zip(predictive.latent(x)["y"], dense.latent(x)["y"], strict=True):
        torch.testing.assert_close(found, expected.detach(), **CLOSE)
    torch.testing.assert_close(predictive(x)["y"].logits, dense(x)["y"].logits.detach(), **CLOSE)
    for found, expected in zip(predictive.latent(x, joint=True)["y"], dense.latent(x, joint=True)["y"], strict=True):
        torch.testing.assert_close(found, expected.detach(), **CLOSE)


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_last_layer_is_not_watched_again(name, structure, monkeypatch):
    model = program(LAYERS[name])
    guide = fitted(model, structure=structure)
    predictive = pl.LinearizedPredictive(model, guide)
    assert_exact(predictive, model, guide, X)
    monkeypatch.setattr(expansion.CapturedRun, "make", None)
    monkeypatch.setattr(routes, "factor", None)
    for x in (X, X[:1], X[:5] + 1):
        assert_exact(predictive, model, guide, x)


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_resembles_a_last_layer_is_not_taken_for_one(name):
    model = program(OTHERS[name])
    guide = fitted(model)
    predictive = pl.LinearizedPredictive(model, guide)
    for x in (X, X + 1):
        assert_exact(predictive, model, guide, x)


@pytest.mark.parametrize("subset", ["w", "b", SOME], ids=["w", "b", "some"])
def test_a_part_of_a_last_layer(subset):
    model = program(LAYERS["linear"])
    guide = fitted(model, subset=subset)
    predictive = pl.LinearizedPredictive(model, guide)
    for x in (X, X + 1):
        assert_exact(predictive, model, guide, x)


def test_as_many_data_as_classes():
    model = program(LAYERS["sum"])
    guide = fitted(model)
    predictive = pl.LinearizedPredictive(model, guide)
    for x in (X, X[:CLASSES], X[:CLASSES] + 1, X):
        assert_exact(predictive, model, guide, x)


def by_size(small, large):
    """A program that is one thing for few data and another for many."""
    return lambda a: small(a) if len(a) < 6 else large(a)


@pytest.mark.parametrize("subset", ["all", SOME], ids=["all", "some"])
@pytest.mark.parametrize(
    ("small", "large"),
    [
        ("linear", lambda a: nn.functional.linear(torch.relu(a + 0.1), rows(), bias())),
        ("linear", lambda a: 2 * nn.functional.linear(a, rows(), bias())),
        ("linear", lambda a: nn.functional.linear(a - a.mean(0), rows() ** 2, bias())),
        ("linear", lambda a: (lambda f: f - f.mean(0))(nn.functional.linear(a, rows(), bias()))),
        ("linear", lambda a: nn.functional.linear(a, rows(), bias()) * torch.tensor([0.0, 1.0, 1.0]).to(a)),
    ],
    ids=["features", "scaled", "squared", "across data", "reference class"],
)
def test_a_program_may_change_with_the_size_of_its_input(small, large, subset):
    model = program(by_size(LAYERS[small], large))
    guide = fitted(model, subset=subset)
    for order in ((X, X[:5]), (X[:5], X)):
        predictive = pl.LinearizedPredictive(model, guide)
        for x in (*order, *order, *order):
            assert_exact(predictive, model, guide, x)


def test_a_noise_scale_may_be_random_for_some_inputs_only():
    def model(x, y=None):
        f, s = features(x) @ pyro.sample("w", normal(FEATURES)), pyro.sample("s", normal())
        scale = s.exp().expand(len(x)) if len(x) < 6 else torch.full((len(x),), 0.5)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(f, scale), obs=y)

    guide = fitted(model, X[:5])
    for order in ((X, X[:5]), (X[:5], X)):
        predictive = pl.LinearizedPredictive(model, guide)
        for x in (*order, *order):
            expected = pl.LinearizedPredictive(model, guide, differentiable=True)(x)["y"].variance.detach()
            torch.testing.assert_close(predictive(x)["y"].variance, expected, **CLOSE)


class Features(nn.Module):
    """Features that differ between training and evaluation."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, FEATURES)

    def forward(self, x):
        a = torch.tanh(self.layer(x))
        return a / 2 if self.training else a


def test_weights_and_modes_may_change_between_calls():
    net = Features()
    model = program(LAYERS["linear"], net)
    guide = fitted(model)
    predictive = pl.LinearizedPredictive(model, guide)
    for _ in range(2):
        for training in (True, False):
            net.train(training)
            assert_exact(predictive, model, guide, X)
            assert_exact(predictive, model, guide, X)
        with torch.no_grad():
            net.layer.weight.mul_(1.5)
        assert_exact(predictive, model, guide, X)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_two_observed_sites_have_their_own_layers():
    def model(x, y=None, z=None):
        a = features(x)
        f = nn.functional.linear(a, rows(), bias())
        g = a**2 @ pyro.sample("v", normal(FEATURES, 2))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=f), obs=y)
            return y, pyro.sample("z", dist.OneHotCategorical(logits=g), obs=z)

    pyro.set_rng_seed(4)
    y, z = model(X)
    values = {"w": torch.randn(CLASSES, FEATURES), "b": torch.randn(CLASSES), "v": torch.randn(FEATURES, 2)}
    guide = pl.fit_laplace(model, (X, y, z), values, polish=False, on_not_a_mode="ignore")
    predictive = pl.LinearizedPredictive(model, guide)
    dense = pl.LinearizedPredictive(model, guide, differentiable=True)
    for x in (X, X + 1):
        found, expected = predictive.latent(x), dense.latent(x)
        for name in ("y", "z"):
            torch.testing.assert_close(found[name][0], expected[name][0].detach(), **CLOSE)
            torch.testing.assert_close(found[name][1], expected[name][1].detach(), **CLOSE)
