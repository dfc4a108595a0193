"""Empirical Fisher: sum_n g_n g_n', with g_n the gradient of datum n's log likelihood at its own label.

One row a datum, whatever its number of outputs. It is not the Fisher information: it takes the labels that were seen
for draws from the program, and vanishes where they are fitted exactly (Kunstner et al. 2019, "Limitations of the
empirical Fisher approximation"). A datum is an element of the observed site's batch shape.
"""

import torch
from torch import Tensor

from pyro_laplace._typing import Theta
from pyro_laplace.curvature.root import Root, SiteRoot, link_of
from pyro_laplace.likelihood import likelihood_of
from pyro_laplace.program import Chunk, Program, Site, datum_weight


def root(program: Program, theta: Theta, chunk: Chunk) -> Root:
    """The root of every observed site, one row a datum."""
    observed = program.run(theta, chunk).observed
    sites = {
        name: score_root(site, chunk, site.value.unsqueeze(0))
        for name, site in observed.items()
        if name not in program.derived
    }
    return Root(program, chunk, sites)


def score_root(site: Site, chunk: Chunk, labels: Tensor) -> SiteRoot:
    """The root of ``w_n / L sum_l g_nl g_nl'``, with g_nl the gradient of datum n's log likelihood at label l.

    Through the scores in eta where the distribution's link is known, so that a program whose eta is linear has a linear
    root; else the log likelihoods themselves are the outputs.

    Args:
        site: an observed site at the mode.
        chunk: the data it was run on.
        labels: L values for the site, `[labels, *batch, *event]`.

    Returns:
        the root, one column a label.
    """
    root_weight = (datum_weight(site, chunk) / len(labels)).sqrt()  # *batch
    likelihood = likelihood_of(site.fn)
    if likelihood is None:
        vectors = root_weight.unsqueeze(-1).expand(*root_weight.shape, len(labels)).diag_embed()
        return SiteRoot(lambda site: site.fn.log_prob(labels).movedim(0, -1), vectors)
    eta = likelihood.link().detach().double()
    eta = eta.expand(len(labels), *eta.shape).clone().requires_grad_()
    with torch.enable_grad():
        log_lik = likelihood.distribution(eta).log_prob(labels).sum()
    (scores,) = torch.autograd.grad(log_lik, eta)  # label, *batch, *joint, outputs
    root_weight = root_weight.reshape(root_weight.shape + (1,) * (likelihood.event_dims + 2))
    return SiteRoot(link_of, scores.movedim(0, -1) * root_weight, joint=likelihood.event_dims)
