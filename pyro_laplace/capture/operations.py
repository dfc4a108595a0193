"""The operations that are captured: one function each, from a call's arguments to contractions with latent entries.

Letters: n and capitals for axes of activations, i inputs, o outputs, g groups, v words, t positions, lower case from a
for broadcast axes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from pyro_laplace.capture.contraction import Contraction, contraction
from pyro_laplace.capture.patches import by_axis, padded_input, patches_of, spread_input
from pyro_laplace.settings import settings

type Find = Callable[[Any], Tensor | None]
"""From an argument to the coordinates in theta of its entries, or None if it is not a latent's."""

type Handler = Callable[[Find, Mapping[str, Any], Tensor], list[Contraction] | None]
"""From the call's arguments by name and its result to its contractions; None if it is not of the known form."""


def _both(*found: Contraction | None) -> list[Contraction] | None:
    """The contractions, unless one of them failed."""
    contractions = [each for each in found if each is not None]
    return contractions if len(contractions) == len(found) else None


def _elementwise(a: Tensor, index: Tensor, output: Tensor) -> Contraction | None:
    """``output = a * w``, w broadcast against the last axes."""
    axes = ascii_lowercase[: output.dim()]
    if output.dim() > len(ascii_lowercase) or max(a.dim(), index.dim()) > output.dim():
        return None
    letters = axes[output.dim() - a.dim() :], axes[output.dim() - index.dim() :], axes
    return contraction(letters, a, index, output.shape)


def _added(index: Tensor, output: Tensor, letters: str = "", sign: float = 1.0) -> Contraction | None:
    """``output = ... + b``, b broadcast against the last axes, or with letters: a product with ones."""
    axes = ascii_lowercase[: output.dim()]
    letters = letters or axes[output.dim() - index.dim() :]
    if len(letters) != index.dim():
        return None
    for axis in reversed(range(index.dim())):
        if index.shape[axis] == 1 or index.stride(axis) == 0:
            index, letters = index.select(axis, 0), letters[:axis] + letters[axis + 1 :]
    rest = [axis for axis, letter in enumerate(axes) if letter not in letters]
    ones = output.detach().new_full((), sign).expand([output.shape[axis] for axis in rest])
    return Contraction(("".join(axes[axis] for axis in rest), letters, axes), ones, index, tuple(output.shape), True)


def _product(left: Tensor, right: Tensor, index: Tensor, latent_on_right: bool, output: Tensor) -> Contraction | None:
    """`torch.matmul`: the last axis of the left against the last but one of the right, others before them in step."""
    batch = ascii_uppercase[: max(left.dim(), right.dim(), 2) - 2]
    if len(batch) > 20:
        return None
    rows, columns = ("r" if left.dim() > 1 else ""), ("c" if right.dim() > 1 else "")
    one = batch[len(batch) - max(left.dim() - 2, 0) :] + rows + "i"
    two = batch[len(batch) - max(right.dim() - 2, 0) :] + "i" + columns
    out = batch + rows + columns
    if latent_on_right:
        return contraction((one, two, out), left, index, output.shape)
    return contraction((two, one, out), right, index, output.shape)


