"""Derivatives of the conditional density as a search asks for them: of many rows at once, or of one, fast.

Letters: b rows, i inner coordinates, q hyper coordinates.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._errors import LaplaceError
from pyro_laplace.inference.recorded import Recorded, points_around, recorded_if_same
from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.inner.rows import Expanded, Slopes, expanded, expansion_at, slopes, slopes_at
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Of a conditional density.

    Attributes:
        of: the density.
    """

    of: Conditional

    def expanded(self, x: Tensor, h: Tensor) -> Expanded:
        """Value, gradient and Hessian in x of minus the log joint at rows x [b, i], h [b, q]."""
        return expanded(self.of, x, h)

    def slopes(self, x: Tensor, h: Tensor, weights: Tensor) -> Slopes:
        """Derivatives at modes x [b, i], h [b, q], those of log det H by H^-1 [b, i, i]."""
        return slopes(self.of, x, h, torch.eye(x.shape[1]).to(x), weights)


@dataclass(frozen=True, eq=False)
class RecordedDerivatives(Derivatives):
    """Of single rows by their operations, recorded once: a sampler asks thousands of times.

    Attributes:
        expansion: of x and h joined.
        slope: of x, h and H^-1 joined.
    """

    expansion: Recorded
    slope: Recorded

    def expanded(self, x: Tensor, h: Tensor) -> Expanded:
        """As `Derivatives.expanded`."""
        if len(x) != 1:
            return super().expanded(x, h)
        found = self._at(self.expansion, x[0], h[0])
        if found is None:
            return Expanded(x.new_full((1,), torch.inf), torch.zeros_like(x), x.new_zeros(1, x.shape[1], x.shape[1]))
        return Expanded(*(each.unsqueeze(0) for each in found))

    def slopes(self, x: Tensor, h: Tensor, weights: Tensor) -> Slopes:
        """As `Derivatives.slopes`."""
        found = self._at(self.slope, x[0], h[0], weights[0].flatten()) if len(x) == 1 else None
        return super().slopes(x, h, weights) if found is None else Slopes(*(each.unsqueeze(0) for each in found))

    def _at(self, recorded: Recorded, *parts: Tensor) -> Any:
        """None where the density cannot be evaluated."""
        try:
            with torch.no_grad():
                return recorded(torch.cat(parts))
        except (LinAlgError, ValueError) as error:  # of a matrix that the program factorises
            if isinstance(error, LaplaceError):
                raise
            return None


def recorded(plain: Derivatives) -> Derivatives:
    """Single rows by their operations, if these give what the program gives, at its start and beside it.

    Args:
        plain: the derivatives.

    Returns:
        the derivatives recorded; or as they are, of a program whose Python looks at the values.
    """
    of, (x, h) = plain.of, plain.of.start
    size, both = len(x), len(x) + len(h)

    def expand(at: Tensor) -> tuple[Tensor, ...]:
        return expansion_at(of, at[:size], at[size:])

    def slope(at: Tensor) -> tuple[Tensor, ...]:
        weights = at[both:].reshape(size, size)
        return slopes_at(of, at[:size], at[size:both], torch.eye(size).to(at), weights)

    start = torch.cat([x, h])
    if not size or 8 * size * of.data_size > settings.pass_elements:
        return plain
    weights = torch.eye(size).to(start).flatten()
    with undisturbed(), torch.no_grad():
        expansion = recorded_if_same(expand, points_around(start), of.eps)
        third = recorded_if_same(slope, [torch.cat([at, weights]) for at in points_around(start)], of.eps)
    return plain if expansion is None or third is None else RecordedDerivatives(of, expansion, third)
