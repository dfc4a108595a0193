"""The conditional log density with its derivatives at many (x, h) at once: by `torch.func.vmap`, or row by row.

Letters: b rows, i inner coordinates, q hyper coordinates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._autodiff import vmapped
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._errors import LaplaceError
from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.inner.newton_rows import Expanded
from pyro_laplace.settings import settings

type Row = Callable[..., tuple[Tensor, ...]]
"""From x [inner], h [hyper] and what else there is of each row to tensors."""


def expanded(of: Conditional, x: Tensor, h: Tensor) -> Expanded:
    """Value, gradient and Hessian in x of minus the log joint.

    Args:
        of: the conditional density.
        x: [b, i].
        h: [b, hyper].

    Returns:
        the expansion at each row.
    """

    def row(x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        return expansion_at(of, x, h)

    def by_hand(x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = -of.log_joint(leaf, h)
            (gradient,) = _gradients_of(value, (leaf,))
            matrix = _hessian_rows(gradient, leaf, torch.eye(len(x)).to(x))
        return value.detach(), gradient.detach(), matrix.detach()

    size = x.shape[1]
    if not size:
        return Expanded(-values(of, x, h), x, x.new_zeros(len(x), 0, 0))
    return Expanded(*_each(row, by_hand, (x, h), [(), (size,), (size, size)], 8 * size * of.data_size))


def expansion_at(of: Conditional, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient [i] and Hessian [i, i] in x of minus the log joint at one row x [i], h [hyper]."""
    density = torch.func.grad_and_value(lambda at: -of.log_joint(at, h))
    found: Any = torch.func.vjp(density, x, has_aux=True)
    gradient, pull, value = found
    matrix = torch.func.vmap(lambda row: pull(row)[0])(torch.eye(len(x)).to(x))
    return value, gradient, matrix


