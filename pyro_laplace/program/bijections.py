"""Bijections to unconstrained space for supports that torch has none for, entered in torch's own registry.

Its `transform_to` knows triangular and positive-definite matrices, by maps that are not one to one on the entries that
do not vary. Here their coordinates are the lower triangle alone, row by row.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import CatTransform, StackTransform, Transform, biject_to, constraints, transform_to


class LowerTriangle(Transform):
    """Vectors [n (n + 1) / 2], the lower triangle row by row, to L [n, n] with the diagonal exponentiated."""

    domain = constraints.real_vector
    codomain = constraints.lower_cholesky
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        size = int((2 * x.shape[-1]) ** 0.5)
        row, column = torch.tril_indices(size, size, device=x.device)
        entries = torch.where(row == column, x.where(row == column, torch.zeros_like(x)).exp(), x)
        flat = torch.zeros(*x.shape[:-1], size * size, dtype=x.dtype, device=x.device)
        return flat.index_add(-1, row * size + column, entries).unflatten(-1, (size, size))

    def _inverse(self, y: Tensor) -> Tensor:
        row, column = torch.tril_indices(y.shape[-1], y.shape[-1], device=y.device)
        entries = y[..., row, column]
        return torch.where(row == column, entries.where(row == column, torch.ones_like(entries)).log(), entries)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``sum_i log L_ii``, `[*batch]`."""
        return y.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def forward_shape(self, shape: Any) -> torch.Size:
        """`[*batch, n (n + 1) / 2]` to `[*batch, n, n]`."""
        size = int((2 * shape[-1]) ** 0.5)
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """`[*batch, n, n]` to `[*batch, n (n + 1) / 2]`."""
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


class FromTriangle(LowerTriangle):
    """The same vectors to L L'."""

    codomain = constraints.positive_definite

    def _call(self, x: Tensor) -> Tensor:
        factor = super()._call(x)
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(torch.linalg.cholesky(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``sum_i log L_ii + log |d L L' / dL|``, the latter ``n log 2 + sum_i (n - i + 1) log L_ii`` for i = 1..n."""
        size = y.shape[-1]
        log_diagonal = super()._call(x).diagonal(dim1=-2, dim2=-1).log()
        powers = torch.arange(size + 1, 1, -1, device=x.device)
        return (powers * log_diagonal).sum(-1) + size * torch.log(torch.tensor(2.0, dtype=x.dtype, device=x.device))


@biject_to.register(constraints.lower_cholesky)
def _lower_triangle(constraint: Any) -> LowerTriangle:
    return LowerTriangle(cache_size=1)


@biject_to.register(constraints.positive_definite)
def _from_triangle(constraint: Any) -> FromTriangle:
    return FromTriangle(cache_size=1)


@biject_to.register(constraints.MixtureSameFamilyConstraint)
def _of_components(constraint: Any) -> Transform:
    return biject_to(constraint.base_constraint)


@transform_to.register(constraints.MixtureSameFamilyConstraint)
def _to_components(constraint: Any) -> Transform:
    return transform_to(constraint.base_constraint)


@biject_to.register(constraints.cat)
def _of_concatenation(constraint: Any) -> Transform:
    return CatTransform(_bijections_of_parts(constraint), constraint.dim, constraint.lengths)


@biject_to.register(constraints.stack)
def _of_stack(constraint: Any) -> Transform:
    return StackTransform(_bijections_of_parts(constraint), constraint.dim)


def _bijections_of_parts(constraint: Any) -> list[Transform]:
    """Bijections to the parts of a constraint, which torch joins rightly only where each maps single numbers."""
    parts = [biject_to(part) for part in constraint.cseq]
    if any(part.codomain.event_dim for part in parts):
        raise NotImplementedError(f"{constraint} joins constraints of whole vectors or matrices")
    return parts
