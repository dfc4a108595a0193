"""The Normal: eta = (loc, log scale), and y is Normal too where loc is Gaussian."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.transforms import ReshapeTransform

from pyro_laplace.likelihood.gaussian import GaussianEta
from pyro_laplace.likelihood.location_scale import LocationScale
from pyro_laplace.likelihood.registry import register


@register(torch.distributions.Normal)
class NormalFamily(LocationScale):
    """I = diag(1 / scale^2, 2).

    Where the log scale is Gaussian too, the noise variance is log-normal, ``E sigma^2 = exp(2 mean + 2 variance)``:
    mean and variance of y are exact, its shape is that of a Normal.
    """

    kind, information = dist.Normal, (1.0, 2.0)
    concave = ("loc",)
    joint_kind: ClassVar[type] = dist.MultivariateNormal

    def standardised(self, fn: Any, value: Tensor) -> Tensor:
        """``(y - loc) / scale``."""
        return (value - fn.loc) / fn.scale

    def predictive(self, eta: GaussianEta, fn: Any, link: str) -> Any:
        """Normal with the variances of predictor and noise added up."""
        variance, noise = _variances(eta.mean, eta.embed(eta.variance()))
        return self.distribution(torch.stack([eta.mean[..., 0], (variance + noise).log() / 2], -1), fn)

    def joint_predictive(self, eta: GaussianEta, fn: Any) -> Any:
        """A multivariate Normal over the entries of a datum; their noise is independent."""
        spread, event = eta.joint(), eta.event
        kept, entries = eta.kept.tolist(), event.numel()
        whole = spread.reshape(*eta.batch, entries, len(kept), entries, len(kept))
        of_loc = whole[..., 0, :, 0]
        if kept[0] != 0:
            of_loc = torch.zeros_like(of_loc)
        marginal = spread.diagonal(dim1=-2, dim2=-1).reshape(*eta.mean.shape[:-1], len(kept))
        _, noise = _variances(eta.mean, eta.embed(marginal))
        flat = (*eta.batch, entries)
        joint = self.joint_kind(eta.mean[..., 0].reshape(flat), of_loc + noise.reshape(flat).diag_embed())
        return joint if len(event) == 1 else ArrayNormal(joint, [ReshapeTransform(joint.event_shape, event)])

    def variances(self, eta: GaussianEta, fn: Any) -> tuple[Tensor, Tensor]:
        """``E sigma^2``, and the variance of loc."""
        variance, noise = _variances(eta.mean, eta.embed(eta.variance()))
        return noise, variance


@register(dist.NanMaskedNormal)
class NanMaskedNormalFamily(NormalFamily):
    """A Normal; an entry that is NaN is missing, and `Likelihood.weight` gives it none."""

    kind, joint_kind = dist.NanMaskedNormal, dist.NanMaskedMultivariateNormal


class ArrayNormal(dist.TransformedDistribution):
    """A multivariate Normal whose draws have several event dims: one that is reshaped."""

    @property
    def mean(self) -> Tensor:
        """Of each entry."""
        return self.base_dist.mean.reshape(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Of each entry."""
        return self.base_dist.variance.reshape(self.batch_shape + self.event_shape)


def _variances(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The variance of loc and the expected noise variance `[*base]`, by mean and variance of eta `[*base, 2]`."""
    return variance[..., 0], (2 * mean[..., 1] + 2 * variance[..., 1]).exp()
