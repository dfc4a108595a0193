"""Kronecker factors of a curvature, layer by layer (Martens and Grosse 2015, "Optimizing neural networks with K-FAC").

A product ``z = a W'`` has the block ``sum_n (a a')_n (x) (g g')_n``, approximated by
``(sum a a') (x) (sum g g') / (N T)``. T positions that share the weight are treated as so many independent ones
("expand"), or as one with their mean input and summed gradient ("reduce", Eschenhagen et al. 2023,
"Kronecker-factored approximate curvature for modern neural network architectures"). It is exact for one datum, and for
deep linear networks with Normal data.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace._memory import refuse_too_large
from pyro_laplace.capture.anchor import Point
from pyro_laplace.curvature.root import Curvature
from pyro_laplace.program.program import Program
from pyro_laplace.reading.direct import Direct, direct_of
from pyro_laplace.reading.factors import STREAMED, Factors, Product
from pyro_laplace.reading.restrict import factors_over
from pyro_laplace.structure.data_pass import Pass

_ROWS = 1024
"""Rows whose products are summed in their own dtype, before the sums are added up in float64."""

_ELEMENTS = 2**18
"""Elements of blocks that are multiplied at a time, and summed in their own dtype."""

_COLUMNS = 128
"""Columns of a block of the lower triangle, which is all of a symmetric product that is computed."""


@dataclass(eq=False)
class KronFactors:
    """The factors of one weight (with its bias), summed over the data.

    Attributes:
        index: free coordinates [o, i].
        inputs: sum of a a' [i, i].
        gradients: sum of g g' [o, o].
        count: data times positions, N T.
        has_bias: whether the last input is the 1 of a bias.
    """

    index: Tensor
    inputs: Tensor
    gradients: Tensor
    count: int
    has_bias: bool

    def without_last_input(self) -> tuple["KronFactors", "KronFactors"]:
        """The weight and its bias apart: the cross block is dropped."""
        weight = KronFactors(self.index[:, :-1], self.inputs[:-1, :-1], self.gradients, self.count, False)
        bias = KronFactors(self.index[:, -1:], self.inputs[-1:, -1:], self.gradients, self.count, False)
        return weight, bias


def kron_factors(
    curvature: Curvature, visit: Pass, point: Point, shared: str = "expand", dtype: torch.dtype | None = None
) -> tuple[list[KronFactors], Tensor, Tensor]:
    """Kronecker factors of every captured product, and the dense curvature of the other free coordinates.

    Args:
        curvature: how the likelihood's curvature is measured; it has a root.
        visit: the pass over the data.
        point: theta and its free coordinates, whole sites, among those of the pass.
        shared: how positions that share a weight count, "expand" or "reduce".
        dtype: of the products that are summed up, theta's if it is None.

    Returns:
        the factors; the free coordinates [d] that no product holds; their curvature [d, d] in float64.

    Raises:
        UnsupportedProgram: if the program's operations cannot be captured, or two products share a part of a weight.
    """
    found: list[KronFactors] = []
    dense_index, dense = point.index[:0], torch.zeros(0, 0, dtype=torch.float64, device=point.theta.device)
    for number, (run, root) in enumerate(curvature.roots(visit)):
        terms = sorted(run.program.terms - frozenset(root.sites if root is not None else ()))
        if terms:
            raise UnsupportedProgram(
                f"structure='kron' has no place for the exact Hessian of {terms} (a pyro.factor, or a distribution "
                "without Fisher information): use structure='full' or 'diag'"
            )
        direct = direct_of(run, root, point)
        if direct is not None:
            _add_direct(found, direct, dtype)
            continue
        captured = factors_over(run, root, point, STREAMED)
        if captured is None:
            raise UnsupportedProgram(
                "structure='kron' needs products of data with weights, one row a datum, and the operations of this "
                "program could not be captured as such: use structure='full' or 'diag'"
            )
        counted: list[KronFactors] = []
        for factors in captured:
            if number == 0 and len(dense) != len(factors.dense_index):
                dense_index, size = factors.dense_index, len(factors.dense_index)
                refuse_too_large(
                    size**2, 8, f"the curvature [{size}, {size}] of uncaptured sites", "use structure='diag'"
                )
                dense = torch.zeros(size, size, dtype=torch.float64, device=point.theta.device)
            _add_products(found, factors, counted, shared, dtype)
            if len(dense):
                rows = torch.cat([factors.dense.flatten(0, 1), factors.dense_only]).double()
                dense.addmm_(rows.mT, rows)
    for factors in found:
        _mirror(factors.inputs)
        _mirror(factors.gradients)
    _refuse_overlap(found, dense_index, point, visit.program)
    return found, dense_index, dense


def _add_products(
    found: list[KronFactors], factors: Factors, counted: list[KronFactors], shared: str, dtype: torch.dtype | None
) -> None:
    """Add some columns of a chunk: gradients for each of them, inputs once (`counted`), however many there are."""
    for product in _by_weight(factors.products):
        total = _of_weight(found, product.index, product.has_bias)
        inputs, gradients = product.inputs, product.gradients.transpose(0, 1)  # nti, knto
        if shared == "reduce" and product.shared:
            inputs, gradients = inputs.mean(1, keepdim=True), gradients.sum(2, keepdim=True)
        if not any(total is each for each in counted):
            _add_gram(total.inputs, inputs.flatten(0, 1), dtype)
            total.count += inputs.shape[:2].numel()
            counted.append(total)
        if gradients.shape[2] > 1 and gradients.mT.is_contiguous():  # a convolution's, channels before positions
            _add_products_with_own(total.gradients, gradients.mT.flatten(0, 1), dtype)
        else:
            _add_gram(total.gradients, gradients.flatten(0, 2), dtype)


def _add_direct(found: list[KronFactors], direct: Direct, dtype: torch.dtype | None) -> None:
    """Add a chunk of a layer that is the likelihood's own."""
    total = _of_weight(found, direct.index, direct.has_bias)
    _add_gram(total.inputs, direct.inputs, dtype)
    total.count += len(direct.inputs)
    total.gradients += direct.information.sum()


