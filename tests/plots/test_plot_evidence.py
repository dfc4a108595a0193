"""`plots.evidence`: the search for hyperparameters, of `maximize_evidence` and of `tune`."""

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_says
from matplotlib import pyplot
from matplotlib.figure import Figure
from programs.zoo import generator
from pyro.distributions import constraints

import pyro_laplace as pl

pytestmark = pytest.mark.filterwarnings("ignore:the best values of")


@pytest.fixture(autouse=True)
def no_pyplot_figures(float64):
    pyplot.switch_backend("Agg")
    yield
    assert not pyplot.get_fignums()


def model(x, y=None):
    """A vector of scales, a location without a constraint, and noise."""
    std = pyro.param("std", torch.ones(3), constraint=constraints.positive)
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    w = pyro.sample("w", dist.Normal(torch.zeros(3), std).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, noise), obs=y)


def with_mean(x, y=None):
    mean = pyro.param("mean", torch.tensor(-0.5))
    std = pyro.param("std", torch.tensor(1.0), constraint=constraints.positive)
    w = pyro.sample("w", dist.Normal(mean, std).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)


def data():
    g = generator()
    x = torch.randn(40, 3, generator=g)
    return x, x @ torch.tensor([1.0, 0.5, -0.4]) + 0.7 * torch.randn(40, generator=g)


def lines(axes) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]


def names(axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def assert_shows_the_values(axes, path) -> None:
    numbers = {name: value.reshape(len(value), -1).T.numpy() for name, value in path.values.items()}
    expected = [entry for value in numbers.values() for entry in value]
    drawn = lines(axes)
    assert len(drawn) == len(expected)
    for one, other in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert names(axes) == list(path.values)
    colors = {line.get_color() for line in axes.get_lines()}
    assert len(colors) == len(path.values)


def test_of_maximize_evidence(tmp_path):
    guide = pl.maximize_evidence(model, data(), progress=False)
    figure = pl.plots.evidence(guide)
    assert isinstance(figure, Figure)
    left, right = figure.axes
    climb, modes = lines(left)
    np.testing.assert_array_equal(climb, guide.path.log_evidence)
    np.testing.assert_array_equal(modes, [guide.path.log_evidence[place] for place in guide.path.rounds])
    assert left.get_ylabel() == "log evidence (nats)"
    assert {left.get_xlabel(), right.get_xlabel()} == {"step"}
    assert_shows_the_values(right, guide.path)
    assert right.get_yscale() == "log"
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


@pytest.mark.parametrize("objective", ["log_lik", "crps"])
def test_of_tune(tmp_path, objective):
    guide = pl.tune(model, data(), objective=objective, progress=False)
    figure = pl.plots.evidence(guide)
    left, right = figure.axes
    trials, best = lines(left)
    np.testing.assert_array_equal(trials, guide.path.log_evidence)
    np.testing.assert_array_equal(best, np.maximum.accumulate(guide.path.log_evidence))
    assert left.get_lines()[0].get_linestyle() == "None"
    assert objective in left.get_ylabel()
    assert {left.get_xlabel(), right.get_xlabel()} == {"trial"}
    assert_shows_the_values(right, guide.path)
    assert right.get_yscale() == "log"
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


@pytest.mark.parametrize("search", [pl.maximize_evidence, pl.tune])
def test_numbers_that_are_not_positive_have_no_logarithm(search):
    guide = search(with_mean, data(), progress=False)
    _, right = pl.plots.evidence(guide).axes
    assert right.get_yscale() == "linear"
    assert_shows_the_values(right, guide.path)


def test_an_objective_of_ones_own_has_its_name():
    def sharpness(predictions):
        return -float(predictions["y"][0].distribution.stddev.mean())

    guide = pl.tune(model, data(), objective=sharpness, trials=4, progress=False)
    assert "sharpness" in pl.plots.evidence(guide).axes[0].get_ylabel()


def test_one_trial():
    guide = pl.tune(model, data(), trials=1, progress=False)
    figure = pl.plots.evidence(guide)
    assert [len(line) for line in lines(figure.axes[0])] == [1, 1]


@pytest.mark.parametrize("failed", [[1], [0], [0, 1, 2]], ids=str)
def test_trials_without_a_posterior_are_left_out(tmp_path, failed):
    guide = pl.tune(model, data(), trials=3, progress=False)
    scores = tuple(-math.inf if n in failed else value for n, value in enumerate(guide.path.log_evidence))
    guide.path = replace(guide.path, log_evidence=scores)
    figure = pl.plots.evidence(guide)
    trials, _ = lines(figure.axes[0])
    assert list(np.isnan(trials).nonzero()[0]) == failed
    figure.savefig(tmp_path / "figure.png")


def test_hyperparameters_in_rows_and_columns():
    guide = pl.tune(model, data(), trials=3, progress=False)
    matrix = guide.path.values["std"].reshape(3, 3, 1).expand(3, 3, 2)
    guide.path = replace(guide.path, values={"std": matrix, "noise": guide.path.values["noise"]})
    assert_shows_the_values(pl.plots.evidence(guide).axes[1], guide.path)


def test_what_was_not_searched_for():
    guide = pl.fit_laplace(model, data(), progress=False)
    for other in (guide, guide.median(), None):
        with pytest.raises(pl.InvalidOption) as error:
            pl.plots.evidence(other)
        assert_says(error, type(other).__name__, "maximize_evidence", "tune")
