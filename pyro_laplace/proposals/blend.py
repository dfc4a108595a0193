"""Mixtures of elliptical densities of theta, to draw from and to weigh draws by."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from pyro_laplace.proposals.distances import Distances
from pyro_laplace.proposals.ellipses import Ellipse
from pyro_laplace.settings import settings

type Parts = Sequence[tuple[float, Ellipse]]
"""Ellipses, each with its share."""


@dataclass(frozen=True, eq=False)
class Blend:
    """Ellipses with shares: ``q = sum_k s_k q_k``, drawn from in exactly these proportions.

    Veach and Guibas 1995, "Optimally combining sampling techniques": every draw is weighed by the whole mixture,
    whichever part it came from (the balance heuristic).

    Attributes:
        parts: share and ellipse; the shares sum to one.
    """

    parts: Parts

    def draw(self, num_samples: int) -> Tensor:
        """Draws of all of theta [draws, params], one part after the other."""
        bounds = [round(num_samples * share) for share in accumulate((share for share, _ in self.parts), initial=0.0)]
        counts = [stop - start for start, stop in pairwise(bounds)]
        return torch.cat([each.draw(count) for count, (_, each) in zip(counts, self.parts, strict=True)])

    def log_terms(self, theta: Tensor) -> Tensor:
        """``log s_k q_k`` [parts, draws]."""
        places, squares = self._distances
        found = squares.at(theta)
        terms = torch.empty(len(self.parts), len(theta), dtype=torch.float64, device=theta.device)
        for term, place, (share, each) in zip(terms, places, self.parts, strict=True):
            term.copy_(each.log_density_at(found[place])).add_(math.log(share))
            if len(each.index) < len(each.theta):
                term.masked_fill_(~each.holds(theta), -math.inf)
        return terms

    def log_prob(self, theta: Tensor, join: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """Log density of the mixture [draws], or what else is to be made of theta and its `log_terms`."""
        rows, join = max(1, settings.together_elements // len(self.parts)), join or _summed
        return torch.cat([join(some, self.log_terms(some)) for some in theta.split(rows)])

    @cached_property
    def _distances(self) -> tuple[list[int], Distances]:
        """The ellipses' squares, of those that differ in tails alone once, and each part's place among them."""
        own: dict[tuple[int, int], int] = {}
        places = [own.setdefault((id(each.theta), id(each.precision)), len(own)) for _, each in self.parts]
        different = [self.parts[places.index(place)][1] for place in own.values()]
        _, frame = max(self.parts, key=lambda part: part[0])
        return places, Distances.of(different, frame)

    def matched(self, theta: Tensor, weight: Tensor, terms: Tensor) -> "Blend":
        """Each part fitted to its share of weighted draws.

        Cappe et al. 2008, "Adaptive importance sampling in general mixture classes".

        Args:
            theta: draws [draws, params].
            weight: of each, which sum to one [draws].
            terms: `log_terms` of these draws, but for a number that each draw's have in common [parts, draws].

        Returns:
            the mixture; parts without draws are left out.
        """
        own = weight * terms.softmax(0).nan_to_num()
        shares = own.sum(1)
        kept = (shares > settings.least_share).nonzero()[:, 0]
        if not len(kept):
            return self
        ellipses = [self.parts[place][1] for place in kept.tolist()]
        fitted = _fitted_to(ellipses, theta, own[kept] / shares[kept].unsqueeze(-1))
        shares = shares[kept] / shares[kept].sum()
        return Blend(list(zip(shares.tolist(), fitted, strict=True)))

    def joined(self, other: "Blend", share: float) -> "Blend":
        """A mixture of two, with a share of the other."""
        own = [(each_share * (1 - share), each) for each_share, each in self.parts]
        return Blend([*own, *((each_share * share, each) for each_share, each in other.parts)])


def _summed(theta: Tensor, terms: Tensor) -> Tensor:
    return terms.logsumexp(0)


def _fitted_to(ellipses: Sequence[Ellipse], theta: Tensor, weights: Tensor) -> list[Ellipse]:
    """Each ellipse with the moments of draws, weighted its own way.

    Their variances are those around one point less the squares of their means from it: two matrix products for all.
    Where that cancels, or a whole covariance is matched, the ellipse is matched by itself.

    Args:
        ellipses: over the same coordinates.
        theta: draws [draws, params].
        weights: each row of which sums to one [ellipses, draws].

    Returns:
        the ellipses.
    """
    index = ellipses[0].index
    around = theta[:, index].double().mean(0)
    deviation = theta[:, index].double() - around
    mean, second = weights @ deviation, weights @ deviation.square()
    variance = second - mean.square()
    cancels = (variance <= torch.finfo(variance.dtype).eps ** 0.5 * second).any(1)
    alone = cancels | (1 / weights.square().sum(1) >= settings.match_draws * len(index))
    return [
        each.matched(theta, weights[place])
        if bool(alone[place])
        else each.stretched(around + mean[place], variance[place])
        for place, each in enumerate(ellipses)
    ]
