"""Colours, markers and axes, the same in every figure."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from xarray import DataTree

from pyro_laplace._errors import InvalidOption

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#444444")
"""Okabe and Ito's palette, which the colour-blind can tell apart, without its yellow."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def look(number: int) -> tuple[str, str]:
    """Colour and marker of the posterior at this place."""
    return COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]


def tidy(axes: Axes, grid: str | None = "both") -> None:
    """A frame of two sides, and a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color="0.9", linewidth=0.8)  # type: ignore[arg-type]


def by_name(trees: DataTree | Mapping[str, DataTree]) -> dict[str, DataTree]:
    """Trees by name, a single one by what its posterior is.

    Args:
        trees: one tree, or several by name.

    Returns:
        the trees.

    Raises:
        InvalidOption: if there is none.
    """
    if isinstance(trees, DataTree):
        return {str(trees.attrs.get("posterior", "posterior")): trees}
    if not trees:
        raise InvalidOption("trees is empty: give what to_datatree returns, or a mapping of names to it")
    return dict(trees)
