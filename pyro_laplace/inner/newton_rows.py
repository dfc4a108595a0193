"""Newton's method for the inner modes at many hyper points at once, each row with a damping of its own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Expanded:
    """Minus the log joint at some rows, with its derivatives in x.

    Attributes:
        value: -log p(y, x | h) [b]; infinite where it cannot be evaluated.
        gradient: in x [b, i].
        hessian: in x [b, i, i].
    """

    value: Tensor
    gradient: Tensor
    hessian: Tensor

    def put(self, rows: Tensor, other: "Expanded") -> None:
        """Replace some rows by those of another."""
        for name in ("value", "gradient", "hessian"):
            getattr(self, name)[rows] = getattr(other, name)

    def at(self, rows: Tensor) -> "Expanded":
        """Some of the rows."""
        return Expanded(self.value[rows], self.gradient[rows], self.hessian[rows])


type Expand = Callable[[Tensor, Tensor], Expanded]


@dataclass(frozen=True, eq=False)
class Modes:
    """Where searches for inner modes ended.

    Attributes:
        x: [b, i].
        value: -log p(y, x | h) [b].
        scale: square root D of the Hessian's diagonal [b, i].
        factor: Cholesky factor L of the unit-free Hessian: ``H = D L L' D`` [b, i, i].
        found: whether each is a mode [b].
    """

    x: Tensor
    value: Tensor
    scale: Tensor
    factor: Tensor
    found: Tensor

    @property
    def log_det(self) -> Tensor:
        """Of the Hessians [b]."""
        return 2 * (self.scale.log() + self.factor.diagonal(dim1=-2, dim2=-1).log()).sum(-1)

    def solve(self, rows: Tensor) -> Tensor:
        """H^-1 v for each of vectors [b, k, i]."""
        scaled = (rows / self.scale.unsqueeze(1)).mT
        return torch.cholesky_solve(scaled, self.factor).mT / self.scale.unsqueeze(1)

    def inverse(self) -> Tensor:
        """H^-1 [b, i, i]."""
        return torch.cholesky_inverse(self.factor) / self.scale.unsqueeze(1) / self.scale.unsqueeze(2)

    def put(self, rows: Tensor, other: "Modes") -> None:
        """Replace some rows by those of another."""
        for name in ("x", "value", "scale", "factor", "found"):
            getattr(self, name)[rows] = getattr(other, name)

    def precision(self, row: int) -> Tensor:
        """H of one row [i, i]."""
        root = self.scale[row].unsqueeze(-1) * self.factor[row]
        return root @ root.mT


def search_rows(expand: Expand, x: Tensor, h: Tensor, eps: float, steps: int | None = None) -> Modes:
    """The modes of ``log p(y, x | h)`` in x.

    Steps are those of Levenberg in unit-free coordinates, undamped where the Hessian is positive definite and the
    density rises as it promises. A row ends where its Newton decrement is at most the square root of the dtype's eps,
    so that the last step, of quadratic convergence, is beyond rounding; or, next to the mode, where neither the value
    nor the gradient gains any more.

    Args:
        expand: the expansion of minus the log density at rows x, h.
        x: where the searches begin [b, i].
        h: [b, hyper].
        eps: rounding of the density's dtype.
        steps: at most so many; None means `settings.inner_steps`.

    Returns:
        the modes.
    """
    count, size = x.shape
    at, x = expand(x, h), x.clone()
    damping = x.new_zeros(count)
    best = x.new_full((count,), torch.inf)  # the smallest decrement of each row
    active = at.value.isfinite()
    eye = torch.eye(size).to(x)
    factors, scales = eye.repeat(count, 1, 1), torch.ones_like(x)
    found = torch.zeros(count, dtype=torch.bool, device=x.device)
    for _ in range(settings.inner_steps if steps is None else steps):
        rows = active.nonzero()[:, 0]
        if not len(rows):
            break
        scale, factor, positive, step = _stepped(at.hessian[rows], at.gradient[rows], damping[rows])
        decrement = (-(step * at.gradient[rows]).sum(-1)).clamp(min=0).sqrt()
        plain = (damping[rows] == 0) & positive
        factors[rows], scales[rows] = factor, scale
        end = plain & (decrement <= eps**0.5)
        stalled = plain & (decrement <= settings.inner_decrement) & (decrement >= 0.5 * best[rows])
        best[rows] = torch.where(plain, decrement.minimum(best[rows]), best[rows])
        found[rows] |= end | stalled
        active[rows] &= ~(end | stalled) & (damping[rows] < settings.newton_damping)
        going = active[rows].nonzero()[:, 0]
        if not len(going):
            continue
        rows, scale, step, decrement = rows[going], scale[going], step[going], decrement[going]
        tried = expand(x[rows] + step, h[rows])
        noise = 4 * eps * at.value[rows].abs()
        fall = at.value[rows] - tried.value
        better = tried.value.isfinite() & tried.gradient.isfinite().all(-1)
        promised = fall >= settings.sufficient_decrease * 0.5 * decrement.square() - noise
        flatter = (tried.gradient / scale).norm(dim=-1) < (at.gradient[rows] / scale).norm(dim=-1)
        near = decrement <= settings.inner_decrement  # the value's fall may be less than its rounding
        better &= promised | (flatter & near)
        rounded = ~better & near & plain[going]
        found[rows[rounded]], active[rows[rounded]] = True, False
        taken = rows[better]
        x[taken] += step[better]
        at.put(taken, tried.at(better))
        less = damping[taken] / 10
        damping[taken] = torch.where(less < settings.inner_damping, 0.0, less)
        worse = rows[~better & ~rounded]
        damping[worse] = (10 * damping[worse]).clamp(min=settings.inner_damping)
    factors[~found] = eye  # what was factorised last there may be singular
    return Modes(x, at.value, scales, factors, found)


def factored(matrices: Tensor, gradients: Tensor, damping: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Damped Newton steps in unit-free coordinates, for matrices [b, i, i], gradients [b, i] and damping [b].

    Returns:
        D, L with ``H + damping D^2 = D L L' D``, whether that is positive definite, and the steps, of no meaning where
        it is not.
    """
    scale, unit = _unit_free(matrices)
    factor, info = torch.linalg.cholesky_ex(unit + damping[:, None, None] * torch.eye(unit.shape[-1]).to(unit))
    step = torch.cholesky_solve((gradients / scale).unsqueeze(-1), factor)
    return scale, factor, info == 0, -step[..., 0] / scale


