"""`tune` against posteriors fitted from scratch at the hyperparameters of each trial, and against closed forms."""

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_says
from evidence.held import put, put_all, store_values
from programs.zoo import generator
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.tuning.search import TrialScore, search_for

# Short searches end where their grid does; what is said of bounds has a test of its own.
pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:the best values of .* lie at a bound"),
]

QUIET = {"progress": False, "on_not_a_mode": "ignore"}


def positive(name: str, value: float | list[float]) -> Tensor:
    return pyro.param(name, torch.tensor(value), constraint=constraints.positive)


def linear(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), positive("std", 1.0)).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, positive("noise", 1.0)), obs=y)


def regression(num_obs: int = 40, num_weights: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    x = torch.randn(num_obs, num_weights, generator=g)
    w = 0.4 * torch.randn(num_weights, generator=generator(1))
    return x, x @ w + 0.7 * torch.randn(num_obs, generator=g)


def halves(data: tuple[Tensor, ...], num_train: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return tuple(each[:num_train] for each in data), tuple(each[num_train:] for each in data)


# --- every trial is a posterior fitted from scratch --------------------------------------------------------


def own(value: float = 0.7) -> Any:
    """A learned scale for each parameter."""
    return pl.nn.Isotropic(pl.nn.learned(value))


def shared() -> Any:
    return pl.nn.Isotropic(pl.nn.learned(0.7, name="std"))


def inputs(*shape: int) -> Tensor:
    return torch.randn(36, *shape, generator=generator(2))


def labels(num_classes: int = 3) -> Tensor:
    return torch.randint(num_classes, (36,), generator=generator(3))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))


def classifier(prior: Callable[[], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    return pl.bayesianize(network(), prior(), pl.nn.Classification()), (inputs(2), labels())


def regressor(prior: Callable[[], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    x = inputs(2)
    y = torch.sin(2 * x[:, :1]) + 0.3 * torch.randn(36, 1, generator=generator(4))
    return pl.bayesianize(net, prior(), pl.nn.Regression(pl.nn.learned(0.6))), (x, y)


def convolution(prior: Callable[[], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    return pl.bayesianize(net, prior(), pl.nn.Classification()), (inputs(1, 6, 6), labels())


def convolution_regressor(prior: Callable[[], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
    y = torch.randn(36, 2, generator=generator(4))
    return pl.bayesianize(net, prior(), pl.nn.Regression(pl.nn.learned(0.6))), (inputs(1, 6), y)


def poisson() -> tuple[Any, tuple[Tensor, ...]]:
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), positive("std", [0.5, 1.0, 1.0])).to_event(1))
        b = pyro.sample("b", dist.Normal(pyro.param("mean", torch.tensor(0.2)), positive("other", 1.0)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson((x @ w + b).exp()), obs=y)

    return model, (inputs(3), torch.poisson(inputs(3)[:, 0].exp(), generator=generator(5)))


def groups_of_noise() -> tuple[Any, tuple[Tensor, ...]]:
    """Noise that takes passes over the data."""

    def model(x, group, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), positive("std", 1.0)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x @ w).sin(), positive("noise", [0.5, 1.0])[group]), obs=y)

    return model, (inputs(3), torch.arange(36) % 2, torch.randn(36, generator=generator(4)))


def two_sites() -> tuple[Any, tuple[Tensor, ...]]:
    """Numbers with noise of their own, and classes that are masked here and there."""

    def model(x, keep, y=None, label=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), positive("std", 1.0)).to_event(2))
        f = x @ w.T
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(f[:, 0], positive("noise", 0.8)), obs=y)
            with pyro.poutine.mask(mask=keep):
                pyro.sample("label", dist.Bernoulli(logits=f.prod(-1)), obs=label)

    y = torch.randn(36, generator=generator(4))
    return model, (inputs(3), torch.arange(36) % 5 != 1, y, labels(2).double())


