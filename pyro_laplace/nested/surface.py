"""The hyper sites' posterior as a surface over their unconstrained coordinates, its mode and shape there, its points.

Letters: b rows, q hyper coordinates.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from pyro_laplace._errors import LaplaceWarning, NotAMode, UnsupportedProgram
from pyro_laplace.inner.conditional import Conditional, parents_of
from pyro_laplace.inner.problem import Inner, InnerSolved
from pyro_laplace.inner.rows import prior_gradients, prior_values
from pyro_laplace.settings import settings

_TRIED = (1.0, 0.3, 0.05, 2.0)
"""Shares of a Newton step that are tried together."""


@dataclass(frozen=True, eq=False)
class Points:
    """The surface at some hyper points.

    Attributes:
        h: [b, q].
        value: log p(y, h), log-Jacobian included [b]; minus infinity where there is no inner mode.
        marginal: log p(y | h) [b].
        solved: the inner approximations.
    """

    h: Tensor
    value: Tensor
    marginal: Tensor
    solved: InnerSolved


@dataclass(eq=False)
class HyperSurface:
    """``log p(y, h)`` by an inner problem.

    Attributes:
        of: the program split.
        inner: how the inner problem is solved.
        failures: points at which there was no inner mode, so far.
        tell: told of each point, for a progress bar.
    """

    of: Conditional
    inner: Inner
    tell: Callable[[int], None]
    failures: int = 0

    def at(self, h: Tensor) -> Points:
        """At rows h [b, q]."""
        prior = prior_values(self.of, h)
        solved = self.inner.solve(h)
        self.failures += int((solved.value == -torch.inf).sum())
        self.tell(len(h))
        value = torch.where(prior.isfinite(), solved.value + prior, -torch.inf).nan_to_num(nan=-torch.inf)
        return Points(h, value, solved.value, solved)

    def gradient(self, points: Points) -> Tensor:
        """Of log p(y, h) at the points [b, q]."""
        return points.solved.gradient() + prior_gradients(self.of, points.h)

    def quadratic(self, h: Tensor, value: float, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient [q] and minus the Hessian [q, q] at a point, by differences of gradients, or of values.

        Args:
            h: the point [q].
            value: the surface there.
            steps: of the differences [q].

        Returns:
            both; nan where the surface is not finite beside the point.
        """
        eye = torch.eye(len(h)).to(h) * steps
        if self.inner.differentiable:
            points = self.at(torch.cat([h.unsqueeze(0), h + eye, h - eye]))
            found = self.gradient(points)
            found[~points.value.isfinite()] = torch.nan
            ahead, behind = found[1:].split(len(h))
            matrix = (behind - ahead) / (2 * steps.unsqueeze(-1))
            return found[0], (matrix + matrix.mT) / 2
        pairs = [(i, j) for i in range(len(h)) for j in range(i)]
        corners = [sign * (eye[i] + eye[j]) for sign in (1, -1) for i, j in pairs]
        rows = torch.stack([h + move for move in (*eye, *-eye, *corners)])
        values = self.at(rows).value
        values = torch.where(values.isfinite(), values, torch.nan)
        ahead, behind, both, neither = values.split([len(h), len(h), len(pairs), len(pairs)])
        gradient = (ahead - behind) / (2 * steps)
        matrix = torch.diag((2 * value - ahead - behind) / steps.square())
        for number, (i, j) in enumerate(pairs):
            crossed = both[number] + neither[number] + 2 * value - ahead[[i, j]].sum() - behind[[i, j]].sum()
            matrix[i, j] = matrix[j, i] = -crossed / (2 * steps[i] * steps[j])
        return gradient, matrix


@dataclass(frozen=True, eq=False)
class HyperMode:
    """The surface's mode, and coordinates z in which it is round there: ``h = mode + axes z``.

    Attributes:
        h: [q].
        value: log p(y, h).
        axes: a root of the covariance, eigenvectors times standard deviations [q, q].
    """

    h: Tensor
    value: float
    axes: Tensor

    def place(self, z: Tensor) -> Tensor:
        """h [b, q] for z [b, q]."""
        return self.h + z @ self.axes.mT

    @property
    def log_volume(self) -> float:
        """``log |dh / dz|``."""
        return float(torch.linalg.slogdet(self.axes)[1])


