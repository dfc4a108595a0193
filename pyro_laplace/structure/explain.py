"""What to say of a point without a maximum: which sites are to blame, and what to do."""

import torch
from torch import Tensor

from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.settings import settings

_COLLAPSE = (
    "A scale that collapses to zero at the joint mode wants the non-centred form: x = loc + scale * z with z ~ "
    "Normal(0, 1)"
)

_NOT_FINITE = (
    "the curvature of the log joint is not finite at this point, or has no usable scale. A zero scale, a probability "
    "of 0 or 1, or an operation whose second derivative is undefined at the mode are usual causes. "
)


def explain(matrix: Matrix, anchor: Anchor) -> str:
    """Which sites form the direction in which the log density has no maximum, and what to do."""
    scale = matrix.diagonal().abs().clamp(min=torch.finfo(matrix.dtype).tiny).sqrt()
    try:
        values, vectors = torch.linalg.eigh(matrix / scale / scale.unsqueeze(-1))
    except LinAlgError:
        return _NOT_FINITE + _COLLAPSE
    return advise(vectors[:, 0].square(), float(values[0]), anchor)


def explain_diagonal(prec: Theta, anchor: Anchor) -> str:
    """The same of independent coordinates with precisions [params]."""
    if not bool(prec.isfinite().all()):
        return _NOT_FINITE + _COLLAPSE
    to_blame = (prec <= 0).double()
    return advise(to_blame / to_blame.sum(), float(prec.min().sign()), anchor)


def advise(shares: Tensor, value: float, anchor: Anchor) -> str:
    """The sites that have the largest shares [params] of a direction without a maximum, and what to do."""
    index = anchor.index.to(shares.device)
    share = {
        name: float(shares[(index >= latent.slice.start) & (index < latent.slice.stop)].sum())
        for name, latent in anchor.latents.items()
    }
    sites = [name for name, s in sorted(share.items(), key=lambda item: -item[1]) if s > settings.blamed_share]
    exact = "the exact Hessian may be indefinite there: try curvature='ggn'. " if anchor.curvature == "hessian" else ""
    return (
        f"the log joint has no strict maximum along a direction of sites {sites} (scaled curvature "
        f"{value:.3g}). If the data do not determine them, give them a proper prior; if the point is not a "
        f"mode, train longer or use polish=True. {exact}{_COLLAPSE}"
    )
