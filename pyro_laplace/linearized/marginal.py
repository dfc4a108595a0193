"""Draws of the linear predictor, of each datum from its own Gaussian: no theta is drawn where no joint is asked for.

Axis letters: m data, k outputs of a datum, s draws.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_laplace.likelihood.special import compressed_root, symmetric_root
from pyro_laplace.settings import settings


def triangular(covariance: Tensor, certain: Tensor) -> Tensor:
    """The lower triangular root L of covariances ``L L'``, which may be singular.

    It is Cholesky's, of the correlations, so that outputs may differ in their units; of what is singular its limit, by
    eigenvalues. Rows of outputs without variance are zero.

    Args:
        covariance: `[*batch, k, k]`, positive semi-definite up to rounding.
        certain: outputs that do not vary whatever their variance, bool `[*batch, k]`: classes that there are not.

    Returns:
        L, its diagonal not negative; NaN of a covariance that is not finite.
    """
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    fixed = certain | (variance <= 0)
    scale = torch.where(fixed, 1.0, variance).sqrt()
    correlation = covariance / scale.unsqueeze(-1) / scale.unsqueeze(-2)
    eye = torch.eye(covariance.shape[-1]).to(covariance)
    correlation = torch.where(fixed.unsqueeze(-1) | fixed.unsqueeze(-2), eye, correlation)
    root, info = torch.linalg.cholesky_ex(correlation)
    if bool(info.any()):
        finite = correlation.isfinite().flatten(-2).all(-1)
        singular = (info > 0) & finite
        root[singular] = _limit(correlation[singular])
        root[~finite] = torch.nan
    return torch.where(fixed, 0.0, scale).unsqueeze(-1) * root


def is_regular(covariance: Tensor, certain: Tensor) -> bool:
    """Whether the roots of covariances have derivatives that mean something: no direction is all but without variance.

    Args:
        covariance: `[m, k, k]`, of some data.
        certain: as in `triangular`.

    Returns:
        whether each pivot says more than rounding, beside the output's largest variance at any datum.
    """
    with torch.no_grad():
        pivots = triangular(covariance, certain).diagonal(dim1=-2, dim2=-1).square()
        largest = covariance.diagonal(dim1=-2, dim2=-1).amax(0)
        return bool((certain | (pivots > torch.finfo(pivots.dtype).eps ** 0.5 * largest)).all())


def _limit(singular: Tensor) -> Tensor:
    """Cholesky's root of what it does not factorise."""
    root = compressed_root(symmetric_root(singular))
    return root * torch.where(root.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)


def chunks_of_draws(root: Tensor, num_samples: int) -> Iterator[Tensor]:
    """Draws of independent Gaussians, of which one seed gives the same in chunks of any size.

    Args:
        root: of the covariances [m, k, k].
        num_samples: how many draws.

    Yields:
        some of the draws after the others [s, m, k].
    """
    size, outputs = root[..., 0].numel(), root.shape[-1]
    # torch draws by sixteen on a CPU: where chunks have so many numbers, the last no fewer, their cuts change nothing
    whole = 16 // math.gcd(16, size)
    step = whole * max(1, settings.draw_elements // (whole * size))
    while num_samples:
        count = step if (num_samples - step) * size >= 16 else num_samples
        white = torch.randn(count, *root.shape[:2], dtype=root.dtype, device=root.device)
        yield white * root[..., 0] if outputs == 1 else (root @ white.movedim(0, -1)).movedim(-1, 0)
        num_samples -= count
