"""Dense Jacobians and Hessians of functions of theta, by `torch.func`, in chunks of bounded memory."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.torch import load_forward_mode, plain_recurrence
from pyro_laplace._typing import Matrix, Rows, Theta
from pyro_laplace.settings import settings


def _chunks(size: int, per_item: int) -> Iterator[tuple[int, int]]:
    step = max(1, min(size, settings.pass_elements // max(per_item, 1)))
    for start in range(0, size, step):
        yield start, min(start + step, size)


def unit_rows(start: int, stop: int, size: int, like: Tensor) -> Tensor:
    """Rows ``start`` to ``stop`` of an identity of some size, `[stop - start, size]`, in the dtype of `like`."""
    basis = torch.zeros(stop - start, size, dtype=like.dtype, device=like.device)
    basis[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
    return basis


def vmapped(fn: Callable[[Any], Any], rows: Any) -> Any:
    """fn of each row at once, of a tensor or a tuple of them, without torch's notes on how fast that is."""
    with without_speed_notes():
        return torch.func.vmap(fn)(rows)


@contextmanager
def without_speed_notes() -> Iterator[None]:
    """Inside, torch does not warn of operations that it runs row by row: that is no user's to mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        yield


def jvp(fn: Callable[[Tensor], Any], theta: Theta, tangent: Theta) -> tuple[Any, Any]:
    """fn(theta) and J v by forward-mode AD; fn may return any tree of tensors."""
    load_forward_mode()
    try:
        return torch.func.jvp(fn, (theta,), (tangent,))[:2]
    except NotImplementedError as error:  # an LSTM's; anything else is fn's own, or has no forward formula at all
        if "mkldnn_rnn" not in str(error):
            raise
    with plain_recurrence():
        return torch.func.jvp(fn, (theta,), (tangent,))[:2]


def puller(fn: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The value of fn at a point, and the map u -> J'u, by reverse-mode AD.

    Returns:
        fn(at), and a function of a cotangent u, of the shape of fn(at), that returns J'u, of the shape of `at`.
    """
    with plain_recurrence():
        value, pull = torch.func.vjp(fn, at)[:2]
    return value, lambda u: pull(u)[0]


def push_forward(fn: Callable[[Tensor], Tensor], theta: Theta, tangent: Theta) -> tuple[Tensor, Tensor]:
    """fn(theta) and ``J v`` in one pass, by forward-mode AD where every operation supports it, else as in `pusher`.

    Args:
        fn: a function of theta.
        theta: the point.
        tangent: v [params].

    Returns:
        fn(theta), and J v of the same shape.
    """
    try:
        return jvp(fn, theta, tangent)
    except (RuntimeError, NotImplementedError):  # no forward formula; an error of fn's own comes again below
        value, push = pusher(fn, theta)
        return value, push(tangent)


def pusher(fn: Callable[[Tensor], Tensor], theta: Theta) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The value of fn at theta, and the map v -> J v.

    Forward-mode AD where every operation supports it, else the transpose of the transpose: v -> J v is the gradient of
    the linear map u -> J'u.

    Returns:
        fn(theta), and a function of a tangent v [params] that returns J v, of the shape of fn(theta).
    """
    try:
        value, _ = jvp(fn, theta, torch.zeros_like(theta))
    except (RuntimeError, NotImplementedError):  # no forward formula; an error of fn's own comes again below
        value, pull = puller(fn, theta)
        _, push = puller(pull, torch.zeros_like(value))
        return value, push
    return value, lambda v: jvp(fn, theta, v)[1]


def column_blocks(fn: Callable[[Tensor], Tensor], theta: Theta) -> Iterator[tuple[slice, Tensor]]:
    """Columns of the Jacobian of fn at theta by forward-mode AD.

    Args:
        fn: theta [params] to [rows].
        theta: the point.

    Yields:
        a slice of theta's coordinates, and their columns as rows [columns, rows].
    """
    value, push = pusher(fn, theta)
    for start, stop in _chunks(theta.numel(), 8 * max(value.numel(), theta.numel())):
        yield slice(start, stop), vmapped(push, unit_rows(start, stop, theta.numel(), theta))


def _pull_rows(pull: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`pull` of each row, at once where its operations can be vectorised."""
    try:
        return vmapped(pull, rows)
    except RuntimeError:  # an error of another kind comes again below
        return torch.stack([pull(row) for row in rows])


def jacobian(fn: Callable[[Tensor], Tensor], theta: Theta) -> Rows:
    """The Jacobian [rows, params] of fn at theta: reverse mode if it has fewer rows than columns, else forward mode."""
    rows, params = fn(theta).numel(), theta.numel()
    if rows < params:
        value, pull = puller(fn, theta)
        blocks = [_pull_rows(pull, unit_rows(start, stop, rows, value)) for start, stop in _chunks(rows, 8 * params)]
        return torch.cat(blocks) if blocks else theta.new_zeros(0, params)
    return torch.cat([block for _, block in column_blocks(fn, theta)]).T


def _hessian_product(fn: Callable[[Tensor], Tensor], theta: Theta) -> tuple[Theta, Callable[[Tensor], Tensor]]:
    """The gradient of a scalar fn, and the map v -> H v, reverse over reverse."""
    try:
        return puller(torch.func.grad(fn), theta)
    except RuntimeError as error:  # an autograd.Function in the old style, as Pyro's own `safe_log` is
        if "setup_context" not in str(error):
            raise
    with torch.enable_grad():
        leaf = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(fn(leaf), leaf, create_graph=True)
    return gradient.detach(), lambda v: torch.autograd.grad(gradient, leaf, v, retain_graph=True)[0]


def hessian(fn: Callable[[Tensor], Tensor], theta: Theta) -> Matrix:
    """The Hessian [params, params] of a scalar fn at theta, reverse over reverse."""
    gradient, pull = _hessian_product(fn, theta)
    blocks = [
        _pull_rows(pull, unit_rows(start, stop, theta.numel(), gradient))
        for start, stop in _chunks(theta.numel(), 32 * theta.numel())
    ]
    dense = torch.cat(blocks)
    return (dense + dense.T) / 2


def hessian_diagonal(fn: Callable[[Tensor], Tensor], theta: Theta) -> tuple[Theta, bool]:
    """The diagonal of the Hessian of a scalar fn, and whether the Hessian is diagonal.

    For a diagonal H, ``(H v) / v = diag H`` for every v; two random ones that disagree disprove it, and the diagonal is
    then read off the dense columns.

    Returns:
        the diagonal [params], and whether everything beside it is zero.
    """
    gradient, pull = _hessian_product(fn, theta)
    generator = torch.Generator().manual_seed(0)
    probes = (torch.rand(2, theta.numel(), generator=generator, dtype=torch.float64) + 0.5).to(gradient)
    first, second = (pull(probe) / probe for probe in probes)
    close = settings.probe_rounding * torch.finfo(theta.dtype).eps
    if torch.allclose(first, second, rtol=close, atol=close * float(first.abs().max().nan_to_num())):
        return first, True
    diagonal = [
        _pull_rows(lambda v: (pull(v) * v).sum(), unit_rows(start, stop, theta.numel(), gradient))
        for start, stop in _chunks(theta.numel(), 32 * theta.numel())
    ]
    return torch.cat(diagonal), False
