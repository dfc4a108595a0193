"""A convolution as a product with patches: the geometry alone, in plain tensors."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def patches_of(padded: Tensor, kernel: torch.Size, stride: list[int], dilation: list[int]) -> Tensor:
    """What each position of a kernel covers, and a 1 for the bias that may join it.

    Args:
        padded: the input `[n, channels, *space]`, its padding included.
        kernel: its sizes along the axes of space.
        stride: one an axis.
        dilation: one an axis.

    Returns:
        patches [n, t, channels * kernel + 1].
    """
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        padded = padded.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    dims = len(kernel)
    windows = padded.permute(0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))  # n t c kernel
    shape = windows.shape
    patches = padded.new_empty(shape[0], shape[1 : 1 + dims].numel(), shape[1 + dims :].numel() + 1)
    patches[..., :-1].view(shape).copy_(windows)
    patches[..., -1] = 1.0
    return patches


def padded_input(a: Tensor, padding: Any, kernel: torch.Size, dilation: list[int]) -> Tensor:
    """A convolution's input with its padding, which is a number, one an axis, or "same" or "valid"."""
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        edges = [(each // 2, each - each // 2) for each in total]
    else:
        edges = [(each, each) for each in by_axis(padding, 0, len(kernel))]
    return _pad(a, edges)


def spread_input(
    a: Tensor, kernel: torch.Size, stride: list[int], dilation: list[int], padding: Any, further: Any
) -> Tensor:
    """A transposed convolution's input, its entries `stride` apart: what the kernel, back to front, runs over.

    Args:
        a: the input `[n, channels, *space]`.
        kernel: its sizes along the axes of space.
        stride: one an axis.
        dilation: one an axis.
        padding: as given.
        further: as given for `output_padding`.

    Returns:
        the input, padded.
    """
    apart = a.new_zeros(*a.shape[:2], *(s * (size - 1) + 1 for s, size in zip(stride, a.shape[2:], strict=True)))
    apart[(..., *(slice(None, None, s) for s in stride))] = a
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    cut, extra = by_axis(padding, 0, len(kernel)), by_axis(further, 0, len(kernel))
    return _pad(apart, [(r - p, r - p + f) for r, p, f in zip(reach, cut, extra, strict=True)])


def by_axis(value: Any, default: int, count: int) -> list[int]:
    """An option of a convolution, one a spatial axis."""
    if value is None:
        return [default] * count
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _pad(a: Tensor, edges: list[tuple[int, int]]) -> Tensor:
    return functional.pad(a, [each for pair in reversed(edges) for each in pair])
