"""Data that no program can do with: the message speaks of the data, not of what torch made of them."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_says

import pyro_laplace as pl

X = torch.linspace(-1.0, 1.0, 24).reshape(12, 2)
Y = (torch.arange(12) % 2).float()


def logistic(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def with_nan(values):
    values = values.clone()
    values[3, 1] = float("nan")
    return values


WRONG = {
    "y of numpy": ((X, Y.numpy()), ["'y'", "numpy.ndarray", r"torch.as_tensor\(y\)"]),
    "x of numpy": ((X.numpy(), Y), ["argument 0", "numpy.ndarray", "torch.as_tensor", "TypeError"]),
    "x of pandas": ((pd.DataFrame(X.numpy()), Y), ["argument 0", "pandas.DataFrame", "torch.as_tensor"]),
    "by name": ({"x": X.numpy(), "y": Y}, ["x of the data", "numpy.ndarray"]),
    "nothing": ((X[:0], Y[:0]), ["argument 0", r"\[0, 2\]", "at least one datum"]),
    "nan": ((with_nan(X), Y), ["argument 0", "nan", r"\[3, 1\]", "leave such data out"]),
    "infinite": ((X * torch.inf, Y), ["argument 0", "inf", r"\[0, 0\]"]),
    "double": ((X.double(), Y), ["argument 0", "float64", "float32", r"x.float\(\)"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_data_are_named(name):
    data, words = WRONG[name]
    with pytest.raises(pl.InvalidData) as caught:
        pl.fit_laplace(logistic, data, progress=False)
    assert_says(caught, *words)


def test_a_mistake_of_the_models_own_is_left_as_it_is():
    def broken(x, y=None):
        logistic(x, y)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        pl.fit_laplace(broken, (X, Y), progress=False)


def test_arrays_that_the_model_converts_are_fine():
    def converts(x, y=None):
        logistic(torch.as_tensor(np.asarray(x)), y)

    found = pl.fit_laplace(converts, (X.numpy(), Y), progress=False)
    expected = pl.fit_laplace(logistic, (X, Y), progress=False)
    torch.testing.assert_close(found.median()["w"], expected.median()["w"], rtol=1e-3, atol=1e-4)


def test_a_factor_outside_the_plate_of_several_batches():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.factor("fit", -0.5 * (y - x @ w).square().sum())

    with pytest.raises(pl.UnsupportedProgram) as caught:
        pl.fit_laplace(model, [(X[:6], Y[:6]), (X[6:], Y[6:])], progress=False)
    assert_says(caught, "'fit'", "no plate", "one value a datum")


@pytest.mark.parametrize("name", ["x of numpy", "nothing", "double"])
def test_inputs_of_a_prediction_are_named_too(name):
    guide = pl.fit_laplace(logistic, (X, Y), progress=False)
    (x, _), words = WRONG[name]
    with pytest.raises(pl.InvalidData) as caught:
        pl.LinearizedPredictive(logistic, guide)(x)
    assert_says(caught, *words[:2])
