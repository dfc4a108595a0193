"""Kronecker factors of a curvature, layer by layer (Martens and Grosse 2015, "Optimizing neural networks with K-FAC").

A product ``z = a W'`` has the block ``sum_n (a a')_n (x) (g g')_n``, approximated by
``(sum a a') (x) (sum g g') / (N T)``. T positions that share the weight are treated as so many independent ones
("expand", Eschenhagen et al. 2023, "K-FAC for modern neural network architectures"). It is exact for one datum, and for
deep linear networks with Normal data.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace._memory import refuse_too_large
from pyro_laplace.curvature.factors import Factors, Product, factors_of
from pyro_laplace.curvature.point import Point
from pyro_laplace.curvature.root import Curvature
from pyro_laplace.data import Data
from pyro_laplace.program import Program


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
    curvature: Curvature, program: Program, point: Point, data: Data
) -> tuple[list[KronFactors], Tensor, Tensor]:
    """Kronecker factors of every captured product, and the dense curvature of the other free coordinates.

    Args:
        curvature: how the likelihood's curvature is measured; it has a root.
        program: the traced program.
        point: theta and its free coordinates.
        data: the data, visited once.

    Returns:
        the factors; the free coordinates [d] that no product holds; their curvature [d, d] in float64.

    Raises:
        UnsupportedProgram: if the program's operations cannot be captured, or two products share a part of a weight.
    """
    found: dict[bytes, KronFactors] = {}
    dense_index, dense = point.index[:0], torch.zeros(0, 0, dtype=torch.float64, device=point.theta.device)
    for number, (chunk, root) in enumerate(curvature.roots(program, point.theta, data)):
        captured = factors_of(program, point, chunk, root)
        if captured is None:
            raise UnsupportedProgram(
                "structure='kron' needs products of data with weights, one row a datum, and the operations of this "
                "program could not be captured as such: use structure='full' or 'diag'"
            )
        if number == 0:
            dense_index = captured[0].dense_index
            size = len(dense_index)
            refuse_too_large(size**2, 8, f"the curvature [{size}, {size}] of uncaptured sites", "use structure='diag'")
            dense = torch.zeros(size, size, dtype=torch.float64, device=point.theta.device)
        _add_products(found, captured)
        for factors in captured:
            rows = torch.cat([factors.dense.flatten(0, 1), factors.dense_only]).double()
            dense += rows.T @ rows
    _refuse_overlap(found, dense_index, point, program)
    return list(found.values()), dense_index, dense


def _add_products(found: dict[bytes, KronFactors], captured: list[Factors]) -> None:
    """Add a chunk: inputs once, whatever number of observed sites depends on them, gradients for each of these."""
    counted: set[tuple[bytes, int]] = set()
    for factors in captured:
        uses: Counter[bytes] = Counter()
        for product in factors.products:
            key = product.index.T.contiguous().cpu().numpy().tobytes()
            use = key, uses[key]  # a weight used again (a recurrent one) is at further positions
            uses[key] += 1
            _add(found.setdefault(key, _empty(product)), product, new_inputs=use not in counted)
            counted.add(use)


def _empty(product: Product) -> KronFactors:
    out, fan_in = product.index.shape
    inputs = product.inputs.new_zeros(fan_in, fan_in, dtype=torch.float64)
    gradients = product.inputs.new_zeros(out, out, dtype=torch.float64)
    return KronFactors(product.index, inputs, gradients, 0, product.has_bias)


def _add(total: KronFactors, product: Product, new_inputs: bool) -> None:
    """Add a chunk; the inputs of a weight count once if several observed sites depend on it."""
    if new_inputs:
        a = product.inputs.flatten(0, 1)  # nt, i
        total.inputs += (a.T @ a).double()
        total.count += len(a)
    g = product.gradients.flatten(0, 2)  # nkt, o
    total.gradients += (g.T @ g).double()


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
