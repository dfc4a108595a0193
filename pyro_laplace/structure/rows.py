"""A curvature A'A by the rows of A while these are few, by the matrix from then on.

Axis letters as in `factors`; r a row of A that is not zero. The Gram matrix AA' of rows ``g (x) a`` is
``(g_r' g_s)(a_r' a_s)``: it needs no row, also where a diagonal that is itself an outer product whitens them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._memory import refuse_too_large
from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.reading.factors import Factors
from pyro_laplace.structure.gram import Gram


@dataclass(frozen=True, eq=False)
class FewRows:
    """A curvature A'A over some coordinates, as the factors of a root A with few rows.

    Attributes:
        size: number of coordinates.
        pieces: the factors, whose A'A add up.
    """

    size: int
    pieces: list[Factors]

    def gram(self) -> Gram:
        """A'A."""
        total = Gram(self.size, self.pieces[0].dense_index.device)
        for piece in self.pieces:
            total.add(piece)
        return total

    def whitened(self, scale: Theta) -> tuple[Tensor, Tensor]:
        """The rows and their Gram matrix, with the columns divided by a scale.

        Args:
            scale: s [params], positive, float64.

        Returns:
            ``Z = A diag(1/s)`` [rows, params] and ``ZZ'`` [rows, rows], in float64. The product of two float32 numbers
            is exact in float64, so both are of the same A.
        """
        parts = [_flat(piece, self.size) for piece in self.pieces]
        flat = _joined(parts) if _alike(parts) else _joined([part.as_dense(self.size) for part in parts])
        return flat.rows(self.size).div_(scale), flat.whitened_gram(scale)


class FewRowsOrGram:
    """Adds up A'A over chunks.

    Args:
        size: number of coordinates.
        device: of the sums.
        limit: rows up to which A is kept in place of A'A; 0 for none.
        remedy: what to do where A'A is too large.
    """

    def __init__(self, size: int, device: torch.device, limit: int, remedy: str) -> None:
        self.size, self.device, self.remedy = size, device, remedy
        self._limit, self._num_rows, self._elements = limit, 0, 0
        self._held: list[Factors] = []
        self._gram = None if limit else self._empty()

    def add(self, factors: Factors) -> None:
        """Add A'A of a chunk."""
        if self._gram is not None:
            self._gram.add(factors)
            return
        self._held.append(factors)
        self._num_rows += int(_live(factors).sum()) + len(factors.dense_only)
        self._elements += factors.dense.numel() + factors.dense_only.numel()
        self._elements += sum(product.inputs.numel() + product.gradients.numel() for product in factors.products)
        if self._num_rows > self._limit or self._elements > max(self.size**2 // 4, _ELEMENTS):
            self._to_gram()

    def add_symmetric(self, matrix: Matrix) -> None:
        """Add a matrix that no root is known of."""
        self._to_gram().add_symmetric(matrix)

    def total(self) -> FewRows | Gram:
        """The sum: rows if there are no more than the limit."""
        return FewRows(self.size, self._held) if self._gram is None and self._held else self._to_gram()

    def _to_gram(self) -> Gram:
        if self._gram is None:
            self._gram = self._empty()
            while self._held:
                self._gram.add(self._held.pop(0))
        return self._gram

    def _empty(self) -> Gram:
        refuse_too_large(self.size**2, 8, f"the dense curvature [{self.size}, {self.size}]", self.remedy)
        return Gram(self.size, self.device)


_ELEMENTS = 2**16
"""Elements of factors that are held whatever the size."""


@dataclass(frozen=True, eq=False)
class _Flat:
    """Rows of A that are not zero, in products with distinct coordinates and dense columns.

    Attributes:
        products: coordinates [o, i], g [r, o] and a [r, i] of each.
        index: the dense coordinates [d].
        dense: the rows in them [r, d], float64.
    """

    products: list[tuple[Tensor, Tensor, Tensor]]
    index: Tensor
    dense: Tensor

    def rows(self, size: int) -> Tensor:
        """A [r, params], float64."""
        rows = self.dense.new_zeros(len(self.dense), size)
        for index, g, a in self.products:
            for row, places in enumerate(index):
                start, width = int(places[0]), _run(places)
                product = g[:, row, None].double()
                torch.mul(product, a[:, :width], out=rows[:, start : start + width])
                if width < len(places):
                    rows[:, places[width:]] = product * a[:, width:]
        rows[:, self.index] = self.dense
        return rows

    def whitened_gram(self, scale: Theta) -> Tensor:
        """``A diag(1/s^2) A'`` [r, r]."""
        dense = self.dense / scale[self.index]
        total = dense @ dense.mT
        for index, g, a in self.products:
            s = scale[index]
            outer = s[:, :1] * s[:1] / s[0, 0]
            if torch.allclose(outer, s, rtol=4 * torch.finfo(s.dtype).eps, atol=0):
                left, right = g.double() / s[:, 0] * s[0, 0], a.double() / s[0]
                total += (left @ left.mT).mul_(right @ right.mT)
            else:
                own = torch.einsum("ro,ri->roi", g.double(), a.double()).div_(s).flatten(1)
                total.addmm_(own, own.mT)
        return total

    def as_dense(self, size: int) -> "_Flat":
        """The same without products."""
        return _Flat([], torch.arange(size, device=self.index.device), self.rows(size))


def _run(places: Tensor) -> int:
    """How many of the first places follow one another."""
    apart = (places.diff() != 1).nonzero()
    return int(apart[0]) + 1 if len(apart) else len(places)


def _live(factors: Factors) -> Tensor:
    """Which rows of the products and dense columns beside them are not zero [n, k]."""
    live = (factors.dense != 0).any(-1)
    for product in factors.products:
        live = live | (product.gradients != 0).flatten(2).any(-1)
    return live


def _flat(factors: Factors, size: int) -> _Flat:
    """A chunk's rows; products with more than one position, or that share coordinates, become dense columns."""
    live, index, only = _live(factors), factors.dense_index, factors.dense_only.double()
    own = torch.cat([index, *(product.index.reshape(-1) for product in factors.products)])
    dense = torch.cat([factors.dense[live].double(), only])
    if len(own.unique()) == len(own) and not any(product.shared for product in factors.products):
        datum = live.nonzero()[:, 0]
        pad = len(only)  # rows in which the products are zero
        products = [
            (p.index, _padded(p.gradients[:, :, 0][live], pad), _padded(p.inputs[datum, 0], pad))
            for p in factors.products
        ]
        return _Flat(products, index, dense)
    rows = dense.new_zeros(len(dense), size)
    for product in factors.products:
        added = product.rows().double()[live]
        rows[: len(added)].index_add_(1, product.index.reshape(-1), added)
    return _Flat([], torch.arange(size, device=index.device), rows.index_add_(1, index, dense))


def _padded(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(count, rows.shape[1])]) if count else rows


def _alike(parts: list[_Flat]) -> bool:
    """Whether all chunks have the same products, one after the other."""
    ways = [[part.index, *(index for index, _, _ in part.products)] for part in parts]
    return all(len(way) == len(ways[0]) and all(map(torch.equal, way, ways[0])) for way in ways)


def _joined(parts: list[_Flat]) -> _Flat:
    """The rows of all chunks, which have the same products."""
    products = [
        (own[0][0], torch.cat([g for _, g, _ in own]), torch.cat([a for _, _, a in own]))
        for own in zip(*(part.products for part in parts), strict=True)
    ]
    return _Flat(products, parts[0].index, torch.cat([part.dense for part in parts]))
