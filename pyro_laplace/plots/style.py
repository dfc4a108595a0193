"""Colours, markers and axes, the same in every figure."""

from collections.abc import Mapping
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from xarray import DataTree

from pyro_laplace._errors import InvalidOption
from pyro_laplace.settings import settings

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#444444")
"""Okabe and Ito's palette, which the colour-blind can tell apart, without its yellow."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


_STROKES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))
"""Lines that can be told apart in grey."""

type Stroke = Any
"""What matplotlib takes for a line's style."""


def stroke(number: int) -> Stroke:
    """The line of the posterior at this place."""
    return _STROKES[number % len(_STROKES)]


def look(number: int) -> tuple[str, str]:
    """Colour and marker of the posterior at this place."""
    return COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]


def tidy(axes: Axes, grid: Literal["both", "x", "y"] | None = "both") -> None:
    """A frame of two sides, and a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color="0.9", linewidth=0.8)


def for_paper(figure: Figure) -> Figure:
    """The figure, with letters that can be read at the width of a column."""
    size = settings.plot_letters
    for axes in figure.axes:
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_fontsize(size)
        axes.tick_params(labelsize=size - 1)
        axes.spines[["top", "right"]].set_visible(False)
    legends = [axes.get_legend() for axes in figure.axes]
    for legend in (*figure.legends, *(each for each in legends if each is not None)):
        for text in legend.get_texts():
            text.set_fontsize(size - 1)
    return figure


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


def one_tree(trees: DataTree | Mapping[str, DataTree], figure: str) -> DataTree:
    """The tree of a figure that shows one posterior.

    Args:
        trees: the tree, or a mapping of one name to it.
        figure: name of the function that draws it.

    Returns:
        the tree.

    Raises:
        InvalidOption: if there are several, or none.
    """
    if isinstance(trees, DataTree):
        return trees
    if not isinstance(trees, Mapping) or not trees:
        raise InvalidOption(f"tree is {trees!r:.80}: give what to_datatree returns")
    if len(trees) > 1:
        raise InvalidOption(
            f"{figure} shows one posterior, and there are {list(trees)}: give one tree, trees[{next(iter(trees))!r}]"
        )
    return next(iter(trees.values()))
