"""Squared distances of draws from many ellipses at once, each in its ellipse's own units."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace.proposals.ellipses import Ellipse
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Distances:
    """Squared distances from many ellipses, expanded in the same monomials: one matrix product for all of them.

    In the frame ``u = R_0 (theta - m_0)`` of one ellipse, the distance from another is
    ``|R_k (theta - m_k)|^2 = |A_k (u - u_k)|^2`` with ``A_k = R_k R_0^-1`` and ``u_k = R_0 (m_k - m_0)``, which is
    ``u' Q_k u - 2 (Q_k u_k)' u + u_k' Q_k u_k`` with ``Q_k = A_k' A_k``.

    Attributes:
        ellipses: over the same coordinates.
        frame: one like them.
        coefficients: of the monomials of `_monomials` [ellipses, monomials]; None where there is little to gain.
        cancelling: places of the ellipses whose expansion would lose digits.
    """

    ellipses: Sequence[Ellipse]
    frame: Ellipse
    coefficients: Tensor | None = None
    cancelling: tuple[int, ...] = ()

    @staticmethod
    def of(ellipses: Sequence[Ellipse], frame: Ellipse) -> "Distances":
        """Expand the distances, where ellipses are many and their coordinates few.

        Args:
            ellipses: over the same coordinates.
            frame: an ellipse over these as well, of units like theirs.

        Returns:
            the distances.
        """
        size = len(frame.index)
        if len(ellipses) < settings.expanded_ellipses or size > settings.small:
            return Distances(ellipses, frame)
        step = max(1, settings.streamed_elements // size**2)
        parts = [_coefficients_of(ellipses[start : start + step], frame) for start in range(0, len(ellipses), step)]
        coefficients, lost = (torch.cat(each) for each in zip(*parts, strict=True))
        places = (lost > settings.expanded_error).nonzero()[:, 0]
        return Distances(ellipses, frame, coefficients, tuple(places.tolist()))

    def at(self, theta: Tensor) -> Tensor:
        """Of draws [draws, params] from each ellipse `[ellipses, draws]`, in float64."""
        if self.coefficients is None:
            return torch.stack([each.squares(theta) for each in self.ellipses])
        rows = max(1, settings.streamed_elements // self.coefficients.shape[1])
        parts = [self.coefficients @ _monomials(_in_frame(some, self.frame)) for some in theta.split(rows)]
        found = torch.cat(parts, 1).clamp(min=0.0)
        for place in self.cancelling:
            found[place] = self.ellipses[place].squares(theta)
        return found


def _in_frame(theta: Tensor, frame: Ellipse) -> Tensor:
    """``u = R_0 (theta - m_0)`` [draws, free]."""
    return frame.precision.whiten(theta[:, frame.index].double() - frame.theta[frame.index].double())


def _monomials(u: Tensor) -> Tensor:
    """``u_i u_j`` of i <= j, ``u_i``, and 1, of each row of u [draws, free]: [monomials, draws]."""
    columns = u.mT.contiguous()
    first, second = torch.triu_indices(len(columns), len(columns), device=u.device)
    return torch.cat([columns[first] * columns[second], columns, torch.ones_like(columns[:1])])


def _coefficients_of(ellipses: Sequence[Ellipse], frame: Ellipse) -> tuple[Tensor, Tensor]:
    """Coefficients of some ellipses [ellipses, monomials], and what a square loses beside its centre [ellipses]."""
    size = len(frame.index)
    eye = torch.eye(size, dtype=torch.float64, device=frame.theta.device)
    roots = torch.stack([each.root for each in ellipses]) @ frame.precision.color(eye).mT  # A_k
    centres = _in_frame(torch.stack([each.theta for each in ellipses]), frame)  # u_k
    quadratic = roots.mT @ roots
    linear = (quadratic @ centres.unsqueeze(-1))[..., 0]
    constant = (centres * linear).sum(-1, keepdim=True)
    first, second = torch.triu_indices(size, size, device=eye.device)
    twice = torch.where(first == second, 1.0, 2.0)
    coefficients = torch.cat([quadratic[:, first, second] * twice, -2 * linear, constant], 1)
    trace = quadratic.diagonal(dim1=-2, dim2=-1).sum(-1)
    return coefficients, torch.finfo(torch.float64).eps * trace * (centres.square().sum(-1) + size)
