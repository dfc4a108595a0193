"""``A'A`` of a factored root, and its diagonal, without a Jacobian.

For two products at one position each, block (l, m) of A'A is ``sum_n (g_l' g_m)_n (x) (a_l a_m')_n``: one matrix
product over the data, with as many times fewer operations than J'J as a datum has rows. Where l = m both factors are
symmetric, and a quarter of it is enough. Sums over data are in float64, but for a chunk's sums of squares, which
`diagonal_of` makes in the products' own dtype.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.reading.records import Factors, Product
from pyro_laplace.settings import settings


class Gram:
    """A'A over the free coordinates, in float64: the lower triangle, in whatever order the factors make cheapest.

    Attributes:
        order: coordinate of each row [params].
        lower: the matrix [params, params]; only its lower triangle is meant.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.order = torch.arange(size, device=device)
        self.lower = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._is_empty = True

    def add(self, factors: Factors) -> None:
        """Add A'A of a chunk."""
        own = torch.cat([*(product.index.reshape(-1) for product in factors.products), factors.dense_index])
        if self._is_empty and _distinct(own, len(self.order)):
            missing = torch.ones_like(self.order, dtype=torch.bool).index_fill(0, own, False)
            self.order = torch.cat([own, missing.nonzero()[:, 0]])
        self._is_empty = False
        if torch.equal(self.order[: len(own)], own):
            self._add_in_order(factors, self.lower[: len(own), : len(own)])
        else:  # a weight that is used more than once, or another order of the uses than in the chunk before
            joined = torch.zeros(len(own), len(own), dtype=torch.float64, device=own.device)
            self._add_in_order(factors, joined)
            columns = joined.new_zeros(len(own), len(self.order)).index_add_(1, self._places()[own], _mirrored(joined))
            self.lower.index_add_(0, self._places()[own], columns)

    def add_symmetric(self, matrix: Matrix) -> None:
        """Add a matrix over the free coordinates in their own order."""
        self.lower += matrix[self.order.unsqueeze(1), self.order]

    def matrix(self) -> Matrix:
        """The whole matrix, in the coordinates' own order."""
        places = self._places()
        return _mirrored(self.lower)[places.unsqueeze(1), places]

    def times(self, vectors: Tensor) -> Tensor:
        """The matrix times vectors [v, params], float64."""
        v = vectors.to(self.lower)[:, self.order]
        lower = self.lower.tril()
        product = v @ lower.mT + v @ lower - v * lower.diagonal()
        return torch.empty_like(product).index_copy(1, self.order, product)

    def _places(self) -> Tensor:
        return torch.empty_like(self.order).index_copy(0, self.order, torch.arange(len(self.order)).to(self.order))

    def _add_in_order(self, factors: Factors, total: Matrix) -> None:
        """Add to the lower triangle over products, one after the other, and then the dense coordinates."""
        if any(product.shared for product in factors.products):
            _add_gram_of_rows(total, factors)
        else:
            _add_gram_of_products(total, factors)
        size = len(factors.dense_index)
        if size and len(factors.dense_only):
            only = factors.dense_only.double()
            total[-size:, -size:] += only.mT @ only


def _distinct(index: Tensor, size: int) -> bool:
    """Whether no coordinate below `size` occurs twice."""
    there = torch.zeros(size, dtype=torch.bool, device=index.device).index_fill(0, index, True)
    return int(there.sum()) == len(index)


def _mirrored(lower: Matrix) -> Matrix:
    """The symmetric matrix of a lower triangle."""
    return lower.tril() + lower.tril(-1).mT


def diagonal_of(factors: Factors, size: int) -> Theta:
    """The diagonal of A'A over `size` free coordinates, in float64."""
    total = torch.zeros(size, dtype=torch.float64, device=factors.dense_index.device)
    seen = torch.cat([factors.dense_index[:0], *(product.index.reshape(-1) for product in factors.products)])
    if not _distinct(seen, len(total)):  # a weight used more than once: its rows add up before they are squared
        _add_squares_of_sums(total, factors)
    else:
        for product in factors.products:
            total.index_add_(0, product.index.reshape(-1), _sum_of_squares(product))
    for each in factors.entries:
        total.index_add_(0, each.index.reshape(-1), each.squares().reshape(-1))
    dense = torch.cat([factors.dense.flatten(0, 1), factors.dense_only]).double()
    return total.index_add_(0, factors.dense_index, dense.square().sum(0))


def _add_gram_of_products(total: Matrix, factors: Factors) -> None:
    sizes = [product.index.numel() for product in factors.products] + [len(factors.dense_index)]
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    places = [slice(start, start + size) for start, size in zip(starts, sizes, strict=False)]
    for i, left in enumerate(factors.products):
        _add_own_block(total[places[i], places[i]], left)
        for j, right in enumerate(factors.products[:i]):
            _add_block(total[places[i], places[j]], left, right)
        if sizes[-1]:
            total[places[-1], places[i]] += _cross(left, factors.dense).mT
    dense = factors.dense.flatten(0, 1).double()
    total[places[-1], places[-1]] += dense.mT @ dense