@dataclass(frozen=True, eq=False)
class Weighted:
    """Points of the hyper sites' posterior.

    Attributes:
        batches: where the surface was evaluated.
        places: of each point, which batch it is of, and which row of that.
        weights: summing to 1 [points].
        log_evidence: log of the integral of ``p(y, h)``, by these points.
        kernel: covariance of what lies between a point and the next, in h [q, q].
    """

    batches: Sequence[Points]
    places: Sequence[tuple[int, int]]
    weights: Tensor
    log_evidence: float
    kernel: Tensor

    @staticmethod
    def of(
        batches: Sequence[Points], chosen: Tensor, weights: Tensor, log_evidence: float, kernel: Tensor
    ) -> "Weighted":
        """Some of the points of all batches, by their numbers."""
        places = [(i, j) for i, batch in enumerate(batches) for j in range(len(batch.h))]
        return Weighted(batches, [places[k] for k in chosen.tolist()], weights, log_evidence, kernel)

    @property
    def h(self) -> Tensor:
        """Of the points [points, q]."""
        return torch.stack([self.batches[i].h[j] for i, j in self.places])


def find_hyper_mode(surface: HyperSurface) -> HyperMode:
    """The mode of the hyper sites' posterior, by Newton's method in their unconstrained coordinates.

    Args:
        surface: the posterior.

    Returns:
        the mode.

    """
    start = surface.of.start[1]
    eye = torch.eye(len(start)).to(start)
    look = settings.hyper_look * eye
    moves = torch.cat([torch.zeros_like(eye[:1]), *((look, -look) if _many(surface) else ())])
    looked = surface.at(start + moves)
    best = int(looked.value.argmax())
    h, value = looked.h[best], float(looked.value[best])
    if not surface.inner.differentiable:
        return _by_compass(surface, h, value)
    single = surface.of.program.start.dtype != torch.float64
    step = torch.full_like(h, settings.hyper_step_rough if single else settings.hyper_step)
    for _ in range(settings.hyper_steps):
        gradient, matrix = surface.quadratic(h, value, step)
        if not bool(gradient.isfinite().all() and matrix.isfinite().all()):
            break
        values, vectors = torch.linalg.eigh(matrix)
        metric = values.abs().clamp(min=settings.hyper_flat)
        move = vectors @ ((vectors.mT @ gradient) / metric)
        decrement = float((gradient @ move).clamp(min=0).sqrt())
        if bool((values > settings.hyper_flat).all()) and decrement <= settings.hyper_decrement:
            return HyperMode(h, value, vectors / values.sqrt())
        move = move * min(1.0, settings.hyper_reach / float(move.abs().max().clamp(min=1e-300)))
        tried = surface.at(torch.stack([h + share * move for share in _TRIED]))
        best = int(tried.value.argmax())
        if not float(tried.value[best]) > value:
            break
        h, value = tried.h[best], float(tried.value[best])
        if float((h - start).abs().max()) > settings.hyper_far:
            refuse_runaway(surface, h, start)
    return _by_compass(surface, h, value)


def _by_compass(surface: HyperSurface, h: Tensor, value: float) -> HyperMode:
    """The highest point by shorter and shorter steps along the coordinates: values may jump between inner modes.

    Returns:
        the mode, near enough for a grid to begin at, and its axes by a quadratic through its neighbours.
    """
    start, eye, length = surface.of.start[1], torch.eye(len(h)).to(h), 1.0
    while length >= settings.hyper_compass:
        tried = surface.at(torch.cat([h + length * eye, h - length * eye]))
        best = int(tried.value.argmax())
        if float(tried.value[best]) > value:
            h, value = tried.h[best], float(tried.value[best])
        else:
            length /= 2
        if float((h - start).abs().max()) > settings.hyper_far:
            refuse_runaway(surface, h, start)
    _, matrix = surface.quadratic(h, value, torch.full_like(h, settings.hyper_step_rough))
    values, vectors = torch.linalg.eigh(matrix.nan_to_num(nan=0.0))
    return HyperMode(h, value, vectors / values.clamp(min=settings.hyper_broad**-2).sqrt())


def _many(surface: HyperSurface) -> bool:
    """Whether further points cost next to nothing."""
    return surface.inner.differentiable and surface.of.data_size <= settings.row_elements // settings.small


