"""What becomes of Gaussian logits behind a link: the mean of their sigmoid or softmax, approximated."""

import math

import torch
from torch import Tensor

LINKS = ("probit", "bridge", "bridge_norm", "sample")
"""How the predictive of classes may be approximated."""


def probit(mean: Tensor, variance: Tensor) -> Tensor:
    """Logits ``f / sqrt(1 + pi/8 v)``, whose sigmoid or softmax approximates the mean of that of N(f, v).

    With one logit it is MacKay's (1992, "The evidence framework applied to classification networks"), with several the
    same for each, correlations left out (Gibbs 1998).

    Args:
        mean: f.
        variance: v, of the same shape.

    Returns:
        the moderated logits.
    """
    return mean / (1 + math.pi / 8 * variance).sqrt()


def laplace_bridge(mean: Tensor, covariance: Tensor, normalised: bool = False) -> Tensor:
    """Class probabilities by the Laplace bridge (Hobbhahn et al. 2022, "Fast predictive uncertainty").

    The Gaussian, conditioned on logits that sum to zero, becomes the Dirichlet of the same mode and curvature in the
    softmax basis: ``alpha_k = (1 - 2/K + exp(f_k) / K^2 sum_l exp(-f_l)) / v_k``.

    Args:
        mean: f `[*batch, K]`.
        covariance: `[*batch, K, K]`.
        normalised: whether f and v are first scaled so that the mean variance is ``sqrt(K / 2)``; the bridge is poor
            for large variances.

    Returns:
        the Dirichlet's mean `[*batch, K]`; the softmax of f where a variance is zero.
    """
    classes = mean.shape[-1]
    rows, total = covariance.sum(-1), covariance.sum((-2, -1)).unsqueeze(-1)
    v = covariance.diagonal(dim1=-2, dim2=-1)
    fixed = total <= torch.finfo(mean.dtype).eps ** 0.75 * v.sum(-1, keepdim=True)  # a sum that is known is moved
    scaled = torch.where(fixed, 0.0, rows / total)
    f = mean - torch.where(fixed, 1 / classes, scaled) * mean.sum(-1, keepdim=True)
    eps = torch.finfo(mean.dtype).eps
    size = covariance.abs().sum((-2, -1)).unsqueeze(-1)
    rounding = torch.where(fixed, 0.0, 8 * classes * eps * size / total) * v
    v = v - scaled * rows
    certain = ~(v > rounding).all(-1, keepdim=True)
    v = torch.where(certain, 1.0, v)
    if normalised:
        scale = v.mean(-1, keepdim=True) / (classes / 2) ** 0.5
        f, v = f / scale.sqrt(), v / scale
    share = f + (-f).logsumexp(-1, keepdim=True) - 2 * math.log(classes)
    log_alpha = torch.logaddexp(f.new_tensor(1 - 2 / classes).log(), share) - v.log()
    return torch.where(certain, mean.softmax(-1), log_alpha.softmax(-1))
