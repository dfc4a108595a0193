"""``A'A`` of a factored root, by the entries of its rows that are not zero."""

import torch
from torch import Tensor

from pyro_laplace.reading.records import Factors
from pyro_laplace.settings import settings
from pyro_laplace.sparse.rows import Triplets
from pyro_laplace.sparse.symmetric import Symmetric


def symmetric_of(factors: Factors, size: int) -> Symmetric:
    """The curvature of some columns of a root.

    Args:
        factors: A, of which few entries of a row are not zero.
        size: number of coordinates.

    Returns:
        A'A.
    """
    n, k = factors.dense.shape[:2]
    per_datum = k * sum(product.index.numel() for product in factors.products)
    step = max(1, settings.pass_elements // max(1, per_datum))
    parts = [_gram_of(_part_of_data(factors, start, min(start + step, n)), size) for start in range(0, n, step)]
    rows, places = factors.dense_only.nonzero(as_tuple=True)
    only = Triplets(rows, factors.dense_index[places], factors.dense_only[rows, places].double())
    return Symmetric.total([*parts, only.gram(len(factors.dense_only), size)])


def _part_of_data(factors: Factors, start: int, stop: int) -> Factors:
    kept = torch.zeros(len(factors.dense), dtype=torch.bool, device=factors.dense.device)
    kept[start:stop] = True
    return factors.of_data(kept)


def _gram_of(factors: Factors, size: int) -> Symmetric:
    n, k = factors.dense.shape[:2]
    columns: list[tuple[Tensor, Tensor]] = [(factors.dense_index.expand(n, -1), factors.dense)]
    columns += [(product.index.reshape(-1).expand(n, -1), product.rows()) for product in factors.products]
    columns += [(each.index, each.gradients) for each in factors.entries]
    row, col, value = [], [], []
    for index, entries in columns:  # [n, j], [n, k, j]
        datum, column, place = entries.nonzero(as_tuple=True)
        row.append(datum * k + column)
        col.append(index[datum, place])
        value.append(entries[datum, column, place].double())
    return Triplets(torch.cat(row), torch.cat(col), torch.cat(value)).gram(n * k, size)
