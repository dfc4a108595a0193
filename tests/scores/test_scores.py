"""`scores` and `score_of` against scikit-learn, closed forms, numerical integrals and loops over data."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_says
from oracles.datatrees import NOISE, fit, linear_posterior
from programs import zoo as programs
from programs.mixtures import ensemble
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.util import get_rng_state
from scipy import integrate, stats
from sklearn import metrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_laplace as pl
from pyro_laplace.likelihood.mixture import DistributionMixture, FunctionMixture
from pyro_laplace.scores import OBJECTIVES, Prediction, predictions_of, score_of, scores
from pyro_laplace.scores.formulas import calibration_error, fair_crps, normal_crps, roc_area

pytestmark = pytest.mark.usefixtures("float64")

CLOSE = {"rel": 1e-10, "abs": 1e-12}
CLASS_SCORES = ["nll", "accuracy", "brier", "ece", "auroc"]
NUMBER_SCORES = ["nll", "rmse", "crps", "coverage_90"]
Z = stats.norm.ppf(0.95)


def of_draws(model, draws, **options):
    return pl.Predictive(model, posterior_samples=draws, **options)


def predicted(fn, y, counted=None):
    return Prediction(fn, y, torch.ones(fn.batch_shape, dtype=torch.bool) if counted is None else counted)


def held_out(num_obs=60):
    """From the weights that `programs.linear` has."""
    x, y = programs.linear_data()
    g = programs.generator(7)
    new = torch.randn(num_obs, 3, generator=g)
    return new, new @ torch.linalg.lstsq(x, y).solution + NOISE * torch.randn(num_obs, generator=g)


class Generators:
    """Where torch's and NumPy's are. Python's own is drawn from by beartype, when a test runs under it."""

    def __init__(self):
        state = get_rng_state()
        self.states = state["torch"], torch.from_numpy(state["numpy"][1].astype(np.int64))

    def are_there(self):
        return all(torch.equal(*pair) for pair in zip(self.states, Generators().states, strict=True))


# --- classes ---------------------------------------------------------------------------------------


def dumb_ece(probs, labels, num_bins):
    """In bins (lower, upper] of the largest probability."""
    total = 0.0
    for b in range(num_bins):
        inside = [n for n in range(len(labels)) if b / num_bins < probs[n].max() <= (b + 1) / num_bins]
        if inside:
            accuracy = np.mean([float(probs[n].argmax() == labels[n]) for n in inside])
            total += len(inside) / len(labels) * abs(accuracy - np.mean([probs[n].max() for n in inside]))
    return total


def sklearn_scores(probs, labels, num_bins=15):
    """Of class probabilities [n, classes]."""
    classes = range(probs.shape[1])
    binary = probs.shape[1] == 2
    return {
        "nll": metrics.log_loss(labels, probs, labels=classes),
        "accuracy": metrics.accuracy_score(labels, probs.argmax(1)),
        "brier": metrics.brier_score_loss(labels, probs, labels=classes, scale_by_half=False),
        "ece": dumb_ece(probs, labels, num_bins),
        "auroc": metrics.roc_auc_score(labels, probs[:, 1] if binary else probs, multi_class="ovr"),
    }


def two(p):
    return torch.stack([1 - p, p], -1).numpy()


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_categorical_of_a_linearised_predictive(num_bins):
    case = programs.softmax()
    predictive = pl.LinearizedPredictive(case.model, fit(case))
    x, y = case.data
    found = scores(predictive, case.data, num_bins=num_bins)
    assert list(found.index) == CLASS_SCORES
    assert found.to_dict() == pytest.approx(sklearn_scores(predictive(x)["y"].probs.numpy(), y, num_bins), **CLOSE)


def test_bernoulli_of_a_linearised_predictive():
    case = programs.logistic()
    predictive = pl.LinearizedPredictive(case.model, fit(case))
    x, y = programs.linear_data(50, seed=3)
    y = (y > 0.3).double()
    expected = sklearn_scores(two(predictive(x)["y"].probs), y)
    found = scores(predictive, (x, y))
    assert found.to_dict() == pytest.approx(expected, **CLOSE)
    half = metrics.brier_score_loss(y, predictive(x)["y"].probs)
    assert found["brier"] == pytest.approx(2 * half, **CLOSE)  # the sum over both classes


def test_one_hot_is_as_the_class_itself():
    case = programs.softmax()
    x, y = case.data

    def one_hot(x, y=None):
        w = pyro.sample("w", programs.normal(1.0, 3, 4))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.OneHotCategorical(logits=x @ w), obs=y)

    draws = {"w": torch.randn(9, 3, 4)}
    expected = scores(of_draws(case.model, draws), case.data)
    found = scores(of_draws(one_hot, draws), (x, nn.functional.one_hot(y).double()))
    assert found.to_dict() == pytest.approx(expected.to_dict(), **CLOSE)
    probs = torch.stack([torch.softmax(x @ w, -1) for w in draws["w"]]).mean(0)
    assert expected.to_dict() == pytest.approx(sklearn_scores(probs.numpy(), y), **CLOSE)


@pytest.mark.parametrize("num_draws", [1, 9])
@pytest.mark.parametrize("make", [pl.Predictive, pyro.infer.Predictive])
def test_class_probabilities_are_averaged_over_draws(make, num_draws):
    case = programs.logistic()
    x, y = case.data
    draws = {"w": torch.randn(num_draws, 3), "b": torch.randn(num_draws)}
    probs = torch.sigmoid(draws["w"] @ x.T + draws["b"][:, None]).mean(0)
    found = scores(make(case.model, posterior_samples=draws), case.data)
    assert found.to_dict() == pytest.approx(sklearn_scores(two(probs), y), **CLOSE)


