"""`to_datatree`: numbers against closed forms, ArviZ, every kind of posterior, and nothing left changed."""

import math

import arviz_base
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from oracles.datatrees import NOISE, fit, linear_posterior, shapes
from programs import zoo as programs
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal
from torch import nn

import pyro_laplace as pl
from pyro_laplace.data import as_data
from pyro_laplace.draws.draws import draws_of
from pyro_laplace.linearized import choose as auto
from pyro_laplace.linearized.choose import nonlinearity


@pytest.fixture(autouse=True)
def double(float64):
    """Everything here is compared with closed forms."""


# --- numbers ------------------------------------------------------------------------------------


def test_log_likelihood_is_the_normal_log_density_at_the_draws():
    case = programs.linear_unknown_noise()
    tree = pl.to_datatree(case.model, fit(case), case.data, num_samples=7)
    x, y = (value.numpy() for value in case.data)
    w, sigma = tree.posterior["w"].values[0], tree.posterior["sigma"].values[0, :, None]
    by_hand = -0.5 * ((y - w @ x.T) / sigma) ** 2 - np.log(sigma) - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(tree.log_likelihood["y"].values[0], by_hand, rtol=1e-12)


def test_lp_and_lp_approx_are_densities_of_theta():
    case = programs.linear_unknown_noise()
    guide = fit(case)
    tree = pl.to_datatree(case.model, guide, case.data, num_samples=5)
    w, sigma = (torch.tensor(tree.posterior[name].values[0]) for name in ("w", "sigma"))
    theta = torch.cat([w, sigma[:, None].log()], -1)
    by_hand = torch.stack([case.flat.log_joint(row) for row in theta])
    torch.testing.assert_close(torch.tensor(tree.sample_stats["lp"].values[0]), by_hand)
    gaussian = dist.MultivariateNormal(guide.loc, guide.covariance)
    torch.testing.assert_close(torch.tensor(tree.sample_stats["lp_approx"].values[0]), gaussian.log_prob(theta))


def test_a_conjugate_posterior_is_its_own_approximation():
    """Log p(y, theta) - log q(theta) is the log evidence at every draw."""
    case = programs.linear()
    guide = fit(case)
    stats = pl.to_datatree(case.model, guide, case.data, num_samples=20).sample_stats
    np.testing.assert_allclose(stats["lp"] - stats["lp_approx"], guide.log_evidence, rtol=1e-9)


@pytest.mark.statistical
def test_posterior_predictive_has_the_closed_form_moments():
    case = programs.linear()
    x, y = case.data
    mean, covariance = linear_posterior(x, y)
    tree = pl.to_datatree(case.model, fit(case), case.data, num_samples=20_000)
    drawn = tree.posterior_predictive["y"].values[0]
    variance = torch.einsum("ni,ij,nj->n", x, covariance, x) + NOISE**2
    np.testing.assert_allclose(drawn.mean(0), (x @ mean).numpy(), atol=0.03)
    np.testing.assert_allclose(drawn.var(0), variance.numpy(), rtol=0.06)
    correlation = np.corrcoef(drawn, rowvar=False)[0, 1]
    expected = (x[0] @ covariance @ x[1]) / (variance[0] * variance[1]).sqrt()
    assert correlation == pytest.approx(float(expected), abs=0.03)


def test_a_nonlinear_posterior_is_read_off_the_linearised_program():
    case = programs.mlp_classifier()
    guide = fit(case)
    assert nonlinearity(case.model, guide, as_data(case.data)) > 0.1
    pyro.set_rng_seed(3)
    tree = pl.to_datatree(case.model, guide, case.data, num_samples=6)
    assert tree.attrs["linearized"] == 1
    linear = pl.linearize(case.model, guide)
    for draw in range(6):
        values = {name: torch.tensor(tree.posterior[name].values[0, draw]) for name in guide.latents}
        trace = poutine.trace(poutine.condition(linear, data=values)).get_trace(*case.data)
        expected = trace.nodes["y"]["fn"].log_prob(case.data[-1])
        np.testing.assert_allclose(tree.log_likelihood["y"].values[0, draw], expected.numpy(), rtol=1e-9)
    pyro.set_rng_seed(3)
    explicit = pl.to_datatree(linear, guide, case.data, num_samples=6)
    xr.testing.assert_equal(explicit.log_likelihood.to_dataset(), tree.log_likelihood.to_dataset())
    pyro.set_rng_seed(3)
    sampled = pl.to_datatree(case.model, guide, case.data, num_samples=6, linearized=False)
    assert sampled.attrs["linearized"] == 0
    assert not np.allclose(sampled.log_likelihood["y"], tree.log_likelihood["y"])