def _matmul(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    left, right = given["input"], given["other"]
    first, second = find(left), find(right)
    if first is not None and second is not None:
        return None
    index = second if second is not None else first
    return None if index is None else _both(_product(left, right, index, second is not None, output))


def _reversed_matmul(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    return _matmul(find, {"input": given["other"], "other": given["input"]}, output)


def _addmm(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    if given["beta"] is not None or given["alpha"] is not None:
        return None
    factors = (value for name, value in given.items() if name not in ("input", "beta", "alpha"))
    names: dict[str, Any] = dict(zip(("input", "other"), factors, strict=True))
    latent = [find(each) is not None for each in names.values()]
    product = _matmul(find, names, output) if any(latent) else []
    bias = find(given["input"])
    added = _both(_added(bias, output)) if bias is not None else []
    return None if product is None or added is None else product + added


def _linear(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    a, weight, bias = given["input"], find(given["weight"]), find(given["bias"])
    if find(a) is not None:
        return None
    found: list[Contraction | None] = []
    if weight is not None:
        axes = ascii_lowercase[: a.dim() - 1]
        row = "O" * (weight.dim() - 1)
        found.append(contraction((axes + "I", row + "I", axes + row), a, weight, output.shape))
    if bias is not None:
        found.append(_added(bias, output))
    return _both(*found)


def _inner(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    left, right = find(given["input"]), find(given["other"])
    one, two = ascii_lowercase[: given["input"].dim() - 1], ascii_uppercase[: given["other"].dim() - 1]
    letters = one + "z", two + "z", one + two
    if right is not None and left is None:
        return _both(contraction(letters, given["input"], right, output.shape))
    if left is not None and right is None:
        return _both(contraction((letters[1], letters[0], letters[2]), given["other"], left, output.shape))
    return None


def _einsum(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    equation, operands = given["equation"], given["operands"]
    if isinstance(operands, Tensor):
        operands = (operands,)
    if not isinstance(equation, str) or "." in equation or len(operands) != 2:
        return None
    terms, _, out = equation.replace(" ", "").partition("->")
    if "->" not in equation:
        out = "".join(sorted(letter for letter in terms if letter != "," and terms.count(letter) == 1))
    first, second = terms.split(",")
    left, right = find(operands[0]), find(operands[1])
    if left is None and right is not None:
        return _both(contraction((first, second, out), operands[0], right, output.shape))
    if right is None and left is not None:
        return _both(contraction((second, first, out), operands[1], left, output.shape))
    return None


def _add(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    return _sum(find, given["input"], given["other"], given["alpha"], 1.0, output)


def _subtract(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    return _sum(find, given["input"], given["other"], given["alpha"], -1.0, output)


def _reversed_subtract(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    return _sum(find, given["other"], given["input"], given["alpha"], -1.0, output)


def _sum(find: Find, left: Any, right: Any, alpha: Any, sign: float, output: Tensor) -> list[Contraction] | None:
    """A sum with a latent on either side; a bias that is added to a product shares its output's gradient."""
    first, second = find(left), find(right)
    if alpha is not None:
        return None
    if first is not None and second is None:
        added, other = _added(first, output), right
    elif second is not None and first is None:
        added, other = _added(second, output, sign=sign), left
    else:
        return None
    if added is None:
        return None
    same_gradient = isinstance(other, Tensor) and other.shape == output.shape and (first is None or sign > 0)
    return [replace(added, product=other)] if same_gradient else [added]


def _multiply(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    left, right = find(given["input"]), find(given["other"])
    if left is not None and right is None:
        return _both(_elementwise(torch.as_tensor(given["other"]).to(output), left, output))
    if right is not None and left is None:
        return _both(_elementwise(torch.as_tensor(given["input"]).to(output), right, output))
    return None


def _convolution(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    """A convolution is a product with patches: t runs over positions, i over input channels and the kernel."""
    a, weight, groups = given["input"], given["weight"], given["groups"] or 1
    kernel = weight.shape[2:]
    if find(a) is not None or a.dim() != weight.dim():
        return None
    stride, dilation = (by_axis(given[name], 1, len(kernel)) for name in ("stride", "dilation"))
    index = find(weight)
    rows = index.reshape(groups, weight.shape[0] // groups, -1) if index is not None else None
    padded = padded_input(a.detach(), given["padding"], kernel, dilation)
    return _patched(padded, rows, kernel, stride, dilation, find(given["bias"]), groups, output)


def _transposed_convolution(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    """A convolution of the input, its entries `stride` apart, with the kernel back to front."""
    a, weight, groups = given["input"], given["weight"], given["groups"] or 1
    kernel = weight.shape[2:]
    if find(a) is not None or a.dim() != weight.dim():
        return None
    stride, dilation = (by_axis(given[name], 1, len(kernel)) for name in ("stride", "dilation"))
    apart = spread_input(a.detach(), kernel, stride, dilation, given["padding"], given["output_padding"])
    index = find(weight)
    if index is not None:
        index = index.flip(tuple(range(2, index.dim()))).reshape(groups, -1, *index.shape[1:])  # g, i, o, kernel
        index = index.transpose(1, 2).reshape(groups, weight.shape[1], -1)
    ones = [1] * len(kernel)
    return _patched(apart, index, kernel, ones, dilation, find(given["bias"]), groups, output)


def _patched(
    padded: Tensor,
    index: Tensor | None,
    kernel: torch.Size,
    stride: list[int],
    dilation: list[int],
    bias: Tensor | None,
    groups: int,
    output: Tensor,
) -> list[Contraction]:
    """The weight [g, o, i] as a product with the patches of a padded input, and the bias."""
    n, channels = output.shape[:2]
    t = output[0, 0].numel()
    ones = output.detach().new_ones(()).expand(n, t)
    found: list[Contraction] = []
    if index is not None:
        patches = patches_of(padded, kernel, stride, dilation)  # n t i, and a 1
        patches, ones = patches[..., :-1], patches[..., -1]
        if groups == 1:
            found.append(Contraction(("nti", "oi", "not"), patches, index[0], (n, channels, t)))
        else:
            patches = patches.unflatten(-1, (groups, -1)).transpose(1, 2)
            found.append(Contraction(("ngti", "goi", "ngot"), patches, index, (n, groups, channels // groups, t)))
    if bias is not None:
        found.append(Contraction(("nt", "o", "not"), ones, bias.reshape(-1), (n, channels, t), True))
    return found


def rows_of_table(index: Tensor, chosen: Tensor, output: Tensor) -> Contraction | None:
    """Rows of a table [v, ...] chosen by integers: a product with one-hot rows, over the chosen words if v is large."""
    if not 0 < chosen.dim() < 20:
        return None
    chosen = chosen % len(index)
    if chosen.numel() * len(index) > settings.one_hot_elements:
        present, chosen = chosen.unique(return_inverse=True)
        index = index[present]
    if chosen.numel() * len(index) > settings.one_hot_elements:
        return None
    one_hot = functional.one_hot(chosen, len(index)).to(output.dtype)
    axes, rest = ascii_lowercase[: chosen.dim()], ascii_uppercase[: index.dim() - 1]
    return Contraction((axes + "v", "v" + rest, axes + rest), one_hot, index, tuple(output.shape))


def _normalised(without_affine: Callable[[Mapping[str, Any]], Tensor], trailing: bool) -> Handler:
    """A normalisation's gain and shift; they lie along the last axes, or along the axis of channels."""

    def handle(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
        gain, shift = find(given["weight"]), find(given.get("bias"))
        if find(given["input"]) is not None or given.get("training"):
            return None
        along = (1,) * (0 if trailing else output.dim() - 2)
        found: list[Contraction | None] = []
        if gain is not None:
            with torch.no_grad():
                a = without_affine(given)
            found.append(_elementwise(a, gain.reshape(*gain.shape, *along), output))
        if shift is not None:
            found.append(_added(shift.reshape(*shift.shape, *along), output))
        return _both(*found)

    return handle


def _layer_norm(given: Mapping[str, Any]) -> Tensor:
    return functional.layer_norm(given["input"], given["normalized_shape"], eps=_eps(given))


def _rms_norm(given: Mapping[str, Any]) -> Tensor:
    return functional.rms_norm(given["input"], given["normalized_shape"], eps=given["eps"])


def _group_norm(given: Mapping[str, Any]) -> Tensor:
    return functional.group_norm(given["input"], given["num_groups"], eps=_eps(given))


def _batch_norm(given: Mapping[str, Any]) -> Tensor:
    return functional.batch_norm(given["input"], given["running_mean"], given["running_var"], eps=_eps(given))


def _eps(given: Mapping[str, Any]) -> float:
    return 1e-5 if given["eps"] is None else given["eps"]


@dataclass(frozen=True)
class Operation:
    """What is known of a function of torch that latent values may enter.

    Attributes:
        arguments: their names, in order.
        role: what it is to the layers of a network. A "product" sums over its input and makes a layer, a "scale" makes
            one where the latent is more than a number, and what a "sum" adds belongs to the layer that it is added to.
        handler: from a call to its contractions; None where none is known and its latents need dense columns.
    """

    arguments: tuple[str, ...]
    role: Literal["product", "scale", "sum"]
    handler: Handler | None = None


def _alike(
    names: str, arguments: str, role: Literal["product", "scale", "sum"], handler: Handler | None = None
) -> dict[str, Operation]:
    """Functions that differ by their names alone, their words separated by spaces."""
    return dict.fromkeys(names.split(), Operation(tuple(arguments.split()), role, handler))


_PAIR, _SUM, _ADDED = "input other", "input other alpha", "input {} {} beta alpha"
_CONVOLUTION = "input weight bias stride padding dilation groups"
_TRANSPOSED = "input weight bias stride padding output_padding groups dilation"
_STATISTICS = "input running_mean running_var weight bias training momentum eps"

OPERATIONS: dict[str, Operation] = {
    **_alike("matmul __matmul__ mm mv bmm dot vdot", _PAIR, "product", _matmul),
    **_alike("__rmatmul__", _PAIR, "product", _reversed_matmul),
    **_alike("inner", _PAIR, "product", _inner),
    **_alike("einsum", "equation operands", "product", _einsum),
    **_alike("linear", "input weight bias", "product", _linear),
    **_alike("addmm addmm_", _ADDED.format("mat1", "mat2"), "product", _addmm),
    **_alike("addmv addmv_", _ADDED.format("mat", "vec"), "product", _addmm),
    **_alike("baddbmm baddbmm_", _ADDED.format("batch1", "batch2"), "product", _addmm),
    **_alike("tensordot", "a b dims", "product"),
    **_alike("outer ger addr addr_ linalg_multi_dot", "", "product"),
    **_alike("bilinear", "input1 input2 weight bias", "product"),
    **_alike("lstm gru rnn_tanh rnn_relu", "", "product"),
    **_alike("conv1d conv2d conv3d", _CONVOLUTION, "product", _convolution),
    **_alike("conv_transpose1d conv_transpose2d conv_transpose3d", _TRANSPOSED, "product", _transposed_convolution),
    **_alike("embedding", "weight input", "product"),  # a view, by rows that are chosen
    **_alike("add __add__ __radd__ add_ __iadd__", _SUM, "sum", _add),
    **_alike("sub subtract __sub__ sub_ subtract_ __isub__", _SUM, "sum", _subtract),
    **_alike("rsub __rsub__", _SUM, "sum", _reversed_subtract),
    **_alike("mul multiply __mul__ __rmul__", _PAIR, "scale", _multiply),
    **_alike("mul_ multiply_ __imul__", _PAIR, "scale"),  # the activation is overwritten
    **_alike("layer_norm", "input normalized_shape weight bias eps", "scale", _normalised(_layer_norm, True)),
    **_alike("rms_norm", "input normalized_shape weight eps", "scale", _normalised(_rms_norm, True)),
    **_alike("group_norm", "input num_groups weight bias eps", "scale", _normalised(_group_norm, False)),
    **_alike("batch_norm", _STATISTICS, "scale", _normalised(_batch_norm, False)),
}
"""By name: what is captured, what makes a layer, and what is added to one. Another operation is one more line."""

CHOICES = frozenset({"__getitem__", "index_select", "gather", "take", "take_along_dim"})
"""What takes entries of a tensor by integers; by those of the data, it is a table's product with one-hot rows."""

STRAIGHT = frozenset({"neg", "div", "true_divide", "mul", "sum", "mean", "squeeze", "to", "double", "float"})
"""What leaves an activation linear in what made it, as sums and views do."""

_ALIASES = {"mat2": "other", "vec": "other", "vec2": "other", "tensor": "other"}


def is_composite(func: Callable[..., Any]) -> bool:
    """Whether a function of `torch.nn.functional` is made of others and known by these alone: attention, say."""
    if getattr(func, "__module__", "") != functional.__name__:
        return False
    operation = OPERATIONS.get(func.__name__)
    return operation is None or operation.handler is None


def contractions(
    kind: str, find: Find, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
) -> list[Contraction] | None:
    """The contractions with latent entries that a call consists of.

    Args:
        kind: the function's name.
        find: tells a latent's entries from other arguments.
        args: the call's arguments.
        kwargs: and those by name.
        output: the call's result.

    Returns:
        the contractions, which account for all latent entries among the arguments; None if the call is not known.
    """
    operation = OPERATIONS.get(kind)
    if operation is None or operation.handler is None:
        return None
    if kind == "einsum" and len(args) > 2:
        args = args[0], args[1:]
    names = operation.arguments
    given: dict[str, Any] = dict.fromkeys(names) | dict(zip(names, args, strict=False))
    given |= {(_ALIASES.get(name, name) if name not in names else name): value for name, value in kwargs.items()}
    known = len(args) <= len(names) and given.keys() == set(names)
    return operation.handler(find, given, output) if known else None
