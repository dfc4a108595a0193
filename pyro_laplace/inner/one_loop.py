"""The inner Gaussian to the next order: by the effective action ``-log p(y, x | h) + 1/2 log det H(x, h)``.

To one loop (Zinn-Justin 2002, "Quantum Field Theory and Critical Phenomena"), its minimum is the mean of x and its
curvature there the inverse covariance, to the order that Laplace's approximation leaves out first. Letters: i inner
coordinates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.inner.problem import InnerSolved
from pyro_laplace.inner.rows import expanded, slopes_of
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class OneLoop:
    """What the next order changes of an inner Gaussian.

    Attributes:
        move: of the mean [i].
        stretch: factors of the sds [i].
    """

    move: Tensor
    stretch: Tensor

    @staticmethod
    def none(mean: Tensor) -> "OneLoop":
        """No change of a Gaussian with some mean [i]."""
        return OneLoop(torch.zeros_like(mean), torch.ones_like(mean))

    @property
    def changes(self) -> bool:
        """Whether it is another Gaussian."""
        return bool((self.move != 0).any() or (self.stretch != 1).any())


def one_loop(of: Conditional, solved: InnerSolved, row: int) -> OneLoop:
    """The step from the first-order mean to the effective action's minimum, unless it is long, and the ratio of sds.

    Args:
        of: the conditional density.
        solved: the inner approximations.
        row: which of them.

    Returns:
        the changes; none of many coordinates, or where the effective action has no curvature of a minimum. A long step
        is not taken, being to where the series does not hold, and the sds are then those at the mean.
    """
    mean = solved.mean(row)
    size, nothing = len(mean), OneLoop.none(mean)
    if not 0 < size <= settings.one_loop_coordinates:
        return nothing
    sd = solved.block(row).variance().to(mean).sqrt()
    step = settings.one_loop_step * sd
    x = mean + torch.cat([torch.diag(step), -torch.diag(step), torch.zeros_like(mean).unsqueeze(0)])
    h = solved.h[row].expand(len(x), -1)
    at = expanded(of, x, h)
    roots, indefinite = torch.linalg.cholesky_ex(at.hessian.nan_to_num(nan=0.0))
    if bool(indefinite.any()):
        return nothing
    log_det_x = slopes_of(of, x, h, torch.eye(size).to(x), torch.cholesky_inverse(roots)).log_det_x
    more = (log_det_x[:size] - log_det_x[size:-1]) / (4 * step.unsqueeze(-1))
    root, indefinite = torch.linalg.cholesky_ex(at.hessian[-1] + (more + more.mT) / 2)
    if bool(indefinite):
        return nothing
    gradient = at.gradient[-1] + 0.5 * log_det_x[-1]
    move = -torch.cholesky_solve(gradient.unsqueeze(-1), root)[:, 0]
    small = float((move / sd).abs().max()) <= settings.shift_most
    stretch = (torch.cholesky_inverse(root).diagonal().sqrt() / sd).nan_to_num(nan=1.0)
    return OneLoop(move if small else nothing.move, stretch.clamp(1 / settings.one_loop_most, settings.one_loop_most))
