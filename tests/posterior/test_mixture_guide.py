"""Mixtures of Laplace approximations as guides among guides."""

import copy
import io
import math
from typing import Any

import pyro
import pytest
import torch
from oracles.naive import linear_regression
from programs.mixtures import fit_at, fit_linear, torch_mixture
from programs.zoo import gamma_poisson, linear_data, linear_model, mlp_classifier, pyro_module_classifier
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")


def test_is_a_guide_without_parameters(param_mode):
    mixture = fit_linear(0, 1)
    x, y = linear_data()
    stored = set(pyro.get_param_store())
    mixture(x, y)
    assert list(mixture.parameters()) == []
    assert set(pyro.get_param_store()) == stored
    assert {"weights", "_components.0.loc", "_components.1.theta"} <= set(mixture.state_dict())
    assert list(mixture.layout) == ["w"]


@pytest.mark.parametrize("make", [gamma_poisson, mlp_classifier, pyro_module_classifier])
def test_its_trace_has_the_density_of_the_constrained_values(make, param_mode):
    """Log density of theta, less the log-Jacobian of the sites' transforms."""
    case = make()
    mixture = fit_at(case, 0, 1, weights="equal")
    trace: Any = poutine.trace(mixture).get_trace(*case.data)
    theta = case.flat.unconstrain({name: trace.nodes[name]["value"] for name in mixture.layout})
    expected = torch_mixture(mixture).log_prob(theta) - case.flat.constrain(theta)[1]
    assert_close(trace.log_prob_sum(), expected, rtol=1e-8, atol=1e-8)
    draws = mixture.sample_posterior(3)
    assert {name: value.shape for name, value in draws.items()} == {
        name: (3, *value.shape) for name, value in mixture.median().items()
    }


@pytest.mark.statistical
@pytest.mark.parametrize("predictive", [Predictive, pl.Predictive])
def test_predictive_is_the_mixture_of_the_components(predictive, param_mode):
    """Moments of `sum_k w_k N(x m_k, x C_k x' + noise^2)`, and its distribution function."""
    mixture = fit_linear(0, 1)
    x, _ = linear_data(num_obs=5, seed=9)
    draws = predictive(linear_model(), guide=mixture, num_samples=4000)(x)["y"].reshape(4000, 5)
    exact = [linear_regression(*linear_data(num_obs=8, seed=seed), 0.7, 1.3) for seed in (0, 1)]
    mean = torch.stack([x @ each.mean for each in exact], -1)
    std = torch.stack([((x @ each.cov * x).sum(-1) + 0.7**2).sqrt() for each in exact], -1)
    for level in (-1.0, 0.0, 1.0):
        expected = torch.distributions.Normal(mean, std).cdf(torch.tensor(level)) @ mixture.weights
        assert_close((draws <= level).double().mean(0), expected, rtol=0, atol=5 * 0.5 / 4000**0.5)


def test_auto_guide_list_of_one(param_mode):
    mixture = fit_linear(0, 1)
    x, y = linear_data()
    guides = AutoGuideList(linear_model())
    guides.append(mixture)
    assert_close(guides.median(x, y)["w"], mixture.median()["w"])
    assert Predictive(linear_model(), guide=guides, num_samples=3)(x)["y"].shape == (3, len(x))
    assert math.isfinite(Trace_ELBO().loss(linear_model(), guides, x, y))


def test_draws_follow_the_seed():
    mixture = fit_linear(0, 1)
    pyro.set_rng_seed(4)
    first, second = mixture.sample_posterior(5), mixture.sample_posterior(5)
    pyro.set_rng_seed(4)
    assert_close(mixture.sample_posterior(5), first, rtol=0, atol=0)
    assert not torch.equal(first["w"], second["w"])


def via_torch_save(guide):
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, via_torch_save], ids=["deepcopy", "torch.save"])
def test_copies(copied, param_mode):
    mixture = fit_linear(0, 1)
    model = mixture.model
    twin = copied(mixture)
    pyro.set_rng_seed(3)
    expected = mixture.sample_posterior(4)
    pyro.set_rng_seed(3)
    assert_close(twin.sample_posterior(4), expected, rtol=0, atol=0)
    assert_close(twin.median(), mixture.median(), rtol=0, atol=0)
    assert_close(twin.weights, mixture.weights, rtol=0, atol=0)
    assert twin.log_evidence == mixture.log_evidence
    assert mixture.model is model
    assert twin.model is (model if copied is copy.deepcopy else None)
    component = twin.components[1]
    del twin
    x, y = linear_data()
    assert component(x, y)["w"].shape == (3,)


def test_a_saved_mixture_carries_no_training_data():
    x, y = linear_data(num_obs=5000)
    mixture = pl.fit_laplace(linear_model(), (x, y), [{"w": torch.zeros(3)}, {"w": torch.ones(3)}])
    buffer = io.BytesIO()
    torch.save(mixture, buffer)
    assert len(buffer.getvalue()) < 5000 * 8 / 2
    assert y[:8].numpy().tobytes() not in buffer.getvalue()


def test_nothing_of_the_users_is_changed(param_mode):
    case = pyro_module_classifier()
    model: Any = case.model
    model.train()
    given = [pl.fit_map(model, case.data, num_steps=3, progress=False) for _ in range(2)]
    before = [copy.deepcopy(guide.median()) for guide in given]
    state, stored = copy.deepcopy(model.state_dict()), set(pyro.get_param_store())
    random = torch.get_rng_state()
    mixture = pl.fit_laplace(model, case.data, given, polish=False, on_not_a_mode="ignore")
    points = pl.LaplaceMixture.of_modes(model, case.data, given)
    assert torch.equal(torch.get_rng_state(), random)
    for guide in (mixture, points):
        guide(*case.data)
    assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert model.training
    assert set(pyro.get_param_store()) == stored
    assert_close([guide.median() for guide in given], before, rtol=0, atol=0)
    assert mixture.fit_seconds > 0
