"""The Laplace evidence."""

import math

from pyro_laplace._typing import Theta
from pyro_laplace.data import Data
from pyro_laplace.precision import Precision
from pyro_laplace.program import Program, sum_log_lik


def log_evidence(program: Program, theta: Theta, random: tuple[str, ...], precision: Precision, data: Data) -> float:
    """Laplace's ``log p(y) = log p(y | theta*) + log p(theta*) + P/2 log 2 pi - 1/2 log det Lambda``.

    Exact for linear-Gaussian programs. Sites outside the subset are held: it is then the evidence given their values,
    and their own prior does not enter. The prior is that of theta, log-Jacobian included, whatever mode was chosen.
    With an improper prior it is known up to a constant.

    Args:
        program: the traced program.
        theta: the mode.
        random: the random sites.
        precision: Lambda over them.
        data: the data, visited once.

    Returns:
        the log evidence in nats.
    """
    total = 0.0
    for i, chunk in enumerate(program.chunks(data)):
        run = program.run(theta, chunk)
        total += float(sum_log_lik(run, chunk))
        if i == 0:
            held = random != tuple(program.latents)
            total += float(program.log_prior_of(run, theta, sites=frozenset(random) if held else None))
    return total + 0.5 * precision.size * math.log(2 * math.pi) - 0.5 * float(precision.log_det())
