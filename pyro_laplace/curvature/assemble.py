"""Full and diagonal curvature from the factored root, without a Jacobian.

For two products at one position each, block (l, m) of A'A is ``sum_n (g_l' g_m)_n (x) (a_l a_m')_n``: one matrix
product over the data, with as many times fewer operations than J'J as a datum has rows. Where l = m both factors are
symmetric, and a quarter of it is enough. All sums over data are in float64.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.curvature.factors import Factors, Product

_ELEMENTS = 2**25
"""Elements of the intermediate products of one slice of the data."""


def add_matrix(total: Matrix, factors: Factors) -> None:
    """Add A'A to a float64 matrix over the free coordinates."""
    if any(product.shared for product in factors.products):
        joined = _gram_of_rows(factors)
    else:
        joined = _gram_of_products(factors)
    size = len(factors.dense_index)
    if size:
        joined[-size:, -size:] += factors.dense_only.double().T @ factors.dense_only.double()
    order = torch.cat([*(product.index.reshape(-1) for product in factors.products), factors.dense_index])
    place = order.argsort()
    if len(order) == len(total) and bool((order[place] == torch.arange(len(total), device=order.device)).all()):
        columns = joined.index_select(1, place)
    else:  # a weight used more than once, or coordinates that do not reach the data
        columns = joined.new_zeros(len(joined), len(total)).index_add_(1, order, joined)
    total.index_add_(0, order, columns)


def add_diagonal(total: Theta, factors: Factors) -> None:
    """Add the diagonal of A'A to a float64 vector over the free coordinates."""
    seen = torch.cat([factors.dense_index[:0], *(product.index.reshape(-1) for product in factors.products)])
    if len(seen) != len(seen.unique()):  # a weight used more than once: its rows add up before they are squared
        _add_squares_of_sums(total, factors)
    else:
        for product in factors.products:
            total.index_add_(0, product.index.reshape(-1), _sum_of_squares(product))
    dense = torch.cat([factors.dense.flatten(0, 1), factors.dense_only]).double()
    total.index_add_(0, factors.dense_index, dense.square().sum(0))


def _gram_of_products(factors: Factors) -> Matrix:
    """A'A over products, one after the other, and then the dense coordinates."""
    sizes = [product.index.numel() for product in factors.products] + [len(factors.dense_index)]
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    places = [slice(start, start + size) for start, size in zip(starts, sizes, strict=False)]
    joined = torch.empty(sum(sizes), sum(sizes), dtype=torch.float64, device=factors.dense.device)
    for i, left in enumerate(factors.products):
        joined[places[i], places[i]] = _own_block(left)
        for j, right in enumerate(factors.products[:i]):
            block = _block(left, right)
            joined[places[i], places[j]] = block
            joined[places[j], places[i]] = block.T
        if sizes[-1]:
            block = _cross(left, factors.dense)
            joined[places[i], places[-1]] = block
            joined[places[-1], places[i]] = block.T
    dense = factors.dense.flatten(0, 1).double()
    joined[places[-1], places[-1]] = dense.T @ dense
    return joined


def _gram_of_rows(factors: Factors) -> Matrix:
    """The same by the rows of A themselves, for products at several positions."""
    size = sum(product.index.numel() for product in factors.products) + len(factors.dense_index)
    joined = torch.zeros(size, size, dtype=torch.float64, device=factors.dense.device)
    for start, stop in _slices(len(factors.dense), factors.dense.shape[1] * size):
        parts = [_slice(product, start, stop).rows().double() for product in factors.products]
        rows = torch.cat([*parts, factors.dense[start:stop].double()], -1).flatten(0, 1)
        joined += rows.T @ rows
    return joined


