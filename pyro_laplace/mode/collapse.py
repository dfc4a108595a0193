"""Joint modes that do not exist: a scale that shrinks to zero while the log joint grows without bound.

In a centred hierarchy ``x_j ~ Normal(mu, tau)`` the density at ``x_j = mu`` grows as ``tau^-J``. It shows at the point
where a search gives up: what the scale belongs to lies at its location to much less than that scale, and a smaller
scale is better still. At a mode, values are about one scale from their location.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import LinAlgError
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
    loc: Tensor
    matrix: bool


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
            length = float(along @ along)
            rate = float(gradient @ along) / length if length else 0.0
            if rate > settings.collapse_rate:
                layout = program.layout.items()
                latents = [latent for latent, place in layout if latent != name and bool(direction[place].any())]
                gain = min(rate, float(which.sum()))  # an entry's density grows at most as its scale falls
                if _held_by_prior(objective, theta, direction / length, latents, gain):
                    continue
                chain = _chain(objective, name, latents, spreads, leaf)
                said = _message(objective, name, latents, before[name], spreads[name], which)
                said += _remedy(objective, name, spreads[name].matrix, chain)
                raise Collapse(said + _nested(objective, name, latents, spreads, leaf), latents)


def _held_by_prior(objective: Objective, theta: Theta, fall: Theta, latents: list[str], rate: float) -> bool:
    """Whether the prior of what a scale depends on ends its collapse before floating point does, so that a mode is."""
    # a LogNormal scale's log density falls as the square of the scale's logarithm, that of a network's weights as
    # theirs; what falls but linearly is in `rate`, the nats gained as the log of the scale falls by one
    chunk, program = next(objective.loop.chunks()), objective.program

    def log_prior(at: Theta) -> Tensor:
        return program.log_prior(at, chunk, objective.jacobian, frozenset(latents))

    whole = -math.log(torch.finfo(theta.dtype).eps)  # beyond, values cannot be told from their location
    leaf = theta.clone().requires_grad_()
    here = log_prior(leaf)
    (slope,) = torch.autograd.grad(here, leaf, allow_unused=True) if here.requires_grad else (None,)
    linear = 0.0 if slope is None else -whole * float(slope.double() @ fall.double())
    try:
        there = float(log_prior(theta - whole * fall).detach())
    except (LinAlgError, ValueError):  # of a scale matrix that is zero
        return False
    return not there - float(here.detach()) - linear > -whole * rate


def _spreads(objective: Objective, theta: Tensor, chunk: Chunk) -> dict[str, _Spread]:
    """The scales of the program's sites that depend on theta, where it requires a gradient; else all."""
    run = objective.program.run(theta, chunk)
    found = {name: _scale_of(site) for name, site in {**run.latents, **run.observed}.items()}
    wanted = theta.requires_grad
    return {name: s for name, s in found.items() if s is not None and (s.scale.requires_grad or not wanted)}


def _scale_of(site: Site) -> _Spread | None:
    """Of a location-scale family; of one with a scale matrix L, its diagonal and ``L^-1 (x - loc)``."""
    fn, value = where_loc_is(site.fn, site.value)
    scale, root = getattr(fn, "scale", None), getattr(fn, "scale_tril", None)
    if not value.is_floating_point():
        return None
    loc = torch.as_tensor(getattr(fn, "loc", 0.0)).to(value)
    if isinstance(scale, Tensor):
        distance, matrix = ((value - loc) / scale).detach(), False
    elif isinstance(root, Tensor):
        off = (value - loc).detach().unsqueeze(-1)
        scale, matrix = root.diagonal(dim1=-2, dim2=-1), True
        distance = torch.linalg.solve_triangular(root.detach(), off, upper=False).squeeze(-1)
    else:
        return None
    size = float(value.detach().abs().max()) if value.numel() else 0.0
    return _Spread(scale.expand(distance.shape), distance, size, loc, matrix)


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


def _chain(objective: Objective, name: str, latents: list[str], spreads: dict[str, _Spread], leaf: Theta) -> list[str]:
    """The latent sites that have the same scale, where one is the location of another: a random walk's steps."""
    layout = objective.program.layout

    def depends(of: Tensor) -> set[str]:
        if not of.requires_grad:
            return set()
        (direction,) = torch.autograd.grad(of.sum(), leaf, retain_graph=True, allow_unused=True)
        return set() if direction is None else {each for each, place in layout.items() if bool(direction[place].any())}

    wanted = set(latents)
    steps = [each for each in spreads if each in layout and depends(spreads[each].scale) - {each} == wanted]
    return steps if name in steps and any(depends(spreads[each].loc) & set(steps) for each in steps) else []


def _nested(objective: Objective, name: str, latents: list[str], spreads: dict[str, _Spread], leaf: Theta) -> str:
    """The other remedy: to integrate out what the scales of the program spread, at each value of these scales."""
    layout = objective.program.layout
    if name not in layout:
        return ""
    hyper = set(latents)
    for site, spread in spreads.items():
        (direction,) = torch.autograd.grad(spread.scale.log().sum(), leaf, retain_graph=True, allow_unused=True)
        if direction is not None:
            few = {n for n, place in layout.items() if place.stop - place.start <= settings.hyper_coordinates}
            hyper |= {each for each in few if each != site and bool(direction[layout[each]].any())}
    if len(hyper) == len(layout):
        return ""
    named = [each for each in layout if each in hyper]
    return f". Or have it integrated out at each value of its scale: pl.fit_nested_laplace(model, data, hyper={named})"


def _message(objective: Objective, name: str, latents: list[str], before: _Spread, now: _Spread, which: Tensor) -> str:
    first, last = (float(s.scale.detach()[which].flatten()[0]) for s in (before, now))
    return (
        f"the log joint has no maximum: the scale of site {name!r}, which depends on {latents}, collapses to zero "
        f"(from {first:.3g} to {last:.3g} in the search), and the density grows without bound as it does. "
    )


def _remedy(objective: Objective, name: str, matrix: bool, chain: list[str]) -> str:
    if chain:
        steps = ", ".join(map(repr, chain[: settings.shown_names]))
        return (
            f"Sites {steps}, ... are the steps of a random walk: sample the steps themselves, in one site, z ~ "
            "Normal(0, 1).expand([T]).to_event(1), and compute the walk, x = start + scale * z.cumsum(-1) (with a "
            "factor between steps, by a recursion over z); or give the scale a prior that keeps it from zero"
        )
    if name in objective.program.latents and matrix:
        return (
            f"Write {name!r} in its non-centred form: x = loc + (scale_tril @ z.unsqueeze(-1)).squeeze(-1) with z ~ "
            "Normal(0, 1).expand([d]).to_event(1); or give its scales a prior that keeps them from zero"
        )
    if name in objective.program.latents:
        return (
            f"Write {name!r} in its non-centred form: x = loc + scale * z with z ~ Normal(0, 1), or have it done: "
            f"poutine.reparam(model, config={{{name!r}: LocScaleReparam(0.0)}}); or give the scale a prior that keeps "
            "it from zero"
        )
    return (
        "The program fits these data exactly: give the scale a prior that keeps it from zero (LogNormal, "
        "InverseGamma), or the other sites a prior that keeps them from fitting the noise"
    )
