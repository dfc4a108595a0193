"""The linearised program is a Pyro program whose likelihood parameters are linear in theta."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta

import pyro_laplace as pl

X = torch.linspace(-2.0, 2.0, 30, dtype=torch.float64)[:, None]
Y = torch.sin(X[:, 0]) + 0.2 * torch.cos(37.0 * X[:, 0])


def network(x, y=None):
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(1, 4).to(x), 1.0).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(torch.zeros(4).to(x), 1.0).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(4).to(x), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(torch.tensor(-1.5).to(x), 0.5))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(torch.tanh(x @ w1 + b1) @ w2, sigma), obs=y)


def classes(x, y=None):
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(1, 3).to(x), 1.0).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(3, 3).to(x), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Categorical(logits=torch.tanh(x @ w1) @ w2), obs=y)


@pytest.fixture(scope="module")
def guide():
    pyro.set_rng_seed(3)
    return pl.fit_laplace(network, (X, Y), progress=False)


def predictor(theta, x):
    """eta = (loc, log sigma), written by hand."""
    w1, b1, w2 = theta[0:4], theta[4:8], theta[8:12]
    loc = torch.tanh(x * w1 + b1) @ w2
    return torch.stack([loc, theta[12].expand(len(x))])


def flat(values):
    return torch.cat([values["w1"].reshape(-1), values["b1"], values["w2"], values["sigma"].log().reshape(1)])


def test_parameters_are_the_first_order_expansion_at_the_mode(guide):
    values = {name: draw[0] for name, draw in guide.sample_posterior(1).items()}
    x = torch.linspace(-3.0, 3.0, 7, dtype=torch.float64)[:, None]
    trace: Any = poutine.trace(poutine.condition(pl.linearize(network, guide), values)).get_trace(x)
    mode = flat(guide.median())
    jacobian = torch.func.jacfwd(predictor)(mode, x)
    loc, log_sigma = predictor(mode, x) + jacobian @ (flat(values) - mode)
    fn = trace.nodes["y"]["fn"]
    torch.testing.assert_close(fn.loc, loc, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fn.scale, log_sigma.exp(), rtol=1e-10, atol=1e-10)


def test_it_is_the_model_at_the_mode(guide):
    conditioned = poutine.condition(pl.linearize(network, guide), guide.median())
    linearized = poutine.trace(conditioned).get_trace(X, Y).log_prob_sum()
    nonlinear = poutine.trace(poutine.condition(network, guide.median())).get_trace(X, Y).log_prob_sum()
    torch.testing.assert_close(linearized, nonlinear, rtol=1e-10, atol=1e-10)


def test_its_sites_plates_and_priors_are_the_models(guide):
    mine: Any = poutine.trace(pl.linearize(network, guide)).get_trace(X, Y)
    theirs: Any = poutine.trace(network).get_trace(X, Y)
    assert set(mine.stochastic_nodes) == set(theirs.stochastic_nodes)
    assert mine.observation_nodes == theirs.observation_nodes
    assert mine.nodes["y"]["cond_indep_stack"] == theirs.nodes["y"]["cond_indep_stack"]
    for name in guide.layout:
        assert type(mine.nodes[name]["fn"]) is type(theirs.nodes[name]["fn"])


def test_scale_mask_and_condition_around_it_count(guide):
    linear = poutine.condition(pl.linearize(network, guide), guide.median())
    keep: Any = torch.arange(len(X)) % 2 == 0
    trace: Any = poutine.trace(poutine.scale(poutine.mask(linear, mask=keep), scale=3.0)).get_trace(X, Y)
    trace.compute_log_prob()
    loc, log_sigma = predictor(flat(guide.median()), X)
    expected = 3.0 * (dist.Normal(loc, log_sigma.exp()).log_prob(Y) * keep)
    torch.testing.assert_close(trace.nodes["y"]["log_prob"], expected, rtol=1e-10, atol=1e-10)


def test_predictive_means_and_variances_are_the_linear_gaussian_ones(guide):
    x = torch.linspace(-3.0, 3.0, 5, dtype=torch.float64)[:, None]
    pyro.set_rng_seed(0)
    draws = Predictive(pl.linearize(network, guide), guide=guide, num_samples=500)(x)["y"].reshape(500, -1)
    mode = flat(guide.median())
    jacobian = torch.func.jacfwd(predictor)(mode, x)
    covariance = torch.linalg.inv(guide.precision.to_dense())
    variance = torch.einsum("np,pq,nq->n", jacobian[0], covariance, jacobian[0])
    noise = torch.exp(2 * mode[12] + 2 * covariance[12, 12])  # E exp(2 log sigma)
    sd = (variance + noise).sqrt()
    assert ((draws.mean(0) - predictor(mode, x)[0]).abs() < 5 * sd / 500**0.5).all()
    assert ((draws.std(0) / sd - 1).abs() < 0.15).all()


def test_gradients_reach_the_latent_sites(guide):
    values = {name: value.clone().requires_grad_() for name, value in guide.median().items()}
    linear = poutine.condition(pl.linearize(network, guide), values)
    trace: Any = poutine.trace(linear).get_trace(X, Y)
    trace.nodes["y"]["fn"].loc.sum().backward()
    jacobian = torch.func.jacfwd(predictor)(flat(guide.median()), X)[0].sum(0)
    torch.testing.assert_close(values["w1"].grad.reshape(-1), jacobian[:4], rtol=1e-10, atol=1e-10)


def test_elbo_takes_it(guide):
    pyro.set_rng_seed(1)
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(pl.linearize(network, guide), guide, X, Y)))


def test_categorical_is_linear_in_the_logits():
    pyro.set_rng_seed(1)
    labels = (X[:, 0] > 0).long() + (X[:, 0] > 1).long()
    guide = pl.fit_laplace(classes, (X, labels), progress=False)
    values = {name: draw[0] for name, draw in guide.sample_posterior(1).items()}
    trace: Any = poutine.trace(poutine.condition(pl.linearize(classes, guide), values)).get_trace(X)
    fn = trace.nodes["y"]["fn"]

    def logits(w1, w2):
        return torch.tanh(X @ w1) @ w2

    mode = guide.median()
    at_mode, change = torch.func.jvp(
        logits, (mode["w1"], mode["w2"]), (values["w1"] - mode["w1"], values["w2"] - mode["w2"])
    )[:2]
    torch.testing.assert_close(fn.probs, (at_mode + change).softmax(-1), rtol=1e-9, atol=1e-9)


def test_an_unknown_link_is_refused_by_name():
    def model(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.SkewLogistic(mu, torch.tensor(1.0), torch.tensor(1.5)), obs=y)

    data = {"y": torch.arange(5.0)}
    guide = pl.fit_laplace(model, data, progress=False)
    with pytest.raises(pl.UnsupportedProgram, match=r"'y' has a SkewLogistic .* register"):
        poutine.trace(pl.linearize(model, guide)).get_trace(**data)


def test_only_a_laplace_guide_is_taken():
    with pytest.raises(pl.InvalidOption, match="AutoDelta"):
        pl.linearize(network, AutoDelta(network))


def test_it_returns_the_value_of_its_observed_site(guide):
    x = X[:4]
    draws = Predictive(pl.linearize(network, guide), guide=guide, num_samples=3, return_sites=("y", "_RETURN"))(x)
    assert torch.equal(draws["_RETURN"], draws["y"].reshape(3, 4))
