"""The call that fits a Laplace posterior anew as it is, as a line of code."""

from collections.abc import Mapping
from typing import Any

from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.settings import settings


def fit_again(guide: AutoLaplace | None, *options: str, structure: Any = None) -> str:
    """A call of `fit_laplace` from the guide's point, with its subset, structure, curvature and jacobian.

    Args:
        guide: the posterior; None names no options of its own.
        *options: others, as they are written.
        structure: in place of the guide's; None keeps that.

    Returns:
        the line.
    """
    own = [] if guide is None else _options_of(guide, structure)
    return f"pl.fit_laplace({', '.join(['model', 'data', 'guide', *own, *options])})"


def _options_of(guide: AutoLaplace, structure: Any) -> list[str]:
    plain = guide.curvature == "hessian" and guide.structure == "full"
    options = []
    if (subset := _subset_of(guide)) is not None:
        options.append(f"subset={subset}")
    if structure is not None or guide.structure != "full":
        options.append(f"structure={_as_code(guide.structure if structure is None else structure)}")
    if not plain:  # of which "auto" makes the Hessian
        options.append(f"curvature={guide.curvature!r}")
    return options if guide.jacobian else [*options, "jacobian=False"]


def _subset_of(guide: AutoLaplace) -> str | None:
    if len(guide.index) == len(guide.theta):
        return None
    if guide.partial:  # as many single coordinates: those of largest variance where the mode is
        return f"pl.Subnetwork(size={len(guide.index)})"
    return repr(list(guide.random)) if len(guide.random) <= settings.shown_names else "list(guide.random)"


def _as_code(structure: Any) -> str:
    if isinstance(structure, Mapping):
        return f"{{{', '.join(f'{glob!r}: {_as_code(each)}' for glob, each in structure.items())}}}"
    return repr(structure) if isinstance(structure, str) else f"pl.{structure!r}"