def test_averaging_some_draws_at_a_time():
    case = programs.softmax()
    predictive = of_draws(case.model, {"w": torch.randn(9, 3, 4)})
    expected = scores(predictive, case.data)
    with pl.settings.using(density_elements=401):
        found = scores(predictive, case.data)
    assert found.to_dict() == pytest.approx(expected.to_dict(), **CLOSE)


def test_entries_of_an_event_are_pooled():
    x, y = torch.randn(20, 2), torch.randint(2, (20, 3)).double()

    def model(x, y=None):
        w = pyro.sample("w", programs.normal(1.0, 2, 3))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Bernoulli(logits=x @ w).to_event(1), obs=y)

    draws = {"w": torch.randn(5, 2, 3)}
    probs = torch.stack([(x @ w).sigmoid() for w in draws["w"]])
    expected = sklearn_scores(two(probs.mean(0).flatten()), y.flatten())
    log_lik = torch.where(y > 0, probs, 1 - probs).prod(-1).mean(0).log()  # of a datum, all its entries
    found = scores(of_draws(model, draws), (x, y))
    assert found.to_dict() == pytest.approx(expected | {"nll": -float(log_lik.mean())}, **CLOSE)


def test_classes_of_mixtures_over_functions():
    """Several classes a datum by draws, and ordered ones: what they predict is no distribution of their own kind."""
    pyro.set_rng_seed(1)
    logits = torch.randn(40, 12, 2, 3)  # draws, data, entries, classes
    y = torch.randint(3, (12, 2))
    events = FunctionMixture(logits, lambda eta: dist.Categorical(logits=eta).to_event(1))
    probs = logits.softmax(-1)
    expected = metrics.brier_score_loss(y.flatten(), probs.mean(0).reshape(-1, 3).numpy(), scale_by_half=False)
    assert score_of("brier", {"y": [predicted(events, y)]}) == pytest.approx(expected, **CLOSE)
    both = probs.gather(-1, y.expand(40, 12, 2)[..., None])[..., 0].prod(-1)
    expected = float(both.mean(0).log().mean())
    assert score_of("log_lik", {"y": [predicted(events, y)]}) == pytest.approx(expected, **CLOSE)
    cutpoints = torch.tensor([-1.0, 0.5])
    predictor, y = torch.randn(40, 12), torch.randint(3, (12,))
    ordered = FunctionMixture(predictor[..., None], lambda eta: dist.OrderedLogistic(eta[..., 0], cutpoints))
    below = torch.sigmoid(cutpoints - predictor[..., None]).mean(0)
    probs = torch.cat([below, torch.ones(12, 1)], 1).diff(dim=1, prepend=torch.zeros(12, 1))
    expected = metrics.brier_score_loss(y, probs.numpy(), scale_by_half=False)
    assert score_of("brier", {"y": [predicted(ordered, y)]}) == pytest.approx(expected, **CLOSE)


def test_an_ensemble_of_classifiers():
    case = programs.mlp_classifier()
    predictive = pl.LinearizedPredictive(case.model, ensemble(case, 0, 1, 2))
    x, y = case.data
    probs = torch.stack(
        [
            case.flat.site(programs.some_theta(case, seed), "y")["fn"].probs  # of each mode
            for seed in (0, 1, 2)
        ]
    ).mean(0)
    assert scores(predictive, (x, y)).to_dict() == pytest.approx(sklearn_scores(probs.numpy(), y), **CLOSE)


def pairs(probs, positive):
    """The share of ordered pairs, ties half."""
    ones, rest = probs[positive], probs[~positive]
    return float(((ones[:, None] > rest).double() + 0.5 * (ones[:, None] == rest).double()).mean())


def test_area_under_the_curve():
    y = torch.randint(2, (40,))
    p = (torch.rand(40) * 4).round() / 4  # ties
    probs = torch.stack([1 - p, p], -1)
    assert roc_area(probs, y) == pytest.approx(pairs(p, y == 1), **CLOSE)
    assert roc_area(probs, y) == pytest.approx(metrics.roc_auc_score(y, p), **CLOSE)
    tiny = torch.tensor([1e-20, 2e-20])  # 1 less them is 1
    assert roc_area(torch.stack([1 - tiny, tiny], -1), torch.tensor([0, 1])) == 1.0
    probs = torch.rand(40, 4).softmax(-1)
    y = torch.tensor([0, 2, 3])[torch.randint(3, (40,))]  # class 1 does not occur
    expected = np.mean([pairs(probs[:, k], y == k) for k in (0, 2, 3)])
    assert roc_area(probs, y) == pytest.approx(expected, **CLOSE)
    assert math.isnan(roc_area(probs, torch.full((40,), 2)))


def test_calibration_error_has_its_edges_below():
    probs = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.0, 1.0]])
    labels = torch.tensor([1, 0, 1])
    # (0.25, 0.5], (0.5, 0.75] and (0.75, 1]
    assert calibration_error(probs, labels, 4) == pytest.approx((0.5 + 0.25 + 0.0) / 3)
    # 0.5 is alone in (0, 0.5], and the other two are (0.5, 1]
    assert calibration_error(probs, labels, 2) == pytest.approx(0.5 / 3 + 0.25 / 3)
    assert calibration_error(probs, torch.tensor([1, 0, 0]), 2) == pytest.approx(0.5 / 3 + abs(1 - 1.75) / 3)


# --- numbers ---------------------------------------------------------------------------------------


def crps_of_cdf(cdf, y, low, high):
    """``integral (F(x) - [y <= x])^2 dx``, by quadrature."""
    below = integrate.quad(lambda x: cdf(x) ** 2, low, y, epsabs=1e-12)[0]
    return below + integrate.quad(lambda x: (1 - cdf(x)) ** 2, y, high, epsabs=1e-12)[0]


