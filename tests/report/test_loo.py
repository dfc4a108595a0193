"""`loo`: against exact leave-one-out, refits, a loop over data, and ArviZ."""

import math

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles.datatrees import NOISE, fit, linear_posterior
from programs import zoo as programs
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal

import pyro_laplace as pl
from pyro_laplace.data import as_data
from pyro_laplace.draws.draws import PosteriorDraws
from pyro_laplace.draws.over_draws import View
from pyro_laplace.linearized.at_draws import AtDraws
from pyro_laplace.linearized.left_out import left_out
from pyro_laplace.program.program import log_lik_of


@pytest.fixture(autouse=True)
def double(float64):
    """Everything here is compared with closed forms."""


def exact(x, y):
    """Log density of each datum of `programs.linear` given the others, and the same given all."""
    apart, fit = [], []
    for n in range(len(x)):
        for rest, found in ((torch.arange(len(x)) != n, apart), (slice(None), fit)):
            mean, covariance = linear_posterior(x[rest], y[rest])
            std = (x[n] @ covariance @ x[n] + NOISE**2).sqrt()
            found.append(float(dist.Normal(x[n] @ mean, std).log_prob(y[n])))
    return np.array(apart), np.array(fit)


def test_the_closed_form_of_a_linear_gaussian_program_is_exact():
    case = programs.linear()
    apart, fitted = exact(*case.data)
    for data in (case.data, case.batches(11)):
        found = pl.loo(case.model, fit(case), data, method="laplace", progress=False)
        np.testing.assert_allclose(found.elpd_i.values, apart, rtol=1e-9)
        assert found.p == pytest.approx(float((fitted - apart).sum()), rel=1e-8)
        assert found.se == pytest.approx(math.sqrt(len(apart) * apart.var(ddof=1)), rel=1e-9)
        assert found.pareto_k is None


def test_several_entries_of_a_datum_are_left_out_together():
    x, y = torch.randn(20, 2), torch.randn(20, 3)

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        shared = pyro.sample("shared", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w + shared, 0.5).to_event(1), obs=y)

    found = pl.loo(model, pl.fit_laplace(model, (x, y), progress=False), (x, y), method="laplace", progress=False)
    design = torch.cat([torch.kron(x[:, None, :], torch.eye(3)[None]).reshape(20, 3, 6), torch.ones(20, 3, 1)], 2)
    prior = torch.diag(torch.cat([torch.ones(6), torch.full((1,), 0.25)]))
    for n in range(20):
        rest = torch.arange(20) != n
        a, b = design[rest].flatten(0, 1), y[rest].flatten()
        precision = a.T @ a / 0.25 + prior
        mean = torch.linalg.solve(precision, a.T @ b / 0.25)
        covariance = design[n] @ precision.inverse() @ design[n].T + 0.25 * torch.eye(3)
        right = dist.MultivariateNormal(design[n] @ mean, covariance).log_prob(y[n])
        assert float(found.elpd_i[n]) == pytest.approx(float(right), rel=1e-9)


@pytest.mark.statistical
@pytest.mark.parametrize("method", ["psis", "approximate_posterior"])
def test_draws_are_within_three_monte_carlo_errors_of_exact_leave_one_out(method):
    case = programs.linear()
    right = exact(*case.data)[0].sum()
    guide = fit(case)
    found = []
    for seed in range(8):
        pyro.set_rng_seed(seed)
        found.append(pl.loo(case.model, guide, case.data, method=method, num_samples=1000, progress=False).elpd)
    assert abs(np.mean(found) - right) < 3 * np.std(found, ddof=1) / math.sqrt(len(found))
    assert abs(found[0] - right) < 3 * np.std(found, ddof=1)


