"""The columns of `compare` that others have not: each recomputed from draws, by scikit-learn and by loops."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles.datatrees import NOISE, fit
from programs import zoo as programs
from scipy import stats
from sklearn import metrics

import pyro_laplace as pl


@pytest.fixture(autouse=True)
def double(float64):
    """Everything here is compared with closed forms."""


def compared(case, draws, test, **options):
    given = {"draws": draws} if isinstance(next(iter(draws.values())), torch.Tensor) else draws
    return pl.compare(case.model, given, case.data, test, progress=False, **options)


def test_scores_of_classes_by_scikit_learn():
    case = programs.softmax()
    draws = {"w": torch.randn(9, 3, 4)}
    x, y = torch.randn(70, 3), torch.randint(4, (70,))
    row = compared(case, draws, (x, y)).loc["draws"]
    probs = torch.stack([torch.softmax(x @ w, -1) for w in draws["w"]]).mean(0).numpy()
    labels = y.numpy()
    assert -row["test_lpd"] == pytest.approx(metrics.log_loss(labels, probs, labels=range(4)), rel=1e-9)
    assert row["brier"] == pytest.approx(((probs - np.eye(4)[labels]) ** 2).sum(1).mean(), rel=1e-12)
    assert row["auroc"] == pytest.approx(metrics.roc_auc_score(labels, probs, multi_class="ovr"), rel=1e-12)
    assert row["accuracy"] == metrics.accuracy_score(labels, probs.argmax(1))
    error, confidence = 0.0, probs.max(1)
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            error += abs((probs.argmax(1) == labels)[inside].mean() - confidence[inside].mean()) * inside.mean()
    assert row["ece"] == pytest.approx(error, rel=1e-9)


def test_brier_of_two_classes_by_scikit_learn():
    case = programs.logistic()
    draws = {"w": torch.randn(9, 3), "b": torch.randn(9)}
    row = compared(case, draws, case.data).loc["draws"]
    x, y = case.data
    probs = torch.sigmoid(draws["w"] @ x.T + draws["b"][:, None]).mean(0)
    assert row["brier"] == pytest.approx(2 * metrics.brier_score_loss(y, probs), rel=1e-12)
    assert row["auroc"] == pytest.approx(metrics.roc_auc_score(y, probs), rel=1e-12)


def normal_crps(mean, std, y):
    z = (y - mean) / std
    return std * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))


@pytest.mark.statistical
def test_intervals_and_crps_of_numbers():
    """A point's are closed forms; those of many equal draws are the same but for Monte Carlo error."""
    case = programs.linear()
    w = torch.randn(3)
    x = torch.randn(100, 3)
    y = x @ w + NOISE * torch.randn(100)
    draws = {"point": {"w": w[None]}, "equal": {"w": w.expand(6000, 3)}}
    table = compared(case, draws, (x, y), levels=(0.3, 0.8))
    mean = (x @ w).numpy()
    for name, close in (("point", {"rel": 1e-9}), ("equal", {"rel": 0.02})):
        row = table.loc[name]
        assert row["crps"] == pytest.approx(normal_crps(mean, NOISE, y.numpy()).mean(), **close)
        for level in (0.3, 0.8):
            half = stats.norm.ppf((1 + level) / 2) * NOISE
            assert row[f"width_{100 * level:.0f}"] == pytest.approx(2 * half, **close)
            inside = (np.abs(y.numpy() - mean) <= half).mean()
            assert row[f"coverage_{100 * level:.0f}"] == pytest.approx(inside, abs=0.0 if name == "point" else 0.03)
    assert "coverage_90" not in table


def test_uncertainty_of_other_data():
    """By entropy of classes and by variance of numbers, against scikit-learn; observed values are not needed."""
    case = programs.softmax()
    draws = {"w": torch.randn(9, 3, 4)}
    x, other = torch.randn(40, 3), 0.2 * torch.randn(30, 3)
    y = torch.randint(4, (40,))
    row = compared(case, draws, (x, y), ood_data=(other,)).loc["draws"]
    probs = [torch.stack([torch.softmax(each @ w, -1) for w in draws["w"]]).mean(0).numpy() for each in (x, other)]
    scores = np.concatenate([stats.entropy(each, axis=1) for each in probs])
    assert row["ood_auroc"] == pytest.approx(metrics.roc_auc_score([0] * 40 + [1] * 30, scores), rel=1e-12)

    case, other = programs.linear(), 3 * torch.randn(30, 3)
    draws = {"spread": {"w": torch.randn(50, 3)}, "point": {"w": torch.randn(1, 3)}}
    test = x, x @ torch.randn(3)
    table = compared(case, draws, test, ood_data=[(other[:10],), (other[10:],)])
    variances = [(each @ draws["spread"]["w"].T).var(1, correction=0) for each in (x, other)]
    right = metrics.roc_auc_score([0] * 40 + [1] * 30, torch.cat(variances))
    assert table.loc["spread", "ood_auroc"] == pytest.approx(right, rel=1e-12)
    assert table.loc["point", "ood_auroc"] == 0.5  # one noise everywhere


