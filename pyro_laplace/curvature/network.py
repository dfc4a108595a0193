"""Whether a program is a network, whose curvature is Gauss-Newton's: that of the program linear in its weights."""

from collections.abc import Collection

import torch
from torch import Tensor

from pyro_laplace._autodiff import hessian, puller
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._typing import Theta
from pyro_laplace.likelihood import likelihood_of
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.settings import settings


def is_network(program: Program, theta: Theta, chunk: Chunk, among: Collection[str] | None = None) -> bool:
    """Whether a predictor of the data has a mixed second derivative between two sites that are no single numbers.

    A product of two such sites is what makes a layer upon a layer; a scale times a vector, or a kernel's length, is
    not. Measured in the units in which each coordinate moves the predictors by one, at random weights of these.

    Args:
        program: the traced program, of few coordinates.
        theta: the point.
        chunk: some data.
        among: the sites that count, the others held; None means all.

    Returns:
        whether it is one.
    """
    chosen = (latent for name, latent in program.latents.items() if among is None or name in among)
    sites = [latent.slice for latent in chosen if latent.size > 1]
    if len(sites) < 2:
        return False

    def predictors(at: Theta) -> Tensor:
        run = program.run(at, chunk)
        known = [likelihood_of(site.fn) for name, site in run.observed.items() if name not in program.derived]
        eta = [each.link().flatten() for each in known if each is not None]
        return torch.cat(eta) if eta else at.new_zeros(1)

    with undisturbed(), torch.no_grad():
        try:
            value, pull = puller(predictors, theta)
        except RuntimeError:  # what torch.func cannot run (a packed recurrence) has no Hessian by it either
            return True
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(settings.network_probes, len(value), generator=generator, dtype=torch.float64).to(value)
        weights /= len(value) ** 0.5
        size = torch.stack([pull(row) for row in weights]).square().mean(0).sqrt()
        size = size.clamp(min=settings.network_unmoved * float(size.max()))
        mixed = hessian(lambda at: weights[0] @ predictors(at), theta).abs() / size / size.unsqueeze(-1)
    pairs = [mixed[one, other] for k, one in enumerate(sites) for other in sites[:k]]
    return any(bool((pair > settings.network_mixed).any()) for pair in pairs)
