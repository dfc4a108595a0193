"""MultivariateNormal: eta = (loc, log of the diagonal of L, entries below it) with covariance L L'.

In the coordinates ``dW = L^-1 dL`` the score is ``dW_ij (z_i z_j - delta_ij)`` with z = L^-1 (y - loc) standard normal:
the entries are uncorrelated, with variance 2 on the diagonal and 1 below it.
"""

from functools import cache
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace._memory import refuse_too_large
from pyro_laplace.likelihood.gaussian import GaussianEta
from pyro_laplace.likelihood.registry import Family, register, requires_grad


@register(torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal)
class MultivariateNormalFamily(Family):
    """Location and Cholesky factor of the covariance, however that is given."""

    outputs = ("loc", "log_diagonal", "below_diagonal")
    concave = ("loc",)

    def link(self, fn: Any) -> Tensor:
        """(loc, log diagonal of L, L below it) `[*batch, D + D (D + 1) / 2]`."""
        rows, columns, _ = _tril_places(fn.event_shape[0])
        scale_tril = fn.scale_tril
        loc = fn.loc.expand(scale_tril.shape[:-1])
        return torch.cat([loc, scale_tril.diagonal(dim1=-2, dim2=-1).log(), scale_tril[..., rows, columns]], -1)

    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """MultivariateNormal(loc, scale_tril=L)."""
        size = fn.event_shape[0]
        return dist.MultivariateNormal(eta[..., :size], scale_tril=_scale_tril(eta, size))

    def predictive(self, eta: GaussianEta, fn: Any, link: str) -> Any | None:
        """Of a known covariance, exactly: that of loc is added to it. None where the covariance is uncertain."""
        size = fn.event_shape[0]
        if int(eta.kept.max()) >= size:
            return None
        whole = fn.covariance_matrix.expand(*eta.mean.shape[:-1], -1, -1).clone()
        whole[..., eta.kept[:, None], eta.kept] += eta.covariance()
        moved = dist.MultivariateNormal(eta.mean[..., :size], whole)
        return self.distribution(self.link(moved), fn)

    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """L'^-1 for the loc beside d W / d eta for the covariance `[*batch, outputs, outputs]`."""
        size, outputs = fn.event_shape[0], eta.shape[-1]
        refuse_too_large(
            eta.numel() * outputs,
            8,
            f"the Fisher information [{outputs}, {outputs}] of {eta[..., 0].numel()} MultivariateNormal data",
            "give smaller batches, use curvature='hessian', or 'empirical_fisher'",
        )
        scale_tril = _scale_tril(eta, size)
        inverse = torch.linalg.solve_triangular(scale_tril, torch.eye(size).to(eta), upper=False)
        below, left, _ = _tril_places(size)
        diagonal = torch.arange(size)
        row, column = torch.cat([diagonal, below]), torch.cat([diagonal, left])
        # moving L_kl moves W_il by (L^-1)_ik, a log diagonal entry by L_kk times that
        moved = inverse[..., row.unsqueeze(0), row.unsqueeze(1)] * (column.unsqueeze(0) == column.unsqueeze(1)).to(eta)
        factor = torch.cat([scale_tril.diagonal(dim1=-2, dim2=-1), eta.new_ones(eta.shape[:-1] + below.shape)], -1)
        std = torch.cat([eta.new_full((size,), 2.0**0.5), eta.new_ones(len(below))])
        root = eta.new_zeros((*eta.shape, outputs))
        root[..., :size, :size] = inverse.mT
        root[..., size:, size:] = factor.unsqueeze(-1) * moved * std
        return root

    def moving(self, fn: Any) -> Tensor:
        """Of loc and covariance."""
        size = fn.event_shape[0]
        loc, covariance = requires_grad(fn.loc, fn.scale_tril)
        return torch.cat([loc.expand(size), covariance.expand(size * (size + 1) // 2)])


@cache
def _tril_places(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns of the entries below the diagonal, and where each entry of L is among (0, diagonal, below)."""
    rows, columns = torch.tril_indices(size, size, -1)
    place = torch.zeros(size, size, dtype=torch.long)
    place[range(size), range(size)] = 1 + torch.arange(size)
    place[rows, columns] = 1 + size + torch.arange(len(rows))
    return rows, columns, place


def _scale_tril(eta: Tensor, size: int) -> Tensor:
    diagonal, below = eta[..., size : 2 * size].exp(), eta[..., 2 * size :]
    return torch.cat([torch.zeros_like(diagonal[..., :1]), diagonal, below], -1)[..., _tril_places(size)[2]]
