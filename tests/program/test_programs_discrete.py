"""Discrete latent sites, enumerated: against Pyro's TraceEnum_ELBO, and against the same programs summed by hand."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles.naive import FlatProgram, unvalidated
from programs.zoo import normal, split
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.data import as_data
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program

pytestmark = pytest.mark.usefixtures("float64")


def two_clusters() -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.cat([0.5 * torch.randn(15, generator=g) - 2, 0.5 * torch.randn(20, generator=g) + 1.5]).double()


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# --- the sum --------------------------------------------------------------------------------------


def mixture(y=None, size=35):
    weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(2)))
    loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 2.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", size if y is None else len(y)):
        kind = pyro.sample("kind", dist.Categorical(weights), infer={"enumerate": "parallel"})
        return pyro.sample("y", dist.Normal(loc[kind], scale), obs=y)


@config_enumerate
def hidden_markov(y):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.arange(3.0), 1.0).to_event(1))
    z: Any = 0
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(p[z]))
        pyro.sample(f"y_{t}", dist.Normal(loc[z], 0.5), obs=y[t])


@config_enumerate
def hidden_markov_sequences(y):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.arange(2.0), 1.0).to_event(1))
    with pyro.plate("sequences", len(y)):
        z = torch.zeros((), dtype=torch.long)
        for t in pyro.markov(range(y.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(p[z]))
            pyro.sample(f"y_{t}", dist.Normal(loc[z], 0.5), obs=y[:, t])


@config_enumerate
def shared_by_all_data(y):
    kind = pyro.sample("kind", dist.Bernoulli(0.3))
    w = pyro.sample("w", dist.Normal(kind, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w, scale * (1 + kind)), obs=y)


@config_enumerate
def zero_inflated(y):
    gate = pyro.sample("gate", dist.Beta(1.0, 1.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        off = pyro.sample("off", dist.Bernoulli(gate))
        pyro.sample("y", dist.Poisson(rate * (1 - off) + 1e-9 * off), obs=(2 * y.clamp(min=0)).round())


@config_enumerate
def nested(y):
    a = pyro.sample("a", dist.Dirichlet(torch.ones(2)))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
    with pyro.plate("groups", 5, dim=-2):
        u = pyro.sample("u", dist.Categorical(a))
        with pyro.plate("rows", 7, dim=-1):
            v = pyro.sample("v", dist.Categorical(torch.tensor([[0.3, 0.7], [0.6, 0.4]])[u]))
            pyro.sample("y", dist.Normal(loc[u, v], 0.5), obs=y.reshape(5, 7))


@config_enumerate
def masked_and_scaled(y):
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("data", len(y)), poutine.scale(scale=0.3), poutine.mask(mask=torch.arange(len(y)) % 2 == 0):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(w[z.long()], 0.5), obs=y)


@config_enumerate
def two_observations_of_one_kind(y):
    loc = pyro.sample("loc", normal(1.0, 2))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(loc[z.long()], 0.5), obs=y)
        pyro.sample("positive", dist.Bernoulli(0.2 + 0.6 * z), obs=(y > 0).double())


PROGRAMS = [
    mixture,
    hidden_markov,
    hidden_markov_sequences,
    shared_by_all_data,
    zero_inflated,
    nested,
    masked_and_scaled,
    two_observations_of_one_kind,
]


def argument(model: Callable) -> Tensor:
    return some(4, 5) if model is hidden_markov_sequences else some(12) if model is hidden_markov else two_clusters()


def nothing(*args) -> None:
    """A guide without sites."""


@pytest.mark.parametrize("model", PROGRAMS, ids=lambda model: model.__name__)
def test_the_log_joint_is_pyros(model):
    y = argument(model)
    program = Program.trace(model, as_data((y,)))
    theta = program.start + 0.1
    conditioned = poutine.condition(model, data=program.unpack(theta))
    elbo = TraceEnum_ELBO(max_plate_nesting=program.nesting or 0)
    expected = -elbo.loss(conditioned, nothing, y)
    log_joint = program.log_joint(theta, Chunk(as_data((y,)).first()), jacobian=False)
    assert float(log_joint) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("model", PROGRAMS, ids=lambda model: model.__name__)
def test_the_precision_is_the_hessian_of_pyros_log_joint(model):
    """By central differences of Pyro's own gradient."""
    y = argument(model)
    program = Program.trace(model, as_data((y,)))
    guide = pl.fit_laplace(model, (y,), program.unpack(program.start), on_not_a_mode="raise")
    theta = program.pack(guide.median())

    def gradient(t: Tensor) -> Tensor:
        t = t.clone().requires_grad_()
        conditioned = poutine.condition(model, data=program.unpack(t))
        with unvalidated():
            loss = TraceEnum_ELBO(max_plate_nesting=program.nesting or 0).differentiable_loss(conditioned, nothing, y)
        moved = [each for each in program.latents.values() if each.constrained]
        log_det = sum((each.log_abs_det_jacobian(t[each.slice]) for each in moved), torch.zeros(()))
        return torch.autograd.grad(loss - log_det, t)[0]

    step = 1e-5 * torch.eye(len(theta))
    hessian = torch.stack([(gradient(theta + e) - gradient(theta - e)) / 2e-5 for e in step])
    assert_close(gradient(theta), torch.zeros_like(theta), rtol=0, atol=1e-6)
    assert_close(guide.precision.to_dense(), (hessian + hessian.mT) / 2, rtol=1e-5, atol=1e-5)


