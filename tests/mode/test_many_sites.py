"""A program with a sample statement a step is told what that costs; a network with as many sites is not."""

import re
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

Y = torch.linspace(-1.0, 1.0, 12)


def one_a_step(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    for t, each in enumerate(y):
        pyro.sample(f"y_{t}", dist.Normal(mean, 1.0), obs=each)


def one_over_all(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean.expand(len(y)), 1.0).to_event(1), obs=y)


def single_numbers(y):
    state = [pyro.sample(f"state_{t}", dist.Normal(0.0, 1.0)) for t in range(len(y))]
    pyro.sample("y", dist.Normal(torch.stack(state), 1.0).to_event(1), obs=y)


def weights(y):
    pairs = [pyro.sample(f"w_{t}", dist.Normal(torch.zeros(2), 1.0).to_event(1)) for t in range(len(y))]
    pyro.sample("y", dist.Normal(torch.stack(pairs).sum(-1), 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (one_a_step, r"13 sample statements .*'y_0'.*pyro.sample\('y', .*obs=y\[1:\]\)"),
        (single_numbers, r"13 sample statements .*'state_0'.*pyro.sample\('state', dist.Normal.*to_event\(1\)\)"),
    ],
)
@pytest.mark.parametrize("fit", [pl.fit_map, pl.fit_laplace])
def test_many_sample_statements_are_told_of_where_the_fit_is_asked_for(fit, model, told):
    with pl.settings.using(many_sites=11), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, Y, progress=False)
    (warning,) = caught
    assert issubclass(warning.category, pl.LaplaceWarning)
    assert re.search(told, str(warning.message))
    assert not Path(warning.filename).is_relative_to(Path(pl.__file__).parent)


@pytest.mark.parametrize("model", [one_over_all, weights])
def test_neither_one_site_of_many_data_nor_many_sites_of_many_weights_is_told_of(model):
    with pl.settings.using(many_sites=3):
        pl.fit_map(model, Y, progress=False)


def test_few_sample_statements_are_not_told_of():
    pl.fit_map(one_a_step, Y, progress=False)
