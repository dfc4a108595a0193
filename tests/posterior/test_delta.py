"""Standard errors by the delta method, and the sandwich, against matrices written out by hand."""

import pyro
import pyro.distributions as dist
import pytest
import statsmodels.api as statsmodels
import torch
from checks import assert_says

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

N = 80


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.ones(N, 1), torch.randn(N, 2, generator=generator)], 1)
    return x, (x @ torch.tensor([0.3, -0.5, 0.8])), generator


def regression(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
    pyro.deterministic("ratio", w[1] / w[2])
    pyro.deterministic("mean", (x @ w)[:4])
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def counts(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
    rate = pyro.deterministic("rate", (x @ w).exp())
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def heteroscedastic():
    x, f, generator = data()
    return x, f + torch.randn(N, generator=generator) * (0.2 + x[:, 1].abs())


def fit_regression():
    x, y = heteroscedastic()
    guide = pl.fit_laplace(regression, (x, y), progress=False)
    cov = (x.T @ x + torch.eye(3) / 100).inverse()
    return guide, x, y, cov, cov @ (x.T @ y)


def test_a_linear_value_and_a_ratio():
    guide, x, y, cov, w = fit_regression()
    mean, std = guide.of("mean", data=(x, y))
    torch.testing.assert_close(mean, (x @ w)[:4])
    torch.testing.assert_close(std, torch.einsum("ni,ij,nj->n", x[:4], cov, x[:4]).sqrt())
    slope = torch.stack([torch.zeros(()), 1 / w[2], -w[1] / w[2] ** 2])
    ratio = guide.of("ratio", data=(x,))
    torch.testing.assert_close(ratio.mean, w[1] / w[2])
    torch.testing.assert_close(ratio.std, (slope @ cov @ slope).sqrt())


@pytest.mark.parametrize("batches", [1, 3])
def test_the_sandwich_of_a_regression(batches):
    """White's covariance: the residuals' own squares in the middle, and the prior in the bread."""
    guide, x, y, cov, w = fit_regression()
    given = (x, y) if batches == 1 else list(zip(x.split(30), y.split(30), strict=True))
    meat = x.T @ (x * (y - x @ w).square()[:, None])
    expected = cov @ meat @ cov
    std = guide.of("w", data=given, robust=True).std
    torch.testing.assert_close(std, expected.diagonal().sqrt())
    assert not torch.allclose(std, guide.of("w", data=given).std, rtol=0.1)


def test_the_sandwich_of_counts_that_are_overdispersed():
    x, f, generator = data()
    y = torch.poisson(f.exp() * torch.rand(N, generator=generator) * 2, generator=generator)
    guide = pl.fit_laplace(counts, (x, y), progress=False)
    rate = (x @ guide.median()["w"]).exp()
    bread = (x.T @ (x * rate[:, None]) + torch.eye(3) / 100).inverse()
    cov = bread @ (x.T @ (x * (y - rate).square()[:, None])) @ bread
    rows = rate[:, None] * x
    found = guide.of("rate", data=(x, y), robust=True)
    torch.testing.assert_close(found.mean, rate)
    torch.testing.assert_close(found.std, torch.einsum("ni,ij,nj->n", rows, cov, rows).sqrt(), rtol=1e-5, atol=1e-8)
    plain = guide.of("rate", data=(x,))
    torch.testing.assert_close(plain.std, torch.einsum("ni,ij,nj->n", rows, bread, rows).sqrt(), rtol=1e-5, atol=1e-8)


def test_a_constrained_site_and_a_program_without_arguments():
    y = torch.tensor([0.5, 1.5, 2.5, 0.7])

    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.deterministic("double", 2 * scale)
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Exponential(1 / scale), obs=y)

    guide = pl.fit_laplace(model, (), progress=False)
    scale, sd = guide.median()["scale"], guide.covariance[0, 0].sqrt()
    torch.testing.assert_close(guide.of("scale").std, scale * sd)
    torch.testing.assert_close(guide.of("double").std, 2 * scale * sd)


def test_sites_that_are_held_add_nothing():
    x, y = heteroscedastic()

    def model(x, y=None):
        a, b = pyro.sample("a", dist.Normal(0.0, 1.0)), pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.deterministic("sum", a + b)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(a + b * x[:, 1], 1.0), obs=y)

    guide = pl.fit_laplace(model, (x, y), subset="b", progress=False)
    torch.testing.assert_close(guide.of("sum", data=(x,)).std, guide.covariance[0, 0].sqrt())


def test_what_cannot_be_told():
    guide, x, y, _, _ = fit_regression()
    with pytest.raises(pl.InvalidOption) as caught:
        guide.of("raito", data=(x, y))
    assert_says(caught, "'raito'", "'ratio'", "'w'")
    with pytest.raises(pl.InvalidOption) as caught:
        guide.of("ratio")
    assert_says(caught, "data=")
    with pytest.raises(pl.InvalidOption) as caught:
        guide.of("ratio", robust=True)
    assert_says(caught, "robust=True", "data=")


@pytest.mark.parametrize("robust", [False, True])
def test_equals_statsmodels(robust):
    """Standard errors of coefficients and of fitted rates, model-based and White's."""
    x = torch.cat([torch.ones(80, 1), torch.randn(80, 2)], 1)
    y = torch.poisson((x @ torch.tensor([0.5, 0.3, -0.4])).exp() * dist.Gamma(2.0, 2.0).sample((80,)))

    def model(x, y):
        w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), (3,)))
        rate = pyro.deterministic("rate", (x @ w).exp())
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    guide = pl.fit_laplace(model, (x, y))
    family = statsmodels.families.Poisson()
    theirs = statsmodels.GLM(y.numpy(), x.numpy(), family=family).fit(cov_type="HC0" if robust else "nonrobust")
    ours = guide.of("w", (x, y), robust=robust)
    torch.testing.assert_close(ours.mean, torch.tensor(theirs.params), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(ours.std, torch.tensor(theirs.bse), rtol=1e-6, atol=0)
    rates = guide.of("rate", (x, y), robust=robust).std
    torch.testing.assert_close(rates, torch.tensor(theirs.get_prediction(x.numpy()).se_mean), rtol=1e-6, atol=0)
