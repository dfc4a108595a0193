"""Programs, and the same densities by hand, whose Fisher information is a naive sum of score outer products.

`density(theta, *data)` is log p(y_n | theta) [n]. Where a program scales or masks, `weight` says by how much.
`naive` is the oracle; `measured`, `matrix` and `diagonal` give what the package makes of the same program.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from programs.zoo import normal
from pyro import poutine
from pyro.distributions import constraints
from torch.nn import functional
from torch.testing import assert_close

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import as_data
from pyro_laplace.program.program import Program
from pyro_laplace.structure.build import sum_over_data

assert_same = partial(assert_close, rtol=1e-9, atol=1e-9)
N = 12
EMPIRICAL, MONTE_CARLO = CURVATURES["empirical_fisher"], CURVATURES["mc_fisher"]


class Logistic(dist.TorchDistribution):
    """A density that no registry knows, and that cannot be drawn from."""

    arg_constraints: ClassVar = {"loc": constraints.real}
    support = constraints.real

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Logistic(self.loc.expand(batch_shape))

    def log_prob(self, value):
        z = value - self.loc
        return -z - 2 * functional.softplus(-z)


def gaussian(y, loc, scale):
    return (
        -0.5 * ((y - loc) / scale) ** 2
        - torch.log(torch.as_tensor(scale))
        - 0.5 * torch.log(torch.tensor(2 * torch.pi))
    )


def known_scale(x, y):
    w = pyro.sample("w", normal(1.0, 4))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def unknown_scale(x, y):
    w, b = pyro.sample("w", normal(1.0, 4)), pyro.sample("b", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.sin(x @ w) + b, sigma), obs=y)


def two_heads(x, y):
    w, v = pyro.sample("w", normal(1.0, 4)), pyro.sample("v", normal(1.0, 4))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, (x @ v).exp()), obs=y)


def bernoulli(x, y):
    w, b = pyro.sample("w", normal(1.0, 4)), pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)


def network(x, y):
    w1, b1, w2 = (
        pyro.sample("w1", normal(1.0, 4, 3)),
        pyro.sample("b1", normal(1.0, 3)),
        pyro.sample("w2", normal(1.0, 3, 3)),
    )
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=torch.tanh(x @ w1 + b1) @ w2), obs=y)


def network_density(theta, x, y):
    w1, b1, w2 = theta[:12].reshape(4, 3), theta[12:15], theta[15:].reshape(3, 3)
    return (torch.tanh(x @ w1 + b1) @ w2).log_softmax(-1).gather(1, y[:, None])[:, 0]


def convolution(x, y):
    kernel, head = pyro.sample("kernel", normal(1.0, 2, 1, 2, 2)), pyro.sample("head", normal(1.0, 3, 18))
    hidden = torch.tanh(functional.conv2d(x.reshape(-1, 1, 2, 2), kernel, padding=1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=functional.linear(hidden.flatten(1), head)), obs=y)


def convolution_density(theta, x, y):
    kernel, head = theta[:8].reshape(2, 1, 2, 2), theta[8:].reshape(3, 18)
    hidden = torch.tanh(functional.conv2d(x.reshape(-1, 1, 2, 2), kernel, padding=1))
    return (hidden.flatten(1) @ head.T).log_softmax(-1).gather(1, y[:, None])[:, 0]


def poisson(x, y):
    w = pyro.sample("w", normal(1.0, 4))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson((x @ w).exp()), obs=y)


def student(x, y):
    w, sigma = pyro.sample("w", normal(1.0, 4)), pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.StudentT(4.0, x @ w, sigma), obs=y)


def student_density(theta, x, y):
    z = (y - x @ theta[:4]) / theta[4].exp()
    return -2.5 * torch.log1p(z**2 / 4) - theta[4]


def unregistered(x, y):
    w1, w2 = pyro.sample("w1", normal(1.0, 4, 3)), pyro.sample("w2", normal(1.0, 3))
    with pyro.plate("data", len(x)):
        pyro.sample("y", Logistic(torch.tanh(x @ w1) @ w2), obs=y)


def unregistered_density(theta, x, y):
    z = y - torch.tanh(x @ theta[:12].reshape(4, 3)) @ theta[12:]
    return -z - 2 * torch.log1p(torch.exp(-z))


def joint_outputs(x, y):
    w = pyro.sample("w", normal(1.0, 4, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.sin(x @ w), 0.3).to_event(1), obs=y)


def joint_density(theta, x, y):
    return gaussian(y, torch.sin(x @ theta.reshape(4, 2)), 0.3).sum(1)


def plated_outputs(x, y):
    w = pyro.sample("w", normal(1.0, 4, 2))
    with pyro.plate("data", len(x), dim=-2), pyro.plate("outputs", 2, dim=-1):
        pyro.sample("y", dist.Normal(torch.sin(x @ w), 0.3), obs=y)


def masked_entries(x, y):
    w = pyro.sample("w", normal(1.0, 4, 2))
    keep = torch.tensor([[True, False], [True, True], [False, False]]).repeat(N // 3, 1)[: len(x)]
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.sin(x @ w), 0.3).mask(keep).to_event(1), obs=y)


def masked_entries_density(theta, x, y):
    keep = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]).repeat(N // 3, 1)
    return (keep * gaussian(y, torch.sin(x @ theta.reshape(4, 2)), 0.3)).sum(1)


def masked_and_scaled(x, y):
    w, b = pyro.sample("w", normal(1.0, 4)), pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0), poutine.scale(scale=0.25):
        pyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)


def scaled_student(x, y):
    w = pyro.sample("w", normal(1.0, 4))
    with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0), poutine.scale(scale=3.0):
        pyro.sample("y", dist.StudentT(4.0, x @ w, 0.5), obs=y)


def log_normal(x, y):
    w = pyro.sample("w", normal(1.0, 4))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.LogNormal(x @ w, 0.5), obs=y)


def indexed(x, y):
    effect = pyro.sample("effect", normal(1.0, 3))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(effect[(x[:, 0] > 0).long()], 0.5), obs=y)


def batch_statistics(x, y):
    w1, w2 = pyro.sample("w1", normal(1.0, 4, 3)), pyro.sample("w2", normal(1.0, 3, 3))
    hidden = x @ w1
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=(hidden - hidden.mean(0)) @ w2), obs=y)


def batch_statistics_density(theta, x, y):
    hidden = x @ theta[:12].reshape(4, 3)
    return ((hidden - hidden.mean(0)) @ theta[12:].reshape(3, 3)).log_softmax(-1).gather(1, y[:, None])[:, 0]


def single_datum(x, y):
    """No plate: the site is one datum with as many entries as there are rows."""
    w = pyro.sample("w", normal(1.0, 4))
    pyro.sample("y", dist.Normal(torch.sin(x @ w), 0.5).to_event(1), obs=y)


def logit_density(theta, x, y):
    logit = x @ theta[:4] + theta[4]
    return y * logit - torch.log1p(logit.exp())


@dataclass(frozen=True)
class Problem:
    model: Callable
    density: Callable
    label: str
    weight: float = 1.0
    captured: bool = True
    batches: bool = True


PROBLEMS = {
    "known_scale": Problem(known_scale, lambda t, x, y: gaussian(y, x @ t, 0.5), "real"),
    "unknown_scale": Problem(
        unknown_scale, lambda t, x, y: gaussian(y, torch.sin(x @ t[:4]) + t[4], t[5].exp()), "real"
    ),
    "two_heads": Problem(two_heads, lambda t, x, y: gaussian(y, x @ t[:4], (x @ t[4:]).exp()), "real"),
    "bernoulli": Problem(bernoulli, logit_density, "binary"),
    "network": Problem(network, network_density, "class"),
    "convolution": Problem(convolution, convolution_density, "class"),
    "poisson": Problem(poisson, lambda t, x, y: y * (x @ t) - (x @ t).exp(), "count"),
    "student": Problem(student, student_density, "real"),
    "unregistered": Problem(unregistered, unregistered_density, "real"),
    "joint_outputs": Problem(joint_outputs, joint_density, "pair"),
    "plated_outputs": Problem(
        plated_outputs, lambda t, x, y: gaussian(y, torch.sin(x @ t.reshape(4, 2)), 0.3).flatten(), "pair"
    ),
    "masked_entries": Problem(masked_entries, masked_entries_density, "pair", batches=False),
    "masked_and_scaled": Problem(masked_and_scaled, logit_density, "binary", weight=0.25),
    "scaled_student": Problem(
        scaled_student, lambda t, x, y: -2.5 * torch.log1p(((y - x @ t) / 0.5) ** 2 / 4), "real", weight=3.0
    ),
    "log_normal": Problem(log_normal, lambda t, x, y: gaussian(y.log(), x @ t, 0.5), "positive"),
    "indexed": Problem(indexed, lambda t, x, y: gaussian(y, t[(x[:, 0] > 0).long()], 0.5), "real"),
    "batch_statistics": Problem(batch_statistics, batch_statistics_density, "class", captured=False, batches=False),
    "single_datum": Problem(
        single_datum,
        lambda t, x, y: gaussian(y, torch.sin(x @ t), 0.5).sum(0, keepdim=True),
        "real",
        captured=False,
        batches=False,
    ),
}

MASKED = {"masked_and_scaled", "scaled_student"}


def data_of(problem, num_obs=N):
    generator = torch.Generator().manual_seed(1)
    x, pair = torch.randn(num_obs, 4, generator=generator), torch.randn(num_obs, 2, generator=generator)
    labels = {
        "real": pair[:, 0],
        "pair": pair,
        "positive": pair[:, 0].exp(),
        "binary": (pair[:, 0] > 0).double(),
        "class": torch.arange(num_obs) % 3,
        "count": torch.arange(num_obs).double() % 4,
    }
    return x, labels[problem.label]


def measured(problem, data):
    """The program, and a point of no importance."""
    program = Program.trace(problem.model, as_data(data))
    theta = 0.4 * torch.randn(program.num_params, generator=torch.Generator().manual_seed(2))
    return program, Anchor(theta, torch.arange(len(theta)), program.latents)


def summed(curvature, program, anchor, data, structure="full"):
    """The likelihood's curvature, summed over data."""
    loop = Loop(program, as_data(data))
    with undisturbed(), torch.no_grad():
        return sum_over_data(loop, anchor, curvature, structure).likelihood


def matrix(curvature, program, anchor, data):
    """All of it."""
    return summed(curvature, program, anchor, data).times(torch.eye(anchor.size, dtype=torch.float64))


def diagonal(curvature, program, anchor, data):
    """Its diagonal."""
    ones = torch.ones(1, anchor.size, dtype=torch.float64)
    return summed(curvature, program, anchor, data, "diag").times(ones)[0]


def naive(name, theta, x, y):
    """sum_n w_n g_n g_n', a datum at a time."""
    problem = PROBLEMS[name]
    scores = torch.func.jacrev(lambda t: problem.density(t, x, y))(theta)  # n, p
    weights = problem.weight * ((x[:, 0] > 0).double() if name in MASKED else torch.ones(len(scores)))
    total = torch.zeros(len(theta), len(theta))
    for weight, score in zip(weights, scores, strict=True):
        total += weight * torch.outer(score, score)
    return total
