"""`discrete_posterior`, against sums over all assignments of the discrete sites at once."""

from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace._errors import UnsupportedProgram

pytestmark = pytest.mark.usefixtures("float64")

Y = torch.tensor([-1.5, 0.2, 2.0, -0.4, 1.1, 0.6], dtype=torch.float64)


@config_enumerate
def mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 0.5, 2.0]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        kind = pyro.sample("kind", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(loc[kind], 1.0), obs=y)


@config_enumerate
def hidden_markov(y):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.arange(2.0), 1.0).to_event(1))
    z: Any = 0
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(p[z]))
        pyro.sample(f"y_{t}", dist.Normal(loc[z], 0.5), obs=y[t])


@config_enumerate
def shared(y):
    kind = pyro.sample("kind", dist.Bernoulli(0.3))
    w = pyro.sample("w", dist.Normal(kind, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w, 1 + kind), obs=y)


@config_enumerate
def nested(y):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
    with pyro.plate("groups", 2, dim=-2):
        u = pyro.sample("u", dist.Categorical(torch.tensor([0.4, 0.6])))
        with pyro.plate("rows", 3, dim=-1):
            v = pyro.sample("v", dist.Bernoulli(torch.tensor([0.3, 0.6])[u]))
            pyro.sample("y", dist.Normal(loc[u, v.long()], 0.5), obs=y.reshape(2, 3))


@config_enumerate
def masked_and_scaled(y):
    w = pyro.sample("w", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("data", len(y)), poutine.scale(scale=0.3):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        with poutine.mask(mask=torch.arange(len(y)) % 2 == 0):
            pyro.sample("y", dist.Normal(w[z.long()], 0.5), obs=y)


@config_enumerate
def binomial(y):
    step = pyro.sample("step", dist.Normal(1.0, 1.0))
    with pyro.plate("data", len(y)):
        count = pyro.sample("count", dist.Binomial(2, torch.tensor(0.3)))
        pyro.sample("y", dist.Normal(step * count, 1.0), obs=y)


PROGRAMS = [mixture, hidden_markov, shared, nested, masked_and_scaled, binomial]


PLATES = ("data", "groups", "rows")


def prior_draws(model, y, count):
    traces = [poutine.trace(poutine.uncondition(model)).get_trace(y) for _ in range(count)]
    sites = [name for name, site in traces[0].iter_stochastic_nodes() if not site["fn"].has_enumerate_support]
    names = [name for name in sites if name not in PLATES and not name.startswith("y")]
    return {name: torch.stack([trace.nodes[name]["value"] for trace in traces]) for name in names}


def by_all_assignments(model, y, values, scale):
    """Probabilities of each discrete site's values at one point, of the densities of every assignment."""
    trace = poutine.trace(poutine.condition(model, values)).get_trace(y)
    sites = {name: trace.nodes[name]["fn"] for name in trace.stochastic_nodes if name not in PLATES}
    supports = {name: fn.enumerate_support(expand=False).flatten() for name, fn in sites.items()}
    places = [(name, i) for name, fn in sites.items() for i in range(fn.batch_shape.numel())]
    densities, chosen = [], []
    for assignment in product(*(range(len(supports[name])) for name, _ in places)):
        at = {name: torch.zeros(fn.batch_shape.numel(), dtype=torch.long) for name, fn in sites.items()}
        for (name, i), value in zip(places, assignment, strict=True):
            at[name][i] = value
        discrete = {name: supports[name][at[name]].reshape(fn.batch_shape) for name, fn in sites.items()}
        whole = poutine.condition(model, {**values, **discrete})
        densities.append(poutine.trace(whole).get_trace(y).log_prob_sum() / scale)
        chosen.append(at)
    weights, found = torch.stack(densities).softmax(0), {}
    for name, fn in sites.items():
        one_hot = torch.nn.functional.one_hot(torch.stack([at[name] for at in chosen]), len(supports[name]))
        mean = torch.einsum("a,ank->nk", weights, one_hot.to(weights))
        found[name] = mean.reshape(*fn.batch_shape, -1)
    return found


@pytest.mark.parametrize("model", PROGRAMS, ids=lambda model: model.__name__)
def test_probabilities_are_those_of_all_assignments(model):
    y = Y if model is nested else Y[:4]
    draws, scale = prior_draws(model, y, 2), 0.3 if model is masked_and_scaled else 1.0
    points = [{name: value[i] for name, value in draws.items()} for i in range(2)]
    each = [by_all_assignments(model, y, point, scale) for point in points]
    found = pl.discrete_posterior(model, draws, (y,))
    assert found.keys() == each[0].keys()
    for name, fn in found.items():
        expected = (each[0][name] + each[1][name]) / 2
        if isinstance(fn, dist.Bernoulli):
            expected = expected[..., 1]
        assert_close(fn.probs, expected, rtol=1e-9, atol=1e-12)


def test_of_a_guide_in_batches_and_of_new_data():
    pyro.set_rng_seed(0)
    y = torch.cat([torch.randn(30) - 4, torch.randn(20) + 4])
    guide = pl.fit_laplace(mixture, (y,))
    new = torch.tensor([-4.0, 4.0])
    whole = pl.discrete_posterior(mixture, guide, (torch.cat([y, new]),), num_samples=50)["kind"]
    assert whole.batch_shape == (52,)
    assert len(whole.probs[-2:].argmax(-1).unique()) == 2  # two clusters that are far apart
    draws = guide.sample_posterior(20)
    parts = pl.discrete_posterior(mixture, draws, [(y,), (new,)])["kind"]
    assert_close(parts.probs, pl.discrete_posterior(mixture, draws, (torch.cat([y, new]),))["kind"].probs)
    density = (
        draws["weights"].log()[:, None] + dist.Normal(draws["loc"][:, None], 1.0).log_prob(new[:, None])
    ).softmax(-1)
    assert_close(parts.probs[-2:], density.mean(0))


def test_what_has_no_discrete_site_is_refused():
    def model(y):
        pyro.sample("y", dist.Normal(pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    with pytest.raises(UnsupportedProgram, match="is discrete and enumerated"):
        pl.discrete_posterior(model, {"w": torch.zeros(3)}, (torch.ones(()),))
