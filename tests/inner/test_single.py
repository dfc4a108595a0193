"""Single hyper points by recorded operations, against the search by the program itself."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import as_data
from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.inner.dense import DenseInner
from pyro_laplace.inner.single import SingleInner, for_single_points
from pyro_laplace.program.program import Program

pytestmark = pytest.mark.usefixtures("float64")

GROUP, Y = torch.arange(12) % 4, torch.arange(12) % 5


def counts(group, y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", 4):
        u = pyro.sample("u", dist.Normal(mean, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)


def measurements(group, y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", 4):
        u = pyro.sample("u", dist.Normal(mean, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Normal(u[group], 0.5), obs=y.double())


def correlated(group, y=None):
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    distance = (torch.arange(4.0).unsqueeze(-1) - torch.arange(4.0)).abs()
    u = pyro.sample("u", dist.MultivariateNormal(torch.zeros(4), (-distance / tau).exp() + 1e-3 * torch.eye(4)))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)


def successes(group, y=None):
    """With a scale among the inner sites."""
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    spread = pyro.sample("spread", dist.LogNormal(0.0, 0.3))
    with pyro.plate("groups", 4):
        u = pyro.sample("u", dist.Normal(0.0, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Binomial(5, logits=spread * u[group]), obs=y.double())


def alone(group, y=None):
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    u = pyro.sample("u", dist.Normal(0.0, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Bernoulli(logits=u), obs=(y > 1).double())


def masked(group, y=None):
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", 4):
        u = pyro.sample("u", dist.Normal(0.0, tau))
    pyro.factor("hinge", -(u[u > -0.37] + 0.37).square().sum())
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)


def looks_at_a_value(group, y=None):
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", 4):
        u = pyro.sample("u", dist.Normal(0.5 if tau > 1.0 else -0.5, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)


def dense(model) -> DenseInner:
    data = as_data((GROUP, Y))
    return DenseInner(Conditional.of(Loop(Program.trace(model, data), data), ("tau",)))


@pytest.mark.parametrize("model", [counts, measurements, correlated, successes, alone])
def test_a_single_point_is_as_by_the_program(model):
    fast = for_single_points(dense(model))
    assert isinstance(fast, SingleInner)
    for h in torch.linspace(-2.0, 1.5, 8).reshape(-1, 1, 1):
        ours, theirs = fast.solve(h), dense(model).solve(h)
        assert_close(ours.x, theirs.x, rtol=1e-7, atol=1e-7)
        assert_close(ours.value, theirs.value, rtol=1e-9, atol=1e-9)
        assert_close(ours.gradient(), theirs.gradient(), rtol=1e-7, atol=1e-7)
        assert_close(ours.response(0), theirs.response(0), rtol=1e-6, atol=1e-7)
        assert_close(ours.shift(0), theirs.shift(0), rtol=1e-6, atol=1e-7)
        assert_close(ours.block(0).to_dense(), theirs.block(0).to_dense(), rtol=1e-6, atol=1e-7)


def test_the_program_does_not_run_again(monkeypatch):
    fast = for_single_points(dense(counts))
    h = torch.tensor([[-0.3]])
    right, _ = dense(counts).solve(h).value, fast.solve(h + 0.3)  # from the start, steps may have to be damped
    monkeypatch.setattr(Program, "run_at", None)
    assert_close(fast.solve(h).value, right)


def test_a_search_that_has_to_be_damped_is(monkeypatch):
    fast, h = for_single_points(dense(counts)), torch.tensor([[0.4]])
    right = fast.solve(h).value
    fast.damped.memory.x.fill_(-30.0)  # rates of nothing: Newton's step overshoots to rates without bound
    assert_close(fast.solve(h).value, right)
    fast.damped.memory.x.fill_(-30.0)
    monkeypatch.setattr(DenseInner, "solve", None)
    with pytest.raises(TypeError):
        fast.solve(h)


def test_several_points_and_a_program_that_looks_at_values_are_not_recorded():
    for model in (looks_at_a_value, masked):
        assert isinstance(for_single_points(dense(model)), DenseInner)
    h = torch.tensor([[0.1], [0.5]])
    assert_close(for_single_points(dense(counts)).solve(h).value, dense(counts).solve(h).value)


@pytest.mark.parametrize("model", [counts, successes, measurements])
def test_nuts_on_a_marginal_runs_without_the_program(model):
    marginal = pl.laplace_marginal(model, (GROUP, Y), hyper="tau")
    mcmc = pl.fit_nuts(marginal, (), num_samples=4, warmup_steps=4, progress=False)
    assert mcmc.kernel.potential_fn.recorded
