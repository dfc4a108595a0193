"""Inner problems at one hyper point after the other, as a sampler asks: by recorded operations, thousands of times.

Letters: i inner coordinates, q hyper coordinates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._errors import LaplaceError
from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.inner.dense import DenseInner, DenseSolved, log_marginal_of
from pyro_laplace.inner.newton_rows import Expanded, Modes, factored
from pyro_laplace.inner.problem import Inner, InnerSolved
from pyro_laplace.inner.rows import expanded, expansion_at
from pyro_laplace.recording.recorded import Recorded, points_around, recorded_if_same
from pyro_laplace.settings import settings


def for_single_points(inner: Inner) -> Inner:
    """The same problem, as fast as may be where points come one after the other.

    Args:
        inner: how it is solved at many points together.

    Returns:
        the same by recorded operations, if it is dense and they give what the program gives, at its start and beside
        it; else as it is.
    """
    if not isinstance(inner, DenseInner):
        return inner
    of, (x, h) = inner.of, inner.of.start
    if not len(x) or 8 * len(x) * of.data_size > settings.pass_elements:
        return inner
    points = points_around(torch.cat([x, h]))
    with undisturbed(), torch.no_grad():
        step = recorded_if_same(lambda at: _step(of, at), points, of.eps)
        at_mode = recorded_if_same(lambda at: _with_slope(of, at), points, of.eps)
        if step is None or at_mode is None:
            return inner
        gaussian = bool(_unless_singular(lambda: all(_one_step_does(step, at, of.eps) for at in points)))
    return SingleInner(inner, step, at_mode, gaussian)


def _one_step_does(step: Recorded, at: Tensor, eps: float) -> bool:
    """Whether Newton's step from a point is to the mode: the density is Gaussian."""
    moved = step(at)[1]
    _, decrement, positive = step(torch.cat([moved, at[len(moved) :]]))[0].tolist()
    return bool(positive) and decrement <= eps**0.5


class SingleInner(Inner):
    """Undamped Newton steps by recorded operations; where they lead to no mode, a search with damped ones.

    Args:
        many: the problem at many points together.
        step: of x and h joined, what `_step` gives.
        at_mode: of the same, what `_with_slope` gives.
        gaussian: whether the first step leads to the mode.
    """

    differentiable = True

    def __init__(self, many: DenseInner, step: Recorded, at_mode: Recorded, gaussian: bool) -> None:
        self.of, self.curvature, self.damped = many.of, many.curvature, DenseInner(many.of, self._expanded)
        self.damped.memory = many.memory
        self._step, self._with_slope, self._gaussian = step, at_mode, gaussian

    def moved(self, of: Conditional) -> Inner:
        """From another start."""
        return for_single_points(self.damped.moved(of))

    @property
    def elements(self) -> int:
        """Of a dense factor."""
        return self.damped.elements

    def solve(self, h: Tensor) -> InnerSolved:
        """One point by recorded operations, several together without."""
        found = _unless_singular(lambda: self._search(h[0])) if len(h) == 1 else None
        return self.damped.solve(h) if found is None else found

    def _search(self, h: Tensor) -> "SingleSolved | None":
        """None where the search has to be damped."""
        eps, memory = self.of.eps, self.damped.memory
        x, last = memory.nearest(h.unsqueeze(0))[0], None
        for _ in range(settings.inner_steps_single):
            # convergence is quadratic: after a short step this is the mode, or nearly
            close = last is not None and (self._gaussian or last.decrement <= eps**0.25)
            numbers, moved, *rest = (self._with_slope if close else self._step)(torch.cat([x, h]))
            height, decrement, positive = numbers.tolist()
            here = _Reached(height, decrement)
            if not positive or not here.goes_on_from(last):
                return None
            if close and here.ends(last, eps):
                solved = SingleSolved(self.of, h, x, height, rest)
                memory.keep(solved.h, solved.x)
                return solved
            x, last = moved, here
        return None

    def _expanded(self, x: Tensor, h: Tensor) -> Expanded:
        if len(x) != 1:
            return expanded(self.of, x, h)
        found = _unless_singular(lambda: self._step(torch.cat([x[0], h[0]]))[2:])
        if found is None:
            return Expanded(x.new_full((1,), torch.inf), torch.zeros_like(x), x.new_zeros(1, x.shape[1], x.shape[1]))
        return Expanded(*(each.unsqueeze(0) for each in found))


@dataclass(frozen=True)
class _Reached:
    """A point of a search by undamped Newton steps.

    Attributes:
        height: -log p(y, x | h).
        decrement: Newton's.
    """

    height: float
    decrement: float

    @property
    def near(self) -> bool:
        """Whether the mode is so near that the height's fall may be less than its rounding."""
        return self.decrement <= settings.inner_decrement

    def goes_on_from(self, last: "_Reached | None") -> bool:
        """Whether the step here was no worse than a damped search would take it."""
        if last is None or last.near:
            return self.decrement < torch.inf
        promised = settings.sufficient_decrease * 0.5 * last.decrement**2
        return self.decrement < torch.inf and last.height - self.height >= promised

    def ends(self, last: "_Reached | None", eps: float) -> bool:
        """Whether the next step would be beyond rounding, or none that gains."""
        stalled = last is not None and self.near and self.decrement >= 0.5 * last.decrement
        return self.decrement <= eps**0.5 or stalled


