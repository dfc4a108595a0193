"""What is saved: a tree of plain values as a JSON document and the tensors that it names.

Reading it runs nothing: whatever is neither plain nor a tensor was turned into plain values by whoever saved it, and is
made again by whoever reads it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._errors import InvalidData

type Document = Any
"""What `json` writes: None, bools, numbers, strings, and lists and dicts of these."""

_DTYPES = {str(each): each for each in vars(torch).values() if isinstance(each, torch.dtype)}


@dataclass(frozen=True)
class Packed:
    """A tree of values, taken apart.

    Attributes:
        document: the tree, with a name in place of each tensor.
        tensors: by name.
    """

    document: Document
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def packed(tree: Any) -> Packed:
    """Take a tree of plain values apart.

    Args:
        tree: None, bools, numbers, strings, tensors, dtypes, slices, and sequences and string-keyed mappings of these.

    Returns:
        the document, and each tensor once however often it occurs.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    return Packed(_document(tree, tensors, names), tensors)


def unpacked(document: Document, tensors: Mapping[str, Tensor]) -> Any:
    """The tree again; sequences come back as tuples and lists as they were.

    Args:
        document: what `packed` made.
        tensors: by name.

    Returns:
        the tree.

    Raises:
        InvalidData: if it is no such document, or names a tensor that there is not.
    """
    if isinstance(document, list):
        return [unpacked(each, tensors) for each in document]
    if not isinstance(document, dict):
        return document
    if len(document) != 1:
        raise InvalidData(f"a saved value is one of {', '.join(_READ)}, not {sorted(document)}")
    ((kind, content),) = document.items()
    if kind not in _READ:
        raise InvalidData(f"there is no saved value of the kind {kind!r}: there are {', '.join(_READ)}")
    return _READ[kind](content, tensors)


def _document(value: Any, tensors: dict[str, Tensor], names: dict[int, str]) -> Document:
    def inner(each: Any) -> Document:
        return _document(each, tensors, names)

    if value is None or isinstance(value, bool | str | int):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Tensor):
        name = names.setdefault(id(value), f"tensor_{len(names)}")
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value)}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, Mapping):
        return {"dict": {str(name): inner(each) for name, each in value.items()}}
    if isinstance(value, list):
        return [inner(each) for each in value]
    if isinstance(value, Sequence):
        return {"tuple": [inner(each) for each in value]}
    raise TypeError(f"{type(value).__name__} is not plain")


def _tensor(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    if name not in tensors:
        raise InvalidData(f"the tensor {name!r} is missing")
    return tensors[name]


_READ = {
    "float": lambda content, tensors: float(content),
    "tensor": _tensor,
    "dtype": lambda content, tensors: _DTYPES[content],
    "slice": lambda content, tensors: slice(*content),
    "dict": lambda content, tensors: {name: unpacked(each, tensors) for name, each in content.items()},
    "tuple": lambda content, tensors: tuple(unpacked(each, tensors) for each in content),
}
