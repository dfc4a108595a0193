"""Data that lack what a posterior was fitted to, or are not finite: each entry point says so in the data's terms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_laplace as pl

X = torch.linspace(-1.0, 1.0, 12)


def line(x, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(b * x, 0.5), obs=y)


def counts(x, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Poisson((b * x).exp()), obs=y)


@pyro.infer.config_enumerate
def classes(x, y=None):
    """Of an enumerated program, a y without a value would be summed out."""
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        return pyro.sample("y", dist.Bernoulli(logits=b * x + z), obs=y)


PROGRAMS = {"a number": (line, X), "a count": (counts, X.exp().round()), "a class": (classes, (X > 0).float())}

ENTRIES = {
    "diagnose": lambda model, guide, data: pl.diagnose(model, guide, data, progress=False),
    "importance_resample": lambda model, guide, data: pl.importance_resample(model, guide, data, progress=False),
    "update": lambda model, guide, data: pl.update(guide, data, progress=False),
    "loo": lambda model, guide, data: pl.loo(model, guide, data, progress=False),
    "compare": lambda model, guide, data: pl.compare(model, {"laplace": guide}, data, progress=False),
    "discrete_posterior": lambda model, guide, data: pl.discrete_posterior(model, guide, data),
}


@pytest.fixture(scope="module", params=list(PROGRAMS))
def fitted(request):
    """A program with a posterior and its observed values."""
    model, y = PROGRAMS[request.param]
    return model, pl.fit_laplace(model, (X, y), progress=False), y


@pytest.mark.parametrize("entry", list(ENTRIES))
def test_a_forgotten_target_is_said_to_be_one(fitted, entry):
    model, guide, _ = fitted
    with pytest.raises(pl.InvalidData, match=r"data has no values of the observed site 'y'.*data="):
        ENTRIES[entry](model, guide, (X,))


def test_held_out_data_without_a_target_are_told_by_their_argument(fitted):
    model, guide, y = fitted
    draws = {"b": torch.randn(50)}  # which do not know what they were fitted to
    for posterior in (guide, draws):
        with pytest.raises(pl.InvalidData, match="test_data has no values of the observed site 'y'"):
            pl.compare(model, {"one": posterior}, (X, y), test_data=(X,), progress=False)


@pytest.mark.parametrize("entry", [name for name in ENTRIES if name != "discrete_posterior"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_input_that_is_not_finite_is_named(entry, value):
    guide = pl.fit_laplace(line, (X, X), progress=False)
    spoilt = X.clone()
    spoilt[2] = value
    with pytest.raises(pl.InvalidData, match=rf"argument 0 of the data has the value {value} at \[2\]"):
        ENTRIES[entry](line, guide, (spoilt, X))
    for predictive in (pl.LinearizedPredictive(line, guide), pl.Predictive(line, guide=guide, num_samples=40)):
        with pytest.raises(pl.InvalidData, match=rf"has the value {value} at \[2\]"):
            pl.scores(predictive, (spoilt, X))


def test_a_missing_input_that_is_masked_is_none_of_these(float64):
    def masked(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x.isfinite()):
            pyro.sample("y", dist.Normal(b * x.nan_to_num(), 0.5), obs=y)

    x = X.double()
    spoilt, rest = x.clone(), x[torch.arange(12) != 2]
    spoilt[2] = math.nan
    whole = pl.fit_laplace(line, (rest, rest), progress=False)
    guide = pl.fit_laplace(masked, (spoilt, x), progress=False)
    torch.testing.assert_close(guide.loc, whole.loc)
    assert pl.diagnose(masked, guide, (spoilt, x), progress=False).verdict == "trusted"


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, a, labels=None):
        return {"logits": self.layer(a)}


def test_a_batch_by_name_without_its_target():
    options = {"output": "logits", "target": "labels"}
    model = pl.bayesianize(Named(), pl.nn.Isotropic(1.0), pl.nn.Classification(), **options)
    a = torch.randn(10, 2)
    with pytest.raises(pl.InvalidData, match=r"observed site 'y'.*entry 'labels'"):
        pl.fit_laplace(model, [{"a": a}], progress=False)
    guide = pl.fit_laplace(model, [{"a": a, "labels": (a[:, 0] > 0).long()}], progress=False)
    with pytest.raises(pl.InvalidData, match="entry 'labels'"):
        pl.diagnose(model, guide, {"a": a}, progress=False)
    with pytest.raises(pl.InvalidData, match=r"'y' to score.*an entry for them beside 'a'"):
        pl.scores(pl.LinearizedPredictive(model, guide), {"a": a})
