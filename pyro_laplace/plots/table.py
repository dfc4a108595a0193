"""The table of `compare` as a figure."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_laplace.plots.style import look, tidy

_PANELS = (("elpd_loo", "ELPD-LOO ± s.e. (nats)"), ("test_lpd", "held-out log density (nats a datum)"))


def comparison(table: pd.DataFrame) -> Figure:
    """ELPD-LOO with its standard error and the held-out log density of each posterior; more is better.

    Values so far below the others that these could not be told apart are put at the edge, with the value beside it.

    Args:
        table: what `compare` returns.

    Returns:
        the figure.
    """
    panels = [
        (column, label)
        for column, label in _PANELS
        if column in table and np.isfinite(table[column].to_numpy(float)).any()
    ]
    figure = Figure(figsize=(1.8 + 4.0 * len(panels), 1.2 + 0.4 * len(table)), layout="constrained")
    grid = figure.subplots(1, max(1, len(panels)), sharey=True, squeeze=False)[0]
    places = np.arange(len(table))[::-1]
    for axes, (column, label) in zip(grid, panels, strict=False):
        errors = table["elpd_se"].to_numpy(float) if column == "elpd_loo" else np.zeros(len(table))
        _points(axes, table[column].to_numpy(float), errors, places)
        axes.set(xlabel=label, ylim=(-0.6, len(table) - 0.4))
        axes.set_yticks(places, [str(name) for name in table.index])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        tidy(axes, "x")
    return figure


def _points(axes: Axes, values: np.ndarray, errors: np.ndarray, places: np.ndarray) -> None:
    edge = _edge(values)
    for number, (value, error, place) in enumerate(zip(values, errors, places, strict=True)):
        color, marker = look(number)
        if np.isnan(value):
            axes.annotate("not defined", (0.02, place), xycoords=axes.get_yaxis_transform(), va="center", color="0.5")
        elif value < edge:
            axes.plot(0.015, place, marker="<", color=color, transform=axes.get_yaxis_transform(), clip_on=False)
            axes.annotate(f"{value:.3g}", (0.045, place), xycoords=axes.get_yaxis_transform(), va="center", color=color)
        else:
            axes.errorbar(value, place, xerr=error or None, fmt=marker, color=color, capsize=3, markersize=6)


def _edge(values: np.ndarray) -> float:
    """Below this a value is an outlier that would squeeze the others together."""
    known = np.sort(values[~np.isnan(values)])[::-1]
    half = known[: max(2, (len(known) + 1) // 2)]
    return float(known[0] - 10 * max(half[0] - half[-1], 0.02 * abs(known[0]), 1e-12)) if len(known) else -np.inf