@pytest.mark.statistical
def test_a_wrong_approximation_is_corrected():
    """A guide twice as wide: weighed with p / q, its draws say what the posterior's own say."""
    case = programs.linear()
    mean, covariance = linear_posterior(*case.data)

    def guide():
        made = AutoMultivariateNormal(case.model)
        made(*case.data)
        root = 2 * torch.linalg.cholesky(covariance)
        made.loc = torch.nn.Parameter(mean.clone())
        made.scale = root.diagonal().clone()
        made.scale_tril = root / root.diagonal()[:, None]
        return made

    right = exact(*case.data)[0].sum()
    wide = guide()
    corrected = pl.loo(case.model, wide, case.data, num_samples=4000, progress=False)
    taken = pl.loo(case.model, wide, case.data, method="psis", num_samples=4000, progress=False)
    assert corrected.approx_posterior
    assert corrected.elpd == pytest.approx(right, abs=0.3)
    assert abs(taken.elpd - right) > 2


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_it_agrees_with_arviz():
    case = programs.linear_unknown_noise()
    guide = fit(case)
    trees = {}
    for method in ("psis", "approximate_posterior"):
        pyro.set_rng_seed(3)
        own = pl.loo(case.model, guide, case.data, method=method, num_samples=300, progress=False)
        pyro.set_rng_seed(3)
        tree = trees[method] = pl.to_datatree(case.model, guide, case.data, num_samples=300, progress=False)
        stats = tree.sample_stats
        theirs = (
            az.loo(tree, reff=1.0, pointwise=True)
            if method == "psis"
            else az.loo_approximate_posterior(tree, stats.lp, stats.lp_approx, pointwise=True)
        )
        np.testing.assert_allclose(own.elpd_i.values, theirs.elpd_i.values, rtol=1e-8)
        np.testing.assert_allclose(own.pareto_k.values, theirs.pareto_k.values, rtol=1e-5, atol=1e-8)
        assert own.p == pytest.approx(theirs.p, rel=1e-6)
    table = az.compare({"ours": own, "theirs": theirs})
    assert table["elpd_diff"].abs().max() < 1e-6


