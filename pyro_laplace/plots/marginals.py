"""Marginal densities of several posteriors over one another, and the reliability of leave-one-out weights."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from xarray import DataTree

from pyro_laplace._errors import InvalidOption
from pyro_laplace.plots.forest import scalars_of, sites_that_fit
from pyro_laplace.plots.style import COLORS, by_name, for_paper, one_tree, tidy
from pyro_laplace.settings import settings


def posteriors(
    trees: DataTree | Mapping[str, DataTree], var_names: Sequence[str] | str | None = None, *, max_panels: int = 12
) -> Figure:
    """Marginal posterior densities of each coordinate, posteriors over one another (ArviZ's `plot_dist`).

    Args:
        trees: what `to_datatree` returns, or several by name; the sites must be the same.
        var_names: sites to show; all that fit by default.
        max_panels: coordinates shown at most.

    Returns:
        the figure.

    Raises:
        InvalidOption: if no site fits, `var_names` names none of the posterior's, or a posterior is a few points.
    """
    import arviz_plots
    from matplotlib import pyplot

    named = by_name(trees)
    shown, _ = sites_that_fit(next(iter(named.values())).posterior.to_dataset(), var_names, max_panels, "max_panels")
    parts = {name: tree.posterior.to_dataset()[shown] for name, tree in named.items()}
    lengths = {name: part.sizes["chain"] * part.sizes["draw"] for name, part in parts.items()}
    if few := [name for name, each in lengths.items() if each < settings.fewest_draws]:
        raise InvalidOption(
            f"posteriors: {', '.join(few)} have fewer than {settings.fewest_draws} draws, and no density: leave them "
            "out"
        )
    length = min(lengths.values())  # a draw that is repeated would be a peak
    scalars = {name: scalars_of(part, length) for name, part in parts.items()}
    count = len(next(iter(scalars.values())).posterior.data_vars)
    columns = min(4, count)
    rows = -(-count // columns)
    several: dict[str, Any] = {}
    if len(scalars) > 1:
        several = {"aes": {"color": ["model"], "linestyle": ["model"]}, "color": list(COLORS)}
        several["linestyle"] = ["-", "--", "-.", ":"] * 2
    collection = arviz_plots.plot_dist(
        scalars,
        kind="kde",
        backend="matplotlib",
        visuals={"credible_interval": False, "point_estimate": False, "point_estimate_text": False},
        col_wrap=columns,
        figure_kwargs={"figsize": (0.3 + 1.75 * columns, 0.6 + 1.5 * rows), "layout": "constrained"},
        **several,
    )
    if len(scalars) > 1:
        collection.add_legend("model", title="", loc="outside upper right", ncols=4)
    figure = collection.viz["figure"].item()
    for_paper(figure)
    pyplot.close(figure)
    return figure


def khat(tree: DataTree | Mapping[str, DataTree], var_name: str | None = None) -> Figure:
    """Pareto k of each datum's leave-one-out weights (ArviZ's `plot_khat`): above 0.7 its estimate cannot be believed.

    Args:
        tree: what `to_datatree` returns for the data that the posterior was fitted to, one alone.
        var_name: the observed site; may be left out if there is one.

    Returns:
        the figure.

    Raises:
        InvalidOption: if there are several trees.
    """
    import arviz_plots
    from arviz_stats.loo import loo
    from matplotlib import pyplot

    tree = one_tree(tree, "khat")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")  # it is what is shown
        elpd = loo(tree, var_name=var_name, pointwise=True, reff=1.0 if tree.posterior.sizes["chain"] == 1 else None)
    collection = arviz_plots.plot_khat(
        elpd, backend="matplotlib", figure_kwargs={"figsize": (3.5, 2.7), "layout": "constrained"}
    )
    figure = collection.viz["figure"].item()
    for_paper(figure)
    figure.axes[0].axhline(settings.bad_k, color="0.4", linewidth=1, linestyle="--")
    tidy(figure.axes[0])
    figure.axes[0].set(xlabel="datum", ylabel="Pareto k", title="")
    pyplot.close(figure)
    return figure