@pytest.mark.statistical
def test_distance_to_a_reference():
    case = programs.softmax()
    draws = {"one": {"w": torch.randn(5, 3, 4)}, "other": {"w": torch.randn(8, 3, 4)}}
    x, y = torch.randn(30, 3), torch.randint(4, (30,))
    table = compared(case, draws, (x, y), reference="other")
    one, other = (torch.stack([torch.softmax(x @ w, -1) for w in each["w"]]).mean(0) for each in draws.values())
    assert table.loc["one", "distance"] == pytest.approx(float((one - other).abs().sum(-1).mean() / 2), rel=1e-12)
    assert table.loc["other", "distance"] == 0
    case = programs.linear()
    points = {"one": {"w": torch.zeros(1, 3)}, "other": {"w": torch.tensor([[0.0, 2.0, 0.0]])}}
    table = compared(case, points, (x, x[:, 1]), reference="one")
    assert table.loc["other", "distance"] == pytest.approx(2 * float(x[:, 1].abs().mean()), rel=1e-9)


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_a_density_alone_leaves_the_other_columns_empty(kind):
    """A mixture over a discrete site that is summed out: each column is there, and says why it has no number."""

    def model(y=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        with pyro.plate("data", 20):
            part = pyro.sample("part", dist.Categorical(torch.tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
            likelihood = dist.Normal(loc[part], 1.0) if kind == "numbers" else dist.Bernoulli(logits=loc[part])
            return pyro.sample("y", likelihood, obs=y)

    y, draws = torch.randint(2, (20,)).double(), {"loc": torch.randn(40, 2)}
    posteriors = {"one": draws, "other": {"loc": draws["loc"] + 1}}
    options = {"reference": "one", "levels": (0.8,), "progress": False}
    table = pl.compare(model, posteriors, (y,), (y,), ood_data=(y,), **options)
    scored = ["rmse", "crps", "coverage_80", "width_80"] if kind == "numbers" else ["accuracy", "brier", "ece", "auroc"]
    for column in (*scored, "ood_auroc", "distance"):
        assert table[column].isna().all()
        assert set(table.attrs["notes"][column]) == {"one", "other"}
        assert "'y' depends on discrete sites that are summed out" in table.attrs["notes"][column]["one"]
    parts = stats.norm(draws["loc"][:, None], 1.0).pdf(y[:, None])
    if kind == "numbers":
        assert table.loc["one", "test_lpd"] == pytest.approx(np.log((parts @ [0.4, 0.6]).mean(0)).mean(), rel=1e-9)


def test_what_is_known_of_how_long_it_took_and_whether_it_is_right():
    case = programs.linear()
    guide = fit(case)
    posteriors = {"laplace": guide, "draws": guide.sample_posterior(40)}
    table = pl.compare(
        case.model, posteriors, case.data, fit_seconds={"draws": 3.5}, diagnose=True, num_samples=50, progress=False
    )
    assert table.loc["draws", "seconds"] == 3.5
    assert table.loc["laplace", "verdict"] == "trusted"
    assert table["verdict"].isna().tolist() == [False, True]
    notes = table.attrs["notes"]
    assert "no density" in notes["verdict"]["draws"]
    assert notes["pareto_k_max"] == {"laplace": "the closed form has no weights, and no k"}
    assert "seconds" not in notes
    assert table["weight"].sum() == pytest.approx(1)


def test_stacking_weights_are_those_of_the_best_mixture():
    case = programs.linear()
    guide = fit(case)
    wrong = {"w": guide.sample_posterior(200)["w"] + 1.0}
    table = pl.compare(case.model, {"right": guide, "wrong": wrong}, case.data, num_samples=200, progress=False)
    assert table.loc["right", "weight"] > 0.95


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"reference": "nuts"}, "reference='nuts' is none of the posteriors"),
        ({"levels": (0.5, 1.0)}, "between 0 and 1"),
        ({"levels": (0.5, 90.0)}, "between 0 and 1"),
        ({"method": "waic"}, "method='waic' is not one of"),
        ({"fit_seconds": {"vi": 1.0}}, r"fit_seconds has \['vi'\]"),
    ],
)
def test_options_are_checked(options, match):
    case = programs.linear()
    with pytest.raises(pl.InvalidOption, match=match):
        compared(case, {"w": torch.randn(3, 3)}, case.data, **options)


def test_what_is_about_held_out_data_needs_some():
    case = programs.linear()
    for option in ({"reference": "draws"}, {"ood_data": case.data}):
        with pytest.raises(pl.InvalidOption, match="give test_data too"):
            compared(case, {"w": torch.randn(3, 3)}, None, **option)


@pytest.mark.parametrize("budget", [2**28, 6000])
def test_memory_is_that_of_the_budget(budget, monkeypatch):
    """Of a chunk of data no more is held at all draws than it allows; the numbers are the same."""
    from pyro_laplace.scores.drawn import Mixture

    case = programs.softmax()
    draws = {"w": torch.randn(40, 3, 4)}
    widths = []
    before = Mixture.log_lik_of

    def watched(self, chunk, what=None):
        found = before(self, chunk, what)
        widths.append(found.shape[1])
        return found

    monkeypatch.setattr(Mixture, "log_lik_of", watched)
    row = compared(case, draws, case.data).loc["draws"]
    whole, widths[:] = row, []
    with pl.settings.using(chunk_bytes=budget, cut_bytes=1, cut_rows=4):
        found = compared(case, draws, case.data, num_samples=40).loc["draws"]
    for column in ("elpd_loo", "elpd_se", "pareto_k_max", "test_lpd", "brier", "auroc"):
        assert found[column] == pytest.approx(whole[column], rel=1e-9)
    assert (max(widths) < len(case.data[0])) == (budget < 2**20)


def test_a_pyro_mode_of_local_params_makes_no_difference():
    case = programs.linear()
    with pyro.settings.context(module_local_params=True):
        guide = pl.fit_svi(
            case.model, case.data, pyro.infer.autoguide.AutoNormal(case.model), num_steps=20, progress=False
        )
        table = pl.compare(case.model, {"vi": guide}, case.data, num_samples=50, progress=False)
    assert math.isfinite(table.loc["vi", "khat"])
