"""The root of a curvature, factored: captured pairs of inputs and output gradients, and dense columns for the rest.

Axis letters: n data, k columns of the root (for every output of a datum, or every label), t positions that share a
weight, i inputs, o outputs, d dense coordinates. Row (n, k) of the root A in the coordinates of a product is
``sum_t g[n,k,t,o] a[n,t,i]``.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from pyro_laplace._memory import refuse_too_large
from pyro_laplace._typing import State
from pyro_laplace.curvature.root import Information


@dataclass(frozen=True, eq=False)
class Product:
    """The root in the coordinates of one product, or of a product and its bias.

    Attributes:
        index: free coordinates [o, i].
        inputs: a [n, t, i].
        gradients: g [n, k, t, o]; k lies outermost in memory.
        has_bias: whether the last input is the 1 of a bias.
        counted: which positions are data [n, t]; None: all. The others are masked, or padding, and have no gradient in
            any column.
    """

    index: Tensor
    inputs: Tensor
    gradients: Tensor
    has_bias: bool = False
    counted: Tensor | None = None

    @property
    def shared(self) -> bool:
        """Whether a datum uses the weight at more than one position."""
        return self.inputs.shape[1] > 1

    def of_data(self, kept: Tensor) -> "Product":
        """Of some of the data."""
        counted = None if self.counted is None else self.counted[kept]
        return replace(self, inputs=self.inputs[kept], gradients=self.gradients[kept], counted=counted)

    def rows(self) -> Tensor:
        """The root's rows [n, k, o * i]."""
        return torch.einsum("nkto,nti->nkoi", self.gradients, self.inputs).flatten(2)


@dataclass(frozen=True, eq=False)
class Entries:
    """The root in coordinates that the data choose one by one, from a long table: row (n, k) has few that are not zero.

    Attributes:
        index: free coordinates [n, j]; a datum may have one of them several times.
        gradients: of each [n, k, j].
    """

    index: Tensor
    gradients: Tensor

    def squares(self) -> Tensor:
        """What the rows of a datum add to the diagonal of A'A at each of its coordinates [n, j], float64."""
        g = self.gradients.double()
        if self.index.shape[1] == 1:
            return g.square().sum(1)
        same = (self.index.unsqueeze(2) == self.index.unsqueeze(1)).double()  # n j l
        return torch.einsum("nkj,njl,nkl->nj", g, same, g)


