"""Joint modes that do not exist: a scale that shrinks to zero while the log joint grows without bound.

In a centred hierarchy ``x_j ~ Normal(mu, tau)`` the density at ``x_j = mu`` grows as ``tau^-J``. It shows at the point
where a search gives up: what the scale belongs to lies at its location to much less than that scale, and a smaller
scale is better still. At a mode, values are about one scale from their location.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import NotAMode
from pyro_laplace._typing import Theta
from pyro_laplace.mode.objective import Objective
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.run import Site
from pyro_laplace.settings import settings
from pyro_laplace.unwrap import where_loc_is


class Collapse(NotAMode):
    """A scale fell to zero in a search; `latents` are the sites that it depends on."""

    def __init__(self, message: str, latents: list[str]) -> None:
        super().__init__(message)
        self.latents = latents


@dataclass(frozen=True)
class _Spread:
    """The scale of a site and what it spreads, entry by entry, broadcast together."""

    scale: Tensor
    distance: Tensor
    size: float


def refuse_collapse(objective: Objective, part: Theta, on_the_way: bool = False) -> None:
    """Refuse the point at which a search stands if a scale has collapsed there.

    Args:
        objective: what is minimised, from its own `theta`.
        part: the free coordinates found.
        on_the_way: whether the search would go on, so that only what is lost beyond doubt counts.

    Raises:
        Collapse: naming the site whose scale collapsed, what it depends on, and the remedy.
    """
    program, theta = objective.program, objective.embed(part)
    with undisturbed(), torch.enable_grad():
        chunk = next(objective.loop.chunks())
        leaf = theta.clone().requires_grad_()
        spreads = _spreads(objective, leaf, chunk)
        if not spreads:
            return
        before = _spreads(objective, objective.theta, chunk)
        collapsed = _lost if on_the_way else _collapsed
        suspects = {name: found for name, s in spreads.items() if (found := collapsed(s, before[name], theta)).any()}
        if not suspects:
            return
        _, gradient = objective.value_and_gradient(part)
        for name, which in suspects.items():
            log_scale = spreads[name].scale.log()[which].mean()
            if not log_scale.requires_grad:  # of which nothing that collapsed is finite
                continue
            (direction,) = torch.autograd.grad(log_scale, leaf, retain_graph=True, allow_unused=True)
            if direction is None:
                continue
            along = direction[objective.index].double()
            if float(gradient @ along) > settings.collapse_rate * float(along @ along) > 0:
                layout = program.layout.items()
                latents = [latent for latent, place in layout if latent != name and bool(direction[place].any())]
                raise Collapse(_message(objective, name, latents, before[name], spreads[name], which), latents)


def _spreads(objective: Objective, theta: Tensor, chunk: Chunk) -> dict[str, _Spread]:
    """The scales of the program's sites that depend on theta, where it requires a gradient; else all."""
    run = objective.program.run(theta, chunk)
    found = {name: _scale_of(site) for name, site in {**run.latents, **run.observed}.items()}
    wanted = theta.requires_grad
    return {name: s for name, s in found.items() if s is not None and (s.scale.requires_grad or not wanted)}


def _scale_of(site: Site) -> _Spread | None:
    fn, value = where_loc_is(site.fn, site.value)
    scale, loc = getattr(fn, "scale", None), getattr(fn, "loc", 0.0)
    if not isinstance(scale, Tensor) or not value.is_floating_point():
        return None
    distance = ((value - loc) / scale).detach()
    size = float(value.detach().abs().max()) if value.numel() else 0.0
    return _Spread(scale.expand(distance.shape), distance, size)


def _collapsed(now: _Spread, before: _Spread, theta: Theta) -> Tensor:
    """Which entries have collapsed, bool of the site's shape."""
    small = _small(now, before)
    squares = now.distance[small].square()
    close = bool(len(squares)) and float(squares.mean()) < settings.collapse_close
    return small if close else _lost(now, before, theta)


def _lost(now: _Spread, before: _Spread, theta: Theta) -> Tensor:
    """Which entries have a scale too small to tell apart what it spreads, bool of the site's shape."""
    # values need not be close: where a whole model shrinks (a test's abilities, difficulties and inverse
    # discriminations), they stay about a scale from their location
    lost = now.scale.detach() < max(4 * torch.finfo(theta.dtype).eps, settings.collapse_lost) * now.size
    return _small(now, before) & lost


def _small(now: _Spread, before: _Spread) -> Tensor:
    scale = now.scale.detach()
    return (scale < settings.collapse_shrunk * before.scale.detach()) | (scale < settings.collapse_small * now.size)


def _message(objective: Objective, name: str, latents: list[str], before: _Spread, now: _Spread, which: Tensor) -> str:
    first, last = (float(s.scale.detach()[which].flatten()[0]) for s in (before, now))
    said = (
        f"the log joint has no maximum: the scale of site {name!r}, which depends on {latents}, collapses to zero "
        f"(from {first:.3g} to {last:.3g} in the search), and the density grows without bound as it does. "
    )
    if name in objective.program.latents:
        return said + (
            f"Write {name!r} in its non-centred form: x = loc + scale * z with z ~ Normal(0, 1), or have it done: "
            f"poutine.reparam(model, config={{{name!r}: LocScaleReparam(0.0)}}); or give the scale a prior that keeps "
            "it from zero"
        )
    return said + (
        "The program fits these data exactly: give the scale a prior that keeps it from zero (LogNormal, "
        "InverseGamma), or the other sites a prior that keeps them from fitting the noise"
    )
