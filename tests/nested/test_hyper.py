"""`hyper="auto"` takes the sites that decide what Gaussian the others have, and no others."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import as_data
from pyro_laplace.nested.hyper import find_hyper
from pyro_laplace.program.program import Program


@pytest.fixture(autouse=True)
def double(float64):
    """As priors of scales are looked at by differences of none."""


def found(model: Callable, *data: object) -> dict[str, str]:
    batch = as_data(data)
    program = Program.trace(model, batch)
    return {name: str(reason) for name, reason in find_hyper(program, Loop(program, batch).few_rows()).items()}


X = torch.linspace(-1, 1, 6)
GROUP = torch.tensor([0, 0, 1, 1, 2, 2])


def observe(eta: torch.Tensor, y: torch.Tensor, noise: object = 1.0) -> None:
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(eta, noise), obs=y)


def centred(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("groups", 3):
        u = pyro.sample("u", dist.Normal(mu, tau))
    observe(u[GROUP], y, noise)


def non_centred(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=mu + tau * z[GROUP]), obs=(y > 0).double())


def scale_of_scales(y):
    center = pyro.sample("center", dist.Normal(0.0, 1.0))
    scales = pyro.sample("scales", dist.LogNormal(center, 1.0).expand([3]).to_event(1))
    u = pyro.sample("u", dist.Normal(torch.zeros(3), scales).to_event(1))
    observe(u[GROUP], y)


def kernel(y):
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    covariance = (-0.5 * (X[:, None] - X).square() / length**2).exp() + 1e-4 * torch.eye(6)
    f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(6), covariance))
    observe(f, y)


def autoregression(y):
    phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
    first = pyro.sample("first", dist.Normal(0.0, 1.0))
    second = pyro.sample("second", dist.Normal(phi * first, 1.0))
    observe(torch.stack([first, second]), y[:2])


def intrinsic_field(y):
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    f = pyro.sample("f", dist.Normal(0.0, 100.0).expand([6]).to_event(1))
    pyro.factor("smooth", -0.5 * (f.diff() / tau).square().sum() - 5 * tau.log())
    observe(f, y)


def mixed(y):
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", 3):
        z = pyro.sample("z", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
        u = pyro.sample("u", dist.Normal(2.0 * z, tau))
    observe(u[..., GROUP], y)


def counts(y):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    concentration = pyro.sample("concentration", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.NegativeBinomial(concentration, logits=level - concentration.log()), obs=y.abs().round())


def layers(y):
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    w1 = pyro.sample("w1", dist.Normal(0.0, scale).expand([4]).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(0.0, scale).expand([4]).to_event(1))
    observe((torch.tanh(X[:, None] * w1) * w2).sum(-1), y)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (centred, {"tau": "sets the curvature of the prior of 'u'", "noise": "sets the dispersion of 'y'"}),
        (non_centred, {"tau": "multiplies 'z'"}),
        (
            scale_of_scales,
            {"center": "the prior depends on it of 'scales'", "scales": "sets the curvature of the prior of 'u'"},
        ),
        (kernel, {"length": "sets the curvature of the prior of 'f'"}),
        (autoregression, {"phi": "sets the curvature of the prior of 'second'"}),
        (intrinsic_field, {"tau": "sets the curvature of the prior of 'f'"}),
        (mixed, {"tau": "sets the curvature of the prior of 'u'"}),
        (counts, {"concentration": "sets the dispersion of 'y'"}),
        (layers, {"scale": "sets the curvature of the prior of 'w1', 'w2'"}),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_takes_the_few_that_the_others_depend_on(model, expected):
    assert found(model, torch.tensor([0.3, -1.0, 0.8, 1.4, -0.2, 0.1])) == expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", ["Bernoulli", "Binomial", "Poisson"])
def test_fixed_effects_under_wide_priors_are_none(family, seed):
    """The start is a median of a few draws of the prior: a logistic curve is flat there, an exponential infinite."""
    like = {
        "Bernoulli": lambda eta: dist.Bernoulli(logits=eta),
        "Binomial": lambda eta: dist.Binomial(3, logits=eta),
        "Poisson": lambda eta: dist.Poisson(eta.exp()),
    }[family]

    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 100.0))
        b = pyro.sample("b", dist.Normal(0.0, 100.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("groups", 3):
            u = pyro.sample("u", dist.Normal(0.0, tau))
        with pyro.plate("data", len(y)):
            pyro.sample("y", like(a + b * X + u[GROUP]), obs=y)

    pyro.set_rng_seed(seed)
    y = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    assert found(model, y) == {"tau": "sets the curvature of the prior of 'u'"}
    assert pl.laplace_marginal(model, (y,)).integrated == ("a", "b", "u")


def test_a_scale_by_its_prior_and_by_a_factor_is_told_once():
    def model(y):
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        f = pyro.sample("f", dist.Normal(0.0, tau).expand([6]).to_event(1))
        pyro.factor("smooth", -0.5 * (f.diff() / tau).square().sum())
        observe(f, y)

    assert found(model, torch.zeros(6)) == {"tau": "sets the curvature of the prior of 'f'"}
