"""Full and diagonal curvature from the factored root, without a Jacobian.

For two products at one position each, block (l, m) of A'A is ``sum_n (g_l' g_m)_n (x) (a_l a_m')_n``: one matrix
product over the data, with as many times fewer operations than J'J as a datum has rows.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.curvature.factors import Factors, Product

_ELEMENTS = 2**25
"""Elements of the intermediate products of one slice of the data."""


def add_matrix(total: Matrix, factors: Factors) -> None:
    """Add A'A to a float64 matrix over the free coordinates."""
    products = factors.products
    for i, left in enumerate(products):
        for right in products[: i + 1]:
            block = _block(left, right)
            rows, columns = left.index.reshape(-1), right.index.reshape(-1)
            total.index_put_((rows[:, None], columns[None]), block, accumulate=True)
            if left is not right:
                total.index_put_((columns[:, None], rows[None]), block.T, accumulate=True)
    dense = factors.dense_index
    if not len(dense):
        return
    for product in products:
        rows = product.index.reshape(-1)
        block = _cross(product, factors.dense)
        total.index_put_((rows[:, None], dense[None]), block, accumulate=True)
        total.index_put_((dense[:, None], rows[None]), block.T, accumulate=True)
    corner = torch.cat([factors.dense.flatten(0, 1), factors.dense_only]).double()
    total.index_put_((dense[:, None], dense[None]), corner.T @ corner, accumulate=True)


def add_diagonal(total: Theta, factors: Factors) -> None:
    """Add the diagonal of A'A to a float64 vector over the free coordinates."""
    seen = torch.cat([product.index.reshape(-1) for product in factors.products] or [factors.dense_index[:0]])
    if len(seen) != len(seen.unique()):  # a weight used more than once: its rows add up before they are squared
        _add_diagonal_of_sums(total, factors)
    else:
        for product in factors.products:
            if product.shared:
                squares = torch.zeros(product.index.numel(), dtype=torch.float64, device=total.device)
                for start, stop in _slices(len(product.inputs), _row_size(product)):
                    squares += _slice(product, start, stop).rows().double().square().sum((0, 1))
            else:
                g = product.gradients[:, :, 0].double().square().sum(1)  # n o
                squares = (g.T @ product.inputs[:, 0].double().square()).reshape(-1)
            total.index_add_(0, product.index.reshape(-1), squares)
    corner = torch.cat([factors.dense.flatten(0, 1), factors.dense_only]).double()
    total.index_add_(0, factors.dense_index, corner.square().sum(0))


def _add_diagonal_of_sums(total: Theta, factors: Factors) -> None:
    for n in range(len(factors.products[0].inputs)):
        rows = torch.zeros(factors.dense.shape[1], len(total), dtype=torch.float64, device=total.device)
        for product in factors.products:
            rows.index_add_(1, product.index.reshape(-1), _slice(product, n, n + 1).rows()[0].double())
        total += rows.square().sum(0)


def _block(left: Product, right: Product) -> Tensor:
    """Rows of left against rows of right, [o i, o' i']."""
    if left.shared or right.shared:
        total = torch.zeros(left.index.numel(), right.index.numel(), dtype=torch.float64, device=left.inputs.device)
        for start, stop in _slices(len(left.inputs), _row_size(left) + _row_size(right)):
            rows = (_slice(product, start, stop).rows().flatten(0, 1).double() for product in (left, right))
            total += next(rows).T @ next(rows)
        return total
    (out, fan_in), (other_out, other_in) = left.index.shape, right.index.shape
    total = torch.zeros(out * other_out, fan_in * other_in, dtype=torch.float64, device=left.inputs.device)
    for start, stop in _slices(len(left.inputs), out * other_out + fan_in * other_in):
        g, h = left.gradients[start:stop, :, 0].double(), right.gradients[start:stop, :, 0].double()
        a, b = left.inputs[start:stop, 0].double(), right.inputs[start:stop, 0].double()
        total += (g.mT @ h).flatten(1).T @ (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1)  # (g'g)_n (x) (a a')_n
    return total.reshape(out, other_out, fan_in, other_in).transpose(1, 2).reshape(out * fan_in, other_out * other_in)


def _cross(product: Product, dense: Tensor) -> Tensor:
    """Rows of a product against dense rows [n, k, d], [o i, d]."""
    total = torch.zeros(product.index.numel(), dense.shape[2], dtype=torch.float64, device=dense.device)
    for start, stop in _slices(len(dense), _row_size(product)):
        if product.shared:
            rows = _slice(product, start, stop).rows().double().flatten(0, 1)
            total += rows.T @ dense[start:stop].double().flatten(0, 1)
        else:
            g = product.gradients[start:stop, :, 0].double()
            mixed = torch.einsum("nko,nkd->ndo", g, dense[start:stop].double())
            block = mixed.flatten(1).T @ product.inputs[start:stop, 0].double()  # (d o), i
            total += block.reshape(dense.shape[2], -1).T
    return total


def _slices(count: int, per_datum: int) -> list[tuple[int, int]]:
    step = max(1, min(count, _ELEMENTS // max(per_datum, 1)))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def _slice(product: Product, start: int, stop: int) -> Product:
    return replace(product, inputs=product.inputs[start:stop], gradients=product.gradients[start:stop])


def _row_size(product: Product) -> int:
    """Elements of one datum's rows."""
    return product.gradients.shape[1] * product.index.numel()