def _eigen(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors; those of the identity where entries are so far apart that there are none."""
    try:
        return torch.linalg.eigh(matrices)
    except LinAlgError:
        eye = torch.eye(matrices.shape[-1]).to(matrices).expand_as(matrices)
        return torch.ones_like(matrices[..., 0]), eye


def _unit_free(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """D, and ``D^-1 H D^-1``, whose diagonal is one."""
    matrices = torch.nan_to_num(matrices, nan=0.0, posinf=0.0, neginf=0.0)
    diagonal = matrices.diagonal(dim1=-2, dim2=-1).abs()
    largest = diagonal.amax(-1, keepdim=True) if diagonal.numel() else diagonal
    scale = torch.maximum(diagonal, 1e-12 * largest).clamp(min=1e-300).sqrt()
    return scale, matrices / scale.unsqueeze(1) / scale.unsqueeze(2)


def _stepped(matrices: Tensor, gradients: Tensor, damping: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Damped Newton steps; where a Hessian is not positive definite, by the absolute values of its eigenvalues.

    A saddle so repels (Dauphin et al. 2014).

    Returns:
        as `factored`.
    """
    scale, factor, positive, step = factored(matrices, gradients, damping)
    bad = (~positive).nonzero()[:, 0]
    if len(bad):
        values, vectors = _eigen(_unit_free(matrices[bad])[1])
        floor = settings.inner_floor * values.abs().amax(-1, keepdim=True)
        metric = torch.maximum(values.abs(), floor.clamp(min=1e-300)) + damping[bad].unsqueeze(-1)
        along = vectors.mT @ (gradients[bad] / scale[bad]).unsqueeze(-1)
        step[bad] = -(vectors @ (along / metric.unsqueeze(-1)))[..., 0] / scale[bad]
    return scale, factor, positive, step
