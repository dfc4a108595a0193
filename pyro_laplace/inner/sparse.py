"""The inner problem over many sites: Newton's method with a sparse exact Hessian, one hyper point after the other."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_laplace._autodiff import puller, vmapped
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._errors import LaplaceError
from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.inner.problem import Inner, InnerSolved, Memory
from pyro_laplace.inner.rows import Slopes, mixed_of, moving_gradients, slopes_of
from pyro_laplace.settings import settings
from pyro_laplace.sparse.compression import Compression
from pyro_laplace.sparse.factor import SparseIndefinite
from pyro_laplace.sparse.plan import SparsePlan
from pyro_laplace.sparse.rows import sparse_symmetric
from pyro_laplace.sparse.symmetric import Symmetric
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.sparse_block import SparseBlock


@dataclass(frozen=True, eq=False)
class SparsePoint:
    """Minus the log joint at a point x, h.

    Attributes:
        x: [i].
        value: -log p(y, x | h).
        gradient: in x [i].
        hessian: in x.
    """

    x: Tensor
    value: float
    gradient: Tensor
    hessian: Symmetric


@dataclass(eq=False)
class SparseInner(Inner):
    """By the entries of the Hessian that are not zero, found once.

    Attributes:
        compression: the vectors whose products with the Hessian hold them.
    """

    of: Conditional
    compression: Compression
    curvature: str = "hessian"
    differentiable: bool = True
    memory: Memory = field(init=False)
    plan: SparsePlan = field(init=False)

    def __post_init__(self) -> None:
        """Begin with an empty memory, and an order in which every Hessian is eliminated."""
        self.memory = Memory.of(self.of)
        self.plan = SparsePlan.of(self.compression.dominant().compressed())

    @staticmethod
    def find(of: Conditional) -> "SparseInner":
        """See which inner coordinates the program couples.

        Args:
            of: the program split.

        Returns:
            the inner problem. `NotSparse` if many coordinates are coupled with many others.
        """
        x, h = of.start
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(x), generator=generator, dtype=torch.float64).to(x)
        place = {int(c): i for i, c in enumerate(of.inner_index.tolist())}
        latents = of.program.latents
        starts = [place[latents[name].slice.start] for name in of.inner if latents[name].size]
        spans = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(x)], strict=True)]
        with undisturbed(), torch.no_grad():
            _, pull = _gradient(of, x + settings.row_check_step * noise, h)
            like = x.to(of.program.start.dtype)  # in which the products are made, and round
            pattern = sparse_symmetric(lambda rows: _multiplied(pull, rows.to(x), of), spans, len(x), like)
        return SparseInner(of, Compression.of(pattern))

    def moved(self, of: Conditional) -> "SparseInner":
        """From another start."""
        return SparseInner(of, self.compression)

    @property
    def elements(self) -> int:
        """Of the entries and of the factor, with their places."""
        return 4 * (self.plan.nnz + len(self.compression.row))

    def solve(self, h: Tensor) -> InnerSolved:
        """Each from the nearest mode known, else from the start."""
        found = []
        for row in h:
            (near,) = self.memory.nearest(row.unsqueeze(0))
            ended = self._searched(near, row)
            if ended is None and len(self.memory.h):
                ended = self._searched(self.memory.start, row)
            if ended is not None:
                self.memory.keep(row.unsqueeze(0), ended[0].x.unsqueeze(0))
            found.append(ended)
        return SparseSolved(self.of, self.compression, h, found)

    def _at(self, x: Tensor, h: Tensor) -> SparsePoint | None:
        """None where the log joint cannot be evaluated."""
        try:
            with undisturbed(), torch.no_grad():
                value = float(-self.of.log_joint(x, h))
                if not math.isfinite(value):
                    return None
                gradient, pull = _gradient(self.of, x, h)
                products = _multiplied(pull, self.compression.seeds.to(x), self.of)
        except (LinAlgError, ValueError) as error:
            if isinstance(error, LaplaceError):
                raise
            return None
        return SparsePoint(x, value, gradient, self.compression.entries(products.double()))

    def _searched(self, x: Tensor, h: Tensor) -> tuple[SparsePoint, SparseBlock] | None:
        """The mode from a start, with the Hessian's factor there; None where there is none."""
        eps = self.of.eps
        at, damping, best = self._at(x, h), 0.0, math.inf
        if at is None:
            return None
        for _ in range(settings.inner_steps):
            block = _factorised(at.hessian, damping, self.plan)
            if block is None:
                damping = max(10 * damping, settings.inner_damping)
                if damping > settings.newton_damping:
                    return None
                continue
            step = -block.solve(at.gradient.unsqueeze(0))[0]
            decrement = math.sqrt(max(0.0, -float(step @ at.gradient)))
            if damping == 0.0:
                stalled = decrement <= settings.inner_decrement and decrement >= 0.5 * best
                if decrement <= eps**0.5 or stalled:
                    return at, block
                best = min(best, decrement)
            tried = self._at(at.x + step, h)
            near = decrement <= settings.inner_decrement
            if tried is not None and _gains(at, tried, decrement, eps, near):
                at, damping = tried, damping / 10
                damping = 0.0 if damping < settings.inner_damping else damping
            elif near and damping == 0.0:
                return at, block
            else:
                damping = max(10 * damping, settings.inner_damping)
                if damping > settings.newton_damping:
                    return None
        return None


