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
from pyro_laplace.curvature.data_pass import Pass
from pyro_laplace.curvature.direct import Direct, direct_of
from pyro_laplace.curvature.factors import STREAMED, Factors, Product
from pyro_laplace.curvature.point import Point
from pyro_laplace.curvature.restrict import factors_over
from pyro_laplace.curvature.root import Curvature
from pyro_laplace.program import Program

_ELEMENTS = 2**17
"""Elements of rows whose products are summed in their own dtype, before the sums are added up in float64."""


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
    found: dict[bytes, KronFactors] = {}
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
        counted: set[bytes] = set()
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
    _refuse_overlap(found, dense_index, point, visit.program)
    return list(found.values()), dense_index, dense


def _add_products(
    found: dict[bytes, KronFactors], factors: Factors, counted: set[bytes], shared: str, dtype: torch.dtype | None
) -> None:
    """Add some columns of a chunk: gradients for each of them, inputs once (`counted`), however many there are."""
    for key, product in _by_weight(factors.products).items():
        total = found.setdefault(key, _empty(product))
        inputs, gradients = product.inputs, product.gradients.transpose(0, 1)  # nti, knto
        if shared == "reduce" and product.shared:
            inputs, gradients = inputs.mean(1, keepdim=True), gradients.sum(2, keepdim=True)
        if key not in counted:
            _add_gram(total.inputs, inputs.flatten(0, 1), dtype)
            total.count += inputs.shape[:2].numel()
        counted.add(key)
        _add_gram(total.gradients, gradients.flatten(0, 2), dtype)


def _add_direct(found: dict[bytes, KronFactors], direct: Direct, dtype: torch.dtype | None) -> None:
    """Add a chunk of a layer that is the likelihood's own."""
    (out, fan_in), device = direct.index.shape, direct.inputs.device
    inputs = torch.zeros(fan_in, fan_in, dtype=torch.float64, device=device)
    gradients = torch.zeros(out, out, dtype=torch.float64, device=device)
    total = found.setdefault(_key(direct.index), KronFactors(direct.index, inputs, gradients, 0, direct.has_bias))
    _add_gram(total.inputs, direct.inputs, dtype)
    total.count += len(direct.inputs)
    total.gradients += direct.information.sum()


def _key(index: Tensor) -> bytes:
    return index.mT.contiguous().cpu().numpy().tobytes()


def _by_weight(products: list[Product]) -> dict[bytes, Product]:
    """A weight that is used again (a recurrent one) is at further positions."""
    found: dict[bytes, list[Product]] = {}
    for product in products:
        found.setdefault(_key(product.index), []).append(product)
    return {key: uses[0] if len(uses) == 1 else _joined(uses) for key, uses in found.items()}


def _joined(uses: list[Product]) -> Product:
    inputs = torch.cat([use.inputs for use in uses], 1)
    gradients = torch.cat([use.gradients.transpose(0, 1) for use in uses], 2).transpose(0, 1)
    return replace(uses[0], inputs=inputs, gradients=gradients)


def _empty(product: Product) -> KronFactors:
    out, fan_in = product.index.shape
    inputs = product.inputs.new_zeros(fan_in, fan_in, dtype=torch.float64)
    gradients = product.inputs.new_zeros(out, out, dtype=torch.float64)
    return KronFactors(product.index, inputs, gradients, 0, product.has_bias)


def _add_gram(total: Tensor, rows: Tensor, dtype: torch.dtype | None) -> None:
    """Add ``rows' rows``; sums over data are in float64."""
    for part in rows.split(max(512, _ELEMENTS // max(1, rows.shape[1]))):
        part = part.to(dtype or rows.dtype)
        total += part.mT @ part


def _refuse_overlap(found: dict[bytes, KronFactors], dense_index: Tensor, point: Point, program: Program) -> None:
    together = torch.cat([dense_index, *(factors.index.reshape(-1) for factors in found.values())])
    values, counts = together.unique(return_counts=True)
    if len(values) == len(together) == len(point.index):
        return
    if len(values) == len(together):
        missing = set(range(len(point.index))) - set(values.tolist())
        where, what = point.index[torch.tensor(sorted(missing))], "do not reach the observed sites"
    else:
        where, what = point.index[values[counts > 1]], "share a part of a weight"
    names = [n for n, s in program.layout.items() if bool(((where >= s.start) & (where < s.stop)).any())]
    raise UnsupportedProgram(f"structure='kron': products of sites {names} {what}: use structure='full' or 'diag'")