def _of_weight(found: list[KronFactors], index: Tensor, has_bias: bool) -> KronFactors:
    """The factors over these coordinates, which may be new ones."""
    for factors in found:
        if factors.index.shape == index.shape and torch.equal(factors.index, index):
            return factors
    out, fan_in = (torch.zeros(n, n, dtype=torch.float64, device=index.device) for n in index.shape)
    found.append(KronFactors(index, fan_in, out, 0, has_bias))
    return found[-1]


def _by_weight(products: list[Product]) -> list[Product]:
    """A weight that is used again (a recurrent one) is at further positions."""
    groups: list[list[Product]] = []
    for product in products:
        same = (g for g in groups if g[0].index.shape == product.index.shape and torch.equal(g[0].index, product.index))
        group = next(same, None)
        if group is None:
            groups.append([product])
        else:
            group.append(product)
    return [group[0] if len(group) == 1 else _joined(group) for group in groups]


def _joined(uses: list[Product]) -> Product:
    inputs = torch.cat([use.inputs for use in uses], 1)
    gradients = torch.cat([use.gradients.transpose(0, 1) for use in uses], 2).transpose(0, 1)
    return replace(uses[0], inputs=inputs, gradients=gradients)


def _add_gram(total: Tensor, rows: Tensor, dtype: torch.dtype | None) -> None:
    """Add the lower triangle of ``rows' rows``, by blocks; sums over data are in float64."""
    size = rows.shape[1]
    for part in rows.split(_ROWS if size > _COLUMNS else max(_ROWS, _ROWS * _COLUMNS // max(1, size))):
        part = part.to(dtype or rows.dtype)
        for start in range(0, size, _COLUMNS):
            stop = min(start + _COLUMNS, size)
            total[start:stop, :stop] += part[:, start:stop].mT @ part[:, :stop]


def _add_products_with_own(total: Tensor, blocks: Tensor, dtype: torch.dtype | None) -> None:
    """Add ``sum_b G_b G_b'`` of blocks [b, o, t]: the same as `_add_gram` of their columns, without a copy of them."""
    for part in blocks.split(max(1, _ELEMENTS // blocks[0].numel())):
        part = part.to(dtype or blocks.dtype)
        total += (part @ part.mT).sum(0)


def _mirror(total: Tensor) -> None:
    """Make a matrix symmetric of which the lower triangle was added up."""
    if len(total) > _COLUMNS:
        total.copy_(total.tril() + total.tril(-1).mT)


def _refuse_overlap(found: list[KronFactors], dense_index: Tensor, point: Point, program: Program) -> None:
    together = torch.cat([dense_index, *(factors.index.reshape(-1) for factors in found)])
    counts = torch.bincount(together, minlength=len(point.index))
    if bool((counts == 1).all()):
        return
    if bool((counts > 1).any()):
        where, what = point.index[counts > 1], "share a part of a weight"
    else:
        where, what = point.index[counts == 0], "do not reach the observed sites"
    names = [n for n, s in program.layout.items() if bool(((where >= s.start) & (where < s.stop)).any())]
    raise UnsupportedProgram(f"structure='kron': products of sites {names} {what}: use structure='full' or 'diag'")
