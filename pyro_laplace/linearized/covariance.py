"""The covariance ``J Sigma J'`` of the linear predictor, block by block of the precision.

Axis letters as in `jacobian`; m and l are n and k once more. Where a block has a basis in which Sigma is diagonal and
rows are still products ``g (x) a`` (diagonal, Kronecker), and where a block belongs to one product (a last layer), no
row is ever made; else some rows at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add

import torch
from torch import Tensor

from pyro_laplace._memory import refuse_too_large
from pyro_laplace.linearized.jacobian import ELEMENTS, Linearized
from pyro_laplace.reading.records import Product
from pyro_laplace.structure.block import Basis, Block
from pyro_laplace.structure.precision import Precision

_LARGEST_FORM = 2048
"""Coordinates up to which a block's covariance is kept as quadratic forms."""


class _Forms:
    """Sigma of one product's coordinates, to be multiplied by its inputs: ``C[n,o,p] = a' Sigma[o,p] a``.

    Args:
        block: what Sigma is the inverse of.
        index: coordinates [o, i], each once.
    """

    def __init__(self, block: Block, index: Tensor) -> None:
        root = block.push(torch.eye(block.size, dtype=torch.float64, device=index.device))[index.reshape(-1)]
        self.root = torch.where(index.reshape(-1, 1) < 0, 0.0, root).unflatten(0, index.shape)  # o i p
        self._cast: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs i <= j of inputs, and what ``a_i a_j`` is multiplied by [ij, o p]."""
        flat = self.root.flatten(0, 1)
        sigma = (flat @ flat.mT).reshape(*self.root.shape[:2], *self.root.shape[:2])  # o i p j
        i, j = torch.triu_indices(self.root.shape[1], self.root.shape[1], device=flat.device)
        both = sigma[:, i, :, j] + torch.where(i == j, 0.0, 1.0)[:, None, None] * sigma[:, j, :, i]  # ij o p
        return i, j, both.flatten(1)

    @cached_property
    def roots(self) -> Tensor:
        """A root of each Sigma[o,o], transposed, under one another [o j, i]."""
        sigma = self.root @ self.root.mT
        roots, info = torch.linalg.cholesky_ex(sigma)
        if bool(info.any()):  # coordinates that are not in the block have no variance
            values, vectors = torch.linalg.eigh(sigma)
            roots = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
        return roots.mT.flatten(0, 1)

    def covariance(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        """[n, k, k] of g [n, k, o] and a [n, i]."""
        i, j, both = self.pairs
        columns = inputs.double().mT.contiguous()
        inner = ((columns[i] * columns[j]).mT @ both).unflatten(1, (gradients.shape[-1], -1))
        g = gradients.double()
        return g @ inner @ g.mT

    def variance(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        """Its diagonal [n, k]; outputs that are the product's own need a root of each Sigma[o,o] alone."""
        if inputs.dtype not in self._cast:
            self._cast[inputs.dtype] = self.roots.to(inputs), torch.eye(len(self.root)).to(inputs)
        roots, eye = self._cast[inputs.dtype]
        if _alike(gradients) and torch.equal(gradients[0], eye):
            return (roots @ inputs.mT).unflatten(0, (len(eye), -1)).square_().sum(1).mT  # data last: they add up fast
        return self.covariance(gradients, inputs).diagonal(dim1=-2, dim2=-1)


@dataclass(frozen=True, eq=False)
class _Part:
    """The part of a product that lies in a block.

    Attributes:
        number: of the product.
        index: the block's own coordinates [o, i], -1 for one that is not in it.
        columns: the inputs that have any there; None for all.
        basis: in which the block's covariance is diagonal, where there is one.
    """

    number: int
    index: Tensor
    columns: Tensor | None
    basis: Basis | None

    def of(self, products: list[Product]) -> Product:
        """The product with the block's coordinates."""
        product = products[self.number]
        inputs = product.inputs if self.columns is None else product.inputs[..., self.columns]
        return Product(self.index, inputs, product.gradients, product.has_bias)