@pytest.mark.statistical
@pytest.mark.parametrize("make", [programs.logistic, programs.poisson, programs.softmax])
def test_the_closed_form_of_other_data_is_near_refits(make):
    """The posterior of the others is fitted anew, and its draws say what the datum's density is."""
    case = make()
    found = pl.loo(case.model, fit(case), case.data, method="laplace", num_samples=4000, progress=False)
    assert np.isfinite(found.elpd_i.values).all()
    count = len(case.data[0])
    for n in range(0, count, count // 4):
        rest = torch.arange(count) != n
        without = pl.fit_laplace(case.model, tuple(each[rest] for each in case.data), progress=False)
        draws = without.sample_posterior(4000)
        one = tuple(each[n : n + 1] for each in case.data)
        view = View.of(case.model, as_data(one), PosteriorDraws(draws))
        right = float(view.log_lik(draws)["y"][:, 0].logsumexp(0)) - math.log(4000)
        assert float(found.elpd_i[n]) == pytest.approx(right, abs=0.05)


def test_an_empirical_fisher_posterior_gives_back_what_it_was_given():
    """Its curvature is the sum of squared scores: without one of them it is the posterior of the other data's sum."""
    case = programs.logistic()
    guide = fit(case, curvature="empirical_fisher")
    x, y = case.data
    view = View.of(case.model, as_data(case.data), PosteriorDraws({n: v[None] for n, v in guide.median().items()}))
    found = left_out(case.model, guide, view.loop, 20_000)
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    score = y - torch.sigmoid(design @ guide.theta)
    n = 3
    precision = guide.precision.to_dense().double() - score[n] ** 2 * design[n].outer(design[n])
    shift = -torch.linalg.solve(precision, score[n] * design[n])
    mean, variance = design[n] @ (guide.theta + shift), design[n] @ torch.linalg.solve(precision, design[n])
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    eta = float(mean) + float(variance) ** 0.5 * nodes
    right = np.log((weights / weights.sum() / (1 + np.exp(-(2 * float(y[n]) - 1) * eta))).sum())
    assert float(found.log_density[n]) == pytest.approx(right, abs=0.01)


def test_what_has_no_closed_form_says_so():
    case = programs.two_likelihoods()
    guide = fit(case)
    with pytest.raises(pl.UnsupportedProgram, match=r"one observed site.*'count', 'y'"):
        pl.loo(case.model, guide, case.data, method="laplace", progress=False)
    with pytest.raises(pl.InvalidOption, match="curvature out of a posterior of fit_laplace"):
        pl.loo(case.model, {"w": torch.randn(40, 3), "sigma": torch.ones(40)}, case.data, method="laplace")
    with pytest.raises(pl.InvalidOption, match="density of a guide"):
        pl.loo(case.model, guide.sample_posterior(40), case.data, method="approximate_posterior", progress=False)
    with pytest.raises(pl.InvalidOption, match="method='waic' is not one of"):
        pl.loo(case.model, guide, case.data, method="waic")
    linear = programs.linear()

    def weighed(x, y=None):
        with poutine.scale(scale=0.5):
            return linear.model(x, y)

    with pytest.raises(pl.UnsupportedProgram, match="weighed by poutine"):
        pl.loo(weighed, pl.fit_laplace(weighed, linear.data, progress=False), linear.data, method="laplace")


@pytest.mark.statistical
def test_moments_are_matched_on_request():
    """An outlier that draws of the posterior cannot leave out, and moved ones can."""
    x, y = programs.linear_data()
    x, y = x.clone(), y.clone()
    x[0], y[0] = torch.tensor([6.0, -6.0, 6.0]), -8.0
    mean, covariance = linear_posterior(x, y)
    draws = {"w": dist.MultivariateNormal(mean, covariance).sample((1000,))}
    model = programs.linear().model
    right = exact(x, y)[0]
    plain = pl.loo(model, draws, (x, y), progress=False)
    moved = pl.loo(model, draws, (x, y), moment_matching=True, progress=False)
    assert float(plain.pareto_k[0]) > 0.7
    assert float(moved.pareto_k[0]) < float(plain.pareto_k[0])
    assert abs(float(moved.elpd_i[0]) - right[0]) < abs(float(plain.elpd_i[0]) - right[0])
    np.testing.assert_allclose(moved.elpd_i[1:], plain.elpd_i[1:], rtol=1e-12)


@pytest.mark.parametrize("method", ["approximate_posterior", "laplace"])
def test_moments_are_matched_by_one_method_alone(method):
    case = programs.linear()
    draws = {"w": torch.randn(40, 3)}
    for ask in (lambda **o: pl.loo(case.model, draws, case.data, **o),
                lambda **o: pl.compare(case.model, {"draws": draws}, case.data, **o)):  # fmt: skip
        with pytest.raises(pl.InvalidOption, match=rf"method='{method}'.*method='psis' and draws"):
            ask(method=method, moment_matching=True, progress=False)


def test_moments_of_a_guide_are_not_matched_and_that_is_said():
    case = programs.linear()
    guide = fit(case)
    for method in ("auto", "psis"):
        with pytest.raises(pl.InvalidOption, match=rf"method='{method}'.*these are a guide's.*pl\.fit_nuts"):
            pl.loo(case.model, guide, case.data, method=method, moment_matching=True, progress=False)
    with pytest.raises(pl.InvalidOption, match="these are a guide's"):
        pl.compare(case.model, {"one": guide, "other": guide}, case.data, moment_matching=True, progress=False)
    both = {"laplace": guide, "draws": guide.sample_posterior(200)}
    table = pl.compare(case.model, both, case.data, num_samples=200, moment_matching=True, progress=False)
    assert set(table.attrs["notes"]["elpd_loo"]) == {"laplace"}
    assert "these are a guide's" in table.attrs["notes"]["elpd_loo"]["laplace"]


# --- what it is made of ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [programs.linear_unknown_noise, programs.masked, programs.softmax])
def test_log_likelihood_is_a_loop_over_data(make):
    case = make()
    draws = fit(case).sample_posterior(5)
    view = View.of(case.model, as_data(case.data), PosteriorDraws(draws))
    found = view.log_lik(draws)["y"]
    for s in range(5):
        values = {name: value[s] for name, value in draws.items()}
        trace = poutine.trace(poutine.condition(case.model, data=values)).get_trace(*case.data)
        trace.compute_log_prob()
        node = trace.nodes["y"]
        for n in range(found.shape[1]):
            assert float(found[s, n]) == pytest.approx(float(node["log_prob"][n]), rel=1e-14)


@pytest.mark.parametrize("make", [programs.mlp_classifier, programs.mlp_regression])
def test_a_linearised_program_is_read_by_its_jacobian_as_by_its_runs(make):
    case = make()
    guide = fit(case)
    model = pl.linearize(case.model, guide)
    draws = PosteriorDraws(guide.sample_posterior(6), source=guide)
    view = View.of(model, as_data(case.batches(9)), draws)
    at = AtDraws.of(view.plain, draws)
    assert at.straight is not None
    parts = [at.read(chunk, log_lik_of) for chunk in view.loop.chunks()]
    torch.testing.assert_close(torch.cat([part["y"] for part in parts], 1), view.log_lik(draws.values)["y"])


def test_draws_that_leave_the_subset_are_run():
    """A last layer's linearised program at draws of all weights is no product of its Jacobian."""
    case = programs.mlp_classifier()
    part = fit(case, subset="last_layer")
    draws = PosteriorDraws(fit(case).sample_posterior(4))
    view = View.of(pl.linearize(case.model, part), as_data(case.data), draws)
    assert AtDraws.of(view.plain, draws).straight is None
