"""Roots made of scores: gradients of the log likelihood at given labels, one column a label.

The empirical Fisher takes the data's own label, the Monte Carlo Fisher labels that are drawn, and the Fisher
information of a distribution without a closed form either of a small support's values or of drawn ones.
"""

import torch
from torch import Tensor

from pyro_laplace.curvature.root import SiteRoot, link_of
from pyro_laplace.likelihood import Likelihood, likelihood_of
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import datum_weight
from pyro_laplace.program.run import Site


def score_root(site: Site, chunk: Chunk, labels: Tensor, probs: Tensor | None = None) -> SiteRoot:
    """The root of ``w_n sum_l q_nl g_nl g_nl'``, with g_nl the gradient of datum n's log likelihood at label l.

    Through the scores in eta where the distribution's link is known, so that a program whose eta is linear has a linear
    root; else the log likelihoods themselves are the outputs.

    Args:
        site: an observed site at the mode.
        chunk: the data it was run on.
        labels: L values for the site, `[labels, *batch, *event]`.
        probs: q `[labels, *batch]`, what each label weighs; None means 1 / L.

    Returns:
        the root, one column a label.
    """
    weight = datum_weight(site, chunk)  # *batch
    per_label = (weight.expand(len(labels), *weight.shape) / len(labels) if probs is None else weight * probs).sqrt()
    likelihood = likelihood_of(site.fn)
    if likelihood is None:
        return _log_lik_root(labels, per_label)
    scores = _scores(likelihood, labels)
    per_label = per_label.reshape(per_label.shape + (1,) * (likelihood.event_dims + 1))
    of_entries = likelihood.weight(weight, site.value).expand(likelihood.shape)
    return SiteRoot(
        link_of, (scores * per_label).movedim(0, -1), joint=likelihood.event_dims, weight=of_entries.to(scores)
    )


def _log_lik_root(labels: Tensor, root_weight: Tensor) -> SiteRoot:
    """The log likelihoods of the labels as outputs, each with its weight `[labels, *batch]`.

    Returns:
        the root. Of many data, a label is one more axis of the batch; of a single datum, which has none, an output.
    """
    if root_weight.dim() == 1:
        return SiteRoot(lambda site: site.fn.log_prob(labels), root_weight.diag())
    vectors = root_weight.movedim(0, -1)[..., None, None]
    return SiteRoot(lambda site: site.fn.log_prob(labels).movedim(0, -1).unsqueeze(-1), vectors)


def _scores(likelihood: Likelihood, labels: Tensor) -> Tensor:
    """Gradients of the labels' log likelihoods in eta `[labels, *batch, *joint, outputs]`."""
    eta = likelihood.link().detach().double()
    eta = eta.expand(len(labels), *eta.shape).clone().requires_grad_()
    with torch.enable_grad():
        log_lik = likelihood.distribution(eta).log_prob(labels).sum()
    return torch.autograd.grad(log_lik, eta)[0]
