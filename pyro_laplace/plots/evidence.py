"""The search for hyperparameters: what rose, and where they went."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_laplace._errors import InvalidOption
from pyro_laplace.mode.path import Path
from pyro_laplace.plots.style import look, tidy


def evidence(guide: Any) -> Figure:
    """The log evidence at each step of `maximize_evidence`, or each trial of `tune`, and the hyperparameters.

    Large points are evidences at a mode, found again under the prior that the climb before came to; the climb itself is
    as far as the quadratic model around the mode goes. The trials of `tune` are points in their order,
    with the best so far as a line.

    Args:
        guide: what either of them returns.

    Returns:
        the figure.

    Raises:
        InvalidOption: for a posterior whose hyperparameters were not searched for.
    """
    path = getattr(guide, "path", Path())
    if not path.log_evidence:
        raise InvalidOption(
            f"guide is a {type(guide).__name__} whose hyperparameters were not searched for: give what "
            "maximize_evidence or tune returns"
        )
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_objective(left, path)
    _draw_values(right, path)
    for axes in (left, right):
        axes.set_xlabel("step" if path.objective == "log evidence" else "trial")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axes)
    return figure


def _draw_objective(axes: Axes, path: Path) -> None:
    values = np.asarray(path.log_evidence, dtype=float)
    values = np.where(np.isfinite(values), values, np.nan)
    color, _ = look(0)
    if path.objective == "log evidence":
        modes = list(path.rounds)
        axes.plot(values, color=color, linewidth=1, marker=".", markersize=3, label="climb around it")
        axes.plot(modes, values[modes], "o", color=color, markersize=6, label="at a mode")
        axes.set_ylabel("log evidence (nats)")
        if len(modes) > 1:
            axes.legend(frameon=False, fontsize="small")
    else:
        axes.plot(values, color="0.7", marker="o", markersize=3, linestyle="none")
        axes.plot(np.fmax.accumulate(values), color=color)
        axes.set_ylabel(f"held-out {path.objective} (more is better)")
    spread = values[np.isfinite(values)]
    if not len(spread):
        return
    low, top = np.quantile(spread, 0.1), spread.max()
    if top - spread.min() > 4 * (top - low) > 0:  # a bad start would squeeze the rest together
        axes.set_ylim(low - (top - low), top + 0.2 * (top - low))


def _draw_values(axes: Axes, path: Path) -> None:
    number, positive = 0, True
    for name, value in path.values.items():
        entries = value.reshape(len(value), -1).cpu().numpy()
        positive = positive and bool((entries > 0).all())
        color, marker = look(number)
        for entry in range(entries.shape[1]):
            label = name if entry == 0 else None
            axes.plot(entries[:, entry], color=color, label=label, marker=marker, markersize=3, linewidth=1)
        number += 1
    if positive:
        axes.set_yscale("log")
    axes.set_ylabel("hyperparameter")
    if number <= 8:
        axes.legend(frameon=False, fontsize="small")