def _own_block(product: Product) -> Tensor:
    """Rows of a product against themselves, [o i, o' i'], from the lower triangles of g'g and a a'."""
    (out, fan_in), device = product.index.shape, product.inputs.device
    (o, p), (i, j) = torch.tril_indices(out, out, device=device), torch.tril_indices(fan_in, fan_in, device=device)
    packed = torch.zeros(len(o), len(i), dtype=torch.float64, device=device)
    for g, a in _pairs(product, len(o) + len(i) + out**2):
        packed += (g.mT @ g).flatten(1).index_select(1, o * out + p).T @ (a[:, i] * a[:, j])
    return _unpack(packed, out, fan_in)


def _unpack(packed: Tensor, out: int, fan_in: int) -> Tensor:
    """Entries (o >= o', i >= i') to all of [o i, o' i']."""
    full = packed.index_select(0, _triangle(out, packed.device)).index_select(1, _triangle(fan_in, packed.device))
    return full.reshape(out, out, fan_in, fan_in).transpose(1, 2).reshape(out * fan_in, out * fan_in)


def _triangle(size: int, device: torch.device) -> Tensor:
    """Where entry (i, j) of a symmetric matrix lies in its packed lower triangle, [size^2]."""
    low, high = torch.arange(size, device=device)[:, None], torch.arange(size, device=device)[None]
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    return (high * (high + 1) // 2 + low).reshape(-1)


def _block(left: Product, right: Product) -> Tensor:
    """Rows of one product against another's, [o i, o' i']."""
    (out, fan_in), (other_out, other_in) = left.index.shape, right.index.shape
    total = torch.zeros(out * other_out, fan_in * other_in, dtype=torch.float64, device=left.inputs.device)
    width = out * other_out + fan_in * other_in
    for (g, a), (h, b) in zip(_pairs(left, width), _pairs(right, width), strict=True):
        total += (g.mT @ h).flatten(1).T @ (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1)  # (g'h)_n (x) (a b')_n
    return total.reshape(out, other_out, fan_in, other_in).transpose(1, 2).reshape(out * fan_in, other_out * other_in)


def _cross(product: Product, dense: Tensor) -> Tensor:
    """Rows of a product against dense rows [n, k, d], [o i, d]."""
    out, fan_in = product.index.shape
    g, a = product.gradients[:, :, 0].double(), product.inputs[:, 0].double()
    mixed = torch.einsum("nko,nkd->ndo", g, dense.double()).flatten(1)
    return (mixed.T @ a).reshape(-1, out * fan_in).T


def _sum_of_squares(product: Product) -> Tensor:
    """Squared rows summed over data and columns, [o i]."""
    if not product.shared:
        g = product.gradients[:, :, 0].double().square().sum(1)  # n o
        return (g.T @ product.inputs[:, 0].double().square()).reshape(-1)
    total = torch.zeros(product.index.numel(), dtype=torch.float64, device=product.inputs.device)
    for start, stop in _slices(len(product.inputs), product.gradients.shape[1] * product.index.numel()):
        total += _slice(product, start, stop).rows().double().square().sum((0, 1))
    return total


def _add_squares_of_sums(total: Theta, factors: Factors) -> None:
    for start, stop in _slices(len(factors.dense), 2 * factors.dense.shape[1] * len(total)):
        rows = total.new_zeros(stop - start, factors.dense.shape[1], len(total))
        for product in factors.products:
            rows.index_add_(2, product.index.reshape(-1), _slice(product, start, stop).rows().double())
        total += rows.square().sum((0, 1))


def _pairs(product: Product, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A product's g [n, k, o] and a [n, i] at its one position, in float64, in slices of the data."""
    for start, stop in _slices(len(product.inputs), width):
        yield product.gradients[start:stop, :, 0].double(), product.inputs[start:stop, 0].double()


def _slices(count: int, per_datum: int) -> list[tuple[int, int]]:
    step = max(1, min(count, _ELEMENTS // max(per_datum, 1)))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def _slice(product: Product, start: int, stop: int) -> Product:
    return replace(product, inputs=product.inputs[start:stop], gradients=product.gradients[start:stop])