@pytest.mark.parametrize("make", [programs.linear, programs.poisson, programs.linear_unknown_noise])
def test_a_linear_program_predicts_itself(make):
    case = make()
    assert pl.to_datatree(case.model, fit(case), case.data, num_samples=2).attrs["linearized"] == 0


def test_a_last_layer_predicts_itself():
    case = programs.mlp_regression()
    guide = fit(case, subset="last_layer")
    tree = pl.to_datatree(case.model, guide, case.data, num_samples=3)
    assert tree.attrs["linearized"] == 0
    assert tree.attrs["subset"] == ["w2", "b2"]
    assert np.ptp(tree.posterior["w1"].values, axis=1).max() == 0


def test_a_program_without_a_link_warns_and_is_sampled(monkeypatch):
    def model(x, y=None):
        a = pyro.sample("a", dist.Normal(0, 1))
        b = pyro.sample("b", dist.Normal(0, 1))
        with pyro.plate("data", len(x)):
            mean = torch.tanh(a * x + b).exp()
            pyro.sample("y", dist.SkewLogistic(mean, torch.tensor(0.5), torch.tensor(1.5)), obs=y)

    x = torch.linspace(-1, 1, 9)
    guide = pl.fit_laplace(model, (x, x.exp()), progress=False)
    guide.curvature = "ggn"
    monkeypatch.setattr(auto, "bend_of", lambda model, posterior, data: 1.0)
    with pytest.warns(pl.LaplaceWarning, match="SkewLogistic"):
        tree = pl.to_datatree(model, guide, (x, x.exp()), num_samples=3)
    assert tree.attrs["linearized"] == 0


# --- ArviZ --------------------------------------------------------------------------------------


def test_arviz_takes_the_tree():
    from arviz_stats.loo import loo, loo_approximate_posterior

    case = programs.linear()
    tree = pl.to_datatree(case.model, fit(case), case.data, num_samples=2000)
    x, y = case.data
    # The exact leave-one-out predictive of a linear-Gaussian program.
    exact = 0.0
    for n in range(len(x)):
        rest = torch.arange(len(x)) != n
        mean, covariance = linear_posterior(x[rest], y[rest])
        std = (x[n] @ covariance @ x[n] + NOISE**2).sqrt()
        exact += float(dist.Normal(x[n] @ mean, std).log_prob(y[n]))
    plain = loo(tree, reff=1.0, pointwise=True)
    corrected = loo_approximate_posterior(tree, tree.sample_stats["lp"], tree.sample_stats["lp_approx"])
    assert plain.elpd == pytest.approx(exact, abs=0.1)
    assert corrected.elpd == pytest.approx(exact, abs=0.1)
    assert plain.n_data_points == 40


@pytest.mark.parametrize("make", [programs.linear_unknown_noise, programs.pyro_module_classifier, programs.masked])
def test_netcdf_round_trip(make, tmp_path):
    case = make()
    tree = pl.to_datatree(case.model, fit(case), case.data, num_samples=4)
    tree.to_netcdf(tmp_path / "tree.nc")
    with xr.open_datatree(tmp_path / "tree.nc") as read:
        assert set(read.children) == set(tree.children)
        for group in tree.children:
            xr.testing.assert_allclose(read[group].to_dataset(), tree[group].to_dataset())
        assert read.attrs["linearized"] == tree.attrs["linearized"]
        assert read.attrs["creation_library"] == "pyro_laplace"


def test_attributes_say_what_made_the_tree():
    case = programs.linear()
    guide = fit(case, structure="diag", curvature="ggn")
    attrs = pl.to_datatree(case.model, guide, case.data, num_samples=2).attrs
    assert attrs["posterior"] == "AutoLaplace"
    assert (attrs["structure"], attrs["curvature"], attrs["linearized"]) == ("diag", "ggn", 0)
    assert attrs["inference_library"] == "pyro_laplace"
    assert attrs["inference_library_version"]
    assert attrs["fit_seconds"] == guide.fit_seconds


# --- kinds of posterior -------------------------------------------------------------------------


