"""How far predictions can be believed."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from xarray import DataTree

from pyro_laplace._errors import InvalidOption
from pyro_laplace.plots.style import by_name, look, one_tree, tidy
from pyro_laplace.settings import settings


def calibration(
    trees: DataTree | Mapping[str, DataTree], var_name: str | None = None, *, num_bins: int = 10, title: str = ""
) -> Figure:
    """Predicted against observed frequency, posteriors over one another.

    Classes: the observed frequency of a class against its predicted probability, over all classes, in bins of equally
    many predictions. Numbers: the share of data inside the central predictive intervals against what the intervals
    promise. On the diagonal a posterior is calibrated; intervals below it are too narrow.

    Args:
        trees: what `to_datatree` returns, best on held-out data, or several by name.
        var_name: the observed site; may be left out if there is one.
        num_bins: bins of the predicted probability.
        title: above the axes.

    Returns:
        the figure.

    Raises:
        InvalidOption: if `var_name` is needed, or not observed.
    """
    figure = Figure(figsize=(5.6, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.55", linewidth=1, linestyle="--", label="calibrated")
    classes = False
    for number, (name, tree) in enumerate(by_name(trees).items()):
        site = observed_site(tree, var_name)
        observed = tree.observed_data[site].values
        drawn = tree.posterior_predictive[site].values.reshape(-1, *observed.shape)
        classes = _are_classes(observed, drawn)
        promised, kept = _reliability(drawn, observed, num_bins) if classes else _inside(drawn, observed)
        color, marker = look(number)
        axes.plot(promised, kept, color=color, marker=marker, markevery=1 if classes else 10, markersize=5, label=name)
    axes.set(
        xlabel="predicted probability" if classes else "nominal coverage of the predictive interval",
        ylabel="observed frequency" if classes else "share of data inside the interval",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        title=title,
        aspect="equal",
    )
    tidy(axes)
    axes.legend(frameon=False, loc="upper left")
    return figure


def pit(tree: DataTree | Mapping[str, DataTree], var_name: str | None = None) -> Figure:
    """LOO-PIT of numbers, as the difference of its ECDF from the uniform one (ArviZ's `plot_loo_pit`).

    Args:
        tree: what `to_datatree` returns for the data that the posterior was fitted to, one alone.
        var_name: the observed site; may be left out if there is one.

    Returns:
        the figure.

    Raises:
        InvalidOption: if `var_name` is needed, or not observed, or there are several trees.
    """
    import arviz_plots
    from matplotlib import pyplot

    tree = one_tree(tree, "pit")
    site = observed_site(tree, var_name)
    collection = arviz_plots.plot_loo_pit(tree, var_names=site, backend="matplotlib")
    figure = collection.viz["figure"].item()
    figure.axes[0].set(xlabel="LOO-PIT", ylabel="ECDF minus uniform", title=f"Leave-one-out PIT of {site}")
    figure.set_size_inches(6, 3)
    pyplot.close(figure)
    return figure


def observed_site(tree: DataTree, var_name: str | None) -> str:
    """The observed site that a figure is about.

    Args:
        tree: with the group `observed_data`.
        var_name: its name, or None for the only one.

    Returns:
        the name.

    Raises:
        InvalidOption: if there is no such site, or no name and several sites.
    """
    names = [str(name) for name in tree.observed_data.data_vars] if "observed_data" in tree.children else []
    if var_name is None and len(names) == 1:
        return names[0]
    if var_name not in names:
        raise InvalidOption(f"var_name={var_name!r}: the observed sites are {names}")
    return var_name


def _are_classes(observed: np.ndarray, drawn: np.ndarray) -> bool:
    """Whether the values are labels of a few classes: 0, 1, ..., none of them skipped."""
    labels = np.union1d(observed, drawn)
    return len(labels) <= settings.plot_classes and bool(np.array_equal(labels, np.arange(len(labels))))


def _reliability(drawn: np.ndarray, observed: np.ndarray, num_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean predicted probability and observed frequency in bins of equally many predictions, over all classes."""
    labels = np.union1d(observed, drawn)
    labels = labels[1:] if len(labels) == 2 else labels  # the other one's says the same
    predicted = np.concatenate([(drawn == label).mean(0).ravel() for label in labels])
    happened = np.concatenate([(observed == label).ravel() for label in labels])
    bins = np.array_split(np.argsort(predicted, kind="stable"), min(num_bins, len(predicted)))
    return np.array([predicted[b].mean() for b in bins]), np.array([happened[b].mean() for b in bins])


def _inside(drawn: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nominal levels and the share of data inside the central intervals of their draws."""
    levels = np.linspace(0, 1, 101)
    rank = ((drawn < observed).mean(0) + (drawn <= observed).mean(0)) / 2
    inside = np.abs(2 * rank - 1).ravel()
    return levels, np.array([(inside <= level).mean() for level in levels])
