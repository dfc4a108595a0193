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
        the moderated logits; minus infinity where f is, of a class that there is not, whatever its variance.
    """
    there = ~mean.isneginf()
    moderated = torch.where(there, mean, 0.0) / (1 + math.pi / 8 * torch.where(there, variance, 0.0)).sqrt()
    return torch.where(there, moderated, mean)


def laplace_bridge(mean: Tensor, covariance: Tensor, normalised: bool = False) -> Tensor:
    """Class probabilities by the Laplace bridge: the exponential of `log_laplace_bridge`."""
    return log_laplace_bridge(mean, covariance, normalised).exp()


def log_laplace_bridge(mean: Tensor, covariance: Tensor, normalised: bool = False) -> Tensor:
    """Log class probabilities by the Laplace bridge (Hobbhahn et al. 2022, "Fast predictive uncertainty").

    The Gaussian, conditioned on logits that sum to zero, becomes the Dirichlet of the same mode and curvature in the
    softmax basis: ``alpha_k = (1 - 2/K + exp(f_k) / K^2 sum_l exp(-f_l)) / v_k``.

    A class whose logit is minus infinity is none: K and the sums are of the others.

    Args:
        mean: f `[*batch, K]`.
        covariance: `[*batch, K, K]`.
        normalised: whether f and v are first scaled so that the mean variance is ``sqrt(K / 2)``; the bridge is poor
            for large variances.

    Returns:
        the log of the Dirichlet's mean `[*batch, K]`; of the softmax of f where a variance is zero; minus infinity of a
        class that there is not.
    """
    there = ~mean.isneginf()
    classes = there.sum(-1, keepdim=True).to(mean)
    f = torch.where(there, mean, 0.0)
    covariance = torch.where(there.unsqueeze(-1) & there.unsqueeze(-2), covariance, 0.0)
    rows, total = covariance.sum(-1), covariance.sum((-2, -1)).unsqueeze(-1)
    v = covariance.diagonal(dim1=-2, dim2=-1)
    fixed = total <= torch.finfo(mean.dtype).eps ** 0.75 * v.sum(-1, keepdim=True)  # a sum that is known is moved
    total = torch.where(fixed, 1.0, total)
    scaled = torch.where(fixed, 0.0, rows / total)
    f = f - torch.where(fixed, 1 / classes, scaled) * f.sum(-1, keepdim=True)
    eps = torch.finfo(mean.dtype).eps
    size = covariance.abs().sum((-2, -1)).unsqueeze(-1)
    rounding = torch.where(fixed, 0.0, 8 * classes * eps * size / total) * v
    v = v - scaled * rows
    certain = ~((v > rounding) | ~there).all(-1, keepdim=True)
    v = torch.where(certain | ~there, 1.0, v)
    if normalised:
        scale = torch.where(there, v, 0.0).sum(-1, keepdim=True) / classes / (classes / 2) ** 0.5
        f, v = f / scale.sqrt(), v / scale
    share = f + torch.where(there, -f, -torch.inf).logsumexp(-1, keepdim=True) - 2 * classes.log()
    log_alpha = torch.logaddexp((1 - 2 / classes).clamp(min=0.0).log(), share) - v.log()
    return torch.where(certain, mean, torch.where(there, log_alpha, -torch.inf)).log_softmax(-1)