@dataclass(frozen=True, eq=False)
class Factors:
    """Some columns of the root of one observed site on one chunk.

    No coordinate of a product is a dense one, and no dense one is there twice; products may share coordinates, whose
    rows then add up.

    Attributes:
        products: captured coordinates.
        dense_index: free coordinates [d] that were not captured.
        dense: rows [n, k, d] in them for the columns that `products` have.
        dense_only: further rows [r, d] in which the captured coordinates are zero.
        entries: captured coordinates that the data choose from long tables; none of two of them, or of a product.
    """

    products: list[Product]
    dense_index: Tensor
    dense: Tensor
    dense_only: Tensor
    entries: list[Entries] = field(default_factory=list)

    def without_entries(self) -> "Factors":
        """The same with dense columns for the coordinates that the data chose."""
        if not self.entries:
            return self
        n, k = self.dense.shape[:2]
        index, columns, rest = [self.dense_index], [self.dense], [self.dense_only]
        for each in self.entries:
            present, place = each.index.unique(return_inverse=True)
            wide = self.dense.new_zeros(n, k, len(present))
            where = place.unsqueeze(1).expand(n, k, place.shape[1])
            index.append(present)
            columns.append(wide.scatter_add(2, where, each.gradients.to(wide)))
            rest.append(self.dense_only.new_zeros(len(self.dense_only), len(present)))
        joined, order = torch.cat(index).sort()
        return Factors(self.products, joined, torch.cat(columns, -1)[..., order], torch.cat(rest, -1)[:, order])

    @property
    def elements(self) -> int:
        """How many elements they hold."""
        pairs = sum(product.inputs.numel() + product.gradients.numel() for product in self.products)
        chosen = sum(each.gradients.numel() for each in self.entries)
        return pairs + chosen + self.dense.numel() + self.dense_only.numel()

    @property
    def elements_of_product(self) -> int:
        """How many elements `push` and `pull` have in memory for each vector."""
        inner = [product.inputs[..., 0].numel() * len(product.index) for product in self.products]
        chosen = [each.gradients.numel() for each in self.entries]
        return sum(self.dense.shape[:2]) + max(inner + chosen, default=0)

    @property
    def live(self) -> Tensor:
        """Which rows of the products, and the dense columns beside them, are not zero [n, k]."""
        live = (self.dense != 0).any(-1)
        for product in self.products:
            live = live | (product.gradients != 0).flatten(2).any(-1)
        for each in self.entries:
            live = live | (each.gradients != 0).any(-1)
        return live

    @cached_property
    def num_rows(self) -> int:
        """Number of rows that are not zero."""
        return int(self.live.sum()) + len(self.dense_only)

    def of_data(self, kept: Tensor) -> "Factors":
        """Without the data that weigh nothing: Kronecker factors, whose inputs carry no weight, must not see them."""
        products = [p.of_data(kept) for p in self.products]
        entries = [Entries(each.index[kept], each.gradients[kept]) for each in self.entries]
        return replace(self, products=products, dense=self.dense[kept], entries=entries)

    def push(self, vectors: Tensor) -> Tensor:
        """``A v`` of vectors v [v, params], [v, rows]."""
        v = vectors.to(self._like)
        rows = torch.einsum("nkd,vd->vnk", self.dense.to(v), v[:, self.dense_index])
        for product in self.products:
            inner = torch.einsum("nti,voi->vnto", product.inputs, v[:, product.index])
            rows = rows + torch.einsum("nkto,vnto->vnk", product.gradients, inner)
        for each in self.entries:
            rows = rows + torch.einsum("nkj,vnj->vnk", each.gradients, v[:, each.index])
        return torch.cat([rows.flatten(1), v[:, self.dense_index] @ self.dense_only.to(v).mT], 1)

    def pull(self, rows: Tensor, size: int) -> Tensor:
        """``A'u`` of weights u [v, rows] over `size` coordinates, [v, size] in float64."""
        n, k = self.dense.shape[:2]
        u, rest = rows[:, : n * k].reshape(len(rows), n, k), rows[:, n * k :]
        total = torch.zeros(len(rows), size, dtype=torch.float64, device=rows.device)
        for product in self.products:
            weights = torch.einsum("nkto,vnk->vnto", product.gradients, u.to(product.gradients))
            back = torch.einsum("vnto,nti->voi", weights, product.inputs)
            total.index_add_(1, product.index.reshape(-1), back.flatten(1).double())
        for each in self.entries:
            back = torch.einsum("nkj,vnk->vnj", each.gradients, u.to(each.gradients))
            total.index_add_(1, each.index.reshape(-1), back.flatten(1).double())
        corner = torch.einsum("nkd,vnk->vd", self.dense.double(), u.double()) + rest.double() @ self.dense_only.double()
        return total.index_add_(1, self.dense_index, corner)

    def state(self) -> State:
        """As plain tensors and numbers."""
        products = [
            {"index": p.index, "inputs": p.inputs, "gradients": p.gradients, "has_bias": p.has_bias}
            for p in self.products
        ]
        dense = {"dense_index": self.dense_index, "dense": self.dense, "dense_only": self.dense_only}
        return {"products": products, **dense}

    @staticmethod
    def from_state(state: State) -> "Factors":
        """What `state` gave."""
        return Factors(
            [Product(**each) for each in state["products"]], state["dense_index"], state["dense"], state["dense_only"]
        )

    @property
    def _like(self) -> Tensor:
        if self.products:
            return self.products[0].inputs
        return self.entries[0].gradients if self.entries else self.dense


@dataclass(frozen=True, eq=False)
class Direct:
    """The curvature of one observed site in such a layer, and in nothing else.

    Attributes:
        index: free coordinates [o, i].
        inputs: a [r, i], of the data, or positions of data, that weigh something.
        information: of the site.
        live: which data these are [n], or which positions of them `[n, *positions]`.
        has_bias: whether the last input is the 1 of a bias.
    """

    index: Tensor
    inputs: Tensor
    information: Information
    live: Tensor
    has_bias: bool

    def factors(self) -> Factors:
        """The same by a root of the information."""
        outputs = self.information.eta.shape[-1]
        refuse_too_large(
            self.information.eta.numel() * outputs,
            8,
            f"the root [{outputs}, {outputs}] of the Fisher information at {self.live.numel()} positions of data",
            "use structure='kron' or 'diag', or a DataLoader of fewer data a batch",
        )
        gradients = self.information.root()[self.live].mT.unsqueeze(2).to(self.inputs)  # n k 1 o
        product = Product(self.index, self.inputs.unsqueeze(1), gradients, self.has_bias)
        nothing = self.inputs.new_zeros(*gradients.shape[:2], 0)
        return Factors([product], self.index.new_zeros(0), nothing, nothing[0])

    def diagonal(self) -> Tensor:
        """``sum_n w_n I_n[o,o] a_n[i]^2`` [o, i], of positions n."""
        weights = self.information.diagonals()[self.live].to(self.inputs)
        return (weights.mT @ self.inputs.square()).double()

    def means(self) -> Tensor:
        """The mean inputs of each datum over its positions that weigh something [data, i]."""
        datum = self.live.flatten(1).nonzero()[:, 0]
        total = self.inputs.new_zeros(len(self.live), self.inputs.shape[1]).index_add_(0, datum, self.inputs)
        number = datum.bincount(minlength=len(self.live))
        return total[number > 0] / number[number > 0].unsqueeze(1)


def of_rows(rows: Tensor) -> Factors:
    """Rows [rows, params] of a root that nothing was captured of."""
    everything = torch.arange(rows.shape[1], device=rows.device)
    return Factors([], everything, rows.unsqueeze(1), rows[:0])
