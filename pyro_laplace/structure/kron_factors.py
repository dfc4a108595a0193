"""Kronecker factors of a curvature, layer by layer (Martens and Grosse 2015, "Optimizing neural networks with K-FAC").

A product ``z = a W'`` has the block ``sum_n (a a')_n (x) (g g')_n``, approximated by
``(sum a a') (x) (sum g g') / (N T)``. T positions that share the weight are treated as so many independent ones
("expand"), or as one with their mean input and summed gradient ("reduce", Eschenhagen et al. 2023,
"Kronecker-factored approximate curvature for modern neural network architectures"). It is exact for one datum, and for
deep linear networks with Normal data.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyro_laplace._typing import State
from pyro_laplace.reading.records import Direct, Product
from pyro_laplace.settings import settings
from pyro_laplace.structure.whitened import Whitened, form_of


@dataclass(eq=False)
class KronFactors:
    """The factors of one weight (with its bias), summed over the data; of both the lower triangle is meant.

    Attributes:
        index: free coordinates [o, i].
        inputs: sum of a a' [i, i].
        gradients: sum of g g' [o, o].
        count: data times positions, N T.
        has_bias: whether the last input is the 1 of a bias.
        data: names of the data that they are summed over.
        whitened: of "inputs" and "gradients" the eigenpairs that the last prior asked for.
    """

    index: Tensor
    inputs: Tensor
    gradients: Tensor
    count: int
    has_bias: bool
    data: frozenset[str] = frozenset()
    whitened: dict[str, Whitened] = field(default_factory=dict, repr=False)

    @staticmethod
    def empty(index: Tensor, has_bias: bool, data: frozenset[str] = frozenset()) -> "KronFactors":
        """Of no data."""
        out, fan_in = (torch.zeros(n, n, dtype=torch.float64, device=index.device) for n in index.shape)
        return KronFactors(index, fan_in, out, 0, has_bias, data)

    def is_over(self, index: Tensor) -> bool:
        """Whether these are its coordinates."""
        return self.index.shape == index.shape and torch.equal(self.index, index)

    def add_direct(self, direct: Direct, shared: str, dtype: torch.dtype) -> None:
        """Add a chunk of a layer that is the likelihood's own; `shared` as in `add`."""
        self.whitened.clear()
        inputs = direct.means() if shared == "reduce" and direct.live.dim() > 1 else direct.inputs
        _add_gram(self.inputs, inputs, dtype)
        self.count += len(inputs)
        self.gradients += direct.information.sum()

    def add(self, product: Product, shared: str, with_inputs: bool, dtype: torch.dtype) -> None:
        """Add some columns of a chunk.

        Args:
            product: the weight's.
            shared: how positions that share it count, "expand" or "reduce".
            with_inputs: whether its inputs count, which are the same however many columns there are.
            dtype: of the products that are summed up.
        """
        self.whitened.clear()
        inputs, gradients = product.inputs, product.gradients.transpose(0, 1)  # nti, knto
        counted = product.counted
        if shared == "reduce" and product.shared:
            inputs, gradients = _mean_of_counted(inputs, counted), gradients.sum(2, keepdim=True)
            counted = None
        if with_inputs:
            rows = inputs.flatten(0, 1) if counted is None else inputs[counted]
            _add_gram(self.inputs, rows, dtype)
            self.count += len(rows)
        if gradients.shape[2] > 1 and gradients.mT.is_contiguous():  # a convolution's, channels before positions
            _add_products_with_own(self.gradients, gradients.mT.flatten(0, 1), dtype)
        else:
            _add_gram(self.gradients, gradients.flatten(0, 2), dtype)

    def add_term(self, other: "KronFactors", factor: float) -> None:
        """Add another term of the likelihood, times a number; its inputs count unless they are there already."""
        self.whitened.clear()
        self.gradients = self.gradients + other.gradients * factor
        if not self.count or not other.data <= self.data:
            self.inputs, self.count = self.inputs + other.inputs, self.count + other.count
        self.data |= other.data

    def merge(self, other: "KronFactors") -> None:
        """Add the factors over other data."""
        self.whitened.clear()
        self.inputs, self.gradients = self.inputs + other.inputs, self.gradients + other.gradients
        self.count += other.count

    def pair(
        self, out_prior: Tensor, in_prior: Tensor, dtype: torch.dtype
    ) -> tuple[Whitened, Whitened, tuple[float, float]]:
        """The factors whitened by a prior ``d_out (x) d_in``; eigenpairs are kept for one that differs by a number.

        Args:
            out_prior: d_out [o]; all zeros for a flat prior.
            in_prior: d_in [i].
            dtype: in which eigenpairs are computed.

        Returns:
            those of the gradients' factor, of the inputs', and the prior's numbers.
        """
        numbers = []
        for name, prior in (("gradients", out_prior), ("inputs", in_prior)):
            form, number = form_of(prior)
            known = self.whitened.get(name)
            if known is None or not torch.equal(known.form, form):
                self.whitened[name] = Whitened.of(getattr(self, name), form, dtype)
            numbers.append(number)
        return self.whitened["gradients"], self.whitened["inputs"], (numbers[0], numbers[1])

    def scaled(self, factor: float) -> "KronFactors":
        """The same with the gradients' factor times a number."""
        whitened = dict(self.whitened)
        if "gradients" in whitened:
            whitened["gradients"] = whitened["gradients"].times(factor)
        return replace(self, inputs=self.inputs.clone(), gradients=self.gradients * factor, whitened=whitened)

    def times(self, vectors: Tensor) -> Tensor:
        """``(B (x) A / count) v`` of the weights' entries v [v, o i]."""
        weights = vectors.reshape(len(vectors), *self.index.shape)
        return (mirrored(self.gradients) @ weights @ mirrored(self.inputs)).flatten(1) / max(1, self.count)

    def without_last_input(self) -> tuple["KronFactors", "KronFactors"]:
        """The weight and its bias apart: the cross block is dropped."""
        weight = KronFactors(self.index[:, :-1], self.inputs[:-1, :-1], self.gradients, self.count, False)
        bias = KronFactors(self.index[:, -1:], self.inputs[-1:, -1:], self.gradients, self.count, False)
        return weight, bias

    def state(self) -> State:
        """As plain tensors and numbers."""
        plain = {name: value for name, value in vars(self).items() if name != "whitened"}
        return {**plain, "data": sorted(self.data)}

    @staticmethod
    def from_state(state: State) -> "KronFactors":
        """What `state` gave, in tensors of its own."""
        index, inputs, gradients = (state[name].clone() for name in ("index", "inputs", "gradients"))
        return KronFactors(index, inputs, gradients, state["count"], state["has_bias"], frozenset(state["data"]))


