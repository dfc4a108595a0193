"""`fit_nested_laplace` against quadrature and reference posteriors, and its result as a guide."""

import copy
import json
import math
import pickle
import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyro_laplace as pl
from pyro_laplace.settings import settings

SHARED = Path(__file__).parents[3] / "shared" / "hierarchical"
GROUP = torch.tensor([0, 0, 1, 1, 1, 2, 2])
Y = torch.tensor([1.1, 0.4, 2.0, 1.5, 2.4, -0.3, 0.2], dtype=torch.float64)


@pytest.fixture(autouse=True)
def double(float64):
    """Everything is compared in double precision."""


def groups(group: Tensor, y: Tensor | None = None, count: int = 3) -> None:
    mu = pyro.sample("mu", dist.Normal(1.0, 2.0))
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    with pyro.plate("groups", count):
        u = pyro.sample("u", dist.Normal(mu, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Normal(u[..., group], 0.5), obs=y)


def exact(tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``log p(y | tau)``, and mean and variance of mu given tau, by normal theory in data space."""
    same = (GROUP[:, None] == GROUP).double()
    noise = tau**2 * same + 0.25 * torch.eye(len(Y))
    covariance = noise + 4.0
    gain = 4.0 * torch.linalg.solve(covariance, torch.ones(len(Y)))
    log_p = torch.distributions.MultivariateNormal(torch.ones(len(Y)), covariance).log_prob(Y)
    return log_p, 1.0 + gain @ (Y - 1.0), 4.0 - 4.0 * gain.sum()


def quadrature() -> dict[str, float]:
    """The posterior of log tau and mu, and the evidence, by a fine sum over log tau."""
    log_tau = torch.linspace(-30.0, 12.0, 6001)
    found = [exact(tau) for tau in log_tau.exp()]
    log_lik, mean, variance = (torch.stack([each[k] for each in found]) for k in range(3))
    log_p = log_lik + dist.HalfCauchy(1.0).log_prob(log_tau.exp()) + log_tau
    weights = log_p.softmax(0)
    center = weights @ log_tau
    mu = weights @ mean
    return {
        "log_evidence": float(log_p.logsumexp(0) + math.log(42 / 6000)),
        "log_tau": float(center),
        "log_tau_sd": float((weights @ (log_tau - center) ** 2).sqrt()),
        "mu": float(mu),
        "mu_sd": float((weights @ (variance + (mean - mu) ** 2)).sqrt()),
    }


def test_is_the_posterior_by_quadrature_where_the_conditional_is_gaussian():
    guide, truth = pl.fit_nested_laplace(groups, (GROUP, Y), progress=False), quadrature()
    assert guide.hyper == ("tau",)
    assert guide.log_evidence == pytest.approx(truth["log_evidence"], abs=1e-6)
    mean, sd = guide.mean, guide.variance.sqrt()
    tau, mu = guide.layout["tau"], guide.layout["mu"]
    assert float(mean[tau]) == pytest.approx(truth["log_tau"], abs=0.02 * truth["log_tau_sd"])
    assert float(sd[tau]) == pytest.approx(truth["log_tau_sd"], rel=0.02)
    assert float(mean[mu]) == pytest.approx(truth["mu"], abs=0.02 * truth["mu_sd"])
    assert float(sd[mu]) == pytest.approx(truth["mu_sd"], rel=0.02)


@pytest.mark.parametrize("outer", ["laplace", "nuts"])
def test_other_ways_to_explore_the_hyper_sites(outer, monkeypatch):
    monkeypatch.setattr(settings, "outer_draws", 60)
    monkeypatch.setattr(settings, "outer_warmup", 20)
    guide, truth = pl.fit_nested_laplace(groups, (GROUP, Y), outer=outer, progress=False), quadrature()
    assert guide.outer == outer
    assert guide.log_evidence == pytest.approx(truth["log_evidence"], abs=0.3)
    off = 0.5  # of a skewed density's Gaussian, or of 60 dependent draws
    assert float(guide.mean[guide.layout["mu"]]) == pytest.approx(truth["mu"], abs=off * truth["mu_sd"])
    assert float(guide.mean[guide.layout["tau"]]) == pytest.approx(truth["log_tau"], abs=off * truth["log_tau_sd"])


def test_many_hyper_sites_are_explored_by_weighted_draws(monkeypatch):
    def model(y):
        means = pyro.sample("means", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.Gamma(3.0, 3.0))
        x = pyro.sample("x", dist.Normal(means, scale).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    y = torch.tensor([[0.5, -0.3, 1.0, 2.0], [0.9, 0.1, 0.4, 1.0]])
    few = pl.fit_nested_laplace(model, (y,), hyper="scale", progress=False)
    many = pl.fit_nested_laplace(model, (y,), hyper=["scale", "means"], progress=False)
    assert many.log_evidence == pytest.approx(few.log_evidence, abs=0.05)
    sd = few.variance.sqrt()
    assert float(((many.mean - few.mean) / sd).abs().max()) < 0.1
    assert float((many.variance.sqrt() / sd).log().abs().max()) < 0.12


# --- references -----------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no references at {SHARED}")
@pytest.mark.parametrize(
    "name",
    ["eight_schools_noncentred", "cbpp_binomial", "gp_marginal", "few_groups"],
)
def test_hierarchies_are_right_from_defaults(name, monkeypatch):
    monkeypatch.syspath_prepend(str(SHARED))
    monkeypatch.delitem(sys.modules, "programs", raising=False)
    import programs

    model, data = programs.PROGRAMS[name], programs.load(name)
    monkeypatch.delitem(sys.modules, "programs")
    draws = pl.fit_nested_laplace(model, data, progress=False).sample_posterior(8_000)
    for site, truth in json.loads((SHARED / "refs" / f"{name}.json").read_text())["sites"].items():
        own = truth["unconstrained"] == "same"
        drawn, truth = (draws[site], truth) if own else (draws[site].log(), truth["unconstrained"])
        mean, sd = np.array(truth["mean"]), np.array(truth["sd"])
        assert np.abs((drawn.mean(0).numpy() - mean) / sd).max() < 0.1, site
        assert np.abs(np.log(drawn.std(0).numpy() / sd)).max() < 0.1, site


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no references at {SHARED}")
def test_a_network_is_right_in_function_space_from_defaults(monkeypatch):
    monkeypatch.syspath_prepend(str(SHARED))
    monkeypatch.delitem(sys.modules, "programs", raising=False)
    import programs

    model, data = programs.PROGRAMS["network_1_8_1"], programs.load("network_1_8_1")
    monkeypatch.delitem(sys.modules, "programs")
    truth = json.loads((SHARED / "refs" / "network_1_8_1.json").read_text())
    guide = pl.fit_nested_laplace(model, data, progress=False)
    noise = guide.sample_posterior(8_000)["noise"]
    own = truth["sites"]["noise"]["unconstrained"]
    assert abs(float(noise.log().mean()) - own["mean"]) < 0.15 * own["sd"]
    assert abs(math.log(float(noise.log().std()) / own["sd"])) < 0.15
    mean, sd = (torch.tensor(truth["function"][each]) for each in ("mean", "sd"))
    y = pl.LinearizedPredictive(model, guide)(torch.tensor(truth["inputs"]))["y"]
    assert float(((y.mean - mean) / sd).abs().max()) < 0.15
    assert float(((y.variance - noise.square().mean()).sqrt() / sd).log().abs().max()) < 0.15


# --- the guide --------------------------------------------------------------------------------------


@cache
def fitted() -> pl.NestedLaplace:
    return pl.fit_nested_laplace(groups, (GROUP, Y), progress=False)


@pytest.fixture
def guide(double) -> pl.NestedLaplace:
    """One for all tests that only look at it."""
    return fitted()


def test_is_a_guide_for_pyro_and_for_this_package(guide):
    draws = guide.sample_posterior(4000)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "mu": (4000,),
        "tau": (4000,),
        "u": (4000, 3),
    }
    assert bool((draws["tau"] > 0).all())
    assert len(draws["tau"].unique()) == 4000
    low, middle, high = guide.quantiles([0.05, 0.5, 0.95])["tau"]
    assert float(low) < float(middle) < float(high)
    torch.testing.assert_close(middle, guide.median()["tau"])
    assert 0.03 < float((draws["tau"] < low).double().mean()) < 0.07
    loss = Trace_ELBO(num_particles=200).loss(groups, guide, GROUP, Y)
    assert -loss == pytest.approx(guide.log_evidence, abs=0.1)  # a guide that is nearly the posterior loses nothing
    predicted = pl.Predictive(groups, guide=guide, num_samples=2000)(GROUP)["y"]
    linear = pl.LinearizedPredictive(groups, guide)(GROUP)["y"]
    torch.testing.assert_close(predicted.mean(0), linear.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(predicted.std(0), linear.variance.sqrt(), rtol=0.1, atol=0)
    tree = pl.to_datatree(groups, guide, (GROUP, Y), num_samples=50)
    assert tree.attrs["posterior"] == "NestedLaplace"
    assert tree.attrs["linearized"] == 0
    assert pl.diagnose(groups, guide, (GROUP, Y)).khat < 0.3


def test_is_copied_and_pickled(guide):
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert other.hyper == ("tau",)
        assert other.log_evidence == guide.log_evidence
        torch.testing.assert_close(other.mean, guide.mean)
        torch.testing.assert_close(other.hyper_points["tau"], guide.hyper_points["tau"])


def test_says_which_sites_it_took_and_why(guide):
    assert str(guide.reasons["tau"]) == "sets the curvature of the prior of 'u'"
    assert "hyper: 'tau' (sets the curvature of the prior of 'u'); outer='grid'" in repr(guide)


def test_new_groups_are_drawn_beside_the_old_ones(guide):
    draws = guide.with_new_groups(4000, torch.arange(5), count=5)
    assert draws["u"].shape == (4000, 5)
    old = guide.sample_posterior(4000)["u"]
    torch.testing.assert_close(draws["u"][:, :3].mean(0), old.mean(0), rtol=0, atol=0.05)
    new = (draws["u"][:, 3] - draws["mu"]) / draws["tau"]  # from their prior, at each draw's own mu and tau
    assert abs(float(new.mean())) < 0.06
    assert float(new.std()) == pytest.approx(1.0, abs=0.05)
    predicted = pl.Predictive(groups, draws)(torch.arange(5), count=5)["y"]
    assert predicted.shape == (4000, 5)
    assert float(predicted[:, 4].quantile(0.75) - predicted[:, 4].quantile(0.25)) > 1.2 * float(
        predicted[:, 1].quantile(0.75) - predicted[:, 1].quantile(0.25)
    )
    with pytest.raises(pl.UnsupportedProgram, match="new groups come after the old ones"):
        guide.with_new_groups(5, torch.arange(2), count=2)


def test_there_is_no_update(guide):
    with pytest.raises(pl.InvalidOption, match="update has no step for a NestedLaplace"):
        pl.update(guide, (GROUP, Y))


# --- networks ---------------------------------------------------------------------------------------


def network(x, y=None):
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    w1 = pyro.sample("w1", dist.Normal(0.0, scale).expand([3]).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(0.0, scale).expand([3]).to_event(1))
    f = (torch.tanh(x.unsqueeze(-1) * w1) * w2).sum(-1)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(f, noise), obs=y)


def test_a_network_has_its_weights_by_gauss_newton_on_a_grid(monkeypatch):
    for name, value in {
        "grid_step": 0.9,
        "grid_drop": 4.0,
        "grid_fewest": 1,
        "inner_starts": 2,
        "inner_draws": 6,
    }.items():
        monkeypatch.setattr(settings, name, value)
    x = torch.linspace(-2, 2, 20)
    y = torch.tanh(1.5 * x) + 0.1 * torch.randn(20)
    guide = pl.fit_nested_laplace(network, (x, y), outer="grid", progress=False)
    assert guide.hyper == ("scale", "noise")
    assert guide.curvature == "ggn"
    assert 0.06 < float(guide.median()["noise"]) < 0.2
    predicted = pl.LinearizedPredictive(network, guide)(x)["y"]
    assert float((predicted.mean - torch.tanh(1.5 * x)).abs().max()) < 0.15
    marginal = pl.laplace_marginal(network, (x, y))
    at = {"scale": torch.tensor(1.0), "noise": torch.tensor(0.1, requires_grad=True)}
    value = marginal.log_marginal(at)
    with pytest.raises(NotImplementedError, match="no gradient"):
        value.backward()
    with pytest.raises(pl.InvalidOption, match="outer='nuts' needs gradients"):
        pl.fit_nested_laplace(network, (x, y), outer="nuts", progress=False)


# --- what cannot be ---------------------------------------------------------------------------------


def test_a_hyper_site_that_the_data_do_not_inform():
    def model(y):
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        pyro.sample("idle", dist.Gamma(2.0, 1.0))
        mu = pyro.sample("mu", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=y)

    with pytest.raises(pl.UnsupportedProgram, match=r"say nothing of the hyper sites \['idle'\].*Leave them out"):
        pl.fit_nested_laplace(model, (Y[:3],), hyper=["tau", "idle"], progress=False)


def test_a_program_without_hyper_sites():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    with pytest.raises(pl.InvalidOption, match=r"hyper='auto' found none.*pl.fit_laplace's"):
        pl.fit_nested_laplace(model, (torch.eye(2), torch.ones(2)), progress=False)


def test_unknown_options():
    with pytest.raises(pl.InvalidOption, match="outer='vi' is not one of"):
        pl.fit_nested_laplace(groups, (GROUP, Y), outer="vi")
    with pytest.raises(pl.InvalidOption, match="structure='banded'"):
        pl.fit_nested_laplace(groups, (GROUP, Y), structure="banded")
    with pytest.raises(pl.InvalidOption, match="structure='kron' has no curvature='hessian'"):
        pl.fit_nested_laplace(groups, (GROUP, Y), structure="kron", curvature="hessian")
    with pytest.raises(pl.InvalidOption, match="hyper: 'sigma' matches none"):
        pl.fit_nested_laplace(groups, (GROUP, Y), hyper="sigma")


def test_new_groups_of_an_improper_prior_are_refused_by_name():
    def field(group, count, y=None):
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("places", count):
            f = pyro.sample("f", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.factor("smooth", -0.5 * (f.diff() / tau).square().sum() - (count - 1) * tau.log() - 0.01 * f.sum() ** 2)
        with pyro.plate("data", len(group)):
            pyro.sample("y", dist.Normal(f[..., group], 1.0), obs=y)

    y = torch.tensor([0.1, 0.4, 0.2, 1.0, 1.3, 0.9])
    guide = pl.fit_nested_laplace(field, (torch.arange(6) // 2, 3, y), progress=False)
    assert guide.hyper == ("tau",)
    with pytest.raises(pl.UnsupportedProgram, match=r"'f' has more groups .* improper"):
        guide.with_new_groups(5, torch.arange(4), 4)


def test_a_posterior_without_an_end_is_refused():
    def flat(y):
        tau = pyro.sample("tau", dist.ImproperUniform(dist.constraints.positive, (), ()))
        with pyro.plate("groups", 1):
            u = pyro.sample("u", dist.Normal(0.0, tau))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(u, 1.0), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.LaplaceWarning)
        with pytest.raises(pl.NotAMode, match="give 'tau' a proper prior"):
            pl.fit_nested_laplace(flat, (torch.tensor([0.5, -0.2, 0.9]),), progress=False)
