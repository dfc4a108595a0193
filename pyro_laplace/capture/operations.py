"""The operations that are captured: one function each, from a call's arguments to contractions with latent entries.

Letters: n and capitals for axes of activations, i inputs, o outputs, g groups, v words, t positions, lower case from a
for broadcast axes.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyro_laplace.capture.contraction import Contraction, contraction
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
    names = {"input": given["mat1"], "other": given["mat2"]}
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
    stride, dilation = (_each(given[name], 1, len(kernel)) for name in ("stride", "dilation"))
    padding = given["padding"]
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        edges = [(each // 2, each - each // 2) for each in total]
    else:
        edges = [(each, each) for each in _each(padding, 0, len(kernel))]
    index = find(weight)
    rows = index.reshape(groups, weight.shape[0] // groups, -1) if index is not None else None
    return _patched(_pad(a.detach(), edges), rows, kernel, stride, dilation, find(given["bias"]), groups, output)


def _transposed_convolution(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    """A convolution of the input, its entries `stride` apart, with the kernel back to front."""
    a, weight, groups = given["input"], given["weight"], given["groups"] or 1
    kernel = weight.shape[2:]
    if find(a) is not None or a.dim() != weight.dim():
        return None
    stride, dilation = (_each(given[name], 1, len(kernel)) for name in ("stride", "dilation"))
    padding, further = (_each(given[name], 0, len(kernel)) for name in ("padding", "output_padding"))
    apart = a.new_zeros(*a.shape[:2], *(s * (size - 1) + 1 for s, size in zip(stride, a.shape[2:], strict=True)))
    apart[(..., *(slice(None, None, s) for s in stride))] = a.detach()
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    edges = [(r - p, r - p + f) for r, p, f in zip(reach, padding, further, strict=True)]
    index = find(weight)
    if index is not None:
        index = index.flip(tuple(range(2, index.dim()))).reshape(groups, -1, *index.shape[1:])  # g, i, o, kernel
        index = index.transpose(1, 2).reshape(groups, weight.shape[1], -1)
    ones = [1] * len(kernel)
    return _patched(_pad(apart, edges), index, kernel, ones, dilation, find(given["bias"]), groups, output)


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
        patches = _patches(padded, kernel, stride, dilation)  # n t i, and a 1
        patches, ones = patches[..., :-1], patches[..., -1]
        if groups == 1:
            found.append(Contraction(("nti", "oi", "not"), patches, index[0], (n, channels, t)))
        else:
            patches = patches.unflatten(-1, (groups, -1)).transpose(1, 2)
            found.append(Contraction(("ngti", "goi", "ngot"), patches, index, (n, groups, channels // groups, t)))
    if bias is not None:
        found.append(Contraction(("nt", "o", "not"), ones, bias.reshape(-1), (n, channels, t), True))
    return found


def _patches(padded: Tensor, kernel: torch.Size, stride: list[int], dilation: list[int]) -> Tensor:
    """What each position of the kernel covers, and a 1 for the bias that may join it, [n, t, channels * kernel + 1]."""
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        padded = padded.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    dims = len(kernel)
    windows = padded.permute(0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))  # n t c kernel
    shape = windows.shape
    patches = padded.new_empty(shape[0], shape[1 : 1 + dims].numel(), shape[1 + dims :].numel() + 1)
    patches[..., :-1].view(shape).copy_(windows)
    patches[..., -1] = 1.0
    return patches


def _each(value: Any, default: int, count: int) -> list[int]:
    """An option of a convolution, one a spatial axis."""
    if value is None:
        return [default] * count
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _pad(a: Tensor, edges: list[tuple[int, int]]) -> Tensor:
    return functional.pad(a, [each for pair in reversed(edges) for each in pair])


def _embedding(find: Find, given: Mapping[str, Any], output: Tensor) -> list[Contraction] | None:
    index = find(given["weight"])
    if index is None or given["max_norm"] is not None:
        return None
    found = rows_of_table(index, given["input"], output)
    return None if found is None else [found]


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


_PAIR = ("input", "other")
_SUM = ("input", "other", "alpha")
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")

OPERATIONS: dict[str, tuple[tuple[str, ...], Handler]] = {
    **dict.fromkeys(("matmul", "__matmul__", "mm", "mv", "bmm"), (_PAIR, _matmul)),
    "__rmatmul__": (_PAIR, _reversed_matmul),
    "inner": (_PAIR, _inner),
    "linear": (("input", "weight", "bias"), _linear),
    "addmm": (("input", "mat1", "mat2", "beta", "alpha"), _addmm),
    **dict.fromkeys(("add", "__add__", "__radd__", "add_", "__iadd__"), (_SUM, _add)),
    **dict.fromkeys(("sub", "subtract", "__sub__", "sub_", "__isub__"), (_SUM, _subtract)),
    **dict.fromkeys(("rsub", "__rsub__"), (_SUM, _reversed_subtract)),
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), (_PAIR, _multiply)),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), (_CONVOLUTION, _convolution)),
    **dict.fromkeys([f"conv_transpose{d}d" for d in (1, 2, 3)], (_TRANSPOSED, _transposed_convolution)),
    "embedding": (("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq"), _embedding),
    "layer_norm": (("input", "normalized_shape", "weight", "bias", "eps"), _normalised(_layer_norm, True)),
    "rms_norm": (("input", "normalized_shape", "weight", "eps"), _normalised(_rms_norm, True)),
    "group_norm": (("input", "num_groups", "weight", "bias", "eps"), _normalised(_group_norm, False)),
    "batch_norm": (
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        _normalised(_batch_norm, False),
    ),
}

_ALIASES = {"mat2": "other", "vec": "other", "tensor": "other"}


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
    if kind == "einsum":
        operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
        return _einsum(find, {"equation": args[0], "operands": operands}, output) if operands else None
    if kind not in OPERATIONS:
        return None
    names, handler = OPERATIONS[kind]
    given: dict[str, Any] = dict.fromkeys(names) | dict(zip(names, args, strict=False))
    given |= {(_ALIASES.get(name, name) if name not in names else name): value for name, value in kwargs.items()}
    known = len(args) <= len(names) and given.keys() <= {*names, "sparse"}
    return handler(find, given, output) if known else None