@pytest.mark.parametrize(("mean", "std", "y"), [(0.0, 1.0, 0.3), (2.0, 0.1, 2.5), (-1.0, 3.0, -6.0)])
def test_crps_of_a_normal_is_the_integral(mean, std, y):
    expected = crps_of_cdf(stats.norm(mean, std).cdf, y, min(y, mean - 12 * std), max(y, mean + 12 * std))
    found = normal_crps(*(torch.tensor(value) for value in (mean, std, y)))
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-10)


def test_linear_regression_is_scored_exactly():
    case = programs.linear()
    x, y = held_out()
    mean, covariance = linear_posterior(*case.data)
    std = (torch.einsum("ni,ij,nj->n", x, covariance, x) + NOISE**2).sqrt().numpy()
    centre, y_ = (x @ mean).numpy(), y.numpy()
    expected = {
        "nll": -stats.norm.logpdf(y_, centre, std).mean(),
        "rmse": metrics.root_mean_squared_error(y_, centre),
        "crps": np.mean(
            [crps_of_cdf(stats.norm(m, s).cdf, t, -40, 40) for m, s, t in zip(centre, std, y_, strict=True)]
        ),
        "coverage_90": np.mean(np.abs(y_ - centre) <= Z * std),
    }
    found = scores(pl.LinearizedPredictive(case.model, fit(case)), (x, y))
    assert list(found.index) == NUMBER_SCORES
    assert found.to_dict() == pytest.approx(expected, rel=1e-6)
    assert 0.7 < found["coverage_90"] < 1
    with pl.settings.using(coverage_level=0.5):
        half = scores(pl.LinearizedPredictive(case.model, fit(case)), (x, y))
    assert half["coverage_50"] == np.mean(np.abs(y_ - centre) <= stats.norm.ppf(0.75) * std)


@pytest.mark.parametrize("with_guide", [True, False])
@pytest.mark.parametrize("make", [pl.Predictive, pyro.infer.Predictive])
def test_a_mode_alone_is_scored_exactly(make, with_guide):
    case = programs.linear()
    w = torch.tensor([0.5, -1.0, 0.2])
    guide = programs.map_guide_at(case.model, {"w": w}, *case.data)
    predictive = (
        make(case.model, guide=guide, num_samples=1)
        if with_guide
        else make(case.model, posterior_samples={"w": w[None]})
    )
    x, y = held_out()
    error = (y - x @ w).numpy()
    crps = [crps_of_cdf(stats.norm(0, NOISE).cdf, e, -30, 30) for e in error]
    expected = {
        "nll": -stats.norm.logpdf(error, 0, NOISE).mean(),
        "rmse": np.sqrt(np.mean(error**2)),
        "crps": np.mean(crps),
        "coverage_90": np.mean(np.abs(error) <= Z * NOISE),
    }
    assert scores(predictive, (x, y)).to_dict() == pytest.approx(expected, rel=1e-9)


def test_fair_crps_is_the_double_sum():
    draws, y = torch.randn(7, 5) ** 3, torch.randn(5)
    gaps = (draws[:, None] - draws[None]).abs().sum((0, 1))
    expected = (draws - y).abs().mean(0) - gaps / (2 * 7 * 6)
    torch.testing.assert_close(fair_crps(draws, y), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(fair_crps(draws + 1e6, y + 1e6), expected, rtol=0, atol=1e-8)  # rounding of 1e6
    with pl.settings.using(density_elements=14):
        torch.testing.assert_close(fair_crps(draws, y), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.statistical
def test_fair_crps_is_unbiased_and_converges():
    y = torch.tensor([-0.5, 0.0, 2.0])
    exact = normal_crps(torch.zeros(3), torch.ones(3), y)
    few = fair_crps(torch.randn(3, 3 * 100_000), y.repeat_interleave(100_000)).reshape(3, -1)  # three draws each
    assert ((few.mean(1) - exact).abs() < 4 * few.std(1) / math.sqrt(100_000)).all()
    assert ((fair_crps(torch.randn(200_000, 3), y) - exact).abs() < 0.006).all()


@pytest.mark.statistical
def test_draws_of_a_regression_approach_the_closed_form():
    case = programs.linear()
    guide, test = fit(case), held_out()
    exact = scores(pl.LinearizedPredictive(case.model, guide), test)
    found = scores(pl.Predictive(case.model, guide=guide, num_samples=4000), test, num_samples=4000)
    np.testing.assert_allclose(found[["nll", "rmse", "crps"]], exact[["nll", "rmse", "crps"]], atol=0.004)
    assert found["coverage_90"] == pytest.approx(exact["coverage_90"], abs=0.035)


def test_outputs_of_a_datum_are_scored_by_themselves_but_for_their_density():
    case = programs.multi_output()
    predictive = pl.LinearizedPredictive(case.model, fit(case))
    x, y = torch.randn(9, 2), torch.randn(9, 3)
    fn = predictive(x)["y"]
    assert fn.event_shape == (3,)
    mean, std, y_ = fn.mean.numpy(), fn.covariance_matrix.diagonal(dim1=1, dim2=2).sqrt().numpy(), y.numpy()
    joint = [
        stats.multivariate_normal(m, c).logpdf(t)
        for m, c, t in zip(mean, fn.covariance_matrix.numpy(), y_, strict=True)
    ]
    entries = zip(mean.ravel(), std.ravel(), y_.ravel(), strict=True)
    expected = {
        "nll": -np.mean(joint),
        "rmse": np.sqrt(np.mean((mean - y_) ** 2)),
        "crps": np.mean([crps_of_cdf(stats.norm(m, s).cdf, t, -30, 30) for m, s, t in entries]),
        "coverage_90": np.mean(np.abs(y_ - mean) <= Z * std),
    }
    assert scores(predictive, (x, y)).to_dict() == pytest.approx(expected, rel=1e-9)


def test_outputs_in_rows_and_columns():
    """The event has two axes, and is Normal all the same."""

    def model(x, y=None, rows=(2, 2)):
        w = pyro.sample("w", programs.normal(1.0, 4))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal((x[:, None] * w).reshape(-1, *rows), 0.3).to_event(len(rows)), obs=y)

    x, y = torch.randn(8), torch.randn(8, 2, 2)
    predictive = pl.LinearizedPredictive(model, pl.fit_laplace(model, (x, y), progress=False))

    def flat(x, y=None):
        return model(x, y, rows=(4,))

    same = pl.LinearizedPredictive(flat, pl.fit_laplace(flat, (x, y.flatten(1)), progress=False))
    expected = scores(same, (x, y.flatten(1))).to_dict()
    assert scores(predictive, (x, y)).to_dict() == pytest.approx(expected, rel=1e-6)


def test_quantiles_in_closed_form_where_there_are_some():
    loc, y = torch.linspace(-1, 1, 50), torch.linspace(0.01, 9, 50)
    tails = torch.tensor([0.05, 0.95])
    log_normal = predicted(dist.LogNormal(loc, 0.8), y).quantiles(tails)
    for bound, level in zip(log_normal.T, (0.05, 0.95), strict=True):
        np.testing.assert_allclose(bound, stats.lognorm(0.8, scale=loc.exp()).ppf(level), rtol=1e-9)
    laplace = predicted(dist.Laplace(loc[:, None], torch.tensor([0.5, 2.0])).to_event(1), y[:, None].expand(50, 2))
    lower = stats.laplace(np.repeat(loc.numpy(), 2), np.tile([0.5, 2.0], 50)).ppf(0.05)
    np.testing.assert_allclose(laplace.quantiles(tails)[:, 0], lower, rtol=1e-9)
    assert predicted(dist.StudentT(3.0, loc, 1.0), y).quantiles(tails) is None
    assert predicted(dist.HalfNormal(loc.exp()), y).quantiles(tails) is None


def test_counts_are_scored_by_draws():
    case = programs.poisson()
    x, y = case.data
    draws = {"w": 0.3 + 0.1 * torch.randn(40, 3)}
    rates = (draws["w"] @ x.T).exp().numpy()  # draws, data
    pmf = stats.poisson(rates[..., None]).pmf(np.arange(400)).mean(0)  # data, counts
    cdf, truth = pmf.cumsum(1), y.numpy()
    crps = ((cdf - (truth[:, None] <= np.arange(400))) ** 2).sum(1)  # the integral over steps of 1
    low, high = (cdf < 0.05).sum(1), (cdf < 0.95).sum(1)
    found = scores(of_draws(case.model, draws), case.data, num_samples=8000)
    assert found["nll"] == pytest.approx(-np.log(pmf[range(40), truth.astype(int)]).mean(), rel=1e-9)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((rates.mean(0) - truth) ** 2)), rel=1e-9)
    assert found["crps"] == pytest.approx(crps.mean(), rel=0.01)
    assert found["coverage_90"] == pytest.approx(np.mean((low <= truth) & (truth <= high)), abs=0.051)  # two data