def values(of: Conditional, x: Tensor, h: Tensor) -> Tensor:
    """``log p(y, x | h)`` at rows x [b, i], h [b, hyper]; minus infinity where it cannot be evaluated."""

    def row(x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        return (-of.log_joint(x, h),)

    (found,) = _each(row, row, (x, h), [()], 8 * of.data_size)
    return -found


def prior_values(of: Conditional, h: Tensor) -> Tensor:
    """``log p(h)`` in hyper coordinates at rows h [b, hyper]; minus infinity where it cannot be evaluated."""

    def row(h: Tensor) -> tuple[Tensor, ...]:
        return (-of.log_prior(h),)

    (found,) = _each(row, row, (h,), [()], 8 * of.data_size)
    return -found


def prior_gradients(of: Conditional, h: Tensor) -> Tensor:
    """Gradients of ``log p(h)`` at rows h [b, hyper]."""

    def row(h: Tensor) -> tuple[Tensor, ...]:
        gradient, value = torch.func.grad_and_value(lambda at: -of.log_prior(at))(h)
        return value, gradient

    def by_hand(h: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            value = -of.log_prior(leaf)
            (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient

    return -_each(row, by_hand, (h,), [(), (h.shape[1],)], 8 * of.data_size)[1]


@dataclass(frozen=True, eq=False)
class Slopes:
    """How log det H follows x and h at inner modes.

    Attributes:
        log_det_x: gradient of ``sum_ij W_ij H_ij`` in x [b, i].
        log_det_h: of the same in h [b, q].
    """

    log_det_x: Tensor
    log_det_h: Tensor


def slopes_of(of: Conditional, x: Tensor, h: Tensor, seeds: Tensor, weights: Tensor) -> Slopes:
    """Gradients of ``sum_c w_c' H(x, h) d_c``, H being minus the log joint's Hessian in x.

    With ``D = I`` and ``W = H^-1`` at the point that is the gradient of log det H, of third derivatives. Of a sparse H
    a few columns D do, sums of unit vectors whose entries of H fall apart.

    Args:
        of: the conditional density.
        x: [b, i].
        h: [b, q].
        seeds: D' [c, i].
        weights: W' [b, c, i].

    Returns:
        the slopes.
    """

    def row(x: Tensor, h: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        def curved(x: Tensor, h: Tensor) -> Tensor:
            pull = torch.func.vjp(torch.func.grad(lambda at: -of.log_joint(at, h)), x)[1]
            return (torch.func.vmap(lambda row: pull(row)[0])(seeds) * weights).sum()

        return torch.func.grad(curved, argnums=(0, 1))(x, h)

    def by_hand(x: Tensor, h: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            x, h = x.detach().requires_grad_(), h.detach().requires_grad_()
            (of_x,) = _gradients_of(of.log_joint(x, h), (x,))
            third = _gradients_of(-(_hessian_rows(of_x, x, seeds) * weights).sum(), (x, h))
        return tuple(each.detach() for each in third)

    if not x.shape[1]:
        return Slopes(torch.zeros_like(x), torch.zeros_like(h))
    shapes = [(x.shape[1],), (h.shape[1],)]
    return Slopes(*_each(row, by_hand, (x, h, weights), shapes, 16 * len(seeds) * of.data_size))


def moving_gradients(of: Conditional, x: Tensor, h: Tensor, along: Tensor) -> Tensor:
    """Gradients in h of ``log p(y, x | h) - 1/2 v' d log p / dx``.

    With ``v = H^-1 d log det H / dx`` the second term is half of what log det H changes by as the mode follows h.

    Args:
        of: the conditional density.
        x: [b, i].
        h: [b, q].
        along: v [b, i].

    Returns:
        the gradients [b, q].
    """

    def row(x: Tensor, h: Tensor, along: Tensor) -> tuple[Tensor, ...]:
        def moving(h: Tensor) -> Tensor:
            gradient, value = torch.func.grad_and_value(lambda at: of.log_joint(at, h))(x)
            return value - 0.5 * gradient @ along

        return (torch.func.grad(moving)(h),)

    def by_hand(x: Tensor, h: Tensor, along: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            x, h = x.detach().requires_grad_(), h.detach().requires_grad_()
            value = of.log_joint(x, h)
            (of_x,) = _gradients_of(value, (x,))
            (found,) = _gradients_of(value - 0.5 * of_x @ along, (h,))
        return (found.detach(),)

    return _each(row, by_hand, (x, h, along), [(h.shape[1],)], 16 * of.data_size)[0]


def mixed_of(of: Conditional, x: Tensor, h: Tensor) -> Tensor:
    """``d^2 log p / dh dx`` at rows x [b, i], h [b, q], [b, q, i]: along the fewer of both."""
    (size, hyper), less = (x.shape[1], h.shape[1]), x.shape[1] <= h.shape[1]
    unit = torch.eye(min(size, hyper)).to(h)

    def row(x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        if less:
            pull = torch.func.vjp(lambda at: torch.func.grad(of.log_joint)(x, at), h)[1]
            return (torch.func.vmap(lambda row: pull(row)[0])(unit).mT,)
        pull = torch.func.vjp(lambda at: torch.func.grad(of.log_joint, argnums=1)(at, h), x)[1]
        return (torch.func.vmap(lambda row: pull(row)[0])(unit),)

    def by_hand(x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            x, h = x.detach().requires_grad_(), h.detach().requires_grad_()
            of_x, of_h = _gradients_of(of.log_joint(x, h), (x, h))
            found = _hessian_rows(of_x, h, unit).mT if less else _hessian_rows(of_h, x, unit)
        return (found.detach(),)

    if not size:
        return x.new_zeros(len(x), hyper, 0)
    return _each(row, by_hand, (x, h), [(hyper, size)], 16 * len(unit) * of.data_size)[0]


def _gradients_of(value: Tensor, leaves: tuple[Tensor, ...], along: Tensor | None = None) -> list[Tensor]:
    """Gradients that keep the graph; zero where the value does not depend on a leaf."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    grads = torch.autograd.grad(value, leaves, along, create_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)]


def _hessian_rows(gradient: Tensor, leaf: Tensor, vectors: Tensor) -> Tensor:
    """``v' d gradient / d leaf`` for vectors v [v, n], with the graph."""
    if not gradient.requires_grad:
        return vectors.new_zeros(len(vectors), *leaf.shape)
    try:
        (found,) = torch.autograd.grad(
            gradient, leaf, vectors, create_graph=True, allow_unused=True, is_grads_batched=True
        )
    except RuntimeError:  # of a function without a batching rule
        return torch.stack([_gradients_of(gradient, (leaf,), vector)[0] for vector in vectors])
    return vectors.new_zeros(len(vectors), *leaf.shape) if found is None else found


def _each(
    row: Row, by_hand: Row, rows: tuple[Tensor, ...], shapes: list[tuple[int, ...]], elements: int
) -> tuple[Tensor, ...]:
    """`row` of each row, in chunks of bounded memory; where vmap cannot run it, or one fails, each by itself.

    Returns:
        the results, rows first. The first one of a row that fails is infinite, the others are zero.

    Raises:
        RuntimeError: of the program's own, which a single row shows too.
        ValueError: likewise.
    """
    step = max(1, settings.pass_elements // max(1, elements))
    parts = []
    with undisturbed(), torch.no_grad():
        for start in range(0, len(rows[0]), step):
            chunk = tuple(each[start : start + step] for each in rows)
            try:
                alone = len(chunk[0]) == 1  # plain autograd takes half of the time that a vmap of one row does
                parts.append(_alone(by_hand, chunk, shapes) if alone else vmapped(lambda args: row(*args), chunk))
            except (RuntimeError, ValueError, NotImplementedError) as error:
                if isinstance(error, LaplaceError) or len(chunk[0]) == 1:
                    raise
                parts.append(_alone(by_hand, chunk, shapes))
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _alone(by_hand: Row, rows: tuple[Tensor, ...], shapes: list[tuple[int, ...]]) -> tuple[Tensor, ...]:
    found = []
    for arguments in zip(*rows, strict=True):
        try:
            found.append(by_hand(*arguments))
        except (LinAlgError, ValueError) as error:  # of a matrix, or parameters, that a distribution refuses
            if isinstance(error, LaplaceError):
                raise
            zero = (rows[0].new_zeros(shape) for shape in shapes)
            found.append(tuple(torch.full_like(z, torch.inf) if i == 0 else z for i, z in enumerate(zero)))
    return tuple(torch.stack(each) for each in zip(*found, strict=True))
