"""Figures of predictives on held-out data, of curvature and of marginals: what is drawn is what was computed."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot
from programs import zoo as programs

import pyro_laplace as pl


@pytest.fixture(autouse=True)
def no_figures_left(float64):
    pyplot.switch_backend("Agg")
    yield
    assert not pyplot.get_fignums()


def line_of(axes, label):
    return next(line for line in axes.lines if line.get_label() == label).get_data()


def save(figure, tmp_path):
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_coverage_and_foreign_numbers(tmp_path):
    case = programs.linear()
    x, y = case.data
    guide = pl.fit_laplace(case.model, case.data, progress=False)
    predictives = {"laplace": pl.LinearizedPredictive(case.model, guide)}
    predictives["drawn"] = pl.Predictive(case.model, guide=guide, num_samples=100)
    predictives["calibrated"] = pl.calibrate(predictives["laplace"], case.data)
    figure = pl.plots.coverage(predictives, case.data, title="numbers")
    save(figure, tmp_path)
    left, right = figure.axes
    fn = predictives["laplace"](x)["y"]
    half = fn.stddev * dist.Normal(0.0, 1.0).icdf(torch.tensor(0.75))
    levels, inside = line_of(left, "laplace")
    assert inside[np.isclose(levels, 0.5)] == pytest.approx(float(((y - fn.mean).abs() <= half).double().mean()))
    assert right.lines[0].get_ydata()[9] == pytest.approx(float(2 * half.mean()))
    figure = pl.plots.ood({"laplace": predictives["laplace"]}, case.data, (100 * x,))
    save(figure, tmp_path)
    assert figure.axes[0].get_title() == "laplace: 1.00"
    with pytest.raises(pl.InvalidOption, match="reliability is of classes"):
        pl.plots.reliability(predictives, case.data)
    with pytest.raises(pl.InvalidOption, match="mapping of names"):
        pl.plots.coverage({}, case.data)


def test_reliability_of_classes(tmp_path):
    case = programs.logistic()
    x, y = case.data
    guide = pl.fit_laplace(case.model, case.data, progress=False)
    predictives = {"laplace": pl.LinearizedPredictive(case.model, guide)}
    figure = pl.plots.reliability(predictives, case.data, num_bins=1)
    save(figure, tmp_path)
    probs = predictives["laplace"](x)["y"].probs
    top = torch.maximum(probs, 1 - probs)
    right = ((probs > 0.5) == (y > 0.5)).double()
    confidence, accuracy = line_of(figure.axes[0], "laplace")
    assert confidence[0] == pytest.approx(float(top.mean()))
    assert accuracy[0] == pytest.approx(float(right.mean()))
    save(pl.plots.ood(predictives, case.data, (5 * x,)), tmp_path)


def test_spectrum(tmp_path):
    case = programs.linear()
    guide = pl.fit_laplace(case.model, case.data, progress=False)
    figure = pl.plots.spectrum(guide)
    save(figure, tmp_path)
    values = np.linalg.eigvalsh(guide.precision.to_dense().numpy())[::-1]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), values)
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), np.full(3, 1.3**-2))
    with pytest.raises(pl.InvalidOption, match="without a precision"):
        pl.plots.spectrum({"point": pl.LaplaceMixture.of_modes(case.model, case.data, [{"w": torch.zeros(3)}])})


def test_marginals_and_khat(tmp_path):
    case = programs.linear()
    guide = pl.fit_laplace(case.model, case.data, progress=False)
    trees = {
        "laplace": pl.to_datatree(case.model, guide, case.data, num_samples=60, progress=False),
        "draws": pl.to_datatree(case.model, {"w": torch.randn(30, 3)}, case.data, progress=False),
    }
    figure = pl.plots.posteriors(trees)
    save(figure, tmp_path)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"laplace", "draws"}
    assert len(figure.axes) == 3
    save(pl.plots.posteriors(trees["laplace"], "w"), tmp_path)
    few = pl.to_datatree(case.model, {"w": torch.zeros(2, 3)}, case.data, progress=False)
    with pytest.raises(pl.InvalidOption, match="few have fewer"):
        pl.plots.posteriors({"few": few})
    figure = pl.plots.khat(trees["laplace"])
    save(figure, tmp_path)
    assert figure.axes[0].get_ylabel() == "Pareto k"
