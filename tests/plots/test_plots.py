"""Figures: what is drawn is what was computed, and no display, no pyplot figure and no warning is left behind."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from programs import zoo as programs

import pyro_laplace as pl


@pytest.fixture(autouse=True)
def no_pyplot_figures(float64, tmp_path):
    pyplot.switch_backend("Agg")
    yield
    assert not pyplot.get_fignums()


def texts(figure: Figure) -> set[str]:
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return {text.get_text() for legend in legends for text in legend.get_texts()}


def assert_can_be_saved(figure: Figure, tmp_path) -> None:
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def linear_trees() -> dict:
    case = programs.linear()
    draws = {"w": torch.randn(30, 3)}
    guide = pl.fit_laplace(case.model, case.data, progress=False)
    return {
        "laplace": pl.to_datatree(case.model, guide, case.data, num_samples=60),
        "draws": pl.to_datatree(case.model, draws, case.data),
    }


def test_posterior_forest(tmp_path):
    trees = linear_trees()
    figure = pl.plots.posterior_forest(trees)
    assert_can_be_saved(figure, tmp_path)
    assert texts(figure) == {"laplace", "draws"}
    labels = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"w[0]", "w[1]", "w[2]"} <= labels
    assert_can_be_saved(pl.plots.posterior_forest(trees["laplace"]), tmp_path)


def test_posterior_forest_shows_what_fits():
    case = programs.mlp_classifier()
    guide = pl.fit_laplace(case.model, case.data, progress=False)
    tree = pl.to_datatree(case.model, guide, case.data, num_samples=20)
    figure = pl.plots.posterior_forest(tree, max_rows=8)
    labels = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert "b1[3]" in labels
    assert not any(label.startswith("w1") for label in labels)
    assert "2 more not shown" in figure.get_suptitle()
    with pytest.raises(pl.InvalidOption, match="max_rows=2"):
        pl.plots.posterior_forest(tree, ["w1"], max_rows=2)
    with pytest.raises(pl.InvalidOption, match="nothing"):
        pl.plots.posterior_forest(tree, "nothing")
    with pytest.raises(pl.InvalidOption, match="empty"):
        pl.plots.posterior_forest({})


def test_calibration_of_numbers(tmp_path):
    trees = linear_trees()
    figure = pl.plots.calibration(trees)
    assert_can_be_saved(figure, tmp_path)
    assert texts(figure) == {"calibrated", "laplace", "draws"}
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    levels, inside = lines["laplace"].get_data()
    tree = trees["laplace"]
    drawn, observed = tree.posterior_predictive["y"].values[0], tree.observed_data["y"].values
    lower, upper = np.quantile(drawn, [0.25, 0.75], axis=0)
    expected = ((lower <= observed) & (observed <= upper)).mean()
    assert inside[np.isclose(levels, 0.5)][0] == pytest.approx(expected, abs=0.06)
    assert (np.diff(inside) >= 0).all()
    assert inside[-1] == 1


def test_calibration_of_classes(tmp_path):
    """Draws that know the frequencies exactly lie on the diagonal."""
    case = programs.dirichlet_categorical()
    counts = torch.tensor([3.0, 6.0, 9.0, 12.0])
    case = programs.Case(case.model, (torch.arange(4).repeat_interleave(counts.long()),))
    draws = {"probs": (counts / counts.sum()).expand(4000, 4)}
    tree = pl.to_datatree(case.model, draws, case.data, num_prior_samples=0)
    figure = pl.plots.calibration({"exact": tree}, num_bins=4, title="held out")
    assert_can_be_saved(figure, tmp_path)
    predicted, happened = next(line for line in figure.axes[0].lines if line.get_label() == "exact").get_data()
    np.testing.assert_allclose(predicted, [0.1, 0.2, 0.3, 0.4], atol=0.01)
    np.testing.assert_allclose(predicted, happened, atol=0.01)
    assert figure.axes[0].get_xlabel() == "predicted probability"
    assert figure.axes[0].get_title() == "held out"


def test_an_observed_site_must_be_named_where_there_are_two():
    case = programs.two_likelihoods()
    draws = {"w": 0.3 * torch.randn(20, 3), "sigma": torch.ones(20)}
    tree = pl.to_datatree(case.model, draws, case.data)
    with pytest.raises(pl.InvalidOption, match="count"):
        pl.plots.calibration(tree)
    assert pl.plots.calibration(tree, "y").axes


def test_pit(tmp_path):
    figure = pl.plots.pit(linear_trees()["laplace"])
    assert_can_be_saved(figure, tmp_path)
    assert figure.axes[0].get_xlabel() == "LOO-PIT"


@pytest.mark.parametrize("name", ["pit", "khat"])
def test_a_figure_of_one_posterior_takes_one_tree(name):
    trees = linear_trees()
    draw = getattr(pl.plots, name)
    with pytest.raises(pl.InvalidOption, match=rf"{name} shows one posterior.*give one tree, trees\['laplace'\]"):
        draw(trees)
    assert draw({"laplace": trees["laplace"]}).axes
    with pytest.raises(pl.InvalidOption, match="give what to_datatree returns"):
        draw({})


def test_comparison(tmp_path):
    table = pd.DataFrame(
        {
            "elpd_loo": [-40.0, -1e5, -41.0, np.nan],
            "elpd_se": [5.0, 1e3, 5.0, np.nan],
            "test_lpd": [-0.9, -5.0, -0.91, -0.92],
            "seconds": [1.0, 1.0, np.nan, 1.0],
        },
        index=["laplace", "laplace (sampled)", "nuts", "map"],
    )
    figure = pl.plots.comparison(table)
    assert_can_be_saved(figure, tmp_path)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(table.index)
    elpd, lpd = figure.axes
    assert {text.get_text() for text in elpd.texts} == {"-1e+05", "not defined"}
    assert {text.get_text() for text in lpd.texts} == {"-5"}
    assert elpd.get_xlim()[0] > -100
    assert_can_be_saved(pl.plots.comparison(table.drop(columns="test_lpd")), tmp_path)


def one_input() -> programs.Case:
    case = programs.mlp_regression()
    x, y = case.data
    return programs.Case(case.model, (x[:, :1], y))


def test_predictive_bands(tmp_path):
    case = one_input()
    guide = pl.fit_laplace(case.model, case.data, progress=False)
    point = pl.fit_map(case.model, case.data, progress=False)
    grid = torch.linspace(-4, 4, 21)[torch.randperm(21), None]
    posteriors = {"laplace": guide, "map": point}
    figure = pl.plots.predictive_bands(case.model, posteriors, case.data, grid, num_samples=100)
    assert_can_be_saved(figure, tmp_path)
    assert [axes.get_title() for axes in figure.axes] == ["laplace", "laplace (sampled)", "map"]
    assert texts(figure) == {"90%", "50%", "mean", "data"}
    at, mean = figure.axes[2].lines[0].get_data()
    np.testing.assert_allclose(at, np.linspace(-4, 4, 21), atol=1e-12)
    values = point.median(*case.data)
    hidden = torch.tanh(torch.tensor(at)[:, None] @ values["w1"] + values["b1"])
    np.testing.assert_allclose(mean, (hidden @ values["w2"] + values["b2"])[:, 0].detach().numpy())
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), case.data[1])
    with pytest.raises(pl.InvalidOption, match="tensor"):
        pl.plots.predictive_bands(case.model, posteriors, case.data, (3,))


@pytest.mark.parametrize("make", [programs.mlp_classifier, programs.logistic])
def test_class_surface(make, tmp_path):
    case = programs.mlp_classifier(num_inputs=2) if make is programs.mlp_classifier else make()
    data = (case.data[0][:, :2], case.data[1])
    posteriors = {"laplace": pl.fit_laplace(case.model, data, progress=False)}
    names = ("ada", "bob", "cy")
    figure = pl.plots.class_surface(case.model, posteriors, data, num_samples=40, class_names=names, linearized=False)
    assert_can_be_saved(figure, tmp_path)
    assert texts(figure) == set(names[: int(data[1].max()) + 1])
    assert len(figure.axes[0].images) == 1


def test_class_surface_needs_two_inputs():
    case = programs.mlp_classifier()
    guide = pl.fit_laplace(case.model, case.data, progress=False)
    with pytest.raises(pl.InvalidOption, match="two columns"):
        pl.plots.class_surface(case.model, {"laplace": guide}, case.data)
