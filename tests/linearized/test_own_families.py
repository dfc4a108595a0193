"""A family that a user registers says what is predicted of its data."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.likelihood import FAMILIES, Family, register
from pyro_laplace.likelihood.mixture import FunctionMixture

pytestmark = pytest.mark.usefixtures("float64")


class Counted(dist.Poisson):
    """Counts of which the predictive has a form of its own."""

    def log_prob(self, value):
        return super().log_prob(value)


class CountedFamily(Family):
    """eta = log rate: the rate is log-normal, and y is approximated by a Normal of the right moments."""

    outputs = ("log_rate",)

    def link(self, fn):
        return fn.rate.log().unsqueeze(-1)

    def distribution(self, eta, fn):
        return Counted(eta.squeeze(-1).exp())

    def fisher_root(self, eta, fn):
        return (0.5 * eta).exp().unsqueeze(-1)

    def predictive(self, eta, fn, link):
        mean, variance = _moments(eta)
        return dist.Normal(mean, (mean + variance).sqrt())

    def variances(self, eta, fn):
        return _moments(eta)


def _moments(eta):
    f, v = eta.mean.squeeze(-1), eta.variance().squeeze(-1)
    mean = (f + v / 2).exp()
    return mean, mean.square() * torch.expm1(v)


@pytest.fixture
def registered():
    register(Counted)(CountedFamily)
    yield
    del FAMILIES[Counted]


def model(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", Counted((x @ w).exp()), obs=y)


def plain(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Poisson((x @ w).exp()), obs=y)


def test_its_predictive_is_used(registered):
    x, y = torch.randn(20, 2), torch.ones(20)
    guide = pl.fit_laplace(model, (x, y), progress=False)
    predictive = pl.LinearizedPredictive(model, guide)
    fn = predictive(x)["y"]
    mean, covariance = predictive.latent(x)["y"]
    expected = (mean[:, 0] + covariance[:, 0, 0] / 2).exp()
    assert type(fn) is dist.Normal
    assert_close(fn.mean, expected)
    parts = predictive.decompose(x)["y"]
    assert_close(parts.aleatoric, expected)
    assert_close(parts.total, fn.variance)


def test_its_predictive_is_mixed(registered):
    x, y = torch.randn(20, 2), torch.ones(20)
    guide = pl.fit_laplace(model, (x, y), progress=False)
    mixed = pl.LinearizedPredictive(model, pl.LaplaceMixture([guide, guide], weights="equal"))(x)["y"]
    alone = pl.LinearizedPredictive(model, guide)(x)["y"]
    assert_close(mixed.mean, alone.mean)
    assert_close(mixed.variance, alone.variance)


def test_without_one_draws_are_mixed():
    x, y = torch.randn(20, 2), torch.ones(20)
    guide = pl.fit_laplace(plain, (x, y), progress=False)
    assert isinstance(pl.LinearizedPredictive(plain, guide)(x)["y"], FunctionMixture)
