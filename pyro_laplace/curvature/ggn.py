"""Generalised Gauss-Newton: sum_n J_n' I_n J_n, with I_n = S_n S_n' the Fisher information of the data's distribution.

Its root is the Jacobian of ``S_n' eta_n(theta)`` with S_n held at the mode (Martens 2020, "New insights and
perspectives on the natural gradient method"). For canonical links it equals the Hessian of the negative log likelihood.

Where no family is registered, I_n is the sum of ``p(y) g g'`` over the values y of a small support, or else its mean
over labels drawn from the likelihood; g is the score of one value. Where nothing can be drawn, the site is left to the
exact Hessian of its log density.
"""

import math
import zlib

import pyro
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace.curvature.empirical_fisher import score_root
from pyro_laplace.curvature.mc_fisher import draw_labels
from pyro_laplace.curvature.root import Information, Root, SiteRoot, link_of
from pyro_laplace.likelihood import Likelihood, check_informative, likelihood_of
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program, datum_weight
from pyro_laplace.program.run import Run, Site

LABELS = 100
"""Least number of labels drawn for each datum."""

DRAWS = 2_000
"""Least number of labels drawn for a site: the sum of its scores' outer products is then off by 3% or so."""

SUPPORT = 200
"""Values up to which a support is enumerated."""


def root(program: Program, run: Run, chunk: Chunk) -> Root:
    """The root of the observed sites that are data and have a Fisher information."""
    roots = {name: _root_of(site, chunk) for name, site in run.observed.items() if name not in program.derived}
    return Root(program, chunk, {name: site_root for name, site_root in roots.items() if site_root is not None})


def _root_of(site: Site, chunk: Chunk) -> SiteRoot | None:
    """A site's root; None where its Fisher information is not known and it cannot be drawn from."""
    likelihood = likelihood_of(site.fn)
    if likelihood is not None:
        return _exact(likelihood, site, chunk)
    check_informative(site.name, site.fn)
    support = _support(site)
    if support is not None:
        return score_root(site, chunk, support, site.fn.log_prob(support).double().exp())
    try:
        labels = _drawn(site)
        site.fn.log_prob(labels)
    except (NotImplementedError, AssertionError):  # it has no draws, or no density of many at once
        return None
    return score_root(site, chunk, labels)


def _exact(likelihood: Likelihood, site: Site, chunk: Chunk) -> SiteRoot:
    eta = likelihood.link().detach().double()
    weight = likelihood.weight(datum_weight(site, chunk).to(eta.device), site.value)
    return SiteRoot(link_of, Information(likelihood, eta, weight.expand(eta.shape[:-1])))


def _support(site: Site) -> Tensor | None:
    """All values of a distribution `[values, *batch, *event]`, where it can say them and they are few."""
    if not site.fn.has_enumerate_support:
        return None
    try:
        values = site.fn.enumerate_support(expand=True)
    except NotImplementedError:  # a number of values of each datum's own
        return None
    return values if len(values) <= SUPPORT else None


def _drawn(site: Site) -> Tensor:
    """Labels that are the same on every pass over the same data, so that a search has one objective.

    Their seed is a hash of the data: another chunk draws independently, and the global generator stays where it is.

    Returns:
        `[labels, *batch, *event]`.
    """
    data = site.value.detach().cpu().contiguous()
    count = max(LABELS, DRAWS // max(1, math.prod(site.fn.batch_shape)))
    with undisturbed():
        pyro.set_rng_seed(zlib.crc32(data.numpy().tobytes()))
        return draw_labels(site, count)