@pytest.mark.statistical
def test_counts_of_a_linearised_predictive():
    case = programs.poisson()
    guide = fit(case)
    predictive = pl.LinearizedPredictive(case.model, guide, num_samples=4000)
    by_draws = scores(pl.Predictive(case.model, guide=guide, num_samples=4000), case.data, num_samples=4000)
    found = scores(predictive, case.data, num_samples=4000)
    assert found[["nll", "rmse", "crps"]].to_dict() == pytest.approx(
        by_draws[["nll", "rmse", "crps"]].to_dict(), rel=0.02
    )


def test_a_mean_that_is_not_known_is_that_of_draws():
    y = torch.tensor([1.0, 2.0, 4.0])

    def model(y=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            return pyro.sample("y", dist.TransformedDistribution(dist.Normal(loc, 0.1), []), obs=y)

    draws = {"loc": torch.tensor([1.0, 2.0, 3.0])}
    found = scores(of_draws(model, draws), (y,), num_samples=9000)
    assert found["rmse"] == pytest.approx(float((y - 2).square().mean().sqrt()), abs=0.03)
    alone = scores(of_draws(model, {"loc": torch.tensor([2.0])}), (y,), num_samples=9000)
    assert alone["rmse"] == pytest.approx(float((y - 2).square().mean().sqrt()), abs=0.01)


@pytest.mark.statistical
def test_a_mixture_of_normals():
    weights, y = torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 0.0, 2.5])
    parts = [dist.Normal(torch.full((3,), -1.0), 0.5), dist.Normal(torch.full((3,), 2.0), 1.0)]
    prediction = {"y": [predicted(DistributionMixture(weights, parts), y)]}

    def cdf(x):
        return 0.3 * stats.norm(-1, 0.5).cdf(x) + 0.7 * stats.norm(2, 1).cdf(x)

    expected = np.mean([crps_of_cdf(cdf, float(t), -12, 14) for t in y])
    assert score_of("crps", prediction) == pytest.approx(expected, abs=0.05)
    density = 0.3 * stats.norm(-1, 0.5).pdf(y) + 0.7 * stats.norm(2, 1).pdf(y)
    assert score_of("log_lik", prediction) == pytest.approx(np.log(density).mean(), **CLOSE)
    torch.testing.assert_close(prediction["y"][0].mean, torch.full((3,), 0.3 * -1 + 0.7 * 2))


# --- which data count ------------------------------------------------------------------------------


def both_ways(case, **options):
    """By the linearised predictive, and by draws."""
    guide = fit(case)
    return pl.LinearizedPredictive(case.model, guide), pl.Predictive(case.model, guide=guide, num_samples=30)


