"""Whether the log joint is concave, by what the program is made of: one search then finds its only mode.

A log density that is concave in eta is concave in theta where eta is affine in it. That holds of the data, and of the
latent sites too, whose density is one of the value less its location.
"""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._typing import Theta
from pyro_laplace.capture.loop import Loop
from pyro_laplace.likelihood import Likelihood, likelihood_of
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Run
from pyro_laplace.settings import settings
from pyro_laplace.unwrap import innermost

_STEPS = (-3.0, -1.0, 1.0, 3.0)
"""Where eta is looked at on a line through theta: on both sides of the origin, where a kink may be."""

_LENGTHS = (1.0, 1e-1, 1e-2)
"""Of a step, in turn until eta is finite: a rate overflows far from the data."""

type _Parts = list[tuple[Tensor, Tensor]]
"""Of each site, the entries of eta in which its log density is concave, and all others."""


def is_concave(loop: Loop, theta: Theta) -> bool:
    """Whether the log joint is concave: each site's log density is, in what is affine in theta.

    It is asked of some rows of the data, at a few points. A program that is concave for another reason is not known.

    Args:
        loop: the traced program and its data.
        theta: a point, unconstrained.

    Returns:
        whether it is; False where that is not known.
    """
    program = loop.program
    if program.hidden or program.derived or program.computed:
        return False
    if any(latent.constrained for latent in program.latents.values()):
        return False
    generator = torch.Generator().manual_seed(0)
    with undisturbed(), torch.no_grad():
        chunk = loop.few_rows()
        start = _concave_parts(program.run(theta, chunk))
        if start is None:
            return False
        noise = torch.randn(settings.affine_lines, len(theta), generator=generator, dtype=torch.float64).to(theta)
        return all(_is_affine_along(program, chunk, theta, line, start) for line in noise * (1 + theta.abs()))


def _is_affine_along(program: Program, chunk: Chunk, theta: Theta, line: Theta, start: _Parts) -> bool:
    for length in _LENGTHS:
        try:
            found = [_concave_parts(program.run(theta + step * length * line, chunk)) for step in _STEPS]
        except (LinAlgError, ValueError):  # of parameters that a distribution refuses
            continue
        others = [parts for parts in found if parts is not None]
        if len(others) < len(_STEPS):
            return False
        if all(bool(moving.isfinite().all()) for parts in others for moving, _ in parts):
            return all(map(_is_affine, start, zip(*others, strict=True)))
    return False


def _concave_parts(run: Run) -> _Parts | None:
    """The parts of eta at one point; None of a program with a site that has no such entries, or with a factor."""
    if run.factors:
        return None
    parts = []
    for site in (*run.observed.values(), *run.latents.values()):
        latent = site.name in run.latents
        if latent and isinstance(innermost(site.fn), dist.ImproperUniform):
            continue
        likelihood = likelihood_of(site.fn)
        if likelihood is None or not likelihood.family.concave or (latent and not _is_of_distance(likelihood)):
            return None
        parts.append(_split(likelihood))
    return parts


def _is_of_distance(likelihood: Likelihood) -> bool:
    """Whether the log density is a concave one of the value less the location, and so concave in both."""
    transformed = any(isinstance(wrapper, TransformedDistribution) for wrapper in likelihood.wrappers)
    return "loc" in likelihood.family.concave and not transformed


def _split(likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    family, eta = likelihood.family, likelihood.family.link(likelihood.base)
    if family.shift_invariant:  # a distribution normalises logits, which makes affine ones curved
        eta = eta - eta[..., :1]
    if len(family.outputs) == 1:
        return eta, eta[..., :0]
    size = 1 if eta.shape[-1] == len(family.outputs) else likelihood.base.event_shape.numel()
    places = torch.zeros(eta.shape[-1], dtype=torch.bool, device=eta.device)
    for name in family.concave:
        first = family.outputs.index(name) * size
        places[first : first + size] = True
    return eta[..., places], eta[..., ~places]


def _is_affine(start: tuple[Tensor, Tensor], others: tuple[tuple[Tensor, Tensor], ...]) -> bool:
    """Whether entries move in proportion to the steps, up to rounding, and the others of eta not at all."""
    if not all(torch.equal(start[1], fixed) for _, fixed in others):
        return False
    eta = torch.stack([moving for moving, _ in others])
    way = eta - start[0]
    if not bool(way.any()):
        return True
    rate = way / torch.tensor(_STEPS).to(way).reshape(-1, *(1,) * (way.dim() - 1))
    rounding = settings.rounding * torch.finfo(eta.dtype).eps * float(eta.abs().max())
    told = rounding <= settings.affine_told * float(way.abs().max())
    return told and float((rate - rate[0]).abs().max()) <= rounding
