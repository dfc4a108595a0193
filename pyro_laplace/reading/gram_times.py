"""``A'A v`` for many vectors v, as a sketch of a curvature takes them.

A product's rows cost ``k t o i`` multiplications a datum to make, and then ``2 k o i`` for each vector; without them
each vector costs ``2 t o i``. A convolution shares its weight among many positions t: with many vectors its rows are
made, a slice of the data at a time.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pyro_laplace.reading.records import Factors, Product
from pyro_laplace.settings import settings


def gram_times(factors: Factors, vectors: Tensor, size: int) -> Tensor:
    """Products of A'A with vectors.

    Args:
        factors: A.
        vectors: v [v, params].
        size: number of coordinates.

    Returns:
        [v, params] in float64.
    """
    made = [product for product in factors.products if _rows_pay(product, len(vectors))]
    if not made:
        step = max(1, settings.pass_elements // max(1, factors.elements_of_product))
        return torch.cat([factors.pull(factors.push(some), size) for some in vectors.split(step)])
    others = replace(
        factors, products=[product for product in factors.products if not any(product is each for each in made)]
    )
    per_datum = factors.dense.shape[1] * sum(product.index.numel() for product in made)
    step = max(1, settings.pass_elements // per_datum)
    total = torch.zeros(len(vectors), size, dtype=torch.float64, device=vectors.device)
    v = vectors.to(made[0].inputs)
    for start in range(0, len(factors.dense), step):
        part = slice(start, start + step)
        rows = [_product_of(product, part).rows().flatten(0, 1) for product in made]  # nk oi
        beside = _part(others, part)
        u = beside.push(v)
        there = len(rows[0])
        for product, own in zip(made, rows, strict=True):
            u[:, :there] += v[:, product.index.reshape(-1)] @ own.mT
        total += beside.pull(u, size)
        for product, own in zip(made, rows, strict=True):
            total.index_add_(1, product.index.reshape(-1), (u[:, :there].to(own) @ own).double())
    return total


def _rows_pay(product: Product, vectors: int) -> bool:
    """Whether a product's rows, made once, cost less than going without them for each vector."""
    k, t = product.gradients.shape[1:3]
    return k * (t + 2 * vectors) < 2 * vectors * t


def _product_of(product: Product, part: slice) -> Product:
    return replace(product, inputs=product.inputs[part], gradients=product.gradients[part])


def _part(factors: Factors, part: slice) -> Factors:
    """Some of the data; the rows beside them belong to the first."""
    only = factors.dense_only if part.start == 0 else factors.dense_only[:0]
    chosen = torch.zeros(len(factors.dense), dtype=torch.bool, device=factors.dense.device)
    chosen[part] = True
    return replace(factors.of_data(chosen), dense_only=only)
