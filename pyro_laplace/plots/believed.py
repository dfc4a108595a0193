"""How far predictives can be believed on held-out data: reliability, coverage, sharpness, and what is foreign."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_laplace._errors import InvalidOption
from pyro_laplace.calibration.curves import coverage_of, reliability_of
from pyro_laplace.calibration.forecast import predictions_at, uncertainty_of
from pyro_laplace.data import as_data
from pyro_laplace.plots.style import COLORS, for_paper, look, stroke, tidy
from pyro_laplace.scores.formulas import roc_area
from pyro_laplace.settings import settings


def reliability(
    predictives: Mapping[str, Any], data: Any, var_name: str | None = None, *, num_bins: int = 10, title: str = ""
) -> Figure:
    """Reliability of classes, and below it the sharpness: how often which confidence was claimed.

    Above, the share of guesses that were right against the probability that they were given, in bins of equally many
    data (Guo et al. 2017, "On calibration of modern neural networks"); below the diagonal a predictive is too sure.

    Args:
        predictives: name to `LinearizedPredictive`, `Predictive`, or what `calibrate` returns.
        data: held-out data, observed values included.
        var_name: the observed site; may be left out if there is one.
        num_bins: bins of the confidence.
        title: above the axes.

    Returns:
        the figure.

    Raises:
        InvalidOption: if `var_name` is needed or not observed, the site is no class, or there are no predictives.
    """
    data = as_data(data)
    figure = Figure(figsize=(3.5, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color="0.55", linewidth=1, linestyle=(0, (1, 1)), label="calibrated")
    lowest = 1.0
    for number, (name, predictive) in enumerate(_predictives_of(predictives).items()):
        predictions = predictions_at(predictive, data, var_name)
        if not predictions[0].is_class:
            raise InvalidOption("reliability is of classes, and the site's data are numbers: pl.plots.coverage")
        curve = reliability_of(predictions, num_bins)
        color, marker = look(number)
        line = {"color": color, "linestyle": stroke(number), "linewidth": 1.4}
        above.plot(curve.confidence, curve.accuracy, marker=marker, markersize=4.5, label=name, **line)
        lowest = min(lowest, float(curve.confidences.min()), float(curve.accuracy.min()))
        below.hist(curve.confidences.numpy(), bins=np.linspace(0, 1, 41).tolist(), histtype="step", **line)
    start = max(0.0, lowest - 0.05)
    tidy(above)
    tidy(below)
    above.set(ylabel="share that was right", ylim=(start, 1.02), title=title)
    below.set(xlabel="confidence in the most probable class", ylabel="data", xlim=(start, 1.02))
    entries = above.get_legend_handles_labels()
    figure.legend(*entries, loc="outside upper center", ncols=2, frameon=False, fontsize=settings.plot_letters - 1)
    return for_paper(figure)


def coverage(
    predictives: Mapping[str, Any],
    data: Any,
    var_name: str | None = None,
    *,
    num_levels: int = 19,
    num_samples: int = 1000,
    title: str = "",
) -> Figure:
    """Coverage of numbers by central predictive intervals, and their sharpness: the mean width.

    Left, the share of data inside against what the interval promises; below the diagonal it is too narrow. Right, of
    predictives that cover alike the one with narrower intervals says more (Gneiting, Balabdaoui and Raftery 2007,
    "Probabilistic forecasts, calibration and sharpness").

    Args:
        predictives: name to `LinearizedPredictive`, `Predictive`, or what `calibrate` returns.
        data: held-out data, observed values included.
        var_name: the observed site; may be left out if there is one.
        num_levels: levels of the intervals, evenly spaced.
        num_samples: draws of y, where quantiles have no closed form.
        title: above the figure.

    Returns:
        the figure.

    Raises:
        InvalidOption: if `var_name` is needed or not observed, the site is a class, or there are no predictives.
    """
    data = as_data(data)
    figure = Figure(figsize=(7.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.55", linewidth=1, linestyle=(0, (1, 1)), label="calibrated")
    for number, (name, predictive) in enumerate(_predictives_of(predictives).items()):
        predictions = predictions_at(predictive, data, var_name)
        if predictions[0].is_class:
            raise InvalidOption("coverage is of numbers, and the site's data are classes: pl.plots.reliability")
        curve = coverage_of(predictions, num_levels, num_samples)
        color, marker = look(number)
        line = {"color": color, "linestyle": stroke(number), "linewidth": 1.4, "marker": marker, "markersize": 4}
        left.plot(curve.levels, curve.inside, label=name, markevery=3, **line)
        right.plot(curve.levels, curve.width, markevery=3, **line)
    tidy(left)
    tidy(right)
    left.set(xlabel="nominal coverage", ylabel="share of data inside", xlim=(0, 1), ylim=(0, 1.02))
    right.set(xlabel="nominal coverage", ylabel="mean width (units of y)", xlim=(0, 1))
    right.set_ylim(bottom=0)
    left.legend(frameon=False, loc="upper left")
    figure.suptitle(title, fontsize=settings.plot_letters + 1)
    return for_paper(figure)


def ood(
    predictives: Mapping[str, Any], data: Any, ood_data: Any, var_name: str | None = None, *, title: str = ""
) -> Figure:
    """How unsure predictives are of data like those they were fitted to, and of foreign data: a panel a predictive.

    It is the entropy of classes, or the standard deviation of y. The number above a panel is the share of pairs in
    which the foreign datum is the less sure one, ties counted half (AUROC). It depends on how finely a predictive
    tells its data apart: where all predictions are nearly uniform, or alike, their order is that of the Monte Carlo
    error of its draws, and 50 draws give another number than 1,000, or than the closed form of a
    `LinearizedPredictive`. The column `ood_auroc` of `compare` is made of that call's own draws: it is the same number
    where both have many, or data that differ clearly. Where y has no variance in closed form, it is that of
    `settings.predictive_draws` draws here.

    Args:
        predictives: name to `LinearizedPredictive`, `Predictive`, or what `calibrate` returns.
        data: held-out data, observed values included.
        ood_data: foreign data; observed values need not be among them.
        var_name: the observed site; may be left out if there is one.
        title: above the figure.

    Returns:
        the figure.

    Raises:
        InvalidOption: if `var_name` is needed or not observed, or there are no predictives.
    """
    data, foreign = as_data(data), as_data(ood_data)
    named = _predictives_of(predictives)
    columns = min(3, len(named))
    rows = -(-len(named) // columns)
    figure = Figure(figsize=(0.5 + 2.3 * columns, 0.8 + 1.7 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for axes in panels[len(named) :]:
        axes.remove()
    found = {
        name: [uncertainty_of(each, part, data, var_name) for part in (data, foreign)] for name, each in named.items()
    }
    top = max(float(value.max()) for pair in found.values() for value, _ in pair)
    edges = np.linspace(0, top * (1 + 1e-9) or 1.0, 31).tolist()
    for axes, (name, ((inside, _), (outside, _))) in zip(panels, found.items(), strict=False):
        shares = (
            {"weights": np.full(len(inside), 1 / len(inside))},
            {"weights": np.full(len(outside), 1 / len(outside))},
        )
        axes.hist(inside.cpu().numpy(), edges, color=COLORS[0], alpha=0.45, label="held out", **shares[0])
        line = {"histtype": "step", "color": "black", "linewidth": 1.3}
        axes.hist(outside.cpu().numpy(), edges, label="foreign", **line, **shares[1])
        marked = torch.cat([inside, outside])
        is_foreign = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).long()
        area = roc_area(torch.stack([-marked, marked], -1), is_foreign)
        axes.set_title(f"{name}: {area:.2f}")
        tidy(axes, "y")
        axes.tick_params(labelbottom=True)
    figure.supxlabel(next(iter(found.values()))[0][1], fontsize=settings.plot_letters)
    figure.supylabel("share of data", fontsize=settings.plot_letters)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside upper right",
        ncols=2,
        frameon=False,
        fontsize=settings.plot_letters,
    )
    figure.suptitle(title, fontsize=settings.plot_letters + 1, x=0.02, ha="left")
    return for_paper(figure)


def _predictives_of(predictives: Any) -> Mapping[str, Any]:
    if not isinstance(predictives, Mapping) or not predictives:
        raise InvalidOption(
            f"predictives is {predictives!r:.80}: give a mapping of names to predictives, e.g. "
            "{'laplace': pl.LinearizedPredictive(model, guide)}"
        )
    return predictives
