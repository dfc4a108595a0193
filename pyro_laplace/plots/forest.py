"""Marginal posteriors beside one another."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from arviz_base import from_dict
from matplotlib.figure import Figure
from xarray import DataTree

from pyro_laplace._errors import InvalidOption
from pyro_laplace.plots.style import COLORS, by_name


def posterior_forest(
    trees: DataTree | Mapping[str, DataTree],
    var_names: Sequence[str] | str | None = None,
    *,
    max_rows: int = 30,
) -> Figure:
    """Marginal posterior intervals (50% and 94%) of each coordinate, posteriors beside one another.

    Args:
        trees: what `to_datatree` returns, or several by name.
        var_names: sites to show; all that fit by default.
        max_rows: coordinates shown at most; sites that do not fit are left out, and the title says how many.

    Returns:
        the figure.

    Raises:
        InvalidOption: if no site fits, or `var_names` names none of the posterior's.
    """
    import arviz_plots
    from matplotlib import pyplot

    named = by_name(trees)
    first = next(iter(named.values())).posterior.to_dataset()
    shown, left_out = sites_that_fit(first, var_names, max_rows, "max_rows")
    posteriors = {name: tree.posterior.to_dataset()[shown] for name, tree in named.items()}
    length = max(posterior.sizes["chain"] * posterior.sizes["draw"] for posterior in posteriors.values())
    scalars = {name: scalars_of(posterior, length) for name, posterior in posteriors.items()}
    rows = len(next(iter(scalars.values())).posterior.data_vars)
    several = len(scalars) > 1
    collection = arviz_plots.plot_forest(
        scalars,
        combined=True,
        backend="matplotlib",
        point_estimate="median",
        ci_kind="eti",
        ci_probs=(0.5, 0.94),
        figure_kwargs={
            "figsize": (8, 1.2 + rows * (0.14 + 0.12 * len(scalars))),
            "layout": "constrained",
            "width_ratios": [1, 5],
        },
        **({"aes": {"color": ["model"]}, "color": list(COLORS)} if several else {}),
    )
    if several:
        collection.add_legend("model", title="", loc="outside right upper")
    figure = collection.viz["figure"].item()
    title = "Posterior: median, 50% and 94% intervals"
    figure.suptitle(title + (f"; {left_out} more not shown" if left_out else ""), fontsize=12)
    figure.axes[1].margins(y=1 / (rows + 1))  # the axes share it
    figure.axes[0].axis("off")  # keeps the labels
    pyplot.close(figure)
    return figure


def sites_that_fit(
    posterior: Any, var_names: Sequence[str] | str | None, most: int, option: str
) -> tuple[list[str], int]:
    """Sites whose coordinates together are at most some number, and the number of the others.

    Args:
        posterior: the dataset.
        var_names: sites to choose from; None for all.
        most: coordinates at most.
        option: by what name the caller was given that.

    Returns:
        the names, and how many are left out.

    Raises:
        InvalidOption: if no site fits, or `var_names` names none of the posterior's.
    """
    names = list(posterior.data_vars) if var_names is None else np.atleast_1d(np.asarray(var_names)).tolist()
    unknown = [name for name in names if name not in posterior.data_vars]
    if unknown:
        raise InvalidOption(f"var_names: {unknown} are not in the posterior, which has {list(posterior.data_vars)}")
    shown, rows = [], 0
    for name in names:
        size = int(np.prod(posterior[name].shape[2:], dtype=int))
        if rows + size <= most:
            shown.append(name)
            rows += size
    if not shown:
        raise InvalidOption(f"none of the sites {names} has at most {option}={most} coordinates: raise {option}")
    return shown, len(names) - len(shown)


def scalars_of(posterior: Any, length: int) -> DataTree:
    """Every coordinate as a variable of its own, `site[label, ...]`, with one chain of `length` draws."""
    scalars = {}
    for site, draws in posterior.data_vars.items():
        values = draws.values.reshape(-1, *draws.shape[2:])
        even = values[np.linspace(0, len(values) - 1, length).round().astype(int)]
        for index in np.ndindex(*draws.shape[2:]):
            labels = [str(draws[dim].values[i]) for dim, i in zip(draws.dims[2:], index, strict=True)]
            scalars[f"{site}[{', '.join(labels)}]" if labels else site] = even[(None, slice(None), *index)]
    return from_dict({"posterior": scalars})