@pytest.mark.parametrize("make", [programs.masked, programs.masked_fn])
def test_masked_data_do_not_count(make):
    case = make()
    x, keep, y = case.data
    spoiled = torch.where(keep.reshape(-1, *(1,) * (y.dim() - 1)), y, 1 - y + (0 if make is programs.masked else 50))
    alone = (x[keep], torch.ones(int(keep.sum()), dtype=torch.bool), y[keep])
    exact = ["nll", *(CLASS_SCORES[1:] if make is programs.masked else ["rmse"])]
    for predictive in both_ways(case):
        found, expected = scores(predictive, (x, keep, spoiled)), scores(predictive, alone)
        assert found[exact].to_dict() == pytest.approx(expected[exact].to_dict(), **CLOSE)
        if "crps" in found:
            assert found["crps"] == pytest.approx(expected["crps"], rel=0.1)  # draws of other data


def test_a_mask_of_entries():
    x, y = torch.randn(10, 2), torch.randn(10, 3)
    keep = torch.rand(10, 3) > 0.3
    keep[4] = False

    def model(x, y, keep=keep):
        w = pyro.sample("w", programs.normal(1.0, 2, 3))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, NOISE).mask(keep).to_event(1), obs=y)

    w = torch.randn(1, 2, 3)
    error = (y - x @ w[0]).numpy()
    density = np.where(keep, stats.norm.logpdf(error, 0, NOISE), 0.0).sum(1)[keep.any(1)]
    error = error[keep]
    expected = {
        "nll": -density.mean(),
        "rmse": np.sqrt(np.mean(error**2)),
        "crps": np.mean([crps_of_cdf(stats.norm(0, NOISE).cdf, e, -20, 20) for e in error]),
        "coverage_90": np.mean(np.abs(error) <= Z * NOISE),
    }
    assert scores(of_draws(model, {"w": w}), (x, y)).to_dict() == pytest.approx(expected, rel=1e-9)
    several = {"w": torch.cat([w, w, w])}
    found = scores(of_draws(model, several), (x, y), num_samples=6000)
    assert found[["nll", "rmse"]].to_dict() == pytest.approx({k: expected[k] for k in ("nll", "rmse")}, rel=1e-9)
    assert found["crps"] == pytest.approx(expected["crps"], rel=0.02)
    guide = pl.fit_laplace(model, (x, y), progress=False)
    predictive = pl.LinearizedPredictive(model, guide)
    spoiled = torch.where(keep, y, 1e3)
    assert scores(predictive, (x, spoiled)).to_dict() == pytest.approx(scores(predictive, (x, y)).to_dict(), **CLOSE)
    fn = FunctionMixture(torch.randn(5, 10, 3, 2), lambda e: dist.Categorical(logits=e).mask(keep).to_event(1))
    labels = torch.randint(2, (10, 3))
    probs = fn.eta.softmax(-1).mean(0)[keep]
    expected = metrics.brier_score_loss(labels[keep], probs[:, 1]) * 2
    assert score_of("brier", {"y": [predicted(fn, labels)]}) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("by_draws", [True, False])
def test_nan_is_missing_where_the_distribution_says_so(by_draws):
    x, y = torch.randn(10, 2), torch.randn(10, 3)
    keep = torch.rand(10, 3) > 0.4
    keep[3] = False

    def model(x, y=None):
        w = pyro.sample("w", programs.normal(1.0, 2, 3))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.NanMaskedNormal(x @ w, NOISE).to_event(1), obs=y)

    batch = (x, torch.where(keep, y, torch.nan))
    if by_draws:
        predictive = of_draws(model, {"w": torch.randn(1, 2, 3)})
        fn = dist.Normal(x @ predictive.posterior_samples["w"][0], NOISE)
        mean, std = fn.mean, fn.stddev
        log_prob = torch.where(keep, fn.log_prob(y), 0.0).sum(1)
    else:
        predictive = pl.LinearizedPredictive(model, pl.fit_laplace(model, batch, progress=False))
        fn = predictive(x)["y"]
        mean, covariance = fn.mean, fn.covariance_matrix
        std = covariance.diagonal(dim1=1, dim2=2).sqrt()
        log_prob = [
            stats.multivariate_normal(m[k], c[k][:, k]).logpdf(t[k]) if k.any() else 0.0
            for m, c, t, k in zip(mean, covariance, y, keep, strict=True)
        ]
    mean, std, truth = mean[keep].numpy(), std[keep].numpy(), y[keep].numpy()
    expected = {
        "nll": -torch.as_tensor(log_prob)[keep.any(1)].mean().item(),
        "rmse": np.sqrt(np.mean((mean - truth) ** 2)),
        "crps": np.mean(
            [crps_of_cdf(stats.norm(m, s).cdf, t, -20, 20) for m, s, t in zip(mean, std, truth, strict=True)]
        ),
        "coverage_90": np.mean(np.abs(mean - truth) <= Z * std),
    }
    assert scores(predictive, batch).to_dict() == pytest.approx(expected, rel=1e-9)


def test_what_obs_mask_leaves_out_does_not_count():
    x, y = programs.linear_data()
    keep = torch.arange(40) % 3 != 0

    def model(x, y=None, keep=None):
        w = pyro.sample("w", programs.normal(1.3, 3))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y, obs_mask=keep)

    batch = (x, torch.where(keep, y, torch.nan), keep)
    guide = pl.fit_laplace(model, batch, progress=False)
    for predictive in (
        pl.LinearizedPredictive(model, guide),
        of_draws(model, {"w": guide.median()["w"][None]}),
    ):
        found = scores(predictive, batch)
        alone = scores(predictive, (x[keep], y[keep], torch.ones(int(keep.sum()), dtype=torch.bool)))
        assert found.to_dict() == pytest.approx(alone.to_dict(), **CLOSE)


