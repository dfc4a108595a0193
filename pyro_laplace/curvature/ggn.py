"""Generalised Gauss-Newton: sum_n J_n' I_n J_n, with I_n = S_n S_n' the Fisher information of the data's distribution.

Its root is the Jacobian of ``S_n' eta_n(theta)`` with S_n held at the mode (Martens 2020, "New insights and
perspectives on the natural gradient method"). For canonical links it equals the Hessian of the negative log likelihood.

Where a datum has many positions (pixels, tokens), each with columns of its own, labels drawn at all of them together
have the same expectation: scores of different positions are independent, and of mean zero. `SiteRoot.drawn` is that
root.

Where no family is registered, I_n is the sum of ``p(y) g g'`` over the values y of a small support, or else its mean
over labels drawn from the likelihood, the same at every call on the same data; g is the score of one value. Where
nothing can be drawn, the site is left to the exact Hessian of its log density.
"""

import math

from torch import Tensor

from pyro_laplace.curvature.labels import draw_labels
from pyro_laplace.curvature.root import FIRST, Draw, Information, Root, SiteRoot, link_of, of_data
from pyro_laplace.curvature.scores import score_root
from pyro_laplace.likelihood import Likelihood, can_be_drawn, check_informative, likelihood_of
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program, datum_weight
from pyro_laplace.program.run import Run, Site
from pyro_laplace.settings import settings


def root(program: Program, run: Run, chunk: Chunk, draw: Draw = FIRST) -> Root:
    """The root of the observed sites that are data and have a Fisher information."""
    roots = {name: _root_of(site, chunk, draw) for name, site in run.observed.items() if name not in program.derived}
    return Root(program, chunk, {name: site_root for name, site_root in roots.items() if site_root is not None})


def _root_of(site: Site, chunk: Chunk, draw: Draw) -> SiteRoot | None:
    """A site's root; None where its Fisher information is not known and it cannot be drawn from."""
    site = of_data(site)
    likelihood = likelihood_of(site.fn)
    if likelihood is not None:
        return _exact(likelihood, site, chunk, draw)
    check_informative(site.name, site.fn)
    support = _support(site)
    if support is not None:
        return score_root(site, chunk, support, site.fn.log_prob(support).double().exp())
    try:
        labels = draw_labels(site, _count(site, chunk), draw)
        site.fn.log_prob(labels)
    except (NotImplementedError, AssertionError):  # it has no draws, or no density of many at once
        return None
    return score_root(site, chunk, labels)


def _exact(likelihood: Likelihood, site: Site, chunk: Chunk, draw: Draw) -> SiteRoot:
    eta = likelihood.link().detach().double()
    weight = likelihood.weight(datum_weight(site, chunk).to(eta.device), site.value)

    def drawn() -> SiteRoot:
        return score_root(site, chunk, draw_labels(site, settings.position_labels, draw))

    several = likelihood.event.numel() > 1 and can_be_drawn(site.fn)
    information = Information(likelihood, eta, weight.expand(eta.shape[:-1]))
    return SiteRoot(link_of, information, drawn=drawn if several else None)


def _support(site: Site) -> Tensor | None:
    """All values of a distribution `[values, *batch, *event]`, where it can say them and they are few."""
    if not site.fn.has_enumerate_support:
        return None
    try:
        values = site.fn.enumerate_support(expand=True)
    except NotImplementedError:  # a number of values of each datum's own
        return None
    return values if len(values) <= settings.support_values else None


def _count(site: Site, chunk: Chunk) -> int:
    """Labels for each datum: as many as for the user's own batch, however it was divided or joined."""
    batch = site.fn.batch_shape
    entries = math.prod(batch[1:]) * (chunk.rows or batch[0]) if batch else 1
    return max(settings.fisher_labels, settings.fisher_draws // max(1, entries))