# --- the mixture, summed out by hand --------------------------------------------------------------


def mixture_by_hand(y):
    weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(2)))
    loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 2.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.factor("y", torch.logsumexp(weights.log() + dist.Normal(loc, scale).log_prob(y[:, None]), -1))


def test_training_ends_at_the_mode_of_the_sum():
    y = two_clusters()
    guide = pl.fit_laplace(mixture, (y,), progress=False, on_not_a_mode="raise")
    flat = FlatProgram(mixture_by_hand, y)
    theta = flat.unconstrain(guide.median())
    assert list(guide.median()) == ["weights", "loc", "scale"]
    assert_close(flat.gradient(theta), torch.zeros(4), rtol=0, atol=1e-7)
    assert_close(guide.precision.to_dense(), flat.hessian(theta), rtol=1e-8, atol=1e-8)
    assert guide.log_evidence == pytest.approx(flat.laplace_evidence(theta, flat.hessian(theta)), rel=1e-10)


@pytest.mark.parametrize("curvature", ["ggn", "hessian", "mc_fisher", "empirical_fisher"])
def test_every_curvature_takes_the_exact_hessian_of_the_sum(curvature):
    y = two_clusters()
    start = {"weights": torch.tensor([0.5, 0.5]), "loc": torch.tensor([-2.0, 1.0]), "scale": torch.tensor(0.7)}
    guide = pl.fit_laplace(mixture, (y,), start, curvature=curvature)
    other = pl.fit_laplace(mixture_by_hand, (y,), start, curvature="hessian")
    assert_close(guide.precision.to_dense(), other.precision.to_dense(), rtol=1e-8, atol=1e-8)


def test_batches_and_subsamples_visit_every_datum_once():
    y = two_clusters()
    start = {"weights": torch.tensor([0.5, 0.5]), "loc": torch.tensor([-2.0, 1.0]), "scale": torch.tensor(0.7)}

    def subsampled(y):
        weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(2)))
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 2.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=8) as index:
            kind = pyro.sample("kind", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(loc[kind], scale), obs=y[index])

    whole = pl.fit_laplace(mixture, (y,), start)
    for guide in (pl.fit_laplace(mixture, split((y,), 8), start), pl.fit_laplace(subsampled, (y,), start)):
        assert_close(guide.precision.to_dense(), whole.precision.to_dense(), rtol=1e-7, atol=1e-7)
        assert guide.log_evidence == pytest.approx(whole.log_evidence, rel=1e-9)


def test_predictions_draw_the_discrete_sites():
    """As the program says: their marginal mean and variance are those of the mixture at the mode, nearly."""
    y = two_clusters()
    guide = pl.fit_laplace(mixture, (y,), progress=False)
    for predictive in (pyro.infer.Predictive, pl.Predictive):
        draws = predictive(mixture, guide=guide, num_samples=2000)()
        assert draws["kind"].shape == draws["y"].shape == (2000, 35)
        assert math.isclose(draws["kind"].double().mean(), float(guide.median()["weights"][1]), abs_tol=0.03)
        assert math.isclose(draws["y"].mean(), float(y.mean()), abs_tol=0.2)


def test_discrete_sites_beside_a_layer_keep_their_gauss_newton():
    """A site that does not depend on them has its Fisher information, the other its exact Hessian."""
    x, y = some(20, 2), some(20)

    @config_enumerate
    def model(x, y):
        w = pyro.sample("w", normal(1.0, 2))
        v = pyro.sample("v", normal(1.0, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("clean", dist.Normal(x @ w, 0.5), obs=y)
            outlier = pyro.sample("outlier", dist.Bernoulli(0.1))
            pyro.sample("dirty", dist.Normal(x @ v, 0.5 + 3 * outlier), obs=y)

    guide = pl.fit_laplace(model, (x, y), {"w": torch.zeros(2), "v": torch.zeros(2)})
    assert_close(guide.precision.to_dense()[:2, :2], x.mT @ x / 0.25 + torch.eye(2), rtol=1e-8, atol=1e-8)
    assert_close(guide.precision.to_dense()[:2, 2:], torch.zeros(2, 2), rtol=0, atol=1e-9)
