"""Padding: positions of data that a program's own mask keeps from reaching anything, by what gradients say.

Such a position has no gradient in any column, and adds nothing to J'IJ; its input would count in a Kronecker factor all
the same. A position whose units are merely off at the mode counts there, as Martens and Grosse (2015) have it. What
tells the two apart is an argument of the program that has a row for each datum and an entry for each position, such as
an attention mask, or the words themselves: one of its values, 0 or 1, marks positions none of which reaches anything
through any layer. That is asked of each datum by itself, so that it does not matter which data come together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_laplace._compat.torch import leaves_of
from pyro_laplace.program.chunks import Chunk


def marks_of(chunk: Chunk) -> list[Tensor]:
    """The arguments that may mark positions: of data some of whose entries are zero, and others not.

    Args:
        chunk: the data.

    Returns:
        integers or truth values [n, t] each.
    """
    leaves = leaves_of((chunk.batch.args, dict(chunk.batch.kwargs)))
    whole = (each for each in leaves if isinstance(each, Tensor) and each.dtype in _WHOLE and each.dim() == 2)
    return [each for each in whole if bool(_differs(each).any())]


def padding(marks: Sequence[Tensor], reached: Tensor) -> Tensor:
    """The positions that are padding [n, t].

    Args:
        marks: `marks_of` the chunk.
        reached: which positions have a gradient in some column, at some layer of so many positions [n, t].

    Returns:
        none of those that are reached.
    """
    found = torch.zeros_like(reached)
    for each in marks:
        if each.shape == reached.shape:
            zero, one = (each == value for value in (0, 1))
            by_zero, by_one = ((reached & marked).any(1, keepdim=True) for marked in (zero, one))
            found |= (zero & ~by_zero & _differs(each)) | (one & by_zero & ~by_one)
    return found


def _differs(mark: Tensor) -> Tensor:
    """Of which data some entries are zero, and others not [n, 1]."""
    zero = mark == 0
    return zero.any(1, keepdim=True) & ~zero.all(1, keepdim=True)


_WHOLE = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
