"""The marginal log density as a function that autograd, `torch.func` and `vmap` know, with two derivatives."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_laplace.inner.problem import Inner
from pyro_laplace.recording.recorder import as_one_operation


class Evaluator:
    """``log p(y | h)`` by an inner problem, and its derivatives.

    Attributes:
        inner: the inner problem.
        failures: points at which no inner mode was found, so far.
    """

    def __init__(self, inner: Inner) -> None:
        self.inner, self.failures = inner, 0

    def __call__(self, h: Tensor) -> Tensor:
        """At points h `[*batch, q]`, `[*batch]`; minus infinity where there is no inner mode."""
        if self.inner.differentiable:
            return _Marginal.apply(h, self)[0]
        return _Undifferentiated.apply(h, self)

    def solved(self, h: Tensor) -> tuple[Tensor, ...]:
        """Values and gradients at points h `[*batch, q]`: to a recording, one operation."""
        return as_one_operation(self._solved, h)

    def _solved(self, h: Tensor) -> tuple[Tensor, Tensor]:
        found = self.inner.solve(h.detach().double().reshape(-1, h.shape[-1]))
        self.failures += int((found.value == -torch.inf).sum())
        gradient = found.gradient() if self.inner.differentiable else torch.zeros_like(found.h)
        return found.value.reshape(h.shape[:-1]), gradient.reshape(h.shape).to(h)

    @property
    def step(self) -> float:
        """Of difference quotients of gradients."""
        return self.inner.of.eps**0.25


class _Marginal(torch.autograd.Function):
    """Value and gradient, so that the derivative of the one is the other."""

    @staticmethod
    def forward(h: Tensor, evaluator: Evaluator) -> tuple[Tensor, ...]:
        return evaluator.solved(h)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        h, ctx.evaluator = inputs
        ctx.save_for_backward(h, output[1])
        ctx.save_for_forward(h, output[1])

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        h, gradient = ctx.saved_tensors
        of_value, of_gradient = outer
        return of_value.unsqueeze(-1) * gradient + _Curvature.apply(h, of_gradient, ctx.evaluator), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        h, gradient = ctx.saved_tensors
        return (gradient * tangents[0]).sum(-1), _Curvature.apply(h, tangents[0], ctx.evaluator)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        h, evaluator = args
        return _Marginal.apply(h.movedim(in_dims[0], 0), evaluator), (0, 0)


class _Curvature(torch.autograd.Function):
    """The product of the Hessian and a vector, by the central difference of two gradients along it."""

    @staticmethod
    def forward(h: Tensor, along: Tensor, evaluator: Evaluator) -> Tensor:
        if not bool(along.any()):
            return torch.zeros_like(h)
        length = along.norm(dim=-1, keepdim=True)
        step = evaluator.step * along / length.clamp(min=torch.finfo(along.dtype).tiny)
        ahead, behind = evaluator.solved(torch.stack([h + step, h - step]))[1]
        return (ahead - behind) / (2 * evaluator.step) * length

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        h, along, ctx.evaluator = inputs
        ctx.save_for_backward(h, along)
        ctx.save_for_forward(h, along)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, None]:
        h, along = ctx.saved_tensors
        return _Third.apply(along, outer[0]), _Curvature.apply(h, outer[0], ctx.evaluator), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        h, along = ctx.saved_tensors
        of_h, of_along = tangents[:2]
        third = torch.zeros_like(h) if of_h is None else _Third.apply(along, of_h)
        return third if of_along is None else third + _Curvature.apply(h, of_along, ctx.evaluator)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        h, along, evaluator = args
        return _Curvature.apply(*_batched(info.batch_size, in_dims, (h, along)), evaluator), 0


class _Third(torch.autograd.Function):
    """The derivative of ``H v`` in h, contracted: zero where either vector is, and else an error."""

    @staticmethod
    def forward(along: Tensor, outer: Tensor) -> Tensor:
        if bool(along.any()) and bool(outer.any()):
            raise NotImplementedError("the Laplace marginal has first and second derivatives, and no third ones")
        return torch.zeros_like(along)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _Third.apply(*_batched(info.batch_size, in_dims, args)), 0


class _Undifferentiated(torch.autograd.Function):
    """The value alone, where the gradient would be too dear; asking for one is an error."""

    @staticmethod
    def forward(h: Tensor, evaluator: Evaluator) -> Tensor:
        return evaluator.solved(h)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        raise NotImplementedError(
            "this marginal has no gradient: its inner curvature is no exact Hessian. Use pl.fit_nested_laplace, whose "
            "grid needs none; or curvature='hessian', if the program is no network"
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        h, evaluator = args
        return _Undifferentiated.apply(h.movedim(in_dims[0], 0), evaluator), 0


def _batched(size: int, dims: Any, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors with the axis of a vmap in front, those without one repeated."""
    moved = zip(tensors, dims, strict=False)
    return [each.expand(size, *each.shape) if dim is None else each.movedim(dim, 0) for each, dim in moved]
