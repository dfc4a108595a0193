"""The covariance ``J Sigma J'`` of the linear predictor, block by block of the precision.

Axis letters as in `jacobian`; m and l are n and k once more. Where a block has a basis in which Sigma is diagonal and
rows are still products ``g (x) a`` (diagonal, Kronecker), and where a block belongs to one product (a last layer), no
row is ever made; else some rows at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add

import torch
from torch import Tensor

from pyro_laplace.reading.records import Product
from pyro_laplace.settings import settings
from pyro_laplace.structure.block import Basis, Block
from pyro_laplace.structure.precision import Precision


@dataclass(frozen=True, eq=False)
class Overlap:
    """The part of a product that lies in a block.

    Attributes:
        number: of the product.
        index: the block's own coordinates [o, i], -1 for one that is not in it.
        columns: the inputs that have any there; None for all.
    """

    number: int
    index: Tensor
    columns: Tensor | None

    def of(self, products: list[Product]) -> Product:
        """The product with the block's coordinates."""
        product = products[self.number]
        inputs = product.inputs if self.columns is None else product.inputs[..., self.columns]
        return Product(self.index, inputs, product.gradients, product.has_bias)


class Share(ABC):
    """What the Jacobian shares with a block, as far as its parts depend on one another."""

    @abstractmethod
    def covariance(self, products: list[Product]) -> Tensor:
        """What the block adds to J Sigma J' of each datum [n, k, k]."""

    @abstractmethod
    def variance(self, products: list[Product]) -> Tensor:
        """What it adds to the diagonal of that [n, k]."""

    @abstractmethod
    def joint(self, products: list[Product]) -> Tensor:
        """What it adds to J Sigma J' over all data [n k, n k]."""

    @abstractmethod
    def work(self, num_data: int, outputs: int) -> int:
        """About how many multiplications `covariance` takes of n data with k outputs."""

    @property
    @abstractmethod
    def work_of_draw(self) -> int:
        """About how many a draw of the block's coordinates takes."""


