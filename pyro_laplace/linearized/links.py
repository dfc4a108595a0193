"""What becomes of a Gaussian predictor behind a link: means of sigmoid and softmax, and mixtures of function draws."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution, TorchDistribution
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


class FunctionMixture(TorchDistribution):
    """The equal mixture of a likelihood over draws of its parameters: a predictive distribution of y.

    Args:
        eta: draws of the parameters `[draws, *base batch, outputs]`.
        make: the likelihood of given parameters.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleMethodOverride]
    has_rsample = False

    def __init__(self, eta: Tensor, make: Callable[[Tensor], Any]) -> None:
        self.eta, self._make = eta, make
        self.components = make(eta)
        batch_shape, event_shape = self.components.batch_shape[1:], self.components.event_shape
        super().__init__(batch_shape, event_shape, validate_args=False)

    def __repr__(self) -> str:
        base = self.components
        while isinstance(base, torch.distributions.Independent | MaskedDistribution | ExpandedDistribution):
            base = base.base_dist
        event = f", event_shape={list(self.event_shape)}" if self.event_shape else ""
        kind = type(base).__name__
        return f"FunctionMixture({kind}, batch_shape={list(self.batch_shape)}{event}, draws={len(self.eta)})"

    @property
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The likelihood's."""
        return self.components.support

    @property
    def mean(self) -> Tensor:
        """The mean over draws of the likelihood's mean."""
        return self.components.mean.mean(0)

    @property
    def variance(self) -> Tensor:
        """The mean of the likelihood's variance, and the variance of its mean."""
        return self.components.variance.mean(0) + self.components.mean.var(0, correction=0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of the mean density over draws, `[*batch]`."""
        lead = value.dim() - len(self.batch_shape) - len(self.event_shape)
        log_prob = self.components.log_prob(value.unsqueeze(max(lead, 0)))
        return log_prob.logsumexp(max(lead, 0)) - math.log(len(self.eta))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws `[*sample_shape, *batch, *event]`, each from one draw of the parameters of all data."""
        shape = torch.Size(sample_shape)
        chosen = torch.randint(len(self.eta), (shape.numel(),), device=self.eta.device)
        return self._make(self.eta[chosen]).sample().reshape(shape + self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FunctionMixture":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The same distribution, which has the batch of its data.

        Returns:
            this one.

        Raises:
            NotImplementedError: if the batch is not the same; its base parameters may have event axes of `to_event`.
        """
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        raise NotImplementedError("a FunctionMixture has the batch shape of its data: expand what it is compared with")