def refuse_runaway(surface: HyperSurface, h: Tensor, start: Tensor) -> NoReturn:
    """Refuse a posterior of the hyper sites that has no end.

    Args:
        surface: the posterior.
        h: a point far away [q].
        start: from where it is far [q].

    Raises:
        NotAMode: naming the site.
    """
    program = surface.of.program
    far = torch.zeros_like(program.start, dtype=torch.float64)
    far[surface.of.hyper_index] = (h - start).abs()
    name = max(surface.of.hyper, key=lambda each: float(far[program.latents[each].slice].max()))
    there = program.unpack(surface.of.theta(surface.of.start[0], h))[name].flatten()[:5].tolist()
    raise NotAMode(
        f"the posterior of the hyper sites {list(surface.of.hyper)} has no mode that a search could find: it went as "
        f"far as {name!r} = {there}. Either its prior is improper and the data leave it open, or it is none that the "
        f"inner sites depend on: give {name!r} a proper prior, or leave it out of hyper="
    )


def refuse_uninformed(surface: HyperSurface, mode: HyperMode) -> None:
    """Refuse hyper sites that the marginal likelihood does not depend on, directly or through other hyper sites.

    Args:
        surface: the posterior.
        mode: its mode.

    Raises:
        UnsupportedProgram: naming the sites, and the remedy.
    """
    of = surface.of
    eye, sd = torch.eye(len(mode.h)).to(mode.h), mode.axes.square().sum(1).sqrt()
    rows = surface.at(torch.cat([mode.h.unsqueeze(0), mode.h + sd * eye, mode.h - sd * eye])).marginal
    moved = (rows[1:].reshape(2, -1) - rows[0]).abs().nan_to_num(nan=torch.inf).amax(0)
    entries = torch.zeros_like(of.program.start, dtype=torch.float64).index_copy(0, of.hyper_index, moved)
    rounding = settings.rounding * torch.finfo(of.program.start.dtype).eps * max(1.0, float(rows[0].abs()))
    informed = {n for n in of.hyper if float(entries[of.program.latents[n].slice].max()) > rounding}
    parents = parents_of(of.program, of.hyper, of.chunks[0])
    pending = list(informed)
    while pending:
        for parent in parents[pending.pop()]:
            if parent not in informed:
                informed.add(parent)
                pending.append(parent)
    lost = [name for name in of.hyper if name not in informed]
    if lost:
        raise UnsupportedProgram(
            f"the data say nothing of the hyper sites {lost}: the likelihood, all other sites integrated out, is the "
            "same at all their values, and their posterior is their prior. Leave them out of hyper=, or have the "
            "program use them"
        )


def tell_of_failed(surface: HyperSurface, mode: HyperMode, batches: Sequence[Points], log_w: Tensor) -> None:
    """Warn of points without an inner mode that would weigh, each as much as the nearest one that has a mode does.

    Args:
        surface: log p(y, h).
        mode: its mode, in whose axes points are near.
        batches: the points.
        log_w: logarithms of their weights, up to a constant [points].
    """
    failed = torch.cat([batch.marginal for batch in batches]) == -torch.inf
    if not bool(failed.any()):
        return
    h = torch.cat([batch.h for batch in batches])
    z = torch.linalg.solve(mode.axes, (h - mode.h).mT).mT
    would = log_w.softmax(0)[~failed][torch.cdist(z[failed], z[~failed]).argmin(1)]
    share = float(would.sum() / (1 + would.sum()))
    if share <= settings.grid_lost:
        return
    of = surface.of
    there = of.program.unpack(of.theta(of.start[0], h[failed][int(would.argmax())]))
    values = ", ".join(f"{name} = {there[name].flatten()[:5].tolist()}" for name in of.hyper)
    warnings.warn(
        f"no mode of the inner sites {list(of.inner)[:5]} was found at {int(failed.sum())} of {len(h)} hyper points: "
        f"up to {share:.1%} of the hyper sites' posterior is left out with them. That at {values} weighs most. Scale "
        "the inner sites to be near 1, work in float64, or name in hyper= a further site on which they depend",
        LaplaceWarning,
        stacklevel=5,
    )


def smoothing_kernel(h: Tensor, weights: Tensor) -> Tensor:
    """Silverman's kernel covariance ``k^2 S``, ``k = (4 / (n (q + 2)))^(1 / (q + 4))``, of weighted points h [n, q]."""
    mean = weights @ h
    covariance = ((h - mean) * weights.unsqueeze(-1)).mT @ (h - mean)
    effective, size = 1 / weights.square().sum(), h.shape[1]
    width = (4 / (float(effective) * (size + 2))) ** (1 / (size + 4))
    return width**2 * covariance
