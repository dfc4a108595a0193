"""The exact negative Hessian of the log likelihood: all of it, or the terms that no other curvature covers."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program, log_lik_of


def negative_log_lik(program: Program, chunk: Chunk, terms: frozenset[str]) -> Callable[[Tensor], Tensor]:
    """The function of theta whose Hessian is wanted: minus the log likelihood of some terms, in float64."""

    def negative(theta: Tensor) -> Tensor:
        log_lik = log_lik_of(program.run(theta, chunk), chunk)
        return -torch.stack([log_lik[name].double().sum() for name in sorted(terms)]).sum()

    return negative