def _unless_singular[T](found: Callable[[], T]) -> T | None:
    """None where the density cannot be evaluated."""
    try:
        with torch.no_grad():
            return found()
    except (LinAlgError, ValueError) as error:  # of a matrix that the program factorises
        if isinstance(error, LaplaceError):
            raise
        return None


class SingleSolved(DenseSolved):
    """One row, whose value and gradient are known already.

    Args:
        of: the conditional density.
        h: the point [q].
        x: the mode [i].
        height: -log p(y, x | h).
        rest: log p(y | h), its gradient in h [q], and the root of H as in `Modes` [i], [i, i].
    """

    def __init__(self, of: Conditional, h: Tensor, x: Tensor, height: float, rest: list[Tensor]) -> None:
        value, self._gradient, scale, factor = (each.unsqueeze(0) for each in rest)
        found = torch.ones(1, dtype=torch.bool, device=x.device)
        modes = Modes(x.unsqueeze(0), value.new_tensor([height]), scale, factor, found)
        super().__init__(of, h.unsqueeze(0), modes, value)

    def gradient(self) -> Tensor:
        """Of the value in h, by the implicit function theorem [1, q]."""
        return self._gradient


class _Newton(NamedTuple):
    """Newton's step at one row; a tuple, which `torch.func` can carry.

    Attributes:
        value: -log p(y, x | h).
        step: of x [i].
        decrement: its length in the metric H.
        scale: D, with ``H = D L L' D`` [1, i].
        factor: L [1, i, i].
        positive: whether H is positive definite [1].
    """

    value: Tensor
    step: Tensor
    decrement: Tensor
    scale: Tensor
    factor: Tensor
    positive: Tensor

    @staticmethod
    def of(value: Tensor, gradient: Tensor, matrix: Tensor) -> "_Newton":
        """From -log p(y, x | h), its gradient [i] and H [i, i]."""
        scale, factor, positive, step = factored(matrix.unsqueeze(0), gradient.unsqueeze(0), gradient.new_zeros(1))
        decrement = (-(step[0] * gradient).sum()).clamp(min=0).sqrt()
        return _Newton(value, step[0], decrement, scale, factor, positive)

    def modes(self, x: Tensor) -> Modes:
        """As if x [i] were a mode."""
        return Modes(x.unsqueeze(0), self.value.unsqueeze(0), self.scale, self.factor, self.positive)

    def ahead(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value, decrement and whether H is positive definite [3], and x after the step [i]."""
        return torch.stack([self.value, self.decrement, self.positive[0].to(self.value)]), x + self.step


def _step(of: Conditional, at: Tensor) -> tuple[Tensor, ...]:
    """One Newton step.

    Returns:
        what `_Newton.ahead` gives; and what it was made of: -log p(y, x | h), its gradient in x [i] and H [i, i].
    """
    x, h = _parted(of, at)
    value, gradient, matrix = expansion_at(of, x, h)
    return *_Newton.of(value, gradient, matrix).ahead(x), value, gradient, matrix


def _with_slope(of: Conditional, at: Tensor) -> tuple[Tensor, ...]:
    """With the gradient in h, which is that of ``log p - 1/2 tr(W H) - 1/2 g'v`` with W and v held at their values.

    Here ``W = H^-1``, ``v = W d tr(W H) / dx``, and g is the gradient of log p in x.

    Returns:
        what `_Newton.ahead` gives, and the last argument of `SingleSolved`.
    """
    x, h = _parted(of, at)

    def curved(x: Tensor, h: Tensor) -> tuple[Tensor, _Newton]:
        value, gradient, matrix = expansion_at(of, x, h)
        newton = _Newton.of(value.detach(), gradient.detach(), matrix.detach())
        return (matrix * newton.modes(x).inverse()[0]).sum(), newton

    def moving(h: Tensor, along: Tensor) -> Tensor:
        gradient, value = torch.func.grad_and_value(lambda at: -of.log_joint(at, h))(x)
        return 0.5 * gradient @ along - value

    (of_x, of_h), newton = torch.func.grad(curved, argnums=(0, 1), has_aux=True)(x, h)
    modes = newton.modes(x)
    gradient = torch.func.grad(moving)(h, modes.solve(of_x[None, None])[0, 0]) - 0.5 * of_h
    return *newton.ahead(x), log_marginal_of(modes)[0], gradient, modes.scale[0], modes.factor[0]


def _parted(of: Conditional, at: Tensor) -> tuple[Tensor, Tensor]:
    return at[: len(of.inner_index)], at[len(of.inner_index) :]
