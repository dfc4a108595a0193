"""Generalised Gauss-Newton: sum_n J_n' I_n J_n, with I_n = S_n S_n' the Fisher information of the data's distribution.

Its root is the Jacobian of ``S_n' eta_n(theta)`` with S_n held at the mode (Martens 2020, "New insights and
perspectives on the natural gradient method"). For canonical links it equals the Hessian of the negative log likelihood.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_laplace._typing import Theta
from pyro_laplace.likelihood import likelihood_of, require_likelihood
from pyro_laplace.program import Chunk, Program, Run, datum_weight


def root(program: Program, theta: Theta, chunk: Chunk) -> Callable[[Tensor], Tensor]:
    """The function of theta whose Jacobian [rows, params] is the root A of the GGN, A'A; in float64."""
    roots = fisher_roots(program, program.run(theta, chunk), chunk)

    def whitened(theta: Tensor) -> Tensor:
        observed = program.run(theta, chunk).observed
        parts = [torch.zeros(0, dtype=torch.float64, device=theta.device)]
        for name, fisher_root in roots.items():
            eta = require_likelihood(name, observed[name].fn).link().double()
            parts.append(torch.einsum("...ok,...o->...k", fisher_root, eta).flatten())  # S'eta
        return torch.cat(parts)

    return whitened


def fisher_roots(program: Program, run: Run, chunk: Chunk) -> dict[str, Tensor]:
    """Observed site to its weighted root sqrt(w_n) S_n `[*base batch, outputs, columns]`, in float64."""
    roots = {}
    for name, site in run.observed.items():
        likelihood = likelihood_of(site.fn)
        if likelihood is not None and name not in program.derived:
            fisher_root = likelihood.family.fisher_root(likelihood.link().detach().double())
            weight = likelihood.weight(datum_weight(site, chunk).to(fisher_root.device))
            roots[name] = fisher_root * weight.sqrt()[..., None, None]
    return roots


def covers(program: Program, theta: Theta, chunk: Chunk) -> frozenset[str]:
    """The observed sites whose Fisher information has a closed form, and which are data."""
    return frozenset(fisher_roots(program, program.run(theta, chunk), chunk))