def test_a_scale_is_no_part_of_a_prediction():
    case = programs.linear()

    def scaled(x, y=None):
        with poutine.scale(scale=0.1):
            return case.model(x, y)

    guide, draws = fit(case), {"w": torch.randn(6, 3)}
    test = held_out()
    for one, other in (
        (pl.LinearizedPredictive(scaled, guide), pl.LinearizedPredictive(case.model, guide)),
        (of_draws(scaled, draws), of_draws(case.model, draws)),
    ):
        assert scores(one, test).to_dict() == pytest.approx(scores(other, test).to_dict(), **CLOSE)


def test_no_datum_has_no_score():
    case = programs.masked()
    x, _, y = case.data
    found = scores(both_ways(case)[1], (x, torch.zeros(40, dtype=torch.bool), y))
    assert found.isna().all()
    number = predicted(dist.StudentT(3.0, torch.zeros(4), 1.0), torch.ones(4), torch.zeros(4, dtype=torch.bool))
    assert math.isnan(score_of("crps", {"y": [number]}))


def test_a_prior_written_as_data_is_not_scored():
    def model(x, y=None):
        w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("prior", dist.Normal(0.0, 1.0), obs=w)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x * w, NOISE), obs=y)

    x, y = torch.linspace(-1, 1, 9), torch.linspace(-2, 2, 9)
    guide = pl.fit_laplace(model, (x, y), {"w": torch.tensor(1.9)}, progress=False)
    for predictive in (pl.LinearizedPredictive(model, guide), pl.Predictive(model, guide=guide, num_samples=20)):
        assert list(scores(predictive, (x, y)).index) == NUMBER_SCORES


# --- sites, batches and plates -----------------------------------------------------------------------


def test_several_sites_have_their_own_scores():
    case = programs.two_likelihoods()
    x, count, y = case.data
    draws = {"w": 0.3 * torch.randn(50, 3), "sigma": torch.rand(50) + 0.5}
    found = scores(of_draws(case.model, draws), case.data)
    assert list(found.index) == [f"{score} ({site})" for site in ("count", "y") for score in NUMBER_SCORES]
    log_lik = dist.Normal(draws["w"] @ x.T, draws["sigma"][:, None]).log_prob(y)
    assert found["nll (y)"] == pytest.approx(-float((log_lik.logsumexp(0) - math.log(50)).mean()), **CLOSE)
    rmse = ((draws["w"] @ x.T).exp().mean(0) - count).square().mean().sqrt()
    assert found["rmse (count)"] == pytest.approx(float(rmse), **CLOSE)
    linearized = scores(pl.LinearizedPredictive(case.model, fit(case)), case.data)
    assert list(linearized.index) == list(found.index)


@pytest.mark.parametrize("make", [programs.softmax, programs.linear])
def test_batches_give_what_the_whole_gives(make):
    case = make()
    guide = fit(case)
    parts = case.batches(11)
    loader = DataLoader(TensorDataset(*case.data), batch_size=9, shuffle=True)
    predictive = pl.LinearizedPredictive(case.model, guide)
    whole = scores(predictive, case.data)
    for data in (parts, loader, dict(zip("xy", case.data, strict=True))):
        assert scores(predictive, data).to_dict() == pytest.approx(whole.to_dict(), **CLOSE)
    predictive = pl.Predictive(case.model, guide=guide, num_samples=40)
    whole, found = scores(predictive, case.data), scores(predictive, parts)
    exact = [name for name in whole.index if name not in ("crps", "coverage_90")]
    assert found[exact].to_dict() == pytest.approx(whole[exact].to_dict(), **CLOSE)


def test_large_batches_are_scored_in_parts():
    case = programs.softmax()
    predictive = of_draws(case.model, {"w": torch.randn(6, 3, 4)})
    whole = scores(predictive, case.data)
    with pl.settings.using(chunk_bytes=400, cut_bytes=1, cut_rows=4, enough_rows=1, enough_bytes=1):
        found = scores(predictive, case.data)
    assert found.to_dict() == pytest.approx(whole.to_dict(), **CLOSE)


def test_a_plate_that_draws_its_own_indices_is_visited_once():
    case = programs.linear()
    x, y = case.data

    def model(x, y=None):
        w = pyro.sample("w", programs.normal(1.3, 3))
        with pyro.plate("data", len(x), subsample_size=9) as index:  # 40 is no multiple of it
            return pyro.sample("y", dist.Normal(x[index] @ w, NOISE), obs=None if y is None else y[index])

    draws = {"w": torch.randn(1, 3)}
    assert scores(of_draws(model, draws), (x, y)).to_dict() == pytest.approx(
        scores(of_draws(case.model, draws), (x, y)).to_dict(), **CLOSE
    )


def test_held_out_data_of_a_larger_plate_count_once():
    case = programs.linear()

    def model(x, y=None):
        w = pyro.sample("w", programs.normal(1.3, 3))
        with pyro.plate("data", 400, subsample=torch.arange(len(x))):
            return pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    draws = {"w": torch.randn(7, 3)}
    found, expected = (scores(of_draws(each, draws), held_out()) for each in (model, case.model))
    assert found.to_dict() == pytest.approx(expected.to_dict(), **CLOSE)


def test_it_agrees_with_compare():
    for case in (programs.linear(), programs.softmax()):
        shape = case.flat.shapes["w"]
        draws = {"w": torch.randn(12, *shape)}
        row = pl.compare(case.model, {"draws": draws}, case.data, case.data, progress=False).loc["draws"]
        found = scores(of_draws(case.model, draws), case.data)
        assert found["nll"] == pytest.approx(-row["test_lpd"], **CLOSE)
        for column in {"rmse", "accuracy"} & set(found.index):
            assert found[column] == pytest.approx(row[column], **CLOSE)


