"""Programs to be judged: some whose Laplace posterior is right, and some where it is wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


@dataclass(frozen=True)
class Judged:
    """A program and its data."""

    model: Callable[..., Any]
    data: tuple[Tensor, ...]


def linear_gaussian(seed: int) -> Judged:
    """Any number of rows and of columns of any scale, and a known noise: everything is exact."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = [(4, 2), (30, 1), (60, 8), (300, 20)][seed % 4]
    x = torch.randn(rows, columns, generator=generator) * torch.logspace(-1, 2, columns)
    noise = 10.0 ** (seed % 3 - 1)
    y = x.sum(-1) + noise * torch.randn(rows, generator=generator)

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 3.0).expand([columns]).to_event(1))
        b = pyro.sample("b", dist.Normal(1.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(b + x @ w, noise), obs=y)

    return Judged(model, (x, y))


GLMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "logistic": lambda eta, s: dist.Bernoulli(logits=eta),
    "probit": lambda eta, s: dist.Bernoulli(0.5 + 0.5 * torch.erf(eta / 2**0.5)),
    "Poisson": lambda eta, s: dist.Poisson(eta.exp()),
    "gamma": lambda eta, s: dist.Gamma(s, s / eta.exp()),
    "negative binomial": lambda eta, s: dist.NegativeBinomial(s, logits=eta),
    "Normal": lambda eta, s: dist.Normal(eta, s),
}


def glm(kind: str) -> Judged:
    """500 rows of five columns and an intercept; the dispersion, where there is one, is latent."""
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.ones(500, 1), torch.randn(500, 5, generator=generator)], 1)
    beta = 0.4 * torch.randn(6, generator=generator)
    dispersed = kind in ("gamma", "negative binomial", "Normal")

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([6]).to_event(1))
        s = pyro.sample("s", dist.HalfNormal(3.0)) if dispersed else torch.tensor(1.0)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", GLMS[kind](x @ w, s), obs=y)

    with torch.random.fork_rng():
        torch.manual_seed(1)
        y = GLMS[kind](x @ beta, torch.tensor(1.5)).sample()
    return Judged(model, (x, y))


def schools() -> Judged:
    """Six groups without much to tell them apart, in the non-centred form: a funnel."""
    noise = torch.tensor([9.0, 12.0, 15.0, 10.0, 16.0, 11.0])
    y = torch.tensor([20.0, 5.0, -4.0, 6.0, 1.0, 14.0])

    def model(noise, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("groups", len(noise)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * z, noise), obs=y)

    return Judged(model, (noise, y))


def few_residuals() -> Judged:
    """Ten rows and a flat scale: its posterior is skewed, and its mean in closed form.

    sigma^2 is inverse gamma with shape (10 - 1) / 2 and half the squares for its scale, as p is flat in log sigma.
    """
    y = torch.tensor([1.2, -0.4, 0.3, 2.2, 0.9, -1.5, 0.1, 1.8, -0.2, 0.6])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1e3))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1e3))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, sigma), obs=y)

    return Judged(model, (y,))


def network() -> Judged:
    """A network whose posterior belongs to its linearised program."""
    x = torch.linspace(-2.0, 2.0, 40).unsqueeze(-1)
    y = (2 * x[:, 0]).sin() + 0.1 * torch.randn(40, generator=torch.Generator().manual_seed(0))

    def model(x, y=None):
        w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([1, 10]).to_event(2))
        b1 = pyro.sample("b1", dist.Normal(0.0, 1.0).expand([10]).to_event(1))
        w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([10, 1]).to_event(2))
        f = (torch.tanh(x @ w1 + b1) @ w2).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(f, 0.1), obs=y)

    return Judged(model, (x, y))


TWO_PARAMETERS: dict[str, Judged] = {
    "counts": Judged(
        lambda y: pyro.sample(
            "y",
            dist.NegativeBinomial(
                pyro.sample("size", dist.LogNormal(0.0, 1.0)), logits=pyro.sample("logit", dist.Normal(0.0, 2.0))
            )
            .expand([6])
            .to_event(1),
            obs=y,
        ),
        (torch.tensor([0.0, 3.0, 1.0, 7.0, 2.0, 4.0]),),
    ),
    "scale": Judged(
        lambda y: pyro.sample(
            "y",
            dist.Normal(pyro.sample("mu", dist.Normal(0.0, 2.0)), pyro.sample("sigma", dist.HalfNormal(2.0)))
            .expand([4])
            .to_event(1),
            obs=y,
        ),
        (torch.tensor([0.3, 1.9, -0.6, 1.1]),),
    ),
    "proportions": Judged(
        lambda y: pyro.sample(
            "y",
            dist.Binomial(
                8,
                torch.stack([pyro.sample("p", dist.Beta(1.0, 1.0)), pyro.sample("q", dist.Beta(2.0, 1.0))]),
            ).to_event(1),
            obs=y,
        ),
        (torch.tensor([0.0, 5.0]),),
    ),
}
