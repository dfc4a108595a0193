"""`fit_nested_laplace`: the posterior of a hierarchy, its many sites integrated out at each value of the few."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, check_option
from pyro_laplace._progress import progress_bar
from pyro_laplace.data import as_data
from pyro_laplace.inference.nuts import fit_nuts
from pyro_laplace.inner.single import for_single_points
from pyro_laplace.nested.begin import Nesting, begin
from pyro_laplace.nested.guide import NestedLaplace, nested_posterior
from pyro_laplace.nested.marginal import LaplaceMarginal
from pyro_laplace.nested.outer import by_draws, by_grid, by_laplace
from pyro_laplace.nested.surface import HyperMode, HyperSurface, find_hyper_mode, refuse_uninformed
from pyro_laplace.settings import settings
from pyro_laplace.structure.options import Structure

_LOG = logging.getLogger(__name__)


def fit_nested_laplace(
    model: Callable[..., Any],
    data: Any,
    hyper: str | Iterable[str] = "auto",
    *,
    outer: str = "grid",
    structure: Structure = "auto",
    curvature: str = "auto",
    progress: bool = True,
) -> NestedLaplace:
    """Approximate the posterior of a hierarchy by nested Laplace approximations.

    The joint mode of a hierarchy is far from its mass. Given the few hyper sites h (scales, noise, length-scales), the
    many others x are nearly Gaussian, and exactly so in a linear-Gaussian program. So x is integrated out by Laplace at
    each h, and h explored by itself (Rue, Martino and Chopin 2009, "Approximate Bayesian inference for latent Gaussian
    models by using integrated nested Laplace approximations"). The inner Gaussians have the means and sds of the
    effective action to one loop, ``-log p(y, x | h) + 1/2 log det H``, and the weights of a grid are corrected by draws
    of them, where these say what is left out.

    Args:
        model: a Pyro program.
        data: a batch (tuple, dict or tensor), or a re-iterable of batches, which is read once and kept.
        hyper: the hyper sites: names or globs; "auto" takes sites of at most `settings.hyper_coordinates` coordinates
            on which the curvature of others' prior depends, that multiply others in the predictor, or that enter the
            data's dispersion; the guide's `reasons` and the log say which, and why.
        outer: "grid" (along the curvature's axes, as wide as the posterior is skewed; over more than
            `settings.grid_coordinates` coordinates, weighted quasi-random points), "laplace" (a Gaussian around the
            mode in unconstrained coordinates) or "nuts" (draws by `fit_nuts` from `laplace_marginal`:
            `settings.outer_draws` of them after `settings.outer_warmup`, 1,000 and 300 unless set, as by
            ``with pl.settings.using(outer_draws=400)``).
        structure: of the inner precision, as in `laplace_marginal`.
        curvature: of the log likelihood, as in `laplace_marginal`.
        progress: whether to show a progress bar.

    Returns:
        the posterior of all sites as a Pyro guide.

    Raises:
        InvalidOption: for an unknown option, a pattern that matches no site or patterns that match all, or "auto" where
            no site is one; or for `outer="nuts"` of an inner problem without gradients, or of fewer draws than tell a
            covariance.
        UnsupportedProgram: if the program has no Laplace approximation, a hyper site's prior depends on a site that is
            integrated out, or the data say nothing of a hyper site, naming it.
        NotAMode: if the inner problem has no mode, or the hyper sites' posterior none, naming the sites.
    """
    start = time.perf_counter()
    check_option("outer", outer, ("grid", "laplace", "nuts"))
    data = as_data(data).held()
    with undisturbed(), torch.no_grad():
        begun = begin(model, data, hyper, structure, curvature, everything=True)
        _tell(begun)
        if outer == "nuts" and not begun.inner.differentiable:
            raise InvalidOption(
                f"outer='nuts' needs gradients, and curvature={begun.inner.curvature!r} has none: use outer='grid'"
            )
        with progress_bar("nested Laplace", None, "point", progress) as bar:
            surface = HyperSurface(begun.of, begun.inner, bar.update)
            mode = find_hyper_mode(surface)
            refuse_uninformed(surface, mode)
            if outer == "grid":
                found = by_grid(surface, mode)
            elif outer == "laplace":
                found = by_laplace(surface, mode)
            else:
                found = by_draws(surface, mode, lambda: _drawn(begun, mode, progress))
        form = "full" if structure == "auto" else structure
        guide = nested_posterior(begun.of, found, begun.reasons, form, begun.inner.curvature)
    guide.fit_seconds = time.perf_counter() - start
    return guide


def _tell(begun: Nesting) -> None:
    for name, reason in begun.reasons.items():
        _LOG.info("hyper site %r: it %s", name, reason)


def _drawn(begun: Nesting, mode: HyperMode, progress: bool) -> Tensor:
    """Draws of the hyper sites' coordinates by NUTS, from their mode [draws, q]."""
    of = begun.of
    marginal = LaplaceMarginal(of.program.model, of.loop.data, of, for_single_points(begun.inner))
    values = of.program.unpack(of.theta(of.start[0], mode.h))
    mcmc = fit_nuts(
        marginal,
        (),
        num_samples=settings.outer_draws,
        warmup_steps=settings.outer_warmup,
        initial={name: values[name] for name in of.hyper},
        progress=progress,
    )
    draws = mcmc.get_samples()
    rows = [torch.stack([of.program.latents[n].unconstrain(v) for v in draws[n]]) for n in of.hyper]
    found = torch.cat(rows, -1).double()
    moved, size = len(found[::2].unique(dim=0)), found.shape[1]
    if moved <= size:
        raise InvalidOption(
            f"outer='nuts': half of {settings.outer_draws} draws after {settings.outer_warmup} are {moved} distinct "
            f"points of {list(of.hyper)}, too few for a covariance in {size} coordinates. Take more: "
            "pl.settings.using(outer_draws=1000, outer_warmup=300)"
        )
    return found
