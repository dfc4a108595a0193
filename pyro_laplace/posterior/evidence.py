"""The Laplace evidence."""

import math

from pyro_laplace.structure.precision import Precision


def laplace_evidence(log_lik: float, log_prior: float, precision: Precision) -> float:
    """Laplace's ``log p(y) = log p(y | theta*) + log p(theta*) + P/2 log 2 pi - 1/2 log det Lambda``.

    Exact for linear-Gaussian programs. Sites outside the subset are held: it is then the evidence given their values,
    and their own prior does not enter. With an improper prior it is known up to a constant.

    Args:
        log_lik: log p(y | theta*) of all data, in nats.
        log_prior: log p(theta*) of the random sites, log-Jacobian included, whatever mode was chosen.
        precision: Lambda over them.

    Returns:
        the log evidence in nats.
    """
    return log_lik + log_prior + 0.5 * precision.size * math.log(2 * math.pi) - 0.5 * float(precision.log_det())