def _add_gram_of_rows(total: Matrix, factors: Factors) -> None:
    """The same by the rows of A themselves, for products at several positions."""
    for start, stop in _slices(len(factors.dense), factors.dense.shape[1] * len(total)):
        parts = [_slice(product, start, stop).rows().double() for product in factors.products]
        rows = torch.cat([*parts, factors.dense[start:stop].double()], -1).flatten(0, 1)
        total.addmm_(rows.mT, rows)


def _add_own_block(total: Matrix, product: Product) -> None:
    """Rows of a product against themselves, [o i, o' i'] with o >= o', from the lower triangles of g'g and a a'."""
    (out, fan_in), device = product.index.shape, product.inputs.device
    if product.gradients.shape[1] * out * fan_in <= (out**2 + fan_in**2) // 4:  # the rows are less than g'g and a a'
        for start, stop in _slices(len(product.inputs), len(total)):
            rows = _slice(product, start, stop).rows().double().flatten(0, 1)
            total.addmm_(rows.mT, rows)
        return
    (o, p), (i, j) = torch.tril_indices(out, out, device=device), torch.tril_indices(fan_in, fan_in, device=device)
    packed = torch.zeros(len(o), len(i), dtype=torch.float64, device=device)
    for g, a in _pairs(product, len(o) + len(i) + out**2):
        products, rows = (g.mT @ g).flatten(1).mT.contiguous(), a.mT.contiguous()  # data last: rows are chosen fast
        packed.addmm_(products[o * out + p], (rows[i] * rows[j]).mT)
    whole, blocks = _triangle(fan_in, device), _by_outputs(total, product, product)
    for row in range(out):
        start = row * (row + 1) // 2
        entries = packed[start : start + row + 1].index_select(1, whole)
        blocks[row, : row + 1] += entries.reshape(row + 1, fan_in, fan_in)


def _triangle(size: int, device: torch.device) -> Tensor:
    """Where entry (i, j) of a symmetric matrix lies in its packed lower triangle, [size^2]."""
    low, high = torch.arange(size, device=device)[:, None], torch.arange(size, device=device)[None]
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    return (high * (high + 1) // 2 + low).reshape(-1)


def _add_block(total: Tensor, left: Product, right: Product) -> None:
    """Rows of one product against another's, [o i, o' i']."""
    (out, fan_in), (other_out, other_in) = left.index.shape, right.index.shape
    block = torch.zeros(out * other_out, fan_in * other_in, dtype=torch.float64, device=total.device)
    width = out * other_out + fan_in * other_in
    for (g, a), (h, b) in zip(_pairs(left, width), _pairs(right, width), strict=True):
        block.addmm_((g.mT @ h).flatten(1).mT, (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1))  # (g'h)_n (x) (a b')_n
    _by_outputs(total, left, right).add_(block.reshape(out, other_out, fan_in, other_in))


def _by_outputs(total: Tensor, left: Product, right: Product) -> Tensor:
    """A view of a block [o i, o' i'] as [o, o', i, i']."""
    return total.unflatten(0, left.index.shape).unflatten(2, right.index.shape).transpose(1, 2)


def _cross(product: Product, dense: Tensor) -> Tensor:
    """Rows of a product against dense rows [n, k, d], [o i, d]."""
    out, fan_in = product.index.shape
    g, a = product.gradients[:, :, 0].double(), product.inputs[:, 0].double()
    mixed = torch.einsum("nko,nkd->ndo", g, dense.double()).flatten(1)
    return (mixed.T @ a).reshape(-1, out * fan_in).T


def _sum_of_squares(product: Product) -> Tensor:
    """Squared rows summed over data and columns, [o i]; a sum of squares loses nothing in the product's own dtype."""
    if not product.shared:
        g = product.inputs.new_zeros(len(product.inputs), len(product.index))  # n o
        for column in product.gradients[:, :, 0].unbind(1):
            g.addcmul_(column, column)
        return (g.mT @ product.inputs[:, 0].square()).reshape(-1).double()
    total = torch.zeros(product.index.numel(), dtype=torch.float64, device=product.inputs.device)
    for start, stop in _slices(len(product.inputs), product.gradients.shape[1] * product.index.numel()):
        total += _slice(product, start, stop).rows().square().sum((0, 1)).double()
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
    step = max(1, min(count, settings.product_elements // max(per_datum, 1)))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def _slice(product: Product, start: int, stop: int) -> Product:
    return replace(product, inputs=product.inputs[start:stop], gradients=product.gradients[start:stop])
