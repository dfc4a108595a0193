"""The log determinant of the prior's curvature, as a function of the hyperparameters; what of it the data replace."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_laplace._errors import IndefiniteCurvature, LaplaceError
from pyro_laplace._typing import Scalar, Theta
from pyro_laplace.evidence.log_det import covariance_of
from pyro_laplace.reading.prior import Prior
from pyro_laplace.reading.prior_curve import PriorAt
from pyro_laplace.settings import settings
from pyro_laplace.sparse.symmetric import Symmetric
from pyro_laplace.structure.precision import Precision
from pyro_laplace.structure.sparse_block import SparseBlock


def log_det_of_prior(prior: PriorAt) -> Scalar:
    """``log det H_prior``, with the graph that leads to the hyperparameters.

    Args:
        prior: the curvature.

    Returns:
        the log determinant; minus infinity where the curvature is not positive definite.
    """
    if prior.pattern is None:
        return prior.log_det()
    entries = prior.symmetric()
    return _LogDetOfEntries.apply(entries, entries.value)


class _LogDetOfEntries(torch.autograd.Function):
    """Of a sparse matrix by its entries, whose derivatives are those of its inverse; once differentiable."""

    @staticmethod
    def forward(ctx: Any, entries: Symmetric, value: Tensor) -> Tensor:
        ctx.entries, ctx.block = entries, None
        try:
            ctx.block = SparseBlock(Symmetric(entries.size, entries.row, entries.col, value.detach()))
        except IndefiniteCurvature:
            return torch.full_like(value.detach().sum(), -math.inf)
        return ctx.block.log_det()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        row, col = ctx.entries.row, ctx.entries.col
        if ctx.block is None:
            return None, torch.full_like(ctx.entries.value.detach(), math.nan)
        twice = torch.where(row == col, 1.0, 2.0).double()
        return None, grad_outputs[0] * twice * ctx.block.covariance_at(row, col)


def effective_counts(precision: Precision, prior: Prior) -> Theta:
    """The diagonal of ``Lambda^-1 H = I - Lambda^-1 H_prior`` [params]: how far the data determine each parameter."""
    if prior.is_diagonal:
        return 1 - precision.variance().double() * prior.diagonal
    if precision.size <= settings.small:
        return 1 - (covariance_of(precision) * prior.matrix()).sum(1)
    try:
        entries = prior.symmetric()
    except LaplaceError:  # it has many, or they were not kept
        return 1 - (covariance_of(precision) * prior.matrix()).sum(1)
    products = precision.covariance_at(entries.row, entries.col) * entries.value
    beside = entries.row != entries.col
    both = torch.cat([entries.row, entries.col[beside]])
    return torch.ones_like(prior.diagonal).index_add(0, both, -torch.cat([products, products[beside]]))
