"""`compare`, `scores` and `to_datatree` on data of which some entries do not count, and on data that tell nothing."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.special import logsumexp
from torch.utils.data import DataLoader, TensorDataset

import pyro_laplace as pl

SCALE = 0.5


@pytest.fixture(autouse=True)
def double(float64):
    """Everything here is compared with closed forms."""


def in_event(x, seen, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, SCALE).mask(seen).to_event(1), obs=y)


def around_missing(x, seen, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.NanMaskedNormal(x @ w, torch.tensor(SCALE)).to_event(1), obs=y)


def in_two_plates(x, seen, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    with pyro.plate("data", len(x), dim=-2), pyro.plate("columns", 3, dim=-1), poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(x @ w, SCALE), obs=y)


def data(fill, num_obs=60):
    x = torch.randn(num_obs, 2)
    y = x @ torch.randn(2, 3) + SCALE * torch.randn(num_obs, 3)
    seen = torch.rand(num_obs, 3) < 0.7
    seen[:2] = False  # data without an entry
    return x, seen, torch.where(seen, y, fill)


def exact(x, seen, y):
    """Residuals of the posterior mean, and log predictive densities of what is seen: a ridge regression a column."""
    residuals, densities = [], torch.zeros(len(x))
    for k in range(3):
        a, b = x[seen[:, k]], y[seen[:, k], k]
        precision = a.T @ a / SCALE**2 + torch.eye(2)
        mean = torch.linalg.solve(precision, a.T @ b / SCALE**2)
        residuals.append(b - a @ mean)
        std = (SCALE**2 + torch.einsum("ni,ij,nj->n", a, precision.inverse(), a)).sqrt()
        densities[seen[:, k]] += dist.Normal(a @ mean, std).log_prob(b)
    return torch.cat(residuals), densities[seen.any(1)]


@pytest.mark.parametrize(
    ("model", "fill"),
    [
        (in_event, 1000.0),
        (in_event, math.nan),
        (around_missing, math.nan),
        (in_two_plates, 1000.0),
        (in_two_plates, math.nan),
    ],
)
@pytest.mark.parametrize("batches", [1, 3])
def test_entries_that_do_not_count_are_in_no_column(model, fill, batches):
    x, seen, y = data(fill)
    guide = pl.fit_laplace(model, (x, seen, y), progress=False)
    rows = torch.arange(60).chunk(batches)
    test = (x, seen, y) if batches == 1 else [(x[i], seen[i], y[i]) for i in rows]
    row = pl.compare(model, {"laplace": guide}, (x, seen, y), test, num_samples=2000, progress=False).iloc[0]
    residuals, densities = exact(x, seen, y)
    assert row["rmse"] == pytest.approx(float(residuals.square().mean().sqrt()), rel=0.01)
    assert row["coverage_90"] == pytest.approx(0.9, abs=0.07)
    if model is not in_two_plates:
        assert row["test_lpd"] == pytest.approx(float(densities.mean()), abs=0.01)
    scores = pl.scores(pl.LinearizedPredictive(model, guide), (x, seen, y))
    assert scores["rmse"] == pytest.approx(float(residuals.square().mean().sqrt()), rel=1e-6)
    drawn = pl.scores(pl.Predictive(model, guide=guide, num_samples=500), (x, seen, y))
    assert drawn["rmse"] == pytest.approx(scores["rmse"], rel=0.02)


def test_classes_masked_within_an_event_are_no_misses():
    x, y = torch.randn(80, 1), torch.zeros(80, 2, dtype=torch.long)
    y[:, 0] = (x[:, 0] > 0).long()
    y[:, 1] = 1 - y[:, 0]
    seen = torch.stack([torch.ones(80), torch.zeros(80)], 1) > 0
    y[:, 1] = -100

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 3.0).expand([1, 4]).to_event(2))
        with pyro.plate("data", len(x)):
            fn = dist.Categorical(logits=(x @ w).reshape(-1, 2, 2)).mask(seen).to_event(1)
            pyro.sample("y", fn, obs=y)

    guide = pl.fit_laplace(model, (x, y), progress=False)
    row = pl.compare(model, {"laplace": guide}, (x, y), (x, y), num_samples=100, progress=False).iloc[0]
    assert row["accuracy"] == 1.0
    assert pl.scores(pl.LinearizedPredictive(model, guide), (x, y))["accuracy"] == 1.0


def test_a_trees_log_likelihood_is_of_the_entries_that_count():
    x, seen, y = data(math.nan)
    guide = pl.fit_laplace(in_event, (x, seen, y), progress=False)
    tree = pl.to_datatree(in_event, guide, (x, seen, y), num_samples=50, num_prior_samples=0, progress=False)
    w = torch.as_tensor(tree.posterior["w"].values[0])
    expected = dist.Normal(x @ w, SCALE).log_prob(torch.where(seen, y, 0.0)) * seen
    np.testing.assert_allclose(tree.log_likelihood["y"].values[0], expected.sum(-1).numpy(), rtol=1e-8)


# --- data that tell nothing of the parameters ---------------------------------------------------------


def slope(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 0.6), obs=y)


def left_out(x, y):
    """The exact leave-one-out densities."""
    found = []
    for i in range(len(x)):
        rest = torch.arange(len(x)) != i
        precision = (x[rest] ** 2).sum() / 0.36 + 0.25
        mean = (x[rest] * y[rest]).sum() / 0.36 / precision
        found.append(dist.Normal(mean * x[i], (0.36 + x[i] ** 2 / precision).sqrt()).log_prob(y[i]))
    return torch.stack(found).numpy()


@pytest.mark.statistical
@pytest.mark.parametrize("tiny", [0.0, 1e-17])
def test_a_datum_that_tells_nothing_has_its_own_density(tiny):
    x = torch.cat([torch.full((3,), tiny), torch.randn(25)])
    y = 0.8 * x + 0.6 * torch.randn(28)
    guide = pl.fit_laplace(slope, (x, y), progress=False)
    row = pl.compare(slope, {"laplace": guide}, (x, y), method="psis", num_samples=4000, progress=False).iloc[0]
    right = left_out(x, y)
    assert row["elpd_loo"] == pytest.approx(right.sum(), abs=0.1)
    assert row["elpd_se"] == pytest.approx(math.sqrt(28 * right.var(ddof=1)), rel=0.02)
    assert row["pareto_k_bad"] == 0
    assert math.isfinite(row["pareto_k_max"])


def test_no_datum_tells_anything():
    x, y = torch.zeros(6), 0.6 * torch.randn(6)
    guide = pl.fit_laplace(slope, (x, y), progress=False)
    posteriors = {"laplace": guide, "point": {"slope": torch.zeros(1)}}
    table = pl.compare(slope, posteriors, (x, y), method="psis", num_samples=200, progress=False)
    assert table.loc["laplace", "elpd_loo"] == pytest.approx(float(dist.Normal(0.0, 0.6).log_prob(y).sum()))
    assert table.loc["laplace", "pareto_k_bad"] == 0
    assert math.isnan(table.loc["point", "elpd_loo"])


def test_weights_with_a_tail_of_one_value_are_not_smoothed():
    """A unit that is off at most draws: the largest weights of the last datum are all the same."""
    x, y = torch.linspace(-1.0, 2.0, 12), torch.linspace(0.0, 1.0, 12)
    x[-1], y[-1] = -1.0, 0.3

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * w).clamp(min=0.0, max=0.3), 0.6), obs=y)

    draws = torch.randn(1000) + 1.0
    table = pl.compare(model, {"draws": {"w": draws}}, (x, y), progress=False)
    assert math.isfinite(table.loc["draws", "elpd_loo"])
    log_lik = dist.Normal((x[-1] * draws).clamp(min=0.0, max=0.3), 0.6).log_prob(y[-1]).numpy()
    assert (log_lik == log_lik.min()).sum() > 95
    alone = pl.compare(model, {"draws": {"w": draws}}, (x[-1:], y[-1:]), progress=False)
    assert alone.loc["draws", "elpd_loo"] == pytest.approx(math.log(1000) - logsumexp(-log_lik))


def test_chains_of_draws_keep_their_efficiency():
    x = torch.cat([torch.zeros(1), torch.randn(20)])
    y = 0.8 * x + 0.6 * torch.randn(21)
    mcmc = pl.fit_nuts(slope, (x, y), num_samples=150, warmup_steps=100, progress=False)
    table = pl.compare(slope, {"nuts": mcmc}, (x, y), progress=False)
    assert table.loc["nuts", "elpd_loo"] == pytest.approx(left_out(x, y).sum(), abs=0.6)


def test_a_loader_that_shuffles_is_read_once():
    """The groups of a tree are of the same rows: each log likelihood is that of its datum."""
    x = torch.linspace(-2.0, 2.0, 24)

    def model(x, y=None):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(b * x, 0.3), obs=y)

    loader = DataLoader(TensorDataset(x, 2 * x), batch_size=8, shuffle=True)
    guide = pl.fit_laplace(model, loader, progress=False)
    tree = pl.to_datatree(model, guide, loader, num_samples=5, progress=False)
    observed = tree["observed_data"]["y"].to_numpy()
    drawn = tree["posterior"]["b"].to_numpy()[0]
    expected = dist.Normal(torch.tensor(drawn)[:, None] * torch.tensor(observed) / 2, 0.3).log_prob(
        torch.tensor(observed)
    )
    torch.testing.assert_close(torch.tensor(tree["log_likelihood"]["y"].to_numpy()[0]), expected)