def test_data_with_a_discrete_site_summed_out_have_a_density_alone():
    def model(y=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        with pyro.plate("data", 20):
            kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
            return pyro.sample("y", dist.Normal(loc[kind], 1.0), obs=y)

    y = torch.randn(20)
    for loc in (torch.tensor([[-1.0, 2.0]]), torch.randn(5, 2)):
        parts = stats.norm(loc.numpy()[:, None], 1.0).pdf(y.numpy()[:, None])  # draws, data, kinds
        expected = {"nll": -np.log((parts @ [0.4, 0.6]).mean(0)).mean()}
        assert scores(of_draws(model, {"loc": loc}), (y,)).to_dict() == pytest.approx(expected, **CLOSE)


def test_the_linearised_program_by_draws():
    case = programs.mlp_classifier()
    guide = fit(case)
    by_draws = pl.Predictive(pl.linearize(case.model, guide), guide=guide, num_samples=3000)
    exact = pl.LinearizedPredictive(case.model, guide, link="sample", num_samples=3000)
    found, expected = scores(by_draws, case.data), scores(exact, case.data)
    assert found[["nll", "brier"]].to_dict() == pytest.approx(expected[["nll", "brier"]].to_dict(), rel=0.02)


# --- objectives ------------------------------------------------------------------------------------


def two_sites():
    x, y = torch.linspace(-1, 1, 8), torch.linspace(-2, 1, 8)
    keep = torch.arange(8) != 2
    normal = [predicted(dist.Normal(x[:5], 0.5), y[:5], keep[:5]), predicted(dist.Normal(x[5:], 0.5), y[5:])]
    gamma = [predicted(dist.Gamma(2.0, torch.ones(8)), y.exp())]
    return {"a": normal, "b": gamma}, (x, y, keep)


def test_objectives_of_several_sites():
    sites, (x, y, keep) = two_sites()
    a = stats.norm.logpdf(y, x, 0.5)[keep].mean()  # of data, not of batches
    b = stats.gamma.logpdf(y.exp(), 2.0).mean()
    assert score_of("log_lik", sites) == pytest.approx(a + b, **CLOSE)
    assert score_of("log_lik", {"a": sites["a"]}) == pytest.approx(a, **CLOSE)
    exact = np.mean(
        [crps_of_cdf(stats.norm(m, 0.5).cdf, t, -9, 9) for m, t in zip(x[keep].numpy(), y[keep].numpy(), strict=True)]
    )
    alone = [score_of("crps", {name: parts}) for name, parts in sites.items()]
    assert alone[0] == pytest.approx(exact, rel=1e-9)
    assert alone[1] == pytest.approx(
        np.mean([crps_of_cdf(stats.gamma(2.0).cdf, t, 0, 60) for t in y.exp().numpy()]), rel=0.03
    )
    assert score_of("crps", sites) == pytest.approx(sum(alone), rel=1e-12)
    probs, labels = torch.rand(8), torch.randint(2, (8,)).double()
    classes = {
        "c": [predicted(dist.Bernoulli(probs), labels)],
        "d": [predicted(dist.Bernoulli(1 - probs), labels)],
    }
    each = [2 * metrics.brier_score_loss(labels, p) for p in (probs, 1 - probs)]
    assert score_of("brier", classes) == pytest.approx(np.mean(each), **CLOSE)
    each = [dumb_ece(two(p), labels, 15) for p in (probs, 1 - probs)]
    assert score_of("ece", classes) == pytest.approx(np.mean(each), **CLOSE)
    cut = {"c": [predicted(dist.Bernoulli(probs[part]), labels[part]) for part in (slice(3), slice(3, 8))]}
    assert score_of("ece", cut) == pytest.approx(each[0], **CLOSE)


def test_objectives_say_which_way_is_better():
    better = {name: score.larger_is_better for name, score in OBJECTIVES.items()}
    assert better == {"log_lik": True, "crps": False, "brier": False, "ece": False}
    good, bad = (predicted(dist.Normal(torch.zeros(20), 1.0), torch.full((20,), shift)) for shift in (0.0, 3.0))
    for name in ("log_lik", "crps"):
        sign = OBJECTIVES[name].sign
        assert sign * score_of(name, {"y": [good]}) > sign * score_of(name, {"y": [bad]})
    good, bad = (predicted(dist.Bernoulli(torch.full((20,), p)), torch.ones(20)) for p in (0.9, 0.2))
    for name in ("log_lik", "brier", "ece"):
        sign = OBJECTIVES[name].sign
        assert sign * score_of(name, {"y": [good]}) > sign * score_of(name, {"y": [bad]})


def test_predictions_of_a_batch_are_what_scores_are_made_of():
    case = programs.softmax()
    predictive = pl.LinearizedPredictive(case.model, fit(case))
    found = predictions_of(predictive, next(iter(pl.data.as_data(case.data))))
    row = scores(predictive, case.data)
    parts = {name: [each] for name, each in found.items()}
    assert score_of("log_lik", parts) == pytest.approx(-row["nll"], **CLOSE)
    assert score_of("brier", parts) == pytest.approx(row["brier"], **CLOSE)
    assert score_of("ece", parts) == pytest.approx(row["ece"], **CLOSE)


@pytest.mark.parametrize("name", ["brier", "ece"])
def test_an_objective_that_numbers_do_not_have(name):
    with pytest.raises(pl.InvalidOption) as error:
        score_of(name, two_sites()[0])
    assert_says(error, f"objective='{name}' is of classes", "'a' has a Normal", "'log_lik' or 'crps'$")


def test_an_objective_that_classes_do_not_have():
    sites = {"y": [predicted(dist.Categorical(torch.full((5, 3), 1 / 3)), torch.arange(5) % 3)]}
    with pytest.raises(pl.InvalidOption) as error:
        score_of("crps", sites)
    assert_says(error, "objective='crps' is of numbers", "'y' has a Categorical", "'log_lik' or 'brier' or 'ece'$")


def test_an_objective_that_there_is_not():
    with pytest.raises(pl.InvalidOption, match="objective='loss' is not one of 'log_lik', 'crps', 'brier', 'ece'"):
        score_of("loss", two_sites()[0])


# --- random numbers, and what is left ----------------------------------------------------------------


def calls():
    case = programs.poisson()
    guide = fit(case)
    pyro.set_rng_seed(3)
    vi = AutoNormal(case.model)
    vi(*case.data)
    return [
        lambda: scores(pl.LinearizedPredictive(case.model, guide, num_samples=20), case.data, num_samples=20),
        lambda: scores(pl.Predictive(case.model, guide=guide, num_samples=20), case.data, num_samples=20),
        lambda: scores(pl.Predictive(case.model, guide=vi, num_samples=20), case.data, num_samples=20),
        lambda: scores(
            pl.LinearizedPredictive(case.model, guide, num_samples=20),
            DataLoader(TensorDataset(*case.data), batch_size=9, shuffle=True),
            num_samples=20,
        ),
    ]


@pytest.mark.parametrize("number", range(4))
def test_scores_are_reproducible_and_leave_the_generators(number):
    call = calls()[number]
    pyro.set_rng_seed(11)
    before = Generators()
    first = call()
    assert before.are_there()
    torch.randn(3)
    assert call().equals(first)


def test_objectives_leave_the_generators():
    sites = two_sites()[0]
    before = Generators()
    first = score_of("crps", sites)
    assert before.are_there()
    torch.randn(3)
    assert score_of("crps", sites) == first


def test_another_number_of_draws_is_another_estimate():
    case = programs.poisson()
    predictive = of_draws(case.model, {"w": torch.zeros(2, 3)})
    many, few = scores(predictive, case.data), scores(predictive, case.data, num_samples=20)
    assert few["nll"] == many["nll"]
    assert few["crps"] != many["crps"]
    assert few["crps"] == pytest.approx(many["crps"], rel=0.2)


def test_the_model_and_the_param_store_are_left_as_they_were():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x, y=None):
            shift = pyro.param("shift", torch.zeros(()))
            w = pyro.sample("w", programs.normal(1.0, 3))
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(self.norm(x) @ w + shift, NOISE), obs=y)

    model, test = Model(), held_out()
    model.norm.running_mean += 0.5
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = scores(of_draws(model.eval(), {"w": torch.randn(4, 3)}), test)
    assert found.notna().all()
    model.train()
    with pytest.raises(pl.UnsupportedProgram, match="norm"):
        scores(of_draws(model, {"w": torch.randn(4, 3)}), test)
    assert model.norm.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert list(pyro.get_param_store().keys()) == []