@dataclass(eq=False)
class _Share:
    """What the Jacobian shares with a block, as far as its parts depend on one another.

    Attributes:
        block: the block.
        parts: the products' parts in it.
        basis: of the one part, if Sigma is diagonal in it.
        distinct: whether no coordinate occurs twice.
    """

    block: Block
    parts: list[_Part]
    basis: Basis | None
    distinct: bool

    def separate(self, products: list[Product]) -> tuple[Tensor, Tensor, Tensor] | None:
        """G [n, k, o], a [n, i] and v [o, i] in the basis in which Sigma is diagonal, if rows are ``g (x) a``."""
        if self.basis is None:
            return None
        product = self.parts[0].of(products)
        if product.shared:
            return None
        gradients, inputs = product.gradients[:, :, 0], product.inputs[:, 0]
        one = gradients[:1] if _alike(gradients) else gradients
        g, a = self.basis.rotate(one, inputs)
        return g.expand(len(a), -1, -1), a, self.basis.variances

    def single(self, products: list[Product]) -> tuple[Tensor, Tensor] | None:
        """G and a of the one product that has the block's rows, if its quadratic forms are worth their price."""
        if len(self.parts) > 1 or not self.distinct or self.block.size > _LARGEST_FORM:
            return None
        product = self.parts[0].of(products)
        n, k = product.gradients.shape[:2]
        many = 2 * n * k >= self.block.size or "forms" in vars(self)
        if not many or product.shared or product.gradients.requires_grad:
            return None
        return product.gradients[:, :, 0], product.inputs[:, 0]

    @cached_property
    def forms(self) -> _Forms:
        """Sigma of the one part's coordinates."""
        return _Forms(self.block, self.parts[0].index)

    def pushed(self, products: list[Product]) -> Iterator[Tensor]:
        """Rows [n, k, p] of some data after the other, of which ``J Sigma J'`` is the product with themselves."""
        parts, size = [part.of(products) for part in self.parts], self.block.size
        n, k = parts[0].gradients.shape[:2]
        step = max(1, ELEMENTS // max(1, k * size))
        for start in range(0, n, step):
            own = slice(start, start + step)
            some = [replace(part, inputs=part.inputs[own], gradients=part.gradients[own]) for part in parts]
            yield self._pushed(some) if self.basis is None else _in_basis(some[0], self.basis)

    def _pushed(self, parts: list[Product]) -> Tensor:
        """``R'^-1 j`` [n, k, size] in float64."""
        n, k = parts[0].gradients.shape[:2]
        size = self.block.size
        rows = torch.zeros(n, k, size + 1, dtype=torch.float64, device=parts[0].inputs.device)
        for part in parts:
            index = torch.where(part.index < 0, size, part.index).reshape(-1)
            rows = rows.index_add(2, index, part.rows().double())
        return self.block.push(rows[..., :size])


def _in_basis(product: Product, basis: Basis) -> Tensor:
    """The rows [n, k, o i] in a basis in which Sigma is diagonal, times its root."""
    gradients, inputs = basis.rotate(product.gradients, product.inputs)
    return replace(product, gradients=gradients, inputs=inputs).rows() * basis.variances.sqrt().flatten()


def _covariance_of(share: _Share, products: list[Product]) -> Tensor:
    """What a block adds to J Sigma J' of each datum [n, k, k]."""
    if (separated := share.separate(products)) is not None:
        g, a, v = separated
        return g * (a.square() @ v.mT).unsqueeze(1) @ g.mT
    if (single := share.single(products)) is not None:
        return share.forms.covariance(*single)
    return torch.cat([rows @ rows.mT for rows in share.pushed(products)])


def _variance_of(share: _Share, products: list[Product]) -> Tensor:
    """What a block adds to its diagonal [n, k]."""
    if (separated := share.separate(products)) is not None:
        g, a, v = separated
        return _summed(g, a.square() @ v.mT)
    if (single := share.single(products)) is not None:
        return share.forms.variance(*single)
    return torch.cat([rows.square().sum(-1) for rows in share.pushed(products)])


def _summed(gradients: Tensor, variances: Tensor) -> Tensor:
    """Sum over o of ``g[n,k,o]^2 v[n,o]``."""
    if _alike(gradients):
        return variances @ gradients[0].square().mT
    return (gradients.square() @ variances.unsqueeze(-1)).squeeze(-1)


def _alike(gradients: Tensor) -> bool:
    """Whether the gradients [n, k, o] of all data are the same in memory: the outputs are the product's own."""
    return gradients.stride(0) == 0


class Functional:
    """Function-space covariances of a posterior.

    Args:
        precision: Lambda, whose inverse is Sigma.
    """

    def __init__(self, precision: Precision) -> None:
        self._placed, self._size = precision.placed(), precision.size
        self._known: tuple[list[Tensor], list[_Share]] = [], []

    def covariance(self, linear: Linearized) -> Tensor:
        """J Sigma J' of each datum [n, k, k], in the dtype of the predictor."""
        return torch.cat([self._covariance(products) for products in linear.pieces()]).to(linear.mean)

    def variance(self, linear: Linearized) -> Tensor:
        """Its diagonal [n, k]."""
        parts = [self._variance(products) for products in linear.pieces()]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(linear.eta)

    def joint(self, linear: Linearized) -> Tensor:
        """J Sigma J' over all data [n k, n k]."""
        n, k = linear.mean.shape
        refuse_too_large((n * k) ** 2, 16, f"the joint covariance [{n * k}, {n * k}]", "give fewer inputs at a time")
        products = _joined(list(linear.pieces()))
        total = linear.mean.new_zeros(n * k, n * k, dtype=torch.float64)
        for share in self._shares(products):
            if (separated := share.separate(products)) is not None:
                total = total + _joint_of(*(each.double() for each in separated))
            else:
                pushed = torch.cat(list(share.pushed(products))).flatten(0, 1)
                total = total + pushed @ pushed.mT
        return total.to(linear.mean)

    def _covariance(self, products: list[Product]) -> Tensor:
        terms = [_covariance_of(share, products) for share in self._shares(products)]
        n, k = products[0].gradients.shape[:2]
        return reduce(add, terms) if terms else products[0].gradients.new_zeros(n, k, k)

    def _variance(self, products: list[Product]) -> Tensor:
        terms = [_variance_of(share, products) for share in self._shares(products)]
        return reduce(add, terms) if terms else products[0].gradients.new_zeros(products[0].gradients.shape[:2])

    def _shares(self, products: list[Product]) -> list[_Share]:
        """Each block's share; found once, as long as the products have the same coordinates."""
        known, shares = self._known
        indices = [product.index for product in products]
        if len(known) != len(indices) or not all(map(_same, known, indices)):
            shares = list(self._found(products))
            self._known = indices, shares
        return shares

    def _found(self, products: list[Product]) -> Iterator[_Share]:
        for coordinates, block in self._placed:
            place = torch.full((self._size + 1,), -1, device=coordinates.device)  # the last entry is that of -1
            place[coordinates] = torch.arange(block.size, device=coordinates.device)
            parts = []
            for number, product in enumerate(products):
                index = place[product.index]
                columns = (index >= 0).any(0)
                if bool(columns.any()):
                    index, columns = (index, None) if bool(columns.all()) else (index[:, columns], columns)
                    parts.append(_Part(number, index, columns, block.diagonal_basis(index, product.inputs.dtype)))
            if parts:
                taken = torch.cat([part.index.reshape(-1) for part in parts])
                counts = torch.bincount(taken[taken >= 0], minlength=block.size)
                distinct = bool(counts.max() <= 1)
                if distinct and all(part.basis is not None for part in parts):
                    yield from (_Share(block, [part], part.basis, distinct) for part in parts)
                else:
                    yield _Share(block, parts, None, distinct)


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one, other)


def _joined(pieces: list[list[Product]]) -> list[Product]:
    """The pieces' data behind one another."""
    return [
        replace(
            parts[0],
            inputs=torch.cat([part.inputs for part in parts]),
            gradients=torch.cat([part.gradients for part in parts]),
        )
        for parts in zip(*pieces, strict=True)
    ]


def _joint_of(gradients: Tensor, inputs: Tensor, variances: Tensor) -> Tensor:
    """Sum over o of ``(a v_o a')[n,m] g_o[n,k] g_o[m,l]``, [n k, m l]."""
    n, k = gradients.shape[:2]
    total = inputs.new_zeros(n, k, n, k)
    for g, v in zip(gradients.unbind(-1), variances, strict=True):
        kernel = (inputs * v) @ inputs.mT
        total = total + g[:, :, None, None] * g * kernel[:, None, :, None]
    return total.reshape(n * k, n * k)