def latent_noise() -> tuple[Any, tuple[Tensor, ...]]:
    """A scale of the data that is random, below another that is a hyperparameter."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), positive("std", 1.0)).to_event(1))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, positive("width", 0.5)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, sigma * positive("noise", 1.0)), obs=y)

    return model, (inputs(3), inputs(3) @ torch.tensor([1.0, 0.0, -1.0]) + torch.randn(36, generator=generator(4)))


type Made = tuple[Callable[[], tuple[Any, tuple[Tensor, ...]]], dict[str, Any]]

MAPPING = {"0.*": "kron", "2.*": "full"}
CASES: dict[str, Made] = {
    "classes full": (lambda: classifier(own), {}),
    "classes full, inputs apart": (lambda: classifier(lambda: pl.nn.ARD(pl.nn.learned(0.7))), {}),
    "classes kron": (lambda: classifier(own), {"structure": "kron"}),
    "classes kron shared": (lambda: classifier(shared), {"structure": "kron", "objective": "brier"}),
    "classes kron by positions": (lambda: classifier(shared), {"structure": pl.Kron()}),
    "classes diag": (lambda: classifier(own), {"structure": "diag", "objective": "ece"}),
    "classes mapping": (lambda: classifier(own), {"structure": MAPPING, "subset": ["0.weight", "2.*"]}),
    "classes kron, draws": (lambda: classifier(own), {"structure": "kron", "link": "sample"}),
    "classes kron, bridge": (lambda: classifier(own), {"structure": "kron", "link": "bridge"}),
    "classes last layer": (lambda: classifier(own), {"structure": "kron", "subset": "last_layer"}),
    "numbers full": (lambda: regressor(own), {}),
    "numbers full, crps": (lambda: regressor(own), {"objective": "crps"}),
    "numbers empirical": (lambda: regressor(own), {"curvature": "empirical_fisher"}),
    "numbers kron": (lambda: regressor(own), {"structure": "kron"}),
    "numbers last layer": (lambda: regressor(own), {"subset": "last_layer"}),
    "images kron": (lambda: convolution(shared), {"structure": "kron"}),
    "sequences kron": (lambda: convolution_regressor(own), {"structure": "kron", "objective": "crps"}),
    "counts, crps": (poisson, {"objective": "crps"}),
    "numbers low rank": (lambda: regressor(shared), {"structure": pl.LowRank(40)}),
    "noise of groups": (groups_of_noise, {}),
    "two sites": (two_sites, {"curvature": "ggn"}),
    "latent noise": (latent_noise, {}),
}  # fmt: skip

NAMES = {"log_lik": "nll"}


def point_of(model: Any, data: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Some value of each random site, no mode."""
    trace = pyro.poutine.trace(model).get_trace(*data)
    g = generator(7)
    nodes = {name: node for name, node in trace.nodes.items() if node["type"] == "sample" and not node["is_observed"]}
    shapes = {name: node["value"].shape for name, node in nodes.items() if type(node["fn"]).__name__ != "_Subsample"}
    found = {name: 0.5 * torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return {name: value.exp() if name == "sigma" else value for name, value in found.items()}


def score_at(model: Any, data: Any, held: Any, point: Any, options: dict[str, Any], objective: str, link: str) -> float:
    """By a posterior fitted at what the store holds."""
    fit = pl.fit_laplace(model, data, point, polish=False, **options, **QUIET)
    row = pl.scores(pl.LinearizedPredictive(model, fit, link=link), held)
    name = NAMES.get(objective, objective)
    value = sum(number for label, number in row.items() if label == name or label.startswith(f"{name} ("))
    return -float(value)


IN_BATCHES = ("classes kron", "two sites")


@pytest.mark.parametrize(("name", "batches"), [(name, False) for name in CASES] + [(name, True) for name in IN_BATCHES])
def test_a_trial_is_a_posterior_fitted_from_scratch(name, batches):
    make, options = CASES[name]
    model, data = make()
    train, held = halves(data, 24)
    if batches:
        train = [tuple(each[i : i + 8] for each in train) for i in (0, 8, 16)]
        held = [tuple(each[i : i + 6] for each in held) for i in (0, 6)]
    options = dict(options)
    objective, link = options.pop("objective", "log_lik"), options.pop("link", "probit")
    guide = pl.tune(
        model, train, held, map_guide=point_of(model, data), refit=False, trials=14, objective=objective, link=link,
        **options, **QUIET,
    )  # fmt: skip
    path, point = guide.path, guide.median()
    assert path.objective == objective
    assert len(set(path.log_evidence)) > 3
    close = {"rel": 0.03} if name == "counts, crps" else {"rel": 1e-6, "abs": 1e-8}  # by draws of y, other ones
    for trial in (4, len(path.log_evidence) - 1):
        put_all({each: values[trial] for each, values in path.values.items()})
        expected = score_at(model, train, held, point, options, objective, link)
        assert path.log_evidence[trial] == pytest.approx(expected, **close)
    put_all(guide.hyperparameters)
    again = pl.fit_laplace(model, train, point, polish=False, **options, **QUIET)
    assert guide.log_evidence == pytest.approx(again.log_evidence, rel=1e-8)


# --- the mode follows the prior ---------------------------------------------------------------------------------


def predictive(train: tuple[Tensor, ...], x: Tensor, std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of y at x, in closed form."""
    inner, y = train
    precision = inner.T @ inner / noise**2 + torch.eye(x.shape[1]) / std**2
    mean = torch.linalg.solve(precision, inner.T @ y / noise**2)
    return x @ mean, (x @ torch.linalg.inv(precision) * x).sum(1) + noise**2


@pytest.mark.parametrize("structure", ["full", "kron", pl.LowRank(6)], ids=str)
def test_trials_at_the_mode_of_each_prior_are_exact(structure):
    train, held = halves(regression(60), 40)
    point = {"w": torch.randn(6, generator=generator(4))}
    guide = pl.tune(linear, train, held, map_guide=point, refit=True, structure=structure, progress=False)
    path = guide.path
    for trial in range(0, len(path.log_evidence), 3):
        mean, var = predictive(train, held[0], path.values["std"][trial], path.values["noise"][trial])
        exact = dist.Normal(mean, var.sqrt()).log_prob(held[1]).mean().item()
        assert path.log_evidence[trial] == pytest.approx(exact, rel=1e-8)
    assert guide.mode.is_mode
    mean, var = predictive(train, held[0], *(guide.hyperparameters[name] for name in ("std", "noise")))
    found = pl.LinearizedPredictive(linear, guide)(held[0])["y"]
    assert_close(found.mean, mean, rtol=1e-6, atol=1e-8)
    assert_close(found.variance, var, rtol=1e-6, atol=1e-8)


def test_the_mode_is_found_again():
    model, data = classifier(own)
    train, held = halves(data, 24)
    guide = pl.tune(model, train, held, refit="auto", trials=12, progress=False)
    assert guide.mode.is_mode
    again = pl.fit_laplace(model, train, guide.median(), polish=True, progress=False)
    assert again.log_evidence == pytest.approx(guide.log_evidence, rel=1e-6)


def test_the_mode_is_left():
    model, data = classifier(own)
    train, held = halves(data, 24)
    point = point_of(model, data)
    with pytest.warns(pl.NotAModeWarning, match="refit=True"):
        guide = pl.tune(model, train, held, map_guide=point, refit=False, trials=6, progress=False)
    assert all(torch.equal(value, guide.median()[name]) for name, value in point.items())
    with pytest.raises(pl.NotAMode):
        pl.tune(
            model, train, held, map_guide=point, refit=False, trials=6, on_not_a_mode="raise", progress=False
        )  # fmt: skip


# --- which trial is chosen ---------------------------------------------------------------------------------------


def score_of_result(guide: Any) -> float:
    """Of the trial whose hyperparameters the guide has."""
    path = guide.path
    same = [
        all(torch.equal(values[trial], guide.hyperparameters[name]) for name, values in path.values.items())
        for trial in range(len(path.log_evidence))
    ]
    return path.log_evidence[same.index(True)]


@pytest.mark.parametrize(("objective", "trials"), [("log_lik", 1), ("log_lik", 5), ("brier", 13), ("ece", 30)])
def test_the_best_of_any_number_of_trials(objective, trials):
    model, data = classifier(own)
    train, held = halves(data, 24)
    guide = pl.tune(
        model, train, held, map_guide=point_of(model, data), refit=False, trials=trials, objective=objective, **QUIET
    )
    scores = guide.path.log_evidence
    assert len(scores) <= trials
    assert score_of_result(guide) >= scores[0]
    line = max(scores[: max(1, 1 + (trials - 1) * 2 // 3)])
    if trials <= 5:  # all of them on the line
        line = max(scores)
    assert score_of_result(guide) >= line - pl.settings.tune_plateau


def test_of_one_scale_the_best_trial_is_chosen():
    """With noise known: no other direction than the line."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), positive("std", 30.0)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)

    train, held = halves(regression(60, seed=2), 10)
    guide = pl.tune(model, train, held, progress=False)
    assert score_of_result(guide) == pytest.approx(max(guide.path.log_evidence), abs=3e-2)
    assert score_of_result(guide) > guide.path.log_evidence[0] + 0.05
    grid = torch.logspace(-2, 1.5, 300)
    exact = [
        dist.Normal(mean, var.sqrt()).log_prob(held[1]).mean().item()
        for mean, var in (predictive(train, held[0], std, torch.tensor(0.7)) for std in grid)
    ]
    assert score_of_result(guide) == pytest.approx(max(exact), abs=5e-3)


def test_crps_is_better_where_it_is_less():
    train, held = halves(regression(60), 40)
    linear(*train)
    put(std=1.0, noise=20.0)
    guide = pl.tune(linear, train, held, objective="crps", progress=False)
    row = pl.scores(pl.LinearizedPredictive(linear, guide), held)
    assert row["crps"] == pytest.approx(-score_of_result(guide), rel=1e-6)
    assert row["crps"] < 0.6 * -guide.path.log_evidence[0]


def test_an_objective_of_ones_own():
    train, held = halves(regression(60), 40)
    seen = []

    def sharpness(predictions):
        """Of data that are near: the narrowest is best."""
        seen.append(predictions)
        return -sum(float(each.distribution.stddev.mean()) for each in predictions["y"])

    batches = [tuple(each[:8] for each in held), tuple(each[8:] for each in held)]
    guide = pl.tune(linear, train, batches, objective=sharpness, progress=False)
    assert guide.path.objective == "sharpness"
    assert guide.hyperparameters["noise"] < 0.2
    assert len(seen) == len(guide.path.log_evidence)
    first = seen[0]
    assert list(first) == ["y"]
    assert_close(torch.cat([each.observed for each in first["y"]]), held[1], rtol=0, atol=0)
    assert all(bool(each.counted.all()) for each in first["y"])
    assert guide.path.log_evidence[0] == -sum(float(each.distribution.stddev.mean()) for each in first["y"])


def test_an_objective_that_is_not_finite_loses():
    train, held = halves(regression(60), 40)

    def of_narrow(predictions):
        value = float(predictions["y"][0].log_prob.mean())
        return value if predictions["y"][0].distribution.stddev.mean() < 1.0 else math.nan

    linear(*train)
    put(std=1.0, noise=0.8)
    guide = pl.tune(linear, train, held, objective=of_narrow, progress=False)
    assert math.isfinite(score_of_result(guide))


def test_one_search_is_like_the_other():
    train, held = halves(regression(60), 40)
    first, second = (pl.tune(linear, train, held, keep=False, progress=False) for _ in range(2))
    assert first.path.log_evidence == pytest.approx(second.path.log_evidence, rel=1e-10)
    assert_close(first.theta, second.theta, rtol=1e-8, atol=1e-10)


# the search itself, of a function that is known


def search(fn: Callable[[Tensor], TrialScore | float], size: int, trials: int, line: Tensor | None = None) -> Any:
    def scored(flat: Tensor) -> TrialScore:
        value = fn(flat)
        return value if isinstance(value, TrialScore) else TrialScore(float(value))

    edge = torch.full((size,), 6.0)
    line = torch.ones(size) if line is None else line
    return search_for(scored, torch.zeros(size), line, [list(torch.eye(size))], (-edge, edge), trials)


def test_the_search_finds_a_top_off_the_line():
    top = torch.tensor([2.0, -1.0])
    found = search(lambda flat: -(flat - top).square().sum(), 2, 120)
    assert_close(found.vector, top, rtol=0, atol=0.1)
    assert len(found.steps) <= 120


@pytest.mark.parametrize("trials", range(1, 12))
def test_the_search_returns_the_best_on_the_line_however_few_trials(trials):
    found = search(lambda flat: -(flat - 4.0).square().sum(), 1, trials)
    values = [each.value for each in found.scores]
    assert found.scores[found.best].value == max(values)
    assert len(values) <= trials


@pytest.mark.parametrize("after", [1, 4, 14, 18])
def test_an_interrupted_search_returns_the_best_on_the_line(after):
    calls = []

    def fn(flat: Tensor) -> Tensor:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(flat)
        return -(flat - 4.0).square().sum()

    found = search(fn, 1, 30)
    assert found.interrupted
    assert len(found.steps) == after
    assert found.scores[found.best].value == max(each.value for each in found.scores)


def test_a_step_must_beat_chance():
    """By more than the standard error of the difference, where that is known; and not on a plateau."""
    noise = torch.randn(20, generator=generator())

    def known(flat: Tensor, factor: float) -> TrialScore:
        by_datum = 0.01 * flat[0] + factor * flat[0] * noise
        return TrialScore(float(by_datum.mean()), by_datum)

    line = torch.zeros(1)
    noise -= noise.mean()
    assert search(lambda flat: known(flat, 1.0), 1, 12, line).best == 0
    assert search(lambda flat: known(flat, 0.01), 1, 12, line).best > 0
    assert search(lambda flat: 1e-7 * flat[0], 1, 12).best == 0


def test_the_search_stays_in_its_box():
    found = search(lambda flat: flat.sum(), 2, 40)
    assert all(bool((step.abs() <= 6.0).all()) for step in found.steps)
    assert_close(found.vector, torch.full((2,), 6.0), rtol=0, atol=0.05)


# --- what a trial costs ------------------------------------------------------------------------------------------


def counting(model: Any, num_rows: int) -> tuple[Callable, list[int]]:
    """The program, and the number of its calls with all training rows."""
    calls = [0]

    def counted(x, *rest):
        calls[0] += len(x) == num_rows
        return model(x, *rest)

    return counted, calls


def many(num_obs: int = 200) -> tuple[Any, tuple[Tensor, ...]]:
    model, _ = classifier(own)
    x = torch.randn(num_obs, 2, generator=generator(2))
    return model, (x, torch.randint(3, (num_obs,), generator=generator(3)))


COSTS = {
    "classes kron": (many, {"structure": "kron"}),
    "noise full": (lambda: (linear, regression(200)), {}),
}
CUT = {"cut_bytes": 1, "cut_rows": 16}  # else few data are their own few rows


@pytest.mark.parametrize("name", COSTS)
def test_more_trials_take_no_more_passes(name):
    make, options = COSTS[name]
    model, data = make()
    train, held = halves(data, 160)
    point, found = point_of(model, data), []
    for trials in (5, 25):
        counted, calls = counting(model, 160)
        with pl.settings.using(**CUT):
            guide = pl.tune(
                counted, train, held, map_guide=point, refit=False, trials=trials, keep=False, **options, **QUIET
            )
        assert len(guide.path.log_evidence) == trials
        found.append(calls[0])
    assert found[0] == found[1]


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("name", COSTS)
def test_no_trial_runs_the_program_on_the_training_rows(name, refit):
    make, options = COSTS[name]
    model, data = make()
    train, held = halves(data, 160)
    counted, calls = counting(model, 160)
    found = []

    def objective(predictions):
        found.append(calls[0])
        return sum(float(each.log_prob.mean()) for parts in predictions.values() for each in parts)

    point = point_of(model, data)
    with pl.settings.using(**CUT):
        pl.tune(counted, train, held, map_guide=point, refit=refit, objective=objective, **options, **QUIET)
    assert len(found) == 30
    assert len(set(found)) == 1


# --- what the user is told ---------------------------------------------------------------------------------------


def test_it_says_by_how_much_the_score_improved(capsys):
    train, held = halves(regression(60), 40)
    linear(*train)
    put(std=1.0, noise=20.0)
    guide = pl.tune(linear, train, held)
    told = re.search(r"tune: log_lik (-?[\d.]+) to (-?[\d.]+) on held-out data, 30 trials", capsys.readouterr().err)
    assert told is not None
    assert float(told[1]) == pytest.approx(guide.path.log_evidence[0], rel=1e-3)
    assert float(told[2]) == pytest.approx(score_of_result(guide), rel=1e-3)


def test_it_tells_a_loss_as_a_loss(capsys):
    train, held = halves(regression(60), 40)
    linear(*train)
    put(std=1.0, noise=20.0)
    guide = pl.tune(linear, train, held, objective="crps")
    told = re.search(r"tune: crps ([\d.]+) to ([\d.]+) on held-out data", capsys.readouterr().err)
    assert told is not None
    assert float(told[1]) == pytest.approx(-guide.path.log_evidence[0], rel=1e-3)
    assert float(told[2]) < float(told[1])


def test_it_says_that_nothing_was_better(capsys):
    train, held = halves(regression(60), 40)
    guide = pl.tune(linear, train, held, trials=1)
    told = re.search(r"tune: log_lik stays at (-?[\d.]+)", capsys.readouterr().err)
    assert told is not None
    assert float(told[1]) == pytest.approx(guide.path.log_evidence[0], rel=1e-3)


@pytest.mark.parametrize("split", [True, False])
def test_without_progress_it_is_silent(capsys, split):
    train, held = halves(regression(60), 40)
    pl.tune(linear, train, None if split else held, progress=False)
    told = capsys.readouterr()
    assert told.out == told.err == ""


def test_a_bound_is_told_of():
    train, held = halves(regression(60), 40)
    linear(*train)
    put(std=0.2, noise=20.0)
    with pl.settings.using(tune_range=3.0), pytest.warns(pl.LaplaceWarning, match="bound") as told:
        guide = pl.tune(linear, train, held, progress=False)
    assert guide.hyperparameters["noise"].item() == pytest.approx(20.0 / 3, rel=1e-9)
    (message,) = [str(each.message) for each in told]
    assert "noise" in message
    assert "tune_range=30" in message
    assert "std" not in message


def test_an_interrupt_leaves_the_best_so_far():
    train, held = halves(regression(60), 40)
    for after in (6, 25):
        pyro.clear_param_store()
        linear(*train)
        put(std=30.0, noise=1.0)
        seen = []

        def objective(predictions, after=after, seen=seen):
            if len(seen) == after:
                raise KeyboardInterrupt
            seen.append(float(predictions["y"][0].log_prob.mean()))
            return seen[-1]

        with pytest.warns(pl.LaplaceWarning, match=f"interrupted after {after} trials.*best so far"):
            guide = pl.tune(linear, train, held, objective=objective, progress=False)
        assert list(guide.path.log_evidence) == seen
        assert score_of_result(guide) == pytest.approx(max(seen), abs=2 * pl.settings.tune_plateau)
        assert_close(store_values(), dict(guide.hyperparameters), rtol=1e-12, atol=0)


def test_an_interrupt_before_the_first_score():
    train, held = halves(regression(60), 40)
    linear(*train)
    before = store_values()

    def objective(predictions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pl.tune(linear, train, held, objective=objective, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in store_values().items())


# --- the store ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [True, False])
def test_keep(split):
    train, held = halves(regression(60), 40)
    held = None if split else held
    linear(*train)
    put(std=2.0, noise=3.0)
    pyro.param("unrelated", torch.tensor(3.0))
    before, free = store_values(), pyro.param("noise").unconstrained()
    lost = pl.tune(linear, train, held, keep=False, trials=6, progress=False)
    after = store_values()
    assert list(after) == list(before)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not lost.path.kept
    kept = pl.tune(linear, train, held, trials=6, progress=False)
    assert kept.path.kept
    assert pyro.param("noise").unconstrained() is free
    for name in ("std", "noise"):
        assert pyro.param(name).item() == pytest.approx(kept.hyperparameters[name].item(), rel=1e-12)
        assert kept.hyperparameters[name].item() == pytest.approx(lost.hyperparameters[name].item(), rel=1e-10)
    assert pyro.param("unrelated").item() == 3.0
    own = pl.log_evidence(linear, kept, train, progress=False)
    assert own.value.item() == pytest.approx(kept.log_evidence, rel=1e-8)


@pytest.mark.parametrize("split", [True, False])
def test_without_keep_a_store_that_was_empty_is_empty(split):
    train, held = halves(regression(60), 40)
    held = None if split else held
    pl.tune(linear, train, held, keep=False, trials=6, progress=False)
    assert not list(pyro.get_param_store().keys())
    pl.tune(linear, train, held, trials=6, progress=False)
    assert set(pyro.get_param_store().keys()) == {"std", "noise"}


def test_the_random_state_is_left():
    train, held = halves(regression(60), 40)
    state = torch.get_rng_state()
    pl.tune(linear, train, held, map_guide={"w": torch.zeros(6)}, trials=6, progress=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_params_are_written_where_they_are_read(param_mode):
    class Program(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.std = pyro.nn.PyroParam(torch.tensor(9.0), constraints.positive)
            self.noise = pyro.nn.PyroParam(torch.tensor(4.0), constraints.positive)

        def forward(self, x, y=None):
            w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), self.std).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(x @ w, self.noise), obs=y)

    train, held = halves(regression(60), 40)
    model = Program()
    lost = pl.tune(model, train, held, keep=False, trials=6, progress=False)
    assert (model.std.item(), model.noise.item()) == (pytest.approx(9.0), pytest.approx(4.0))
    kept = pl.tune(model, train, held, trials=6, progress=False)
    assert kept.hyperparameters["noise"].item() == pytest.approx(lost.hyperparameters["noise"].item(), rel=1e-10)
    assert model.noise.item() == pytest.approx(kept.hyperparameters["noise"].item(), rel=1e-12)
    assert model.std.item() == pytest.approx(kept.hyperparameters["std"].item(), rel=1e-12)
    split = pl.tune(model, train, trials=6, progress=False)
    assert model.noise.item() == pytest.approx(split.hyperparameters["noise"].item(), rel=1e-12)


def test_the_store_keeps_its_dtype():
    train, held = halves(tuple(each.float() for each in regression(60)), 40)

    def model(x, y=None):
        std = pyro.param("std", torch.tensor(9.0, dtype=torch.float32), constraint=constraints.positive)
        w = pyro.sample("w", dist.Normal(torch.zeros(6, dtype=torch.float32), std).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, torch.tensor(0.7, dtype=torch.float32)), obs=y)

    guide = pl.tune(model, train, held, progress=False)
    assert guide.hyperparameters["std"].dtype == pyro.param("std").dtype == torch.float32
    data, std = tuple(each.double() for each in train), guide.hyperparameters["std"].double()
    mean, var = predictive(data, held[0].double(), std, torch.tensor(0.7))
    exact = dist.Normal(mean, var.sqrt()).log_prob(held[1].double()).mean().item()
    assert score_of_result(guide) == pytest.approx(exact, rel=1e-4)


# --- subsets ------------------------------------------------------------------------------------------------------


def test_hyperparameters_of_held_sites_are_left_out():
    model, data = classifier(own)
    train, held = halves(data, 24)
    for subset, names in (
        ("last_layer", {"2.weight.scale", "2.bias.scale"}),
        (["0.weight", "2.bias"], {"0.weight.scale", "2.bias.scale"}),
    ):
        before = dict.fromkeys(("0.weight.scale", "0.bias.scale", "2.weight.scale", "2.bias.scale"), 0.7)
        guide = pl.tune(model, train, held, map_guide=point_of(model, data), refit=False, subset=subset, **QUIET)
        assert guide.path.values.keys() == names
        held_ones = before.keys() - names
        assert all(pyro.param(name).item() == pytest.approx(0.7, rel=1e-12) for name in held_ones)
        pyro.clear_param_store()


def test_hyperparameters_that_are_named():
    train, held = halves(regression(60), 40)
    linear(*train)
    put(std=2.0, noise=3.0)
    guide = pl.tune(linear, train, held, hyperparameters="n*", progress=False)
    assert list(guide.path.values) == ["noise"]
    assert pyro.param("std").item() == pytest.approx(2.0, rel=1e-14)
    assert score_of_result(guide) > guide.path.log_evidence[0]


# --- bad input ------------------------------------------------------------------------------------------------------


def fixed(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


BAD: dict[str, tuple[Callable, dict[str, Any], tuple[str, ...]]] = {
    "none": (fixed, {}, ("found none", "pyro.param", "learned")),
    "no match": (linear, {"hyperparameters": "sdt"}, ("'sdt'", "matches none", "'std', 'noise'")),
    "objective": (linear, {"objective": "nll"}, ("objective", "nll", "log_lik", "crps", "brier", "ece")),
    "objective of classes": (linear, {"objective": "brier"}, ("brier", "'y'", "Normal", "log_lik")),
    "link": (linear, {"link": "logit"}, ("link", "logit", "probit")),
    "refit": (linear, {"refit": "linearized"}, ("refit", "linearized")),
    "trials": (linear, {"trials": 0}, ("trials=0",)),
    "structure": (linear, {"structure": "krno"}, ("structure", "krno")),
    "curvature": (linear, {"curvature": "gnn"}, ("curvature", "gnn")),
    "subset": (linear, {"subset": "v"}, ("'v'", "matches none")),
    "on_not_a_mode": (linear, {"on_not_a_mode": "print"}, ("on_not_a_mode", "print")),
    "map_guide": (linear, {"map_guide": 3}, ("map_guide", "int")),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name):
    model, options, words = BAD[name]
    train, held = halves(regression(60), 40)
    model(*train)
    if "std" in pyro.get_param_store():
        put(std=1.3, noise=0.4)
    before = store_values()
    with pytest.raises(pl.InvalidOption) as error:
        pl.tune(model, train, held, **options, progress=False)
    assert_says(error, *words)
    after = store_values()
    assert list(after) == list(before)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_classes_have_no_crps():
    model, data = classifier(own)
    train, held = halves(data, 24)
    with pytest.raises(pl.InvalidOption) as error:
        pl.tune(model, train, held, map_guide=point_of(model, data), objective="crps", progress=False)
    assert_says(error, "crps", "Categorical", "log_lik|brier")


def test_validation_data_without_observed_values():
    train, held = halves(regression(60), 40)
    with pytest.raises(pl.InvalidData) as error:
        pl.tune(linear, train, held[:1], progress=False)
    assert_says(error, "'y'", "validation")
    assert not list(pyro.get_param_store().keys())


def test_no_validation_data():
    train, _ = halves(regression(60), 40)
    with pytest.raises(pl.InvalidData, match="no batch"):
        pl.tune(linear, train, [], progress=False)


class Broken(Exception):
    """What a program or an objective raises."""


def raising_after(calls: int) -> Callable:
    left = [calls]

    def model(x, y=None):
        left[0] -= 1
        if left[0] < 0:
            raise Broken("halfway")
        return linear(x, y)

    return model


@pytest.mark.parametrize(("calls", "split"), [(0, True), (5, False), (20, True), (60, False), (100, True)])
def test_an_exception_halfway(calls, split):
    train, held = halves(regression(60), 40)
    linear(*train)
    put(std=1.3, noise=0.4)
    pyro.param("unrelated", torch.tensor(3.0))
    before = store_values()
    with pytest.raises(Broken):
        pl.tune(raising_after(calls), train, None if split else held, progress=False)
    assert list(store_values()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in store_values().items())


@pytest.mark.parametrize("split", [True, False])
def test_an_exception_of_the_objective(split):
    train, held = halves(regression(60), 40)
    linear(*train)
    before, seen = store_values(), []

    def objective(predictions):
        seen.append(1)
        if len(seen) == 4:
            raise Broken("halfway")
        return 0.0

    with pytest.raises(Broken):
        pl.tune(linear, train, None if split else held, objective=objective, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in store_values().items())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_validation_data_that_are_not_finite(bad):
    train, held = halves(regression(60), 40)
    held[1][3] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(pl.InvalidData) as error:
            pl.tune(linear, train, held, progress=False)
    assert_says(error, "'y'", "nan|inf|not finite")
