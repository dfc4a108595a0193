"""The variance of the predictor at held-out rows under one precision after another: what these share is kept.

Where a block of the precision has a basis in which it is diagonal, the squares of the rows in that basis are had once,
and another block of that basis takes one product with its variances.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_laplace.linearized.covariance import RotatedShare, Share, Spread
from pyro_laplace.linearized.jacobian import Linearized, joined_data
from pyro_laplace.reading.records import Product
from pyro_laplace.settings import settings
from pyro_laplace.structure.precision import Precision


@dataclass(frozen=True, eq=False)
class Squares:
    """The squares of a product's rows in the basis of a block.

    Attributes:
        basis: the tensors that the basis is made of; another block has it where these are the same objects.
        outputs: ``g^2`` [n, k, o], where rows are ``g (x) a``.
        inputs: ``a^2`` [n, i].
        rows: ``J^2`` [n, k, o i] of others; None where they would be too many.
    """

    basis: tuple[Tensor | None, Tensor | None]
    outputs: Tensor | None
    inputs: Tensor | None
    rows: Tensor | None

    @staticmethod
    def of(share: RotatedShare, products: list[Product]) -> "Squares":
        """Turn the rows, and square them."""
        basis = share.basis.outputs, share.basis.inputs
        product = share.part.of(products)
        n, k = product.gradients.shape[:2]
        if not product.shared:
            g, a = share.basis.rotate(product.gradients[:, :, 0], product.inputs[:, 0])
            return Squares(basis, g.square(), a.square(), None)
        if n * k * share.part.index.numel() > settings.kept_elements:
            return Squares(basis, None, None, None)
        g, a = share.basis.rotate(product.gradients, product.inputs)
        rows = Product(product.index, a, g, product.has_bias).rows()
        return Squares(basis, None, None, rows.square())

    def fits(self, share: RotatedShare) -> bool:
        """Whether a block has the same basis."""
        return self.basis[0] is share.basis.outputs and self.basis[1] is share.basis.inputs

    def variance(self, variances: Tensor) -> Tensor | None:
        """The diagonal of J Sigma J' [n, k] for the variances [o, i] of the basis; None where no rows were kept."""
        if self.outputs is not None and self.inputs is not None:
            return (self.outputs @ (self.inputs @ variances.mT).unsqueeze(-1)).squeeze(-1)
        return None if self.rows is None else self.rows @ variances.flatten()


@dataclass(eq=False)
class KeptRows:
    """The Jacobian of one site at a batch of held-out data, with what was found out of it so far.

    Attributes:
        linear: the site.
        products: its Jacobian.
        squares: by number of the product and of the share.
    """

    linear: Linearized
    products: list[Product]
    squares: dict[tuple[int, int], Squares] = field(default_factory=dict)

    @staticmethod
    def of(linear: Linearized) -> "KeptRows":
        """All of the rows."""
        return KeptRows(linear, joined_data(linear.pieces()))

    def spread(self, precision: Precision) -> "KeptSpread":
        """How the covariance under a precision is had."""
        before = self.linear.spread
        spread = Spread.of(precision, before.indices, before.dtype)
        return KeptSpread(spread.indices, spread.dtype, spread.shares, self)

    def variance(self, number: int, share: Share) -> Tensor:
        """What a share adds to the variances [n, k]."""
        if not isinstance(share, RotatedShare):
            return share.variance(self.products)
        key = share.part.number, number
        if key not in self.squares or not self.squares[key].fits(share):
            self.squares[key] = Squares.of(share, self.products)
        found = self.squares[key].variance(share.basis.variances)
        return share.variance(self.products) if found is None else found


@dataclass(frozen=True, eq=False)
class KeptSpread(Spread):
    """A spread whose variances are of kept rows."""

    kept: KeptRows

    def variance(self, products: list[Product]) -> Tensor:
        """Of all data at once, which these are."""
        terms = [self.kept.variance(number, share) for number, share in enumerate(self.shares)]
        n, k = products[0].gradients.shape[:2]
        return torch.stack(terms).sum(0) if terms else products[0].gradients.new_zeros(n, k)
