"""A curvature A'A by the rows of A.

Axis letters as in `records`; r a row of A that is not zero. The Gram matrix AA' of rows ``g (x) a`` is
``(g_r' g_s)(a_r' a_s)``: it needs no row, also where a diagonal that is itself an outer product whitens them.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_laplace._typing import Theta
from pyro_laplace.reading.records import Factors
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class FewRows:
    """A curvature A'A over some coordinates, as the factors of a root A with few rows.

    Attributes:
        size: number of coordinates.
        pieces: the factors, whose A'A add up.
    """

    size: int
    pieces: list[Factors]

    @property
    def num_rows(self) -> int:
        """Number of rows that are not zero."""
        return sum(piece.num_rows for piece in self.pieces)

    @property
    def elements(self) -> int:
        """How many elements the factors hold."""
        return sum(piece.elements for piece in self.pieces)

    def scaled(self, factor: float) -> "FewRows":
        """The rows of ``factor A'A``."""
        root = factor**0.5
        return FewRows(self.size, self.pieces if factor == 1.0 else [_times_root(piece, root) for piece in self.pieces])

    def times(self, vectors: Tensor) -> Tensor:
        """``A'A v`` of vectors v [v, params]."""
        total = torch.zeros(len(vectors), self.size, dtype=torch.float64, device=vectors.device)
        for piece in self.pieces:
            total += piece.pull(piece.push(vectors), self.size)
        return total

    def whitened(self, scale: Theta) -> tuple[Tensor, Tensor]:
        """The rows and their Gram matrix, with the columns divided by a scale.

        Args:
            scale: s [params], positive, float64.

        Returns:
            ``Z = A diag(1/s)`` [rows, params] and ``ZZ'`` [rows, rows], in float64. The product of two float32 numbers
            is exact in float64, so both are of the same A.
        """
        parts = [_flattened(piece, self.size) for piece in self.pieces]
        flat = _stacked(parts) if _same_products(parts) else _stacked([part.as_dense(self.size) for part in parts])
        return flat.rows(self.size).div_(scale), flat.whitened_gram(scale)


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
                start, width = int(places[0]), _consecutive(places)
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
            if torch.allclose(outer, s, rtol=settings.outer_rounding * torch.finfo(s.dtype).eps, atol=0):
                left, right = g.double() / s[:, 0] * s[0, 0], a.double() / s[0]
                total += (left @ left.mT).mul_(right @ right.mT)
            else:
                own = torch.einsum("ro,ri->roi", g.double(), a.double()).div_(s).flatten(1)
                total.addmm_(own, own.mT)
        return total

    def as_dense(self, size: int) -> "_Flat":
        """The same without products."""
        return _Flat([], torch.arange(size, device=self.index.device), self.rows(size))


def _consecutive(places: Tensor) -> int:
    """How many of the first places follow one another."""
    apart = (places.diff() != 1).nonzero()
    return int(apart[0]) + 1 if len(apart) else len(places)


def _flattened(factors: Factors, size: int) -> _Flat:
    """A chunk's rows; products with more than one position, or that share coordinates, become dense columns."""
    live, index, only = factors.live, factors.dense_index, factors.dense_only.double()
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


def _times_root(factors: Factors, root: float) -> Factors:
    products = [replace(product, gradients=product.gradients * root) for product in factors.products]
    return replace(factors, products=products, dense=factors.dense * root, dense_only=factors.dense_only * root)


def _padded(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(count, rows.shape[1])]) if count else rows


def _same_products(parts: list[_Flat]) -> bool:
    """Whether all chunks have the same products, one after the other."""
    ways = [[part.index, *(index for index, _, _ in part.products)] for part in parts]
    return all(len(way) == len(ways[0]) and all(map(torch.equal, way, ways[0])) for way in ways)


def _stacked(parts: list[_Flat]) -> _Flat:
    """The rows of all chunks, which have the same products."""
    products = [
        (own[0][0], torch.cat([g for _, g, _ in own]), torch.cat([a for _, _, a in own]))
        for own in zip(*(part.products for part in parts), strict=True)
    ]
    return _Flat(products, parts[0].index, torch.cat([part.dense for part in parts]))
