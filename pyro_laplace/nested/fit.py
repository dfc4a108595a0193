"""`fit_nested_laplace`: the posterior of a hierarchy, its many sites integrated out at each value of the few."""

import logging
import math
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
from pyro_laplace.nested.components import OuterPosterior, components_of
from pyro_laplace.nested.guide import Explored, NestedLaplace
from pyro_laplace.nested.marginal import LaplaceMarginal
from pyro_laplace.nested.outer import by_draws, by_grid, by_laplace, by_particles
from pyro_laplace.nested.surface import HyperMode, HyperSurface, find_hyper_mode, refuse_uninformed
from pyro_laplace.settings import settings
from pyro_laplace.structure.options import Structure

_LOG = logging.getLogger(__name__)


def fit_nested_laplace(
    model: Callable[..., Any],
    data: Any,
    hyper: str | Iterable[str] = "auto",
    *,
    outer: str = "auto",
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
        outer: how the hyper sites' posterior is explored.

            "grid": along the curvature's axes, as wide as the posterior is skewed; over more than
            `settings.grid_coordinates` coordinates, weighted quasi-random points.

            "laplace": a Gaussian around the mode in unconstrained coordinates.

            "nuts": draws by `fit_nuts` from `laplace_marginal`: `settings.outer_draws` of them after
            `settings.outer_warmup`, 1,000 and 300 unless set, as by ``with pl.settings.using(outer_draws=400)``.

            "smc": `settings.particles` particles, 400, moved from the prior to the posterior; it may have several
            modes. Of a small network the weights under the last layer are explored with the hyper sites: given these
            its last layer is a linear model, which Laplace integrates out well, and exactly under Normal noise.

            "auto": "smc" of a network for which a move of the particles makes at most `settings.particle_work` numbers
            (some eight units and sixty data), where neither `structure` nor `curvature` is given; else "grid".
        structure: of the inner precision, as in `laplace_marginal`.
        curvature: of the log likelihood, as in `laplace_marginal`.
        progress: whether to show a progress bar.

    Returns:
        the posterior of all sites as a Pyro guide.

    Raises:
        InvalidOption: for an unknown option, a pattern that matches no site or patterns that match all, or "auto" where
            no site is one; for `outer="nuts"` or "smc" of an inner problem without gradients; for `outer="nuts"` of
            fewer draws than tell a covariance; or for `outer="smc"` of a prior that cannot be drawn from.
        UnsupportedProgram: if the program has no Laplace approximation, a hyper site's prior depends on a site that is
            integrated out, or the data say nothing of a hyper site, naming it.
        NotAMode: if the inner problem has no mode, or the hyper sites' posterior none, naming the sites.
    """
    start = time.perf_counter()
    check_option("outer", outer, ("auto", "grid", "laplace", "nuts", "smc"))
    data = as_data(data).held()
    with undisturbed(), torch.no_grad():
        free = structure == curvature == "auto"
        layers = {"auto": float(settings.particle_work), "smc": math.inf}.get(outer, 0.0) if free else 0.0
        begun = begin(model, data, hyper, structure, curvature, everything=True, layers=layers)
        _tell(begun)
        if outer == "auto":
            outer = "smc" if begun.layers else "grid"
        if outer in ("nuts", "smc") and not begun.inner.differentiable:
            why = "" if free else f", as structure={structure!r} and curvature={curvature!r} ask for"
            also = "" if free or outer == "nuts" else ", or leave structure= and curvature= out"
            raise InvalidOption(
                f"outer={outer!r} needs gradients, and curvature={begun.inner.curvature!r} has none{why}: use "
                f"outer='grid'{also}"
            )
        with progress_bar("nested Laplace", None, "point", progress) as bar:
            surface = HyperSurface(begun.of, begun.inner, bar.update)
            found = by_particles(surface) if outer == "smc" else _from_mode(begun, surface, outer, progress)
        guide = _guide(begun, found, "full" if structure == "auto" else structure)
    guide.fit_seconds = time.perf_counter() - start
    return guide


def _from_mode(begun: Nesting, surface: HyperSurface, outer: str, progress: bool) -> OuterPosterior:
    """The hyper sites' posterior, explored from its mode."""
    mode = find_hyper_mode(surface)
    refuse_uninformed(surface, mode)
    if outer == "grid":
        return by_grid(surface, mode)
    if outer == "laplace":
        return by_laplace(surface, mode)
    return by_draws(surface, mode, lambda: _drawn(begun, mode, progress))


def _guide(begun: Nesting, found: OuterPosterior, structure: Structure) -> NestedLaplace:
    """The posterior of all sites from that of the hyper sites."""
    of = begun.of
    components = components_of(of, found, structure, begun.inner.curvature)
    rows = of.theta(torch.stack([p.x for p in found.points]), torch.stack([p.h for p in found.points]))
    hyper = tuple(name for name in of.hyper if name not in begun.layers)
    latents = of.program.latents
    values = {name: latents[name].constrain(rows[:, latents[name].slice]) for name in of.hyper}
    told = hyper, dict(begun.reasons), found.kind, found.failures, values, begun.layers
    return NestedLaplace(components, Explored(found.weights, found.log_evidence, *told))


def _tell(begun: Nesting) -> None:
    for name, reason in begun.reasons.items():
        _LOG.info("hyper site %r: it %s", name, reason)
    if begun.layers:
        _LOG.info("with them the layers %s of a small network, under its last one", list(begun.layers))


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
