"""Torch without its compiler, which it loads, sympy and all, for as little as a comparison of two shapes.

That takes seconds, in the first fit of a process. What stands in here computes the same, and leaves errors and whatever
is less simple to torch. A program that is compiled has loaded the compiler by then: nothing stands in for it.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor, _refs
from torch._functorch import eager_transforms
from torch.jit import is_tracing  # pyright: ignore[reportPrivateImportUsage] (documented as public)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Inside, torch computes the same without loading its compiler, unless that is what the program asks for."""
    if _is_loaded():
        yield
        return
    before = [(owner, name, vars(owner).get(name, _ABSENT)) for owner, name, _ in _STANDING_IN]
    try:
        for owner, name, stand_in in _STANDING_IN:
            setattr(owner, name, stand_in)
        yield
    finally:
        for owner, name, value in before:
            if value is _ABSENT:
                vars(owner).pop(name, None)
            else:
                setattr(owner, name, value)


_ABSENT = object()


def _is_loaded() -> bool:
    return "torch._dynamo" in sys.modules


# --- torch's own, and what does the same ------------------------------------------------------

_make_grads = torch.autograd._make_grads
_autograd_grad = eager_transforms._autograd_grad
_broadcast_shapes = torch.broadcast_shapes


def _checked_weights(outputs: Sequence[Any], grads: Sequence[Any], is_grads_batched: bool) -> tuple[Any, ...]:
    """What a backward pass starts from. Torch compares shapes by sympy, should they be symbols."""
    if not _is_loaded() and all(_fits(*pair, is_grads_batched) for pair in zip(outputs, grads, strict=False)):
        return tuple(grads)
    return _make_grads(outputs, grads, is_grads_batched)


def _fits(output: Any, grad: Any, is_batched: bool) -> bool:
    if not isinstance(output, Tensor) or not isinstance(grad, Tensor) or output.is_nested:
        return False
    shape = grad.shape[1:] if is_batched else grad.shape
    return output.shape == shape and output.is_complex() == grad.is_complex()


def _backward_pass(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor] | None = None,
    retain_graph: bool = False,
    create_graph: bool = True,
) -> tuple[Tensor, ...]:
    """The backward pass of `torch.func.grad` and `vjp`. Torch loads compiled autograd, to shut it out of this one."""
    if _is_loaded():
        return _autograd_grad(outputs, inputs, grad_outputs, retain_graph, create_graph)
    weights = [None] * len(outputs) if grad_outputs is None else grad_outputs
    pairs = [(output, weight) for output, weight in zip(outputs, weights, strict=False) if output.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(each) for each in inputs)
    found = torch.autograd.grad(
        [output for output, _ in pairs],
        inputs,
        None if grad_outputs is None else [weight for _, weight in pairs],
        retain_graph=retain_graph,
        create_graph=create_graph,
        allow_unused=True,
    )
    return tuple(torch.zeros_like(at) if each is None else each for at, each in zip(inputs, found, strict=True))


def _common_shape(*shapes: Any) -> torch.Size:
    """The shape to which some shapes broadcast. Torch asks sympy, in every MultivariateNormal."""
    if not _is_loaded() and not is_tracing():
        try:
            return torch.Size(broadcast_shape(*shapes))
        except (TypeError, ValueError):  # numbers, or no common shape
            pass
    return _broadcast_shapes(*shapes)


def _shape_of(func: Callable[..., Any]) -> Callable[..., Any]:
    """Arithmetic on meta tensors, of which forward mode asks shape and dtype, where one is a constant's derivative."""

    def stand_in(a: Any, b: Any, **options: Any) -> Any:
        if not _is_loaded() and isinstance(a, Tensor) and isinstance(b, Tensor) and a.is_meta and b.is_meta:
            dtype = torch.result_type(a, b)
            if dtype.is_floating_point:
                return torch.empty(_common_shape(a.shape, b.shape), dtype=dtype, device="meta")
        return func(a, b, **options)

    return stand_in


class Adam(torch.optim.Adam):
    """Adam as torch has it by default, but for the doors that it closes on its compiler."""

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


# --- where they stand in ----------------------------------------------------------------------


def _guarded(func: Any) -> Any:
    """The function within another that torch bars from the compiler; None if there is none."""
    while func is not None and func.__code__ is not _GUARD:
        func = getattr(func, "__wrapped__", None)
    return func and inspect.getclosurevars(func).nonlocals["fn"]


_GUARD = torch._disable_dynamo(lambda: None).__code__  # pyright: ignore[reportPrivateImportUsage]

_BARRED = "__dynamo_disable"
"""The attribute of such a function in which torch looks for what to call instead; without one it has dynamo make it."""

_ARITHMETIC = [_guarded(func) for func in (_refs.add, _refs.sub, _refs.mul, _refs.true_divide)]

_STANDING_IN: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (torch.autograd, "_make_grads", _checked_weights),
    (eager_transforms, "_autograd_grad", _backward_pass),
    (torch, "broadcast_shapes", _common_shape),
    *((func, _BARRED, _shape_of(func)) for func in _ARITHMETIC if func),
)
"""Owner, name, and what stands in."""
