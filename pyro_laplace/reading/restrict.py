"""A factored root over some of its coordinates: rows and columns of weights where they suffice, dense columns else.

Axis letters as in `records`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pyro_laplace.reading.records import Entries, Factors, Product


def restrict(factors: Factors, chosen: Tensor, size: int) -> Factors:
    """The root in some of its coordinates.

    Args:
        factors: the root over `size` coordinates.
        chosen: which of them are kept, each once; they are numbered anew in this order.
        size: number of coordinates.

    Returns:
        the columns `chosen` of the root. A product of which they are whole rows and columns stays a product, at a cost
        that falls with both; the coordinates of any other become dense columns.
    """
    place = torch.full((size,), -1, device=chosen.device)
    place = place.index_copy(0, chosen, torch.arange(len(chosen), device=chosen.device))
    pairs = [(product, place[product.index]) for product in factors.products]
    whole = [_rectangle(product, index) for product, index in pairs]
    loose = torch.zeros(len(chosen) + 1, dtype=torch.bool, device=chosen.device)  # the last entry is that of -1
    for (_, index), product in zip(pairs, whole, strict=True):
        if product is None:
            loose[index] = True
    loose[-1] = False
    products, index, columns = [], [place[factors.dense_index]], [factors.dense]
    for (product, where), part in zip(pairs, whole, strict=True):
        # a coordinate that some other product holds as a dense column is one here too: its columns add up
        if part is not None and not bool(loose[part.index].any()):
            products += [part] if part.index.numel() else []
        elif bool((where >= 0).any()):
            found, picked = _entries(product, where)
            index.append(found)
            columns.append(picked.to(factors.dense.dtype))
    entries = [_chosen_entries(each, place) for each in factors.entries]
    found = _gathered(products, torch.cat(index), torch.cat(columns, -1), factors)
    return replace(found, entries=[each for each in entries if each.gradients.numel()])


def _chosen_entries(entries: Entries, place: Tensor) -> Entries:
    """The chosen ones among entries; those of no datum are left out, others are zero where they are not chosen."""
    index = place[entries.index]
    there = index >= 0
    kept = there.any(0)
    gradients = torch.where(there.unsqueeze(1), entries.gradients, 0.0)[..., kept]
    return Entries(index[:, kept].clamp(min=0), gradients)


def _gathered(products: list[Product], index: Tensor, columns: Tensor, factors: Factors) -> Factors:
    """Dense columns of one coordinate added up, and those that are not chosen (-1) left out."""
    kept = (index >= 0).nonzero()[:, 0]
    unique, inverse = index[kept].unique(return_inverse=True)
    dense = columns.new_zeros(*columns.shape[:2], len(unique)).index_add(2, inverse, columns[..., kept])
    old = kept[kept < len(factors.dense_index)]
    rest = factors.dense_only.new_zeros(len(factors.dense_only), len(unique))
    rest = rest.index_add(1, inverse[: len(old)], factors.dense_only[:, old])
    return Factors(products, unique, dense, rest)


def _rectangle(product: Product, index: Tensor) -> Product | None:
    """The chosen rows and columns of a product; None if they are not all that is chosen."""
    inside = index >= 0
    outputs, inputs = inside.any(1), inside.any(0)
    part = index[outputs][:, inputs]
    if bool((part < 0).any()):
        return None
    if len(part) == len(index) and part.shape[1] == index.shape[1]:
        return replace(product, index=part)
    has_bias = product.has_bias and part.shape[1] > 1 and bool(inputs[-1])
    return Product(part, product.inputs[..., inputs], product.gradients[..., outputs], has_bias)


def _entries(product: Product, index: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen coordinates [d] of a product, and the root in them [n, k, d]."""
    outputs, inputs = (index >= 0).nonzero(as_tuple=True)
    columns = torch.zeros((), device=index.device)
    for position in range(product.inputs.shape[1]):  # d times k, and not d times k t, elements a datum
        gradients = product.gradients[:, :, position][..., outputs]
        columns = columns + gradients * product.inputs[:, None, position][..., inputs]
    return index[outputs, inputs], columns