def svi_guide(guide, case: programs.Case, steps: int = 5):
    svi = SVI(case.model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(steps):
        svi.step(*case.data)
    return guide


def nuts(case: programs.Case, num_chains: int = 1) -> MCMC:
    kernel = NUTS(case.model, max_tree_depth=4)
    mcmc = MCMC(kernel, num_samples=20, warmup_steps=10, num_chains=num_chains, disable_progbar=True)
    mcmc.run(*case.data)
    return mcmc


def laplace(case):
    return fit(case)


def auto_normal(case):
    return svi_guide(AutoNormal(case.model), case)


def auto_mvn(case):
    return svi_guide(AutoMultivariateNormal(case.model), case)


def auto_list(case):
    guide = AutoGuideList(case.model)
    guide.append(AutoDelta(poutine.block(case.model, expose=["sigma"])))
    guide.append(AutoNormal(poutine.block(case.model, hide=["sigma"])))
    return svi_guide(guide, case)


def by_hand(case):
    def guide(x, y=None):
        loc = pyro.param("loc", torch.zeros(3))
        pyro.sample("sigma", dist.LogNormal(0.0, 0.1))
        if float(loc.sum()) > 1e9:  # a branch on data: it does not vectorise
            raise AssertionError
        w = pyro.sample("w", dist.Normal(loc, 0.2).to_event(1))
        assert not torch.isnan(w.sum()).item()

    return guide


def mapping(case):
    return {"w": torch.randn(11, 3), "sigma": torch.rand(11) + 0.1}


@pytest.mark.parametrize(
    ("make", "num_draws"),
    [(laplace, 11), (auto_normal, 11), (auto_mvn, 11), (auto_list, 11), (by_hand, 11), (mapping, 11)],
)
def test_every_kind_of_posterior(make, num_draws):
    case = programs.linear_unknown_noise()
    tree = pl.to_datatree(case.model, make(case), case.data, num_samples=11, num_prior_samples=0)
    draws = {"chain": 1, "draw": num_draws}
    assert shapes(tree, "posterior") == {"w": draws | {"w_dim_0": 3}, "sigma": draws}
    assert len(np.unique(tree.posterior["w"].values[0, :, 0])) == num_draws
    x, y = case.data
    w, sigma = (torch.tensor(tree.posterior[name].values[0]) for name in ("w", "sigma"))
    expected = dist.Normal(w @ x.T, sigma[:, None]).log_prob(y)
    np.testing.assert_allclose(tree.log_likelihood["y"].values[0], expected, rtol=1e-9)


def test_an_auto_delta_is_one_draw():
    case = programs.linear()
    guide = pl.fit_map(case.model, case.data, progress=False)
    tree = pl.to_datatree(case.model, guide, case.data, num_samples=70)
    assert tree.posterior.sizes["draw"] == tree.log_likelihood.sizes["draw"] == 1
    assert tree.posterior_predictive.sizes["draw"] == 70
    assert len(np.unique(tree.posterior_predictive["y"])) == 70 * 40
    np.testing.assert_array_equal(tree.posterior["w"].values[0, 0], guide.median(*case.data)["w"])


def test_mcmc_keeps_its_chains():
    case = programs.linear_unknown_noise()
    with pytest.warns(UserWarning, match="num_chains"):  # sequential on a small machine; see below
        mcmc = nuts(case, num_chains=9)
    tree = pl.to_datatree(case.model, mcmc, case.data, num_prior_samples=0)
    assert dict(tree.posterior["w"].sizes) == {"chain": 9, "draw": 20, "w_dim_0": 3}
    np.testing.assert_array_equal(tree.posterior["w"], mcmc.get_samples(group_by_chain=True)["w"])
    diverging = tree.sample_stats["diverging"]
    counted = [len(where) for where in mcmc.diagnostics()["divergences"].values()]
    np.testing.assert_array_equal(diverging.sum("draw"), counted)
    assert len(tree.sample_stats.attrs["acceptance_rate"]) == 9
    assert tree.attrs["kernel"] == "NUTS"
    x, y = case.data
    w, sigma = (torch.tensor(tree.posterior[name].values[7, 3]) for name in ("w", "sigma"))
    np.testing.assert_allclose(tree.log_likelihood["y"].values[7, 3], dist.Normal(x @ w, sigma).log_prob(y))


@pytest.mark.statistical
def test_vectorised_draws_of_a_guide_have_its_covariance():
    case = programs.linear()
    guide = svi_guide(AutoMultivariateNormal(case.model), case, steps=300)
    values = draws_of(guide, as_data(case.data), 20_000).values["w"]
    posterior = guide.get_posterior()
    np.testing.assert_allclose(values.mean(0), posterior.mean.detach(), atol=0.01)
    np.testing.assert_allclose(values.T.cov(), posterior.covariance_matrix.detach(), atol=0.002)


@pytest.mark.parametrize(
    ("posterior", "match"),
    [
        (3.0, "float"),
        ({"w": torch.zeros(4, 3), "sigma": torch.ones(5)}, "same number of draws"),
        ({}, "same number of draws"),
        (AutoNormal(programs.linear_model()), "never been run"),
        (MCMC(NUTS(programs.linear_model()), num_samples=2), "not been run"),
    ],
)
def test_what_is_no_posterior_is_refused(posterior, match):
    case = programs.linear_unknown_noise()
    with pytest.raises(pl.InvalidOption, match=match):
        pl.to_datatree(case.model, posterior, case.data)


def test_options_are_checked():
    case = programs.linear()
    guide = fit(case)
    with pytest.raises(pl.InvalidOption, match="linearized='yes'"):
        pl.to_datatree(case.model, guide, case.data, linearized="yes")
    with pytest.raises(pl.InvalidOption, match="num_samples=0"):
        pl.to_datatree(case.model, guide, case.data, num_samples=0)
    with pytest.raises(pl.InvalidOption, match="linearize takes a guide"):
        pl.to_datatree(case.model, {"w": torch.zeros(4, 3)}, case.data, linearized=True)
    with pytest.raises(pl.UnsupportedProgram, match="'w'"):
        pl.to_datatree(case.model, {"v": torch.zeros(4, 3)}, case.data)


# --- what it leaves behind ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [laplace, auto_normal, by_hand])
def test_a_seed_reproduces_every_number(make):
    case = programs.linear_unknown_noise()
    posterior = make(case)
    trees = []
    for _ in range(2):
        pyro.set_rng_seed(5)
        trees.append(pl.to_datatree(case.model, posterior, case.data, num_samples=5, num_prior_samples=5))
    for group in trees[0].children:
        xr.testing.assert_equal(trees[0][group].to_dataset(), trees[1][group].to_dataset())


def test_nothing_is_left_changed():
    case = programs.pyro_module_classifier()
    case.model.train()
    guide = auto_normal(case)
    names = set(pyro.get_param_store().keys())
    parameters = {name: value.clone() for name, value in guide.named_parameters()}
    pl.to_datatree(case.model, guide, case.data, num_samples=3)
    assert set(pyro.get_param_store().keys()) == names
    assert case.model.training
    for name, value in guide.named_parameters():
        assert torch.equal(value, parameters[name])
    assert isinstance(case.model.hidden, nn.Linear)


def test_arviz_base_is_what_makes_the_tree():
    case = programs.linear()
    tree = pl.to_datatree(case.model, fit(case), case.data, num_samples=2)
    assert tree.posterior.attrs["creation_library_version"] == arviz_base.__version__


@pytest.mark.parametrize("batches", [1, 3])
def test_the_log_prior_of_each_site(batches):
    """Of the constrained values, each site's own, whatever its axes; a factor outside the plates beside them."""

    def model(x, y=None):
        a = pyro.sample("a", dist.Gamma(2.0, 3.0))
        b = pyro.sample("b", dist.Normal(a, 2.0).expand([3]).to_event(1))
        with pyro.plate("groups", 2):
            pyro.sample("c", dist.Normal(0.0, 0.5))
        pyro.factor("more", -0.1 * a)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson((x @ b).exp()), obs=y)

    x, y = torch.randn(9, 3), torch.arange(9.0) % 3
    draws = {"a": torch.rand(7) + 0.5, "b": torch.randn(7, 3), "c": torch.randn(7, 2)}
    data = (x, y) if batches == 1 else list(zip(x.split(3), y.split(3), strict=True))
    tree = pl.to_datatree(model, draws, data, num_prior_samples=0, progress=False)
    expected = {
        "a": dist.Gamma(2.0, 3.0).log_prob(draws["a"]),
        "b": dist.Normal(draws["a"][:, None], 2.0).log_prob(draws["b"]).sum(1),
        "c": dist.Normal(0.0, 0.5).log_prob(draws["c"]).sum(1),
        "more": -0.1 * draws["a"],
    }
    assert set(tree["log_prior"].data_vars) == set(expected)
    for name, value in expected.items():
        assert tree["log_prior"][name].dims == ("chain", "draw")
        np.testing.assert_allclose(tree["log_prior"][name].values[0], value.numpy(), rtol=1e-5)


def test_counts_and_classes_are_integers():
    """Of all groups that hold values of the observed sites; what is missing keeps them floating."""

    def model(x, y=None, kind=None, size=None):
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("count", dist.Poisson((x @ b).exp()), obs=y)
            pyro.sample("kind", dist.Bernoulli(logits=x @ b), obs=kind)
            pyro.sample("size", dist.Normal(x @ b, 1.0), obs=size)

    x = torch.randn(12, 2)
    data = (x, torch.arange(12.0) % 4, torch.arange(12.0) % 2, torch.randn(12))
    tree = pl.to_datatree(model, {"b": torch.randn(5, 2)}, data, num_prior_samples=4, progress=False)
    for group in ("observed_data", "posterior_predictive", "prior_predictive"):
        kinds = {name: tree[group][name].dtype.kind for name in ("count", "kind", "size")}
        assert kinds == {"count": "i", "kind": "i", "size": "f"}, group
    assert tree["observed_data"]["count"].values.tolist() == data[1].tolist()
