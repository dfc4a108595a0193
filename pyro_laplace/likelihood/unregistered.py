"""Pyro's distributions without a closed form: which get a Monte Carlo Fisher information, and which none.

What the package does follows from the distribution itself (can it be drawn from, is its support small); these lists say
what that comes to for each of Pyro's, and why. Read
when a curvature is measured: what is refused, and what is not to be drawn.
"""

from typing import Any

import pyro.distributions as dist
import torch

from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.likelihood.wrappers import seen_through

MONTE_CARLO: dict[type, str] = {
    **dict.fromkeys(
        (dist.MixtureSameFamily, dist.MaskedMixture, dist.MixtureOfDiagNormals,
         dist.MixtureOfDiagNormalsSharedCovariance),
        "the information of a mixture is an integral over its components' overlap",
    ),
    **dict.fromkeys(
        (dist.AffineBeta, dist.FoldedDistribution, dist.Kumaraswamy, dist.FisherSnedecor, dist.SkewLogistic,
         dist.AsymmetricLaplace, dist.SoftAsymmetricLaplace, dist.StableWithLogProb, dist.TruncatedPolyaGamma),
        "no formula is implemented",
    ),
    **dict.fromkeys(
        (dist.RelaxedBernoulli, dist.RelaxedBernoulliStraightThrough, dist.RelaxedOneHotCategorical,
         dist.RelaxedOneHotCategoricalStraightThrough),
        "the temperature and the probabilities have no closed form together",
    ),
    **dict.fromkeys(
        (dist.SineSkewed, dist.ProjectedNormal),
        "the normalising constant on the torus or sphere has no closed-form information",
    ),
    **dict.fromkeys(
        (dist.MultivariateStudentT, dist.Wishart, dist.LKJ, dist.LKJCholesky, dist.LKJCorrCholesky),
        "no formula is implemented for a matrix of parameters",
    ),
    dist.NanMaskedMultivariateNormal: "every pattern of missing entries has an information of its own",
    dist.DirichletMultinomial: "the information of a compound is a sum over its support",
    **dict.fromkeys(
        (dist.GaussianHMM, dist.IndependentHMM),
        "the latent states are integrated out",
    ),
    dist.Rejector: "its density is the user's functions",
    dist.TransformedDistribution: "a transform with parameters (a flow) has none in general",
    dist.CoalescentTimes: "no formula is implemented",
    **dict.fromkeys(
        (dist.SpanningTree, dist.OneOneMatching, dist.OneTwoMatching),
        "the information is a sum over the support, which is enumerated where it is small",
    ),
}  # fmt: skip
"""Score vectors at labels that are drawn, or at every label where there are few."""

EXACT_HESSIAN: dict[type, str] = {
    **dict.fromkeys(
        (dist.GammaGaussianHMM, dist.GaussianMRF, dist.CoalescentTimesWithRate, dist.VonMises3D, dist.ImproperUniform,
         dist.GroupedNormalNormal, dist.LogNormalNegativeBinomial),
        "it cannot be sampled",
    ),
    dist.DiscreteHMM: "its density is differentiated by autograd alone, not by torch.func",
    dist.GaussianScaleMixture: "its density takes no batch of values",
    dist.SineBivariateVonMises: "several draws at once, as Pyro 1.9 makes them, do not have its density",
}  # fmt: skip
"""No labels can be drawn, or their densities taken: 'ggn' measures the exact Hessian of the log density."""

_SUPPORT = (
    "the support depends on the parameters, so that it has no Fisher information; curvature='hessian' takes it where "
    "the bounds are constants"
)

REFUSED: dict[type, str] = {
    dist.Delta: "a point mass says nothing but that y equals a value; give the site a density, or use pyro.factor",
    dist.Empirical: "its atoms are data, not parameters; use pyro.factor",
    dist.Uniform: _SUPPORT,
    dist.Pareto: f"{_SUPPORT}, and log(y / scale) is Exponential(alpha)",
    torch.distributions.GeneralizedPareto: _SUPPORT,
    dist.Stable: "it has no density in Pyro; use StableWithLogProb",
    dist.LinearHMM: "it has no density in Pyro; use poutine.reparam with LinearHMMReparam",
    dist.Unit: "it is a log density and no distribution of data; write it as pyro.factor",
}
"""Curvatures that need a Fisher information raise, with this reason."""

ABSTRACT = (dist.Distribution, dist.TorchDistribution, dist.ExponentialFamily)
"""Base classes, of which no site can be."""


def can_be_drawn(fn: Any) -> bool:
    """Whether labels may be drawn: not where Pyro is known not to draw them, or not rightly."""
    return not isinstance(seen_through(fn)[0], tuple(EXACT_HESSIAN))


def check_informative(name: str, fn: Any) -> None:
    """Refuse an observed site's distribution that has no Fisher information.

    Args:
        name: of the site.
        fn: its distribution.

    Raises:
        UnsupportedProgram: with the reason and what to write instead.
    """
    base, _ = seen_through(fn)
    for kind in type(base).__mro__:
        if kind in MONTE_CARLO:
            return
        if kind in REFUSED:
            raise UnsupportedProgram(
                f"observed site {name!r} has a {type(base).__name__} distribution, which has no Fisher information: "
                f"{REFUSED[kind]}"
            )
