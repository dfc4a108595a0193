"""The curvature of posteriors, direction by direction."""

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure

from pyro_laplace._errors import InvalidOption
from pyro_laplace.plots.style import look, stroke, tidy
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.settings import settings


def spectrum(guides: AutoLaplace | Mapping[str, AutoLaplace], *, title: str = "") -> Figure:
    """Eigenvalues of the posterior precision, and of the prior's as thin lines: where they meet, the data say nothing.

    Args:
        guides: a posterior of `fit_laplace`, or several by name.
        title: above the axes.

    Returns:
        the figure.

    Raises:
        InvalidOption: for what is no `AutoLaplace` with a covariance, or has more than `settings.dense_coordinates`
            coordinates.
    """
    named: Mapping[str, Any] = {"posterior": guides} if isinstance(guides, AutoLaplace) else guides
    if not isinstance(named, Mapping) or not named:
        raise InvalidOption(f"guides is {guides!r:.80}: give a posterior of fit_laplace, or a mapping of names to them")
    figure = Figure(figsize=(3.5, 2.9), layout="constrained")
    axes = figure.subplots()
    for number, (name, guide) in enumerate(named.items()):
        _refuse_guide(name, guide)
        color, _ = look(number)
        line = {"color": color, "linestyle": stroke(number)}
        axes.plot(*_falling(guide.precision.to_dense()), linewidth=1.6, label=name, **line)
        if guide.prior is not None:
            prior = guide.prior.diagonal.diag() if guide.prior.is_diagonal else guide.prior.matrix()
            axes.plot(*_falling(prior), linewidth=0.7, alpha=0.8, **line)
    axes.set_yscale("log")
    axes.set_xlabel("direction", fontsize=settings.plot_letters)
    axes.set_ylabel("precision (eigenvalue)", fontsize=settings.plot_letters)
    axes.set_title(title, fontsize=settings.plot_letters)
    axes.tick_params(labelsize=settings.plot_letters - 1)
    tidy(axes)
    axes.legend(
        frameon=False,
        fontsize=settings.plot_letters - 1,
        title="thin: the prior's",
        title_fontsize=settings.plot_letters - 1,
    )
    return figure


def _falling(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places from 1 on, and the eigenvalues, the largest first."""
    values = torch.linalg.eigvalsh(matrix.double()).flip(0).cpu()
    return torch.arange(1, len(values) + 1), torch.where(values > 0, values, torch.nan)


def _refuse_guide(name: str, guide: Any) -> None:
    if not isinstance(guide, AutoLaplace) or not bool(guide.precision.variance().gt(0).all()):
        raise InvalidOption(f"{name!r} is a {type(guide).__name__} without a precision: give what fit_laplace returns")
    if guide.latent_dim > settings.dense_coordinates:
        raise InvalidOption(
            f"{name!r} has {guide.latent_dim} random coordinates, and its precision would be dense: give a posterior "
            f"of at most settings.dense_coordinates={settings.dense_coordinates}, such as subset='last_layer'"
        )
