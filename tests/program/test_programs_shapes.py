"""Time series, mixtures, Gaussian processes and hierarchies of the usual kinds: default arguments end at a mode."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.zoo import normal
from torch import Tensor

import pyro_laplace as pl

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.slow]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def series(num: int, step) -> Tensor:
    """A time series: each value is a function of those before and of fresh noise."""
    values: list[Tensor] = []
    for e in noise(num):
        values.append(step(values, e))
    return torch.stack(values)


def autoregressive(y):
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", normal(10.0, 2))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("time", len(y) - 2):
        mean = alpha + beta[0] * y[1:-1] + beta[1] * y[:-2]
        pyro.sample("y", dist.Normal(mean, sigma), obs=y[2:])


def garch(y):
    """Its variances follow a recursion, as Stan's manual writes it."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    alpha0 = pyro.sample("alpha0", dist.LogNormal(0.0, 2.0))
    alpha1 = pyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    rest = pyro.sample("rest", dist.Uniform(0.0, 1.0))
    beta1 = pyro.deterministic("beta1", (1 - alpha1) * rest)
    variance = [torch.ones(())]
    for t in range(1, len(y)):
        variance.append(alpha0 + alpha1 * (y[t - 1] - mu) ** 2 + beta1 * variance[-1])
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.stack(variance).sqrt()), obs=y)


def arma(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    means, error = [], torch.zeros(())
    for t in range(len(y)):
        means.append(mu + phi * (y[t - 1] if t else mu) + theta * error)
        error = y[t] - means[-1]
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(torch.stack(means), sigma), obs=y)


def gaussian_process(x, y):
    rho = pyro.sample("rho", dist.InverseGamma(5.0, 5.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    kernel = alpha**2 * torch.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    covariance = kernel + (sigma**2 + 1e-8) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def item_response(person, item, y):
    ability_std = pyro.sample("ability_std", dist.LogNormal(0.0, 0.5))
    with pyro.plate("persons", 20):
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
    with pyro.plate("items", 6):
        difficulty = pyro.sample("difficulty", dist.Normal(0.0, 2.0))
        discrimination = pyro.sample("discrimination", dist.LogNormal(0.0, 0.5))
    with pyro.plate("answers", len(y)):
        logits = discrimination[item] * (ability_std * ability[person] - difficulty[item])
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def badly_scaled(x, y):
    """Covariates in units of 1e-4 and 1e5, one of them far from its origin; flat priors."""
    w = pyro.sample("w", normal(1e6, 3))
    sigma = pyro.sample("sigma", dist.HalfCauchy(100.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


def radon(county, floor, y):
    """Varying intercepts, centred, with groups enough that their spread does not collapse."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("counties", 30):
        alpha = pyro.sample("alpha", dist.Normal(mu, tau))
    with pyro.plate("houses", len(y)):
        pyro.sample("y", dist.Normal(alpha[county] + beta * floor, sigma), obs=y)


def dogs(y):
    """Avoidance learning: the number of shocks and avoidances before each trial."""
    beta = pyro.sample("beta", normal(10.0, 3))
    avoided = torch.cat([torch.zeros(len(y), 1), (1 - y).cumsum(1)[:, :-1]], 1)
    shocked = torch.cat([torch.zeros(len(y), 1), y.cumsum(1)[:, :-1]], 1)
    with pyro.plate("dogs", len(y), dim=-2), pyro.plate("trials", y.shape[1], dim=-1):
        pyro.sample("y", dist.Bernoulli(logits=beta[0] + beta[1] * avoided + beta[2] * shocked), obs=y)


def ordered_mixture(y):
    loc = pyro.sample("loc", dist.TransformedDistribution(normal(2.0, 2), dist.transforms.OrderedTransform()))
    scale = pyro.sample("scale", dist.HalfNormal(torch.full((2,), 2.0)).to_event(1))
    weight = pyro.sample("weight", dist.Beta(5.0, 5.0))
    with pyro.plate("data", len(y)):
        kinds = dist.Categorical(torch.stack([weight, 1 - weight]))
        pyro.sample("y", dist.MixtureSameFamily(kinds, dist.Normal(loc, scale)), obs=y)


def bernoulli(probs: Tensor) -> Tensor:
    return (uniform(*probs.shape, seed=5) < probs).double()


PERSON, ITEM = torch.arange(120) % 20, torch.arange(120) // 20
COUNTY = torch.arange(300) % 30
GRID = torch.linspace(-3, 3, 25, dtype=torch.float64)
WIDE = noise(60, 3) * torch.tensor([1e-4, 1e5, 1.0], dtype=torch.float64) + torch.tensor([0.0, 0.0, 1e4]).double()

SHAPES = {
    autoregressive: (series(150, lambda y, e: 0.5 + (0.6 * y[-1] - 0.3 * y[-2] if len(y) > 1 else 0) + 0.5 * e),),
    garch: (noise(60) * (1 + 0.5 * torch.sin(torch.arange(60) / 15.0)),),
    arma: (series(60, lambda y, e: 0.2 + (0.7 * y[-1] if y else 0.0) + 0.3 * e),),
    gaussian_process: (GRID, torch.sin(2 * GRID) + 0.2 * noise(25)),
    item_response: (PERSON, ITEM, bernoulli(torch.sigmoid(noise(20, seed=1)[PERSON] - noise(6, seed=2)[ITEM]))),
    badly_scaled: (WIDE, WIDE @ torch.tensor([1e4, 1e-5, 1e-3]).double() + 0.3 * noise(60, seed=3)),
    radon: (
        COUNTY,
        (torch.arange(300) % 2).double(),
        1.5 + noise(30, seed=4)[COUNTY] - 0.6 * (torch.arange(300) % 2) + 0.7 * noise(300, seed=6),
    ),
    dogs: (bernoulli(torch.sigmoid(2.0 - 0.3 * torch.arange(15).double()).expand(20, 15)),),
    ordered_mixture: (torch.cat([-2 + 0.7 * noise(60), 1.5 + 0.5 * noise(90, seed=1)]),),
}


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
@pytest.mark.parametrize("model", SHAPES, ids=lambda model: model.__name__)
def test_default_arguments_end_at_a_mode(model):
    """And the exact Hessian is positive definite there."""
    guide = pl.fit_laplace(model, SHAPES[model], progress=False, on_not_a_mode="raise")
    assert guide.mode.decrement < 1e-2
    pl.fit_laplace(model, SHAPES[model], dict(guide.median()), curvature="hessian", on_not_a_mode="raise")