def by_weight(products: list[Product]) -> list[Product]:
    """One product for each weight: one that is used again (a recurrent one) is at further positions."""
    groups: list[list[Product]] = []
    for product in products:
        same = (g for g in groups if g[0].index.shape == product.index.shape and torch.equal(g[0].index, product.index))
        group = next(same, None)
        if group is None:
            groups.append([product])
        else:
            group.append(product)
    return [group[0] if len(group) == 1 else _together(group) for group in groups]


def _together(uses: list[Product]) -> Product:
    inputs = torch.cat([use.inputs for use in uses], 1)
    gradients = torch.cat([use.gradients.transpose(0, 1) for use in uses], 2).transpose(0, 1)
    counted = [torch.ones_like(u.inputs[..., 0], dtype=torch.bool) if u.counted is None else u.counted for u in uses]
    whole = all(use.counted is None for use in uses)
    return replace(uses[0], inputs=inputs, gradients=gradients, counted=None if whole else torch.cat(counted, 1))


def _mean_of_counted(inputs: Tensor, counted: Tensor | None) -> Tensor:
    """Of a datum's inputs [n, t, i] over the positions that count, [n, 1, i]."""
    if counted is None:
        return inputs.mean(1, keepdim=True)
    weight = counted.unsqueeze(2).to(inputs)
    return (inputs * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)


def _add_gram(total: Tensor, rows: Tensor, dtype: torch.dtype) -> None:
    """Add the lower triangle of ``rows' rows``, by blocks; sums over data are in float64."""
    size, step, wide = rows.shape[1], settings.gram_rows, settings.gram_columns
    for part in rows.split(step if size > wide else max(step, step * wide // max(1, size))):
        part = part.to(dtype)
        for start in range(0, size, wide):
            stop = min(start + wide, size)
            total[start:stop, :stop] += part[:, start:stop].mT @ part[:, :stop]


def _add_products_with_own(total: Tensor, blocks: Tensor, dtype: torch.dtype) -> None:
    """Add ``sum_b G_b G_b'`` of blocks [b, o, t]: the same as `_add_gram` of their columns, without a copy of them."""
    for part in blocks.split(max(1, settings.product_elements // blocks[0].numel())):
        part = part.to(dtype)
        total += (part @ part.mT).sum(0)


def mirrored(total: Tensor) -> Tensor:
    """The symmetric matrix of which the lower triangle was added up."""
    return total.tril() + total.tril(-1).mT
