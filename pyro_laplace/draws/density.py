"""The log joint of a program at many theta."""

import math
from collections.abc import Callable

import pyro
import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace.capture.loop import Loop
from pyro_laplace.draws.vectorize import Widest, over_rows, row_by_row
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.settings import settings


def log_joint_at(
    loop: Loop, theta: Tensor, what: str | None = None, on_loop: Callable[[str], None] | None = None
) -> Tensor:
    """Log p(y, theta) of the density of theta, its log-Jacobian included, in nats and float64.

    Args:
        loop: the program and its data.
        theta: draws of all latent sites, unconstrained [draws, params].
        what: what a progress bar says; None for no bar.
        on_loop: told why, where the program cannot be run on many draws at once.

    Returns:
        the log joint [draws]; minus infinity where the program cannot be evaluated (a covariance without a Cholesky
        factor).
    """
    total = torch.zeros(len(theta), dtype=torch.float64, device=theta.device)
    for number, chunk in enumerate(loop.chunks(what or "log joint", what is not None)):
        total = total + _of_chunk(loop, theta, chunk, number == 0, what, on_loop)
    return total


def elements_of_one(loop: Loop) -> int:
    """How many numbers one evaluation of the log joint makes in all its steps, which is what it costs."""
    with undisturbed(), torch.no_grad(), Widest() as widest:
        for number, chunk in enumerate(loop.chunks()):
            loop.program.log_joint(loop.program.start, chunk, prior=float(number == 0))
    return widest.total


def _of_chunk(
    loop: Loop, theta: Tensor, chunk: Chunk, first: bool, what: str | None, on_loop: Callable[[str], None] | None
) -> Tensor:
    def at(row: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"log_joint": loop.program.log_joint(row["theta"], chunk, prior=float(first))}

    def at_or_never(row: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            return at(row)
        except (LinAlgError, ValueError):
            return {"log_joint": torch.full((), -math.inf, dtype=torch.float64, device=theta.device)}

    rows = {"theta": theta}
    with undisturbed(rng=False), torch.no_grad(), pyro.validation_enabled(False):
        with Widest() as widest:
            at({"theta": loop.program.start})
        step = max(1, settings.density_elements // (8 * widest.elements))
        try:
            return over_rows(at, rows, len(theta), step, on_loop, what)["log_joint"]
        except (LinAlgError, ValueError):  # of one draw, which is not to spoil the others
            return row_by_row(at_or_never, rows, len(theta), what)["log_joint"]
