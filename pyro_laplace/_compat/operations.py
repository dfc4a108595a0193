"""What is known of torch's operations below autograd, `torch.ops.aten`, as a `DispatchMode` sees them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten

OF_LAYOUT = {_aten.ones_like.default, _aten.zeros_like.default, _aten.new_ones.default, _aten.new_zeros.default}
"""What looks at the layout of its argument alone."""

SAME_ENTRIES = {
    *(_aten.view.default, _aten._unsafe_view.default, _aten.expand.default, _aten.alias.default, _aten.detach.default),
    *(_aten.clone.default, _aten._to_copy.default, _aten.slice.Tensor),
}
"""What gives the entries of its argument in their order, if the result has the argument's layout."""

PRODUCT = _aten.mul.Tensor

POWER = _aten.pow.Tensor_Scalar

BY_ONE = {PRODUCT, _aten.mul.Scalar, _aten.div.Tensor, _aten.div.Scalar, POWER}
"""What gives its first argument if the second is one."""


OF_DTYPES = {
    _aten.result_type.Tensor,
    _aten.result_type.Scalar,
    _aten.result_type.Scalar_Tensor,
    _aten.can_cast.default,
}
"""What looks at dtypes and shapes alone, and gives no tensor."""


def follows_values(operation: Any, arguments: Iterable[Any]) -> bool:
    """Whether the shape of an operation's result is that of values, as those of a mask, or the result is random.

    Args:
        operation: as a `DispatchMode` sees it.
        arguments: leaves of what it is called with.

    Returns:
        whether; an index of whole numbers gives a shape that is known.
    """
    tags = getattr(operation, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags:
        return True
    if torch.Tag.dynamic_output_shape not in tags:
        return False
    masks = any(isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in arguments)
    return masks or operation is not _aten.index.Tensor


def writes(operation: Any) -> bool:
    """Whether an operation, as a `DispatchMode` sees it, changes one of its arguments."""
    schema = getattr(operation, "_schema", None)
    return schema is not None and schema.is_mutable


_UNARY = (
    *("neg", "exp", "log", "sqrt", "rsqrt", "reciprocal", "sigmoid", "tanh", "sin", "cos", "log1p", "expm1", "abs"),
    *("sign", "lgamma", "digamma", "erf", "isfinite", "isnan", "logical_not", "square"),
)
_BINARY = (
    *("mul", "div", "pow", "add", "sub", "mm", "mv", "bmm", "dot", "maximum", "minimum"),
    *("eq", "gt", "lt", "ge", "le"),
)
_SHAPES = ("sum", "cat", "stack", "select", "unsqueeze", "squeeze", "transpose", "t", "permute", "diagonal", "where")


def direct_call(operation: Any) -> Callable[..., Any]:
    """What does the same as an operation that a `DispatchMode` sees, called in half of the time."""
    packet = getattr(operation, "overloadpacket", None)
    if packet is None:
        return operation
    name, overload = packet.__name__, operation._overloadname
    if name in _UNARY + _BINARY + _SHAPES and (overload != "Scalar" or name in ("mul", "div", "pow")):
        return getattr(torch, name)
    return {"view": Tensor.view, "expand": Tensor.expand}.get(name, operation)
