"""Kronecker blocks from the curvature's factors and a prior that is itself a Kronecker product."""

import torch
from torch import Tensor

from pyro_laplace._errors import InvalidOption, UnsupportedProgram
from pyro_laplace._typing import Theta
from pyro_laplace.capture.anchor import Point
from pyro_laplace.posterior.subset import names_of
from pyro_laplace.program.program import Program
from pyro_laplace.structure.gram import Gram
from pyro_laplace.structure.kron import Kron
from pyro_laplace.structure.kronecker import KronFactors, kron_factors
from pyro_laplace.structure.part import Base, Part, Placed, dense_block
from pyro_laplace.structure.previous import Previous

_ROUNDING = 0.01
"""Rounding of the curvature, in units of the prior precision, up to which all is computed in the sites' dtype.

Beyond, they are made anew in float64: directions that the data say nothing of would else have a wrong variance.
"""


def kron(part: Part, shared: str) -> Placed:
    """A Kronecker product for every layer, dense blocks for coordinates in no layer.

    Args:
        part: the coordinates, whole sites.
        shared: how positions that share a weight are counted, "expand" or "reduce".

    Returns:
        the blocks.

    Raises:
        InvalidOption: if a site is free in part only.
        UnsupportedProgram: if the program's operations cannot be captured, or its prior is not of Kronecker form.
    """
    program, point = part.program, part.point
    whole = point.sites(program)
    partial = [name for name in names_of(program, point.index) if name not in whole]
    if partial:
        raise InvalidOption(
            f"structure='kron' covers whole sites, and the subset holds a part of sites {partial}: use 'full', 'block' "
            "or 'diag'"
        )
    if not bool((part.base.diagonal > 0).all()):
        return _placed(part, shared, torch.float64)
    placed = _placed(part, shared, point.theta.dtype)
    amplification = max((float(block.eigenvalues.max()) for _, block in placed if isinstance(block, Kron)), default=0.0)
    accurate = torch.finfo(point.theta.dtype).eps * amplification < _ROUNDING
    return placed if accurate else _placed(part, shared, torch.float64)


def _placed(part: Part, shared: str, dtype: torch.dtype) -> Placed:
    """The blocks, by products and eigenbases in a dtype."""
    program, point = part.program, part.point
    products, dense_index, dense = kron_factors(part.curvature, part.visit, point, shared, dtype)
    if isinstance(part.base, Previous):
        placed = [block for factors in products for block in _updated(factors, part.base)]
    else:
        if products and not part.base.is_diagonal:
            _refuse_coupled(part.base, part, products)
        diagonal = part.base.diagonal
        placed = [block for factors in products for block in _blocks(factors, diagonal, program, point, dtype)]
    if len(dense_index):

        def gram() -> Gram:
            rest = Gram(len(dense_index), dense.device)
            rest.add_symmetric(dense)
            return rest

        names = Point(point.theta, point.index[dense_index])
        order, block = dense_block(gram, part.base.over(dense_index), part, names)
        placed.append((dense_index[order], block))
    return placed


def _updated(factors: KronFactors, previous: Previous) -> Placed:
    """The previous block, or a weight's and its bias's, with new factors added."""
    whole = previous.block(factors.index.reshape(-1))
    parts = (factors,) if whole is not None else factors.without_last_input()
    placed: Placed = []
    for part in parts:
        index = part.index.reshape(-1)
        block = previous.block(index)
        if not isinstance(block, Kron):
            raise UnsupportedProgram(
                "the new data use the weights by other operations than the data of the fit did: fit all data jointly"
            )
        placed.append((index, block.updated(part.gradients, part.inputs, part.count)))
    return placed


def _blocks(factors: KronFactors, diagonal: Theta, program: Program, point: Point, dtype: torch.dtype) -> Placed:
    """One block for a weight and its bias where the prior factorises over both, else one for each."""
    prior = diagonal[factors.index]
    split = _outer(prior)
    if split is None and factors.has_bias:
        parts = factors.without_last_input()
        splits = [_outer(diagonal[part.index]) for part in parts]
    else:
        parts, splits = (factors,), [split]
    placed: Placed = []
    for part, factor in zip(parts, splits, strict=True):
        if factor is None:
            names = list(names_of(program, point.index[part.index.reshape(-1)].sort().values))
            raise UnsupportedProgram(
                f"structure='kron': the prior precision of sites {names} is not an outer product of one vector over "
                "outputs and one over inputs: use structure='full' or 'diag', or a prior that is (isotropic, by "
                "output, by input)"
            )
        block = Kron(part.gradients, part.inputs, *factor, part.count, dtype)
        placed.append((part.index.reshape(-1), block))
    return placed


def _outer(prior: Tensor) -> tuple[Tensor, Tensor] | None:
    """Vectors with prior [out, in] = d_out d_in', or None."""
    if not bool((prior != 0).any()):
        return torch.zeros_like(prior[:, 0]), torch.zeros_like(prior[0])
    if not bool((prior > 0).all()):
        return None
    out_prior, in_prior = prior[:, 0] / prior[0, 0], prior[0]
    close = torch.allclose(out_prior.unsqueeze(-1) * in_prior, prior, rtol=1e-5)
    return (out_prior, in_prior) if close else None


def _refuse_coupled(prior: Base, part: Part, products: list[KronFactors]) -> None:
    """Refuse a prior whose Hessian couples the entries of captured weights, with one another or with other sites."""
    index = torch.cat([factors.index.reshape(-1) for factors in products])
    if not prior.over(index).is_diagonal:
        names = list(names_of(part.program, part.point.index[index].sort().values))
        raise UnsupportedProgram(
            f"structure='kron': the prior couples the entries of sites {names}, which a Kronecker "
            "product cannot hold: use structure='full'"
        )
