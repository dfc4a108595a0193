"""What is called a network: layers upon layers are, entries of two sites that an index pairs are not."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.network import is_network, readout_of
from pyro_laplace.data import as_data
from pyro_laplace.program.program import Program


@pytest.fixture(autouse=True)
def double(float64):
    """Everything is in double precision."""
    torch.manual_seed(0)


def called_a_network(model, data) -> bool:
    data = as_data(data)
    program = Program.trace(model, data)
    return is_network(program, program.start, Loop(program, data).few_rows())


def weights(name, *shape):
    """A site of its own, outside plates."""
    return pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))


def hidden_layer(x, y=None):
    """Each hidden unit has one weight before it and one behind it: pairs, but all of them in every datum."""
    f = torch.tanh(x @ weights("w1", 1, 8) + weights("b1", 8)) @ weights("w2", 8, 1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f.squeeze(-1), 0.1), obs=y)


def vectors_of_weights(x, y=None):
    f = (torch.tanh(x * weights("w1", 8) + weights("b1", 8)) * weights("w2", 8)).sum(-1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, 0.1), obs=y)


def rectified_units(x, y=None):
    """At a datum some of them are dead."""
    f = torch.relu(x @ weights("w1", 1, 3) + weights("b1", 3)) @ weights("w2", 3, 1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f.squeeze(-1), 0.1), obs=y)


X = torch.linspace(-1.0, 1.0, 20, dtype=torch.float64).unsqueeze(-1)


@pytest.mark.parametrize("model", [hidden_layer, vectors_of_weights, rectified_units])
def test_networks_by_hand(model):
    assert called_a_network(model, (X, X[:, 0].sin()))


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)), torch.randn(30, 2)),
        (
            torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(12, 3)),
            torch.randn(20, 1, 8),
        ),
    ],
)
def test_modules(net, x):
    model = pl.bayesianize(net.double(), prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.Classification())
    assert called_a_network(model, (x.double(), torch.arange(len(x)) % 3))


PERSON, ITEM = (each.flatten() for each in torch.meshgrid(torch.arange(12), torch.arange(5), indexing="ij"))


def two_parameters(person, item, y=None):
    with pyro.plate("persons", 12):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("items", 5):
        a, b = pyro.sample("a", dist.LogNormal(0.0, 0.5)), pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(person)):
        pyro.sample("y", dist.Bernoulli(logits=a[item] * (theta[person] - b[item])), obs=y)


def pairs_of_persons(person, item, y=None):
    """One weight of an item with two persons'."""
    with pyro.plate("persons", 12):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("items", 5):
        a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(person)):
        pyro.sample("y", dist.Bernoulli(logits=a[item] * (theta[person] - theta[(person + 1) % 12])), obs=y)


def additive(person, item, y=None):
    with pyro.plate("persons", 12):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("items", 5):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(person)):
        pyro.sample("y", dist.Bernoulli(logits=theta[person] - b[item]), obs=y)


def noise_of_groups(person, item, y=None):
    """A product in the scale of the data, of entries that an index picks."""
    with pyro.plate("persons", 12):
        theta, spread = pyro.sample("theta", dist.Normal(0.0, 1.0)), pyro.sample("spread", dist.LogNormal(0.0, 1.0))
    with pyro.plate("items", 5):
        a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(person)):
        pyro.sample("y", dist.Normal(a[item] * theta[person], spread[person] * a[item]), obs=y)


@pytest.mark.parametrize("model", [two_parameters, pairs_of_persons, additive, noise_of_groups])
def test_what_an_index_pairs_is_no_network(model):
    assert not called_a_network(model, (PERSON, ITEM, (PERSON + ITEM) % 2 * 1.0))


def test_a_discrimination_times_an_ability_has_exact_hessians():
    y = torch.bernoulli((PERSON - 6.0 - ITEM + 2.0).mul(0.5).sigmoid())
    assert pl.fit_laplace(two_parameters, (PERSON, ITEM, y), progress=False).curvature == "hessian"


# --- the last layer ---------------------------------------------------------------------------------


def last_layer(model, data) -> tuple[str, ...]:
    data = as_data(data)
    program = Program.trace(model, data)
    return readout_of(program, Loop(program, data).few_rows(), tuple(program.latents))


def classes(x, y=None):
    hidden = torch.relu(x @ weights("w1", 1, 5) + weights("b1", 5))
    logits = torch.tanh(hidden @ weights("w2", 5, 4)) @ weights("w3", 4, 3) + weights("b3", 3)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def two_linear_layers(x, y=None):
    """Either would do, and the last is taken."""
    f = x @ weights("w1", 1, 4) @ weights("w2", 4, 1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f.squeeze(-1), 0.1), obs=y)


def positive_last_layer(x, y=None):
    """Of weights whose logarithms are the coordinates, the predictor bends in each."""
    f = torch.tanh(x @ weights("w1", 1, 4)) @ pyro.sample("w2", dist.LogNormal(torch.zeros(4), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, 0.1), obs=y)


def skip(x, y=None):
    """What goes past the hidden layer is as linear as what goes through it."""
    f = torch.tanh(x @ weights("w1", 1, 4)) @ weights("w2", 4, 1) + x @ weights("past", 1, 1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f.squeeze(-1), 0.1), obs=y)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (hidden_layer, ("w2",)),
        (classes, ("w3", "b3")),
        (two_linear_layers, ("w2",)),
        (positive_last_layer, ()),
        (skip, ("w2", "past")),
    ],
)
def test_the_last_layer_is_what_the_predictors_are_linear_in(model, found):
    x = torch.linspace(-2, 2, 9).unsqueeze(-1)
    y = torch.arange(9) % 3 if model is classes else torch.sin(x[:, 0])
    assert last_layer(model, (x, y)) == found


def test_the_last_layer_is_found_whatever_the_datas_dtype():
    def model(x, y=None):
        w1, w2 = (pyro.sample(n, dist.Normal(torch.zeros(4).float(), 1.0).to_event(1)) for n in ("w1", "w2"))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((torch.tanh(x * w1) * w2).sum(-1), 0.1), obs=y)

    x = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(-1)
    assert last_layer(model, (x, x[:, 0].sin())) == ("w2",)


def test_a_scale_that_no_predictor_depends_on_is_no_part_of_it():
    def model(x, y=None):
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        w1 = pyro.sample("w1", dist.Normal(torch.zeros(4), scale).to_event(1))
        w2 = pyro.sample("w2", dist.Normal(torch.zeros(4), scale).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((torch.tanh(x * w1) * w2).sum(-1), 0.1), obs=y)

    x = torch.linspace(-2, 2, 9).unsqueeze(-1)
    assert last_layer(model, (x, x[:, 0].sin())) == ("w2",)