def test_gradients_are_not_kept():
    case = programs.linear()
    predictive = pl.LinearizedPredictive(case.model, fit(case), differentiable=True)
    exact = pl.LinearizedPredictive(case.model, predictive.guide)
    assert scores(predictive, held_out()).to_dict() == pytest.approx(scores(exact, held_out()).to_dict(), **CLOSE)


def test_single_precision(float64):
    case = programs.softmax()
    draws = {"w": torch.randn(5, 3, 4)}
    expected = scores(of_draws(case.model, draws), case.data)
    x, y = case.data
    torch.set_default_dtype(torch.float32)
    try:
        found = scores(of_draws(case.model, {"w": draws["w"].float()}), (x.float(), y))
    finally:
        torch.set_default_dtype(torch.float64)
    assert found.to_dict() == pytest.approx(expected.to_dict(), rel=1e-4)
    assert found.dtype == float


# --- what is refused -------------------------------------------------------------------------------


def test_other_predictives_are_refused():
    case = programs.linear()
    guide = fit(case)
    for other in (guide, case.model, {"w": torch.randn(3, 3)}):
        with pytest.raises(pl.InvalidOption) as error:
            scores(other, case.data)
        assert_says(error, type(other).__name__, "LinearizedPredictive", "guide=guide", "posterior_samples=")
    with pytest.raises(pl.InvalidOption, match="neither a guide nor posterior_samples"):
        scores(pl.Predictive(case.model, num_samples=10), case.data)


@pytest.mark.parametrize("batches", [False, True])
def test_data_without_observed_values_are_refused(batches):
    case = programs.linear()
    x, y = case.data
    data = [(x, y), (x,)] if batches else (x,)
    draws = {"w": torch.randn(3, 3)}
    for predictive in (pl.LinearizedPredictive(case.model, fit(case)), of_draws(case.model, draws)):
        with pytest.raises(pl.InvalidData) as error:
            scores(predictive, data)
        assert_says(error, "no observed values of 'y'", r"\(x, y\)")


def test_one_site_of_several_without_observed_values_is_refused():
    case = programs.two_likelihoods()
    x, count, _ = case.data
    draws = {"w": torch.randn(3, 3), "sigma": torch.ones(3)}
    for predictive in (pl.LinearizedPredictive(case.model, fit(case)), of_draws(case.model, draws)):
        with pytest.raises(pl.InvalidData, match="no observed values of 'y' to score"):
            scores(predictive, (x, count))


def test_options_and_data_are_checked():
    case = programs.linear()
    predictive = of_draws(case.model, {"w": torch.randn(3, 3)})
    with pytest.raises(pl.InvalidOption, match="num_samples=1: give a whole number from 2 on"):
        scores(predictive, case.data, num_samples=1)
    with pytest.raises(pl.InvalidOption, match="num_bins=0: give a whole number from 1 on"):
        scores(predictive, case.data, num_bins=0)
    with pytest.raises(pl.InvalidData, match="one-shot"):
        scores(predictive, iter(case.batches(9)))
    with pytest.raises(pl.InvalidData, match="no batch"):
        scores(pl.LinearizedPredictive(case.model, fit(case)), [])
    with pytest.raises(pl.UnsupportedProgram, match="'b'"):
        scores(of_draws(case.model, {"w": torch.randn(3, 3), "b": torch.zeros(3)}), case.data)
