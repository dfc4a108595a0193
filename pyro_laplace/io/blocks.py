"""Blocks of a precision as plain values: their buffers, and the numbers beside them."""

from dataclasses import fields
from typing import Any

from torch import nn

from pyro_laplace._errors import InvalidData, InvalidOption
from pyro_laplace.nested.node import Node
from pyro_laplace.sparse.symmetric import Symmetric
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.dense import Dense
from pyro_laplace.structure.diag import DiagBlock
from pyro_laplace.structure.dual import Dual
from pyro_laplace.structure.kron_block import KronBlock
from pyro_laplace.structure.low_rank_block import LowRankBlock
from pyro_laplace.structure.precision import Precision
from pyro_laplace.structure.sparse_block import SparseBlock
from pyro_laplace.structure.whitened import Whitened

_BLOCKS: dict[str, type[Block]] = {
    each.__name__: each for each in (Dense, Dual, KronBlock, DiagBlock, LowRankBlock, Node, SparseBlock)
}
"""Blocks that are written down, by name."""


def plain_precision(precision: Precision) -> dict[str, Any]:
    """A precision as plain values.

    Args:
        precision: block-diagonal.

    Returns:
        its dtype, and each block with its coordinates.
    """
    placed = [{"index": index, "block": _plain_block(block)} for index, block in precision.placed()]
    return {"dtype": precision.dtype, "placed": placed}


def precision_again(saved: dict[str, Any]) -> Precision:
    """What `plain_precision` gave, as a precision."""
    return Precision([(each["index"], _block_again(each["block"])) for each in saved["placed"]], saved["dtype"])


def _plain_block(block: Block) -> dict[str, Any]:
    name = type(block).__name__
    if _BLOCKS.get(name) is not type(block):
        raise InvalidOption(f"a block of the type {name} cannot be saved: there is a form for {', '.join(_BLOCKS)}")
    if isinstance(block, SparseBlock):
        entries = block.entries
        return {"type": name, "entries": {field.name: getattr(entries, field.name) for field in fields(entries)}}
    own = {key: value for key, value in vars(block).items() if key not in _OF_MODULES}
    return {
        "type": name,
        "buffers": dict(block.named_buffers(recurse=False)),
        "blocks": {key: _plain_block(inner) for key, inner in block.named_children() if isinstance(inner, Block)},
        "beside": {key: _plain_beside(value) for key, value in own.items()},
    }


def _block_again(saved: dict[str, Any]) -> Block:
    if saved["type"] not in _BLOCKS:
        raise InvalidData(f"there is no block of the type {saved['type']!r}: there are {', '.join(_BLOCKS)}")
    kind = _BLOCKS[saved["type"]]
    if kind is SparseBlock:
        return SparseBlock(Symmetric(**saved["entries"]))
    block = kind.__new__(kind)
    nn.Module.__init__(block)
    for key, value in saved["buffers"].items():
        block.register_buffer(key, value)
    for key, inner in saved["blocks"].items():
        setattr(block, key, _block_again(inner))
    for key, value in saved["beside"].items():
        setattr(block, key, _beside_again(value))
    return block


_OF_MODULES = frozenset(vars(nn.Module()))
"""What every module holds of itself."""

_WHITENED = "whitened"
"""The key by which a factor beside the buffers is told from plain values."""


def _plain_beside(value: Any) -> Any:
    if isinstance(value, Whitened):
        return {_WHITENED: {"form": value.form, "values": value.values, "basis": value.basis}}
    return value


def _beside_again(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {_WHITENED}:
        return Whitened(**value[_WHITENED])
    return value
