"""A network of two inputs under every kind of likelihood, and a guide of it at a point of no importance.

`brute` is the oracle of its linearisation: the network written out, and its Jacobian by `torch.func`.
"""

import pyro
import pyro.distributions as dist
import torch
from programs.zoo import generator

import pyro_laplace as pl

CLOSE = {"rtol": 1e-8, "atol": 1e-10}
NOISE = 0.3


def normal(*shape):
    return dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape))


def network(x, y=None, outputs=2, observe=None):
    w1, b1 = pyro.sample("w1", normal(2, 5)), pyro.sample("b1", normal(5))
    w2, b2 = pyro.sample("w2", normal(5, outputs)), pyro.sample("b2", normal(outputs))
    f = torch.tanh(x @ w1 + b1) @ w2 + b2
    with pyro.plate("data", len(x)):
        return pyro.sample("y", observe(f), obs=y)


def program(observe, outputs=2):
    return lambda x, y=None: network(x, y, outputs, observe)


OBSERVE = {
    "vector": (lambda f: dist.Normal(f, NOISE).to_event(1), 2),
    "heteroscedastic": (lambda f: dist.Normal(f[:, 0], (0.3 * f[:, 1] - 1).exp()), 2),
    "bernoulli": (lambda f: dist.Bernoulli(logits=f[:, 0]), 1),
    "binomial": (lambda f: dist.Binomial(total_count=torch.tensor(5.0), logits=f[:, 0]), 1),
    "categorical": (lambda f: dist.Categorical(logits=f), 3),
    "one hot": (lambda f: dist.OneHotCategorical(logits=f), 3),
    "probs": (lambda f: dist.Categorical(probs=f.softmax(-1)), 3),
    "poisson": (lambda f: dist.Poisson(f[:, 0].exp()), 1),
    "lognormal": (lambda f: dist.LogNormal(f[:, 0], NOISE), 1),
}


def data(name, num_obs=25):
    observe, outputs = OBSERVE[name]
    x = torch.randn(num_obs, 2, generator=generator())
    pyro.set_rng_seed(5)
    y = observe(torch.randn(num_obs, outputs, generator=generator(1))).sample()
    return x, y


def fit(name, structure="full", subset="all", num_obs=25):
    observe, outputs = OBSERVE[name]
    shapes = {"w1": (2, 5), "b1": (5,), "w2": (5, outputs), "b2": (outputs,)}
    g = generator(3)
    values = {site: torch.randn(*shape, generator=g) for site, shape in shapes.items()}
    options = {"structure": structure, "subset": subset, "polish": False, "on_not_a_mode": "ignore"}
    model = program(observe, outputs)
    return model, pl.fit_laplace(model, data(name, num_obs), values, **options)


X = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None] * torch.tensor([1.0, -0.5], dtype=torch.float64)


def logits(theta, outputs):
    w1, b1 = theta[:10].reshape(2, 5), theta[10:15]
    w2, b2 = theta[15 : 15 + 5 * outputs].reshape(5, outputs), theta[15 + 5 * outputs :]
    return torch.tanh(X @ w1 + b1) @ w2 + b2


def brute(guide, outputs):
    """Mean [n, o], Jacobian [n, o, p] and the covariance of theta."""
    rows = torch.func.jacrev(logits)(guide.theta, outputs)[..., guide.index]
    return logits(guide.theta, outputs), rows, torch.linalg.inv(guide.precision.to_dense())
