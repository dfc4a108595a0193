"""`compare`: each column against a closed form, every kind of posterior, and agreement with `to_datatree`."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles.datatrees import NOISE, fit, linear_posterior
from programs import zoo as programs
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import pyro_laplace as pl

COLUMNS = ["elpd_loo", "elpd_se", "elpd_method", "weight", "pareto_k_max", "pareto_k_bad", "khat"]
WEIGHED = ["elpd_loo", "elpd_se", "pareto_k_max", "pareto_k_bad"]
TIMES = ["seconds", "predict_seconds"]


@pytest.fixture(autouse=True)
def double(float64):
    """Everything here is compared with closed forms."""


def same_numbers(found, expected):
    """But for times, and for what is drawn anew."""
    assert list(found.columns) == list(expected.columns)
    names = [name for name in found if not name.startswith(("crps", "coverage", "width", *TIMES, "elpd_method"))]
    np.testing.assert_allclose(found[names].astype(float), expected[names].astype(float), rtol=1e-9)


def exact_posterior(case: programs.Case, num_draws: int) -> dict[str, torch.Tensor]:
    mean, covariance = linear_posterior(*case.data)
    return {"w": dist.MultivariateNormal(mean, covariance).sample((num_draws,))}


def held_out(num_obs: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """From the same weights as `programs.linear`."""
    x, y = programs.linear_data()
    w = torch.linalg.lstsq(x, y).solution
    new = torch.randn(num_obs, 3)
    return new, new @ w + NOISE * torch.randn(num_obs)


@pytest.mark.statistical
def test_linear_regression_against_its_closed_form():
    case = programs.linear()
    x, y = held_out()
    table = pl.compare(case.model, {"laplace": fit(case)}, case.data, (x, y), num_samples=4000)
    mean, covariance = linear_posterior(*case.data)
    std = (torch.einsum("ni,ij,nj->n", x, covariance, x) + NOISE**2).sqrt()
    predictive = dist.Normal(x @ mean, std)
    row = table.loc["laplace"]
    assert row["test_lpd"] == pytest.approx(float(predictive.log_prob(y).mean()), abs=0.003)
    assert row["rmse"] == pytest.approx(float((x @ mean - y).square().mean().sqrt()), abs=0.003)
    inside = (predictive.cdf(y) - 0.5).abs() < 0.45
    assert row["coverage_90"] == pytest.approx(float(inside.double().mean()), abs=0.02)
    assert row["elpd_method"] == "laplace"
    assert row["khat"] == -math.inf
    train_x, train_y = case.data
    loo = []
    for n in range(len(train_x)):
        rest = torch.arange(len(train_x)) != n
        mean, covariance = linear_posterior(train_x[rest], train_y[rest])
        std = (train_x[n] @ covariance @ train_x[n] + NOISE**2).sqrt()
        loo.append(float(dist.Normal(train_x[n] @ mean, std).log_prob(train_y[n])))
    assert row["elpd_loo"] == pytest.approx(sum(loo), rel=1e-9)
    assert row["elpd_se"] == pytest.approx(math.sqrt(len(loo)) * np.std(loo, ddof=1), rel=1e-9)


def test_held_out_density_is_the_log_of_the_mean_density():
    case = programs.linear()
    draws = exact_posterior(case, 6)
    x, y = held_out(5)
    table = pl.compare(case.model, {"draws": draws}, case.data, (x, y))
    density = torch.stack([dist.Normal(x @ w, NOISE).log_prob(y) for w in draws["w"]]).exp().mean(0)
    assert table.loc["draws", "test_lpd"] == pytest.approx(float(density.log().mean()), rel=1e-12)
    mean = (draws["w"] @ x.T).mean(0)
    assert table.loc["draws", "rmse"] == pytest.approx(float((mean - y).square().mean().sqrt()), rel=1e-12)


def test_a_far_datum_does_not_underflow():
    case = programs.linear()
    x, y = held_out(3)
    table = pl.compare(case.model, {"draws": exact_posterior(case, 5)}, case.data, (x, y + 1000))
    assert -1e8 < table.loc["draws", "test_lpd"] < -1e5


def test_accuracy_is_of_the_mean_probability():
    case = programs.softmax()
    draws = {"w": torch.randn(9, 3, 4)}
    x, y = case.data
    table = pl.compare(case.model, {"draws": draws}, case.data, case.data)
    probs = torch.stack([torch.softmax(x @ w, -1) for w in draws["w"]]).mean(0)
    assert table.loc["draws", "accuracy"] == float((probs.argmax(-1) == y).double().mean())
    assert not {"rmse", "coverage_90"} & set(table.columns)


def test_accuracy_of_a_bernoulli():
    case = programs.logistic()
    draws = {"w": torch.randn(9, 3), "b": torch.randn(9)}
    x, y = case.data
    table = pl.compare(case.model, {"draws": draws}, case.data, case.data)
    probs = torch.sigmoid(draws["w"] @ x.T + draws["b"][:, None]).mean(0)
    assert table.loc["draws", "accuracy"] == float(((probs > 0.5) == (y > 0.5)).double().mean())


def test_every_kind_of_posterior_in_one_table():
    case = programs.linear_unknown_noise()
    map_guide = pl.fit_map(case.model, case.data, progress=False)
    vi = AutoNormal(case.model)
    svi = SVI(case.model, vi, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(300):
        svi.step(*case.data)
    mcmc = MCMC(NUTS(case.model, max_tree_depth=4), num_samples=60, warmup_steps=60, disable_progbar=True)
    mcmc.run(*case.data)
    posteriors = {"nuts": mcmc, "laplace": fit(case, map_guide=map_guide), "map": map_guide, "vi": vi}
    table = pl.compare(case.model, posteriors, case.data, held_out(), num_samples=200)
    assert list(table.index) == list(posteriors)
    intervals = [f"{kind}_{level}" for level in (50, 90, 95) for kind in ("coverage", "width")]
    assert list(table.columns) == [*COLUMNS, "test_lpd", "rmse", "crps", *intervals, *TIMES]
    assert table.loc["map", COLUMNS].isna().all()
    assert table.drop(index="map")[WEIGHED].notna().all(axis=None)
    assert list(table["khat"].notna()) == [False, True, False, True]
    assert table["elpd_method"].tolist()[:2] == ["psis", "approximate_posterior"]
    notes = table.attrs["notes"]
    assert "point" in notes["elpd_loo"]["map"]
    assert notes["khat"]["nuts"] == "MCMC: no density to weigh its draws by"
    assert set(notes["seconds"]) == {"nuts", "vi"}
    assert table[["test_lpd", "rmse", "coverage_90"]].notna().all(axis=None)
    assert table.loc["laplace", "seconds"] == posteriors["laplace"].fit_seconds
    assert table.loc["map", "seconds"] == map_guide.fit_seconds
    assert np.isnan(table.loc["vi", "seconds"])
    # 40 data fix the posterior well: all agree.
    assert np.ptp(table["test_lpd"]) < 0.1
    assert table["coverage_90"].between(0.8, 0.99).all()


def test_the_interval_of_a_point_estimate_is_its_own():
    case = programs.linear()
    point = {"w": torch.randn(1, 3)}
    x, y = held_out()
    table = pl.compare(case.model, {"point": point}, case.data, (x, y), num_samples=4000)
    inside = (x @ point["w"][0] - y).abs() < 1.6449 * NOISE
    assert table.loc["point", "coverage_90"] == pytest.approx(float(inside.double().mean()), abs=0.03)


def test_correlated_draws_count_less():
    """The effective sample size of an MCMC counts, also of one chain, where ArviZ takes its draws for independent."""
    case = programs.linear()
    draws = exact_posterior(case, 50)["w"].repeat_interleave(20, 0)
    mcmc = MCMC(NUTS(case.model), num_samples=1000)
    mcmc._samples, mcmc._diagnostics = {"w": draws[None]}, [{}]
    table = pl.compare(case.model, {"mcmc": mcmc, "draws": {"w": draws}}, case.data)
    assert table.loc["mcmc", "pareto_k_max"] != table.loc["draws", "pareto_k_max"]


def test_a_posterior_over_a_network_has_both_rows():
    case = programs.mlp_classifier()
    guide = fit(case)
    posteriors = {"laplace": guide, "last layer": fit(case, subset="last_layer")}
    table = pl.compare(case.model, posteriors, case.data, case.data, num_samples=300)
    assert list(table.index) == ["laplace", "laplace (sampled)", "last layer"]
    assert table.loc["laplace", "test_lpd"] > table.loc["laplace (sampled)", "test_lpd"]
    assert table.loc["laplace", "elpd_loo"] > table.loc["laplace (sampled)", "elpd_loo"]
    assert table.loc["laplace", "seconds"] == table.loc["laplace (sampled)", "seconds"]
    pyro.set_rng_seed(1)
    linear = pl.compare(case.model, {"laplace": guide}, case.data, linearized=True, num_samples=300)
    pyro.set_rng_seed(1)
    same = pl.compare(pl.linearize(case.model, guide), {"laplace": guide}, case.data, num_samples=300)
    assert linear.equals(same)
    assert list(linear.index) == ["laplace"]
    assert list(pl.compare(case.model, {"a": guide}, case.data, linearized=False, num_samples=9).index) == ["a"]


def test_it_agrees_with_arviz_on_the_tree():
    from arviz_stats.loo import loo

    case = programs.mlp_classifier()
    guide = fit(case)
    pyro.set_rng_seed(2)
    row = pl.compare(case.model, {"laplace": guide}, case.data, method="psis", num_samples=200).loc["laplace"]
    pyro.set_rng_seed(2)
    tree = pl.to_datatree(case.model, guide, case.data, num_samples=200)
    with pytest.warns(UserWarning, match="shape parameter of Pareto"):
        result = loo(tree, reff=1.0, pointwise=True)
    assert row["elpd_loo"] == pytest.approx(result.elpd, rel=1e-9)
    assert row["elpd_se"] == pytest.approx(result.se, rel=1e-9)
    assert row["pareto_k_max"] == pytest.approx(float(result.pareto_k.max()), rel=1e-9)


def test_two_observed_sites_of_a_datum_are_left_out_together():
    case = programs.two_likelihoods()
    draws = {"w": 0.3 * torch.randn(200, 3), "sigma": torch.rand(200) + 0.5}
    table = pl.compare(case.model, {"draws": draws}, case.data, case.data)
    x, count, y = case.data
    log_lik = dist.Poisson((draws["w"] @ x.T).exp()).log_prob(count)
    log_lik = log_lik + dist.Normal(draws["w"] @ x.T, draws["sigma"][:, None]).log_prob(y)
    lpd = (log_lik.logsumexp(0) - math.log(200)).mean()
    assert table.loc["draws", "test_lpd"] == pytest.approx(float(lpd))
    assert {"rmse (count)", "rmse (y)", "coverage_90 (count)", "coverage_90 (y)"} <= set(table.columns)


def test_masked_data_do_not_count():
    case = programs.masked()
    x, keep, y = case.data
    draws = {"w": torch.randn(50, 3), "b": torch.randn(50)}
    masked = pl.compare(case.model, {"draws": draws}, case.data, case.data)
    dropped = (x[keep], torch.ones(int(keep.sum()), dtype=torch.bool), y[keep])
    alone = pl.compare(case.model, {"draws": draws}, dropped, dropped)
    same_numbers(masked, alone)


def test_batches_give_what_one_batch_gives():
    case = programs.softmax()
    draws = {"w": torch.randn(50, 3, 4)}
    whole = pl.compare(case.model, {"draws": draws}, case.data, case.data)
    parts = pl.compare(case.model, {"draws": draws}, case.batches(7), case.batches(11))
    same_numbers(parts, whole)


def test_held_out_data_of_a_plate_with_a_fixed_size():
    """The plate says 40; scores on 200 others are still per datum."""
    x, y = held_out()

    def model(x, y=None):
        w = pyro.sample("w", programs.normal(1.3, 3))
        with pyro.plate("data", 400, subsample=torch.arange(len(x))):
            pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    case = programs.linear()
    draws = exact_posterior(case, 30)
    expected = pl.compare(case.model, {"draws": draws}, case.data, (x, y))
    found = pl.compare(model, {"draws": draws}, case.data, (x, y))
    columns = ["elpd_loo", "test_lpd", "rmse"]
    np.testing.assert_allclose(found[columns], expected[columns])


def test_too_few_draws_have_no_elpd():
    case = programs.linear()
    table = pl.compare(case.model, {"few": exact_posterior(case, 29), "enough": exact_posterior(case, 30)}, case.data)
    assert table.loc["few", WEIGHED].isna().all()
    assert table.loc["enough", WEIGHED].notna().all()
    assert "29 distinct draws" in table.attrs["notes"]["elpd_loo"]["few"]


def test_without_held_out_data_there_are_no_such_columns():
    case = programs.linear()
    table = pl.compare(case.model, {"laplace": fit(case)}, case.data, num_samples=50)
    assert list(table.columns) == [*COLUMNS, "seconds"]
    assert table.loc["laplace", "weight"] == 1


def test_held_out_data_without_observations_are_refused():
    case = programs.linear()
    with pytest.raises(pl.InvalidData, match=r"test_data has no values of the observed site .y."):
        pl.compare(case.model, {"draws": exact_posterior(case, 3)}, case.data, (case.data[0],))


def test_no_posterior_is_refused():
    case = programs.linear()
    with pytest.raises(pl.InvalidOption, match="mapping of names"):
        pl.compare(case.model, {}, case.data)


def test_a_seed_reproduces_the_table():
    case = programs.linear()
    guide = fit(case)
    tables = []
    for _ in range(2):
        pyro.set_rng_seed(4)
        tables.append(pl.compare(case.model, {"laplace": guide}, case.data, case.data, num_samples=30))
    assert tables[0].drop(columns="predict_seconds").equals(tables[1].drop(columns="predict_seconds"))


def test_draws_whose_density_is_no_number_have_no_weight_beside_the_others():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson((w * x).exp()), obs=y)

    x = torch.linspace(-1, 1, 12)
    draws = {
        "one": 0.5 + 0.1 * torch.randn(400),
        "other": 0.4 + 0.1 * torch.randn(400),
        "broken": 1e5 * torch.randn(400),
    }
    posteriors = {name: {"w": values} for name, values in draws.items()}
    table = pl.compare(model, posteriors, (x, torch.ones(12)), progress=False)
    assert float(table.loc[["one", "other"], "weight"].sum()) == pytest.approx(1.0)
    assert math.isnan(table.loc["broken", "weight"])
    assert table.attrs["notes"]["weight"] == {"broken": "its elpd_loo is nan: no density of some datum is a number"}
