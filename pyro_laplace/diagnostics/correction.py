"""Draws around a posterior with tails heavier than its own, weighed with the program, their moments matched."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace.capture.loop import Loop
from pyro_laplace.diagnostics.weights import Weights
from pyro_laplace.draws.density import log_joint_at
from pyro_laplace.proposals.blend import Blend, Parts
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Corrected:
    """Draws with weights that make them the posterior's, as far as these can be trusted.

    Attributes:
        theta: the draws [draws, params].
        weights: of these.
    """

    theta: Tensor
    weights: Weights


def correct(loop: Loop, gaussians: Parts, count: int, moment_matching: bool | str, progress: bool = False) -> Corrected:
    """Draw around a posterior with heavier tails, and weigh the draws.

    Args:
        loop: the program and its data.
        gaussians: what the posterior is made of, with their shares.
        count: number of draws; moment matching takes twice as many more.
        moment_matching: True, False, or "auto".
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        the draws.
    """
    what = "importance sampling" if progress else None

    def weighed(theta: Tensor, log_q: Tensor) -> Corrected:
        return Corrected(theta, Weights.of(log_joint_at(loop, theta, what) - log_q))

    fitted = Blend([(share, each.heavy()) for share, each in gaussians])
    plain = Blend(gaussians).joined(fitted, 0.5)
    theta = plain.draw(count)
    terms = plain.log_terms(theta)
    first = found = weighed(theta, terms.logsumexp(0))
    if moment_matching is False or (moment_matching == "auto" and first.weights.is_efficient):
        return first
    terms, share = terms[len(gaussians) :], settings.matched_share
    for size in [max(1, count // settings.match_rounds)] * settings.match_rounds + [count]:
        fitted = fitted.matched(found.theta, found.weights.tempered(settings.matched_ess), terms)
        theta = plain.joined(fitted, share).draw(size)
        terms = fitted.log_terms(theta)
        log_q = torch.logaddexp(math.log(1 - share) + plain.log_prob(theta), math.log(share) + terms.logsumexp(0))
        found = weighed(theta, log_q)
    return found if found.weights.better_than(first.weights) else first
