"""A `LinearizedPredictive` and a linearised program are ordinary objects: they are pickled and copied."""

import copy
import pickle

import pytest
import torch
from programs.mixtures import ensemble
from programs.zoo import mlp_classifier
from pyro import poutine
from torch import nn
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

WAYS = {"pickle": lambda thing: pickle.loads(pickle.dumps(thing)), "copy": copy.deepcopy}


def classifier(subset):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    model = pl.bayesianize(net, prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.Classification())
    x, y = torch.randn(30, 2), torch.arange(30) % 3
    return model, pl.fit_laplace(model, (x, y), subset=subset, progress=False, on_not_a_mode="ignore"), x[:6]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("called", [False, True], ids=["new", "called"])
@pytest.mark.parametrize("subset", ["all", "last_layer"])
def test_of_a_network(subset, called, way):
    model, guide, x = classifier(subset)
    predictive = pl.LinearizedPredictive(model, guide, link="bridge", num_samples=7)
    expected = pl.LinearizedPredictive(model, guide, link="bridge")(x)["y"].probs
    if called:
        predictive(x)
        predictive.latent(x)
    other = way(predictive)
    assert type(other) is pl.LinearizedPredictive
    assert (other.link, other.num_samples) == ("bridge", 7)
    for each in (other, predictive):  # the original stays whole
        assert_close(each(x)["y"].probs, expected)
        assert_close(each(x)["y"].probs, expected)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_of_a_mixture(way):
    model, guide, x = classifier("last_layer")
    mixture = pl.LaplaceMixture([guide, copy.deepcopy(guide)], weights="equal")
    predictive = pl.LinearizedPredictive(model, mixture)
    expected = predictive(x)["y"].probs
    assert_close(way(predictive)(x)["y"].probs, expected)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_of_a_linearised_program(way):
    model, guide, x = classifier("all")
    linear = pl.linearize(model, guide)
    linear(x)
    other = way(linear)
    values = guide.median()
    fns = [poutine.trace(poutine.condition(each, values)).get_trace(x).nodes["y"]["fn"] for each in (linear, other)]
    assert_close(fns[1].logits, fns[0].logits)
    assert_close(
        pl.LinearizedPredictive(other, guide)(x)["y"].probs, pl.LinearizedPredictive(model, guide)(x)["y"].probs
    )


def test_what_cannot_be_pickled_says_so_itself():
    case = mlp_classifier()
    points = ensemble(case, 0, 1)
    program = lambda *args: case.model(*args)  # noqa: E731
    with pytest.raises((pickle.PicklingError, AttributeError), match=r"lambda|local"):
        pickle.dumps(pl.LinearizedPredictive(program, points))