class SparseSolved(InnerSolved):
    """By sparse Hessians."""

    def __init__(
        self,
        of: Conditional,
        compression: Compression,
        h: Tensor,
        found: list[tuple[SparsePoint, SparseBlock] | None],
    ) -> None:
        self.of, self.compression, self.h, self.found = of, compression, h, found
        nothing = torch.full_like(of.start[0], math.nan)
        self.x = torch.stack([nothing if each is None else each[0].x for each in found])
        self.value = h.new_tensor([-math.inf if each is None else _log_mass(*each) for each in found])
        self._slopes: dict[int, Slopes] = {}

    def slopes(self, row: int) -> Slopes:
        """Derivatives at one mode, made once; W are entries of the selected inverse."""
        if row not in self._slopes:
            inverse = self.block(row).covariance_at(self.compression.row, self.compression.col)
            weights, seeds = self.compression.weights(inverse).unsqueeze(0), self.compression.seeds
            self._slopes[row] = slopes_of(self.of, *self._at(row), seeds.to(self.x), weights.to(self.x))
        return self._slopes[row]

    def _at(self, row: int) -> tuple[Tensor, Tensor]:
        """x [1, i] and h [1, q] of one row."""
        return self.x[row : row + 1], self.h[row : row + 1]

    def gradient(self) -> Tensor:
        """As with dense Hessians, the trace of ``H^-1 dH`` summed over the entries of H."""
        rows = []
        for number, found in enumerate(self.found):
            if found is None:
                rows.append(torch.zeros_like(self.h[number]))
                continue
            slopes = self.slopes(number)
            moving = moving_gradients(self.of, *self._at(number), found[1].solve(slopes.log_det_x))
            rows.append((moving - 0.5 * slopes.log_det_h)[0])
        return torch.stack(rows)

    def response(self, row: int) -> Tensor:
        """``H^-1 d^2 log p / dx dh``."""
        return self.block(row).solve(mixed_of(self.of, *self._at(row))[0]).mT

    def shift(self, row: int) -> Tensor:
        """``-1/2 H^-1 d log det H / dx``."""
        return -0.5 * self.block(row).solve(self.slopes(row).log_det_x)[0]

    def block(self, row: int) -> Block:
        """H."""
        found = self.found[row]
        assert found is not None
        return found[1]


def _gains(at: SparsePoint, tried: SparsePoint, decrement: float, eps: float, near: bool) -> bool:
    """Whether a step lets the value fall as it promises; near the mode, that may be less than rounding: or flattens."""
    promised = settings.sufficient_decrease * 0.5 * decrement**2 - 4 * eps * abs(at.value)
    return at.value - tried.value >= promised or (near and float(tried.gradient.norm()) < float(at.gradient.norm()))


def _log_mass(point: SparsePoint, block: SparseBlock) -> float:
    return -point.value + 0.5 * len(point.x) * math.log(2 * math.pi) - 0.5 * float(block.log_det())


def _gradient(of: Conditional, x: Tensor, h: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The gradient of minus the log joint in x, and the map v -> H v."""
    return puller(torch.func.grad(lambda at: -of.log_joint(at, h)), x)


def _multiplied(pull: Callable[[Tensor], Tensor], rows: Tensor, of: Conditional) -> Tensor:
    """H v for rows v [v, i], as many at a time as memory holds."""
    step = max(1, settings.pass_elements // max(1, 8 * of.data_size))
    return torch.cat([vmapped(pull, rows[i : i + step]) for i in range(0, len(rows), step)])


def _factorised(hessian: Symmetric, damping: float, plan: SparsePlan) -> SparseBlock | None:
    """The factor of H, its diagonal multiplied by 1 + damping; None where that is not positive definite."""
    if damping:
        more = torch.where(hessian.row == hessian.col, damping * hessian.value.abs(), 0.0)
        hessian = Symmetric(hessian.size, hessian.row, hessian.col, hessian.value + more)
    try:
        return SparseBlock(hessian, plan)
    except SparseIndefinite:
        return None