@dataclass(frozen=True, eq=False)
class RotatedShare(Share):
    """One part, and the basis in which Sigma is diagonal: where rows are ``g (x) a``, none is made."""

    part: Overlap
    basis: Basis

    def covariance(self, products: list[Product]) -> Tensor:
        """``sum_o g[k,o] g[l,o] sum_i v[o,i] a[i]^2``, in float64: what outputs share may drown their differences."""
        product = self.part.of(products)
        if product.shared:
            return _covariance(rows.double() for rows in self._rows(product))
        g, a, v = self._separate(product, torch.float64)
        return g * (a.square() @ v.mT).unsqueeze(1) @ g.mT

    def variance(self, products: list[Product]) -> Tensor:
        """Its diagonal."""
        product = self.part.of(products)
        if product.shared:
            return _variance(self._rows(product))
        g, a, v = self._separate(product)
        of_outputs = a.square() @ v.mT
        if _same_for_all(g):
            return of_outputs @ g[0].square().mT
        return (g.square() @ of_outputs.unsqueeze(-1)).squeeze(-1)

    def joint(self, products: list[Product]) -> Tensor:
        """``sum_o (a v_o a')[n,m] g_o[n,k] g_o[m,l]``."""
        product = self.part.of(products)
        if product.shared:
            return _joint(self._rows(product))
        gradients, inputs, variances = self._separate(product, torch.float64)
        n, k = gradients.shape[:2]
        total = inputs.new_zeros(n, k, n, k)
        for g, v in zip(gradients.unbind(-1), variances, strict=True):
            kernel = (inputs * v) @ inputs.mT
            total = total + g[:, :, None, None] * g * kernel[:, None, :, None]
        return total.reshape(n * k, n * k)

    def work(self, num_data: int, outputs: int) -> int:
        """Of the rows, and of their products."""
        rows = num_data * outputs
        return rows * (self.part.index.numel() + outputs * len(self.part.index))

    @property
    def work_of_draw(self) -> int:
        """One for each, at least."""
        return self.part.index.numel()

    def _separate(self, product: Product, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """g [n, k, o], a [n, i] and v [o, i] in the basis; in another dtype if one is given."""
        gradients, inputs = product.gradients[:, :, 0], product.inputs[:, 0]
        one = gradients[:1] if _same_for_all(gradients) else gradients
        g, a = self.basis.rotate(one, inputs)
        g, a, v = (each.to(dtype) for each in (g, a, self.basis.variances))
        return g.expand(len(a), -1, -1), a, v

    def _rows(self, product: Product) -> Iterator[Tensor]:
        """The rows [n, k, o i] in the basis, times the root of Sigma."""
        for (some,) in _some_data([product], self.part.index.numel()):
            gradients, inputs = self.basis.rotate(some.gradients, some.inputs)
            rows = replace(some, gradients=gradients, inputs=inputs).rows()
            yield rows * self.basis.variances.sqrt().flatten()


@dataclass(frozen=True, eq=False)
class PushedShare(Share):
    """Any parts: rows are pushed through the root of the precision, some data after the other."""

    block: Block
    parts: tuple[Overlap, ...]

    def covariance(self, products: list[Product]) -> Tensor:
        """Of the rows."""
        return _covariance(self.rows(products))

    def variance(self, products: list[Product]) -> Tensor:
        """Of the rows."""
        return _variance(self.rows(products))

    def joint(self, products: list[Product]) -> Tensor:
        """Of the rows."""
        return _joint(self.rows(products))

    def work(self, num_data: int, outputs: int) -> int:
        """Each row is pushed, and multiplied with those of its datum."""
        return num_data * outputs * (self.work_of_draw + outputs * self.block.size)

    @property
    def work_of_draw(self) -> int:
        """Each number that the block holds takes part."""
        return sum(each.numel() for each in self.block.buffers())

    def rows(self, products: list[Product]) -> Iterator[Tensor]:
        """``R'^-1 j`` [n, k, size] in float64, of which ``J Sigma J'`` is the product with themselves."""
        size = self.block.size
        for parts in _some_data([part.of(products) for part in self.parts], size):
            n, k = parts[0].gradients.shape[:2]
            rows = torch.zeros(n, k, size + 1, dtype=torch.float64, device=parts[0].inputs.device)
            for part in parts:
                index = torch.where(part.index < 0, size, part.index).reshape(-1)
                rows = rows.index_add(2, index, part.rows().double())
            yield self.block.push(rows[..., :size])


@dataclass(frozen=True, eq=False)
class FormShare(Share):
    """One product that has a small block's rows: its quadratic forms ``C[n,o,p] = a' Sigma[o,p] a``, where worth it.

    Attributes:
        pushed: the same by rows: of few data, of a weight at several positions, and where gradients are to flow.
        dtype: of the products' inputs.
    """

    pushed: PushedShare
    dtype: torch.dtype

    def covariance(self, products: list[Product]) -> Tensor:
        """``g C g'``."""
        product = self._single(products)
        if product is None:
            return self.pushed.covariance(products)
        return self._covariance(product.gradients[:, :, 0], product.inputs[:, 0])

    def variance(self, products: list[Product]) -> Tensor:
        """Its diagonal; outputs that are the product's own need a root of each Sigma[o,o] alone."""
        product = self._single(products)
        if product is None:
            return self.pushed.variance(products)
        gradients, inputs = product.gradients[:, :, 0], product.inputs[:, 0]
        roots, eye = self._roots
        if _same_for_all(gradients) and torch.equal(gradients[0], eye):
            return (roots @ inputs.mT).unflatten(0, (len(eye), -1)).square_().sum(1).mT  # data last: they add up fast
        return self._covariance(gradients, inputs).diagonal(dim1=-2, dim2=-1)

    def joint(self, products: list[Product]) -> Tensor:
        """Of the rows."""
        return self.pushed.joint(products)

    def work(self, num_data: int, outputs: int) -> int:
        """Of as many forms as pairs of coordinates, or of the rows."""
        return min(num_data * self.pushed.block.size**2, self.pushed.work(num_data, outputs))

    @property
    def work_of_draw(self) -> int:
        """Of the same block."""
        return self.pushed.work_of_draw

    def _single(self, products: list[Product]) -> Product | None:
        """The product, if its forms are worth their price: that of as many rows as the block has coordinates."""
        product = self.pushed.parts[0].of(products)
        n, k, outputs = product.gradients.shape[0], product.gradients.shape[1], product.gradients.shape[-1]
        # the columns of a whole Jacobian may be one product, of which the block has few coordinates
        if 2 * n * k < self.pushed.block.size or n * outputs**2 > settings.pass_elements:
            return None
        if product.shared or product.gradients.requires_grad:
            return None
        return product

    def _covariance(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        """[n, k, k] of g [n, k, o] and a [n, i]."""
        i, j, both = self._pairs
        columns = inputs.double().mT.contiguous()
        inner = ((columns[i] * columns[j]).mT @ both).unflatten(1, (gradients.shape[-1], -1))
        g = gradients.double()
        return g @ inner @ g.mT

    @cached_property
    def _root(self) -> Tensor:
        """A root of Sigma in the product's coordinates [o, i, p]."""
        block, index = self.pushed.block, self.pushed.parts[0].index
        root = block.push(torch.eye(block.size, dtype=torch.float64, device=index.device))[index.reshape(-1)]
        return torch.where(index.reshape(-1, 1) < 0, 0.0, root).unflatten(0, index.shape)

    @cached_property
    def _pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs i <= j of inputs, and what ``a_i a_j`` is multiplied by [ij, o p]."""
        flat, (o, i) = self._root.flatten(0, 1), self._root.shape[:2]
        sigma = (flat @ flat.mT).reshape(o, i, o, i)  # o i p j
        one, other = torch.triu_indices(i, i, device=flat.device)
        both = sigma[:, one, :, other] + torch.where(one == other, 0.0, 1.0)[:, None, None] * sigma[:, other, :, one]
        return one, other, both.flatten(1)  # ij o p

    @cached_property
    def _roots(self) -> tuple[Tensor, Tensor]:
        """A root of each Sigma[o,o], transposed, under one another [o j, i], and the identity [o, o]."""
        sigma = self._root @ self._root.mT
        roots, info = torch.linalg.cholesky_ex(sigma)
        if bool(info.any()):  # coordinates that are not in the block have no variance
            values, vectors = torch.linalg.eigh(sigma)
            roots = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
        cast = roots.mT.flatten(0, 1).to(self.dtype)
        return cast, torch.eye(len(sigma)).to(cast)


@dataclass(frozen=True, eq=False)
class Spread:
    """How the covariance is had of products over given coordinates: found once, for whatever inputs they have.

    Attributes:
        indices: the products' coordinates among the random ones [o, i], -1 for one that is not random.
        dtype: of their inputs.
        shares: what they share with each block of the precision.
    """

    indices: tuple[Tensor, ...]
    dtype: torch.dtype
    shares: tuple[Share, ...]

    @staticmethod
    def of(precision: Precision, indices: Sequence[Tensor], dtype: torch.dtype) -> "Spread":
        """Find what products share with the blocks.

        Args:
            precision: Lambda, whose inverse is Sigma.
            indices: the products' coordinates.
            dtype: of their inputs.

        Returns:
            the spread.
        """
        return Spread(tuple(indices), dtype, tuple(_shares(precision, indices, dtype)))

    def fits(self, products: Sequence[Product]) -> bool:
        """Whether products have the coordinates that it was found for."""
        if len(products) != len(self.indices) or any(product.inputs.dtype != self.dtype for product in products):
            return False
        pairs = zip(self.indices, products, strict=True)
        return all(index is product.index or torch.equal(index, product.index) for index, product in pairs)

    def covariance(self, products: list[Product]) -> Tensor:
        """J Sigma J' of each datum [n, k, k]."""
        terms = [share.covariance(products) for share in self.shares]
        n, k = products[0].gradients.shape[:2]
        return reduce(add, terms) if terms else products[0].gradients.new_zeros(n, k, k)

    def variance(self, products: list[Product]) -> Tensor:
        """Its diagonal [n, k]."""
        terms = [share.variance(products) for share in self.shares]
        return reduce(add, terms) if terms else products[0].gradients.new_zeros(products[0].gradients.shape[:2])

    def work(self, num_data: int, outputs: int) -> int:
        """About how many multiplications `covariance` takes of n data with k outputs."""
        return sum(share.work(num_data, outputs) for share in self.shares)

    def work_of_draw(self, num_data: int, outputs: int) -> int:
        """About how many it takes to draw theta, and to move these outputs by it."""
        theta = sum(index.numel() for index in self.indices)
        moves = num_data * sum(index.numel() + outputs * len(index) for index in self.indices)
        return settings.noise_work * theta + sum(share.work_of_draw for share in self.shares) + moves

    def joint(self, products: list[Product]) -> Tensor:
        """J Sigma J' over all data [n k, n k], in float64."""
        n, k = products[0].gradients.shape[:2]
        total = products[0].gradients.new_zeros(n * k, n * k, dtype=torch.float64)
        for share in self.shares:
            total = total + share.joint(products)
        return total


def _shares(precision: Precision, indices: Sequence[Tensor], dtype: torch.dtype) -> Iterator[Share]:
    """What products over given coordinates share with each block that they reach."""
    for coordinates, block in precision.placed():
        place = torch.full((precision.size + 1,), -1, device=coordinates.device)  # the last entry is that of -1
        place[coordinates] = torch.arange(block.size, device=coordinates.device)
        parts = []
        for number, whole in enumerate(indices):
            index = place[whole]
            columns = (index >= 0).any(0)
            if bool(columns.any()):
                every = bool(columns.all())
                parts.append(Overlap(number, index if every else index[:, columns], None if every else columns))
        if parts:
            yield from _shares_of(block, tuple(parts), dtype)


def _shares_of(block: Block, parts: tuple[Overlap, ...], dtype: torch.dtype) -> Iterator[Share]:
    """One share, or one for each part where these are independent."""
    bases = [block.diagonal_basis(part.index, dtype) for part in parts]
    taken = torch.cat([part.index.reshape(-1) for part in parts])
    counts = torch.bincount(taken[taken >= 0], minlength=block.size)
    distinct = bool(counts.max() <= 1)  # no coordinate occurs twice
    diagonal = [basis for basis in bases if basis is not None]
    if distinct and len(diagonal) == len(parts):
        yield from map(RotatedShare, parts, diagonal)
    elif distinct and len(parts) == 1 and block.size <= settings.form_coordinates:
        yield FormShare(PushedShare(block, parts), dtype)
    else:
        yield PushedShare(block, parts)


def _some_data(parts: list[Product], size: int) -> Iterator[list[Product]]:
    """The products at some data after the other, so that their rows [n, k, size] are not too many at a time."""
    n, k = parts[0].gradients.shape[:2]
    step = max(1, settings.pass_elements // max(1, k * size))
    for start in range(0, n, step):
        own = slice(start, start + step)
        yield [replace(part, inputs=part.inputs[own], gradients=part.gradients[own]) for part in parts]


def _covariance(rows: Iterator[Tensor]) -> Tensor:
    """[n, k, k] of rows [n, k, p], which come some data after the other."""
    return torch.cat([some @ some.mT for some in rows])


def _variance(rows: Iterator[Tensor]) -> Tensor:
    """[n, k]."""
    return torch.cat([some.square().sum(-1) for some in rows])


def _joint(rows: Iterator[Tensor]) -> Tensor:
    """[n k, n k]."""
    flat = torch.cat(list(rows)).flatten(0, 1)
    return flat @ flat.mT


def _same_for_all(gradients: Tensor) -> bool:
    """Whether the gradients [n, k, o] of all data are the same in memory: the outputs are the product's own."""
    return gradients.stride(0) == 0
