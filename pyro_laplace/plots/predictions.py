"""Predictions over the space of inputs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from pyro_laplace._errors import InvalidOption
from pyro_laplace.data import Data, as_data
from pyro_laplace.draws.arguments import tensor_arguments
from pyro_laplace.draws.draws import PosteriorDraws, draws_of
from pyro_laplace.draws.over_draws import View
from pyro_laplace.linearized.choose import predictive_models
from pyro_laplace.plots.style import COLORS, tidy
from pyro_laplace.settings import settings

_LEVELS = ((0.9, 0.2), (0.5, 0.35))


def predictive_bands(
    model: Callable[..., Any],
    posteriors: Mapping[str, Any],
    data: Any,
    inputs: Any,
    *,
    num_samples: int = 500,
    linearized: bool | str = "auto",
    labels: tuple[str, str] = ("x", "y"),
) -> Figure:
    """Predictive mean and intervals of numbers along one input, a panel a posterior.

    Args:
        model: the Pyro program.
        posteriors: as in `compare`, with the same rows as its table.
        data: what they were fitted to; drawn as points.
        inputs: a batch without observed values (a tensor, tuple or dict) along which to predict. The first column of
            its first tensor is the horizontal axis.
        num_samples: draws from each guide.
        linearized: as in `to_datatree`.
        labels: of the axes.

    Returns:
        the figure.

    Raises:
        InvalidOption: for an option's unknown value, or data without a tensor.
    """
    data, inputs = as_data(data), as_data(inputs)
    at = _first_column(inputs)
    order = np.argsort(at)
    views = _views(model, posteriors, data, num_samples, linearized)
    site, observed = next(iter(next(iter(views.values()))[0].observed.items()))
    known = _first_column(data), _array(observed).reshape(-1)
    figure, panels = _panels(list(views))
    for axes, (view, draws) in zip(panels, views.values(), strict=True):
        new = _at_inputs(view, inputs)
        drawn = _array(new.replicated(draws.at_least(num_samples))[site])
        drawn = drawn.reshape(len(drawn), len(at))[:, order]
        for level, alpha in _LEVELS:
            lower, upper = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
            axes.fill_between(at[order], lower, upper, color=COLORS[0], alpha=alpha, linewidth=0, label=f"{level:.0%}")
        expected = new.expected(draws.values)
        mean = _array(expected[site].mean(0)).reshape(-1)[order] if site in expected else drawn.mean(0)
        axes.plot(at[order], mean, color=COLORS[0], linewidth=1.8, label="mean", zorder=3)
        axes.plot(*known, "o", color="0.15", alpha=0.6, markersize=3, markeredgewidth=0, label="data")
        axes.set_xlabel(labels[0])
        tidy(axes, None)
    _limits(panels, known[1])
    panels[0].set_ylabel(labels[1])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def class_surface(
    model: Callable[..., Any],
    posteriors: Mapping[str, Any],
    data: Any,
    *,
    num_samples: int = 500,
    linearized: bool | str = "auto",
    margin: float = 0.5,
    class_names: tuple[str, ...] = (),
    labels: tuple[str, str] = ("x[0]", "x[1]"),
) -> Figure:
    """Predicted class over two inputs, a panel a posterior.

    The colour is that of the most probable class, the paler the less certain; lines mark where its probability is 0.75
    and 0.95.

    Args:
        model: a Pyro program called with the inputs [points, 2] alone.
        posteriors: as in `compare`, with the same rows as its table.
        data: what they were fitted to; drawn as points.
        num_samples: draws from each guide.
        linearized: as in `to_datatree`.
        margin: how far to look beyond the data, in their ranges.
        class_names: for the legend.
        labels: of the axes.

    Returns:
        the figure.

    Raises:
        InvalidOption: if no argument of the model has two columns, or the observed site is no class.
    """
    data = as_data(data)
    points = next((v for v in tensor_arguments(model, data).values() if v.dim() == 2 and v.shape[1] == 2), None)
    if points is None:
        raise InvalidOption("class_surface needs inputs with two columns among the model's arguments")
    low, high = points.min(0).values, points.max(0).values
    low, high = low - margin * (high - low), high + margin * (high - low)
    steps = torch.linspace(0, 1, settings.plot_grid, dtype=points.dtype, device=points.device)
    sides = [low[i] + (high[i] - low[i]) * steps for i in (0, 1)]
    inputs = as_data(torch.cartesian_prod(*sides))
    views = _views(model, posteriors, data, num_samples, linearized)
    figure, panels = _panels(list(views))
    for axes, (view, draws) in zip(panels, views.values(), strict=True):
        site, expected = next(iter(_at_inputs(view, inputs).expected(draws.values).items()))
        probs = _class_probs(expected.mean(0), len(inputs.source))
        _surface(axes, probs.reshape(len(steps), len(steps), -1), [_array(side) for side in sides])
        observed = _array(view.observed[site]).reshape(-1).astype(int)
        for label in range(probs.shape[1]):
            name = class_names[label] if label < len(class_names) else f"class {label}"
            mine = _array(points)[observed == label]
            color = COLORS[label % len(COLORS)]
            axes.plot(*mine.T, "o", color=color, markeredgecolor="white", markeredgewidth=0.7, markersize=5, label=name)
        axes.set_xlabel(labels[0])
    panels[0].set_ylabel(labels[1])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


def _views(
    model: Callable[..., Any], posteriors: Mapping[str, Any], data: Data, num_samples: int, linearized: bool | str
) -> dict[str, tuple[View, PosteriorDraws]]:
    """Panel name to the program that predicts and its draws."""
    views = {}
    for name, posterior in posteriors.items():
        draws = draws_of(posterior, data, num_samples)
        for panel, program in predictive_models(name, model, posterior, data, linearized).items():
            views[panel] = View.of(program, data, draws), draws
    return views


def _at_inputs(view: View, inputs: Data) -> View:
    """The same program at new inputs."""
    return View(replace(view.program, own_indices={}, external={}), inputs)


def _panels(names: list[str]) -> tuple[Figure, list[Axes]]:
    columns = 2 if len(names) == 4 else min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(0.6 + 3.3 * columns, 0.9 + 2.9 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes in grid[len(names) :]:
        axes.remove()
    for axes, name in zip(grid, names, strict=False):
        axes.set_title(name, fontsize=11)
        axes.tick_params(labelbottom=True)
    return figure, grid[: len(names)]


def _limits(panels: list[Axes], observed: np.ndarray) -> None:
    """The vertical range shows the data and some more: a posterior far too wide must not hide the others."""
    spread = np.ptp(observed)
    panels[0].set_ylim(observed.min() - spread, observed.max() + spread)


def _first_column(data: Data) -> np.ndarray:
    """The first column of the first tensor, over all batches."""
    columns = []
    for batch in data:
        tensors = [v for v in (*batch.args, *batch.kwargs.values()) if isinstance(v, Tensor) and v.dim()]
        if not tensors:
            raise InvalidOption("a batch holds no tensor along which to predict")
        columns.append(tensors[0].reshape(len(tensors[0]), -1)[:, 0])
    return _array(torch.cat(columns))


def _class_probs(expected: Tensor, num_points: int) -> np.ndarray:
    """Class probabilities [points, classes]."""
    probs = _array(expected).reshape(num_points, -1)
    return np.concatenate([1 - probs, probs], 1) if probs.shape[1] == 1 else probs


def _surface(axes: Axes, probs: np.ndarray, sides: list[np.ndarray]) -> None:
    best, top = probs.argmax(-1), probs.max(-1)
    certain = (top - 1 / probs.shape[-1]) / (1 - 1 / probs.shape[-1])
    colors = np.array([to_rgb(COLORS[label % len(COLORS)]) for label in range(probs.shape[-1])])[best]
    image = 1 - 0.75 * certain[..., None] * (1 - colors)
    extent = (sides[0][0], sides[0][-1], sides[1][0], sides[1][-1])
    axes.imshow(image.transpose(1, 0, 2), origin="lower", extent=extent, aspect="auto", interpolation="bilinear")
    lines = axes.contour(sides[0], sides[1], top.T, levels=[0.75, 0.95], colors="0.25", linewidths=[0.7, 1.1])
    axes.clabel(lines, fontsize=7)


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
