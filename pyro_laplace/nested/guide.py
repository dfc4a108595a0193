"""`NestedLaplace`: the posterior of all sites as a mixture over hyper points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_laplace.data import Batch
from pyro_laplace.nested.hyper import Reason
from pyro_laplace.nested.new_groups import with_new_groups
from pyro_laplace.nested.node import Node
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.posterior.mixture_density import MixtureDensity


@dataclass(frozen=True, eq=False)
class Explored:
    """What is known of the hyper sites beside the components of a posterior.

    Attributes:
        weights: of the components, summing to 1 [points].
        log_evidence: log p(y).
        hyper: names of the hyper sites.
        reasons: why each is one, where they were found.
        kind: "grid", "laplace", "nuts" or "smc".
        failures: hyper points at which there was no inner mode.
        points: hyper site, or layer, to its values at the points `[points, *shape]`, in its own space.
        layers: weights of a network that were explored with the hyper sites.
    """

    weights: Tensor
    log_evidence: float
    hyper: tuple[str, ...]
    reasons: Mapping[str, Reason]
    kind: str
    failures: int
    points: Mapping[str, Tensor]
    layers: tuple[str, ...] = ()


class NestedLaplace(LaplaceMixture):
    """A posterior in two stages: ``q(h, x) = sum_k w_k N(h; c_k, K) N(x; m_k(h), H_k^-1)``.

    h are the hyper sites' unconstrained coordinates, and of a small network those of its layers under the last one; x
    are those of all others; the points k are those of a grid, or draws.
    It is a guide as `LaplaceMixture` is one, and whatever takes that takes it.

    Attributes:
        hyper: names of the hyper sites, in trace order.
        reasons: why each is one, where they were found and not named.
        outer: how their posterior was explored: "grid", "laplace", "nuts" or "smc".
        layers: weights of a small network, under its last layer, that were explored with them.
        hyper_points: hyper site, or layer, to its values at the points `[points, *shape]`, in its own space.
        weights: w_k [points], float64.
        failures: points at which the search found no inner mode, or the density could not be evaluated; they count for
            nothing. Particles have some, where a path was thrown far off.
        fit_seconds: wall time of `fit_nested_laplace`.
    """

    def __init__(self, components: Sequence[AutoLaplace], explored: Explored) -> None:
        super().__init__(list(components), weights="equal")
        self.weighting, self.explored = "outer", explored
        self.weights = explored.weights.double()
        self.theta = components[int(self.weights.argmax())].theta
        self.register_buffer("_log_evidence", torch.tensor(explored.log_evidence, dtype=torch.float64))
        self.hyper, self.reasons, self.layers = explored.hyper, dict(explored.reasons), explored.layers
        self.outer, self.failures = explored.kind, explored.failures
        self.follows_program = components[0].curvature == "hessian"

    @property
    def hyper_points(self) -> dict[str, Tensor]:
        """Hyper site, or layer, to its values at the points `[points, *shape]`."""
        return {name: value.to(self.theta.device) for name, value in self.explored.points.items()}

    def with_new_groups(self, num_samples: int, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Posterior draws of all latent sites of the program on arguments with more groups than the data had.

        The groups that were in the data come first along their plates' axes, with their posterior; new ones after
        them, drawn from their prior given the other sites of the same draw. They are what `Predictive` takes::

            draws = guide.with_new_groups(1000, x_new, group_new)
            predicted = pl.Predictive(model, draws)(x_new, group_new)

        Args:
            num_samples: number of draws.
            *args: the model's.
            **kwargs: the model's.

        Returns:
            site name to draws `[num_samples, *shape]`, of the shapes that these arguments give.
        """
        return with_new_groups(self.model, self.sample_posterior(num_samples), Batch(args, kwargs))

    @property
    def log_evidence(self) -> float:
        """``log p(y) = log sum_h p(y | h) p(h)``, by the outer approximation."""
        return float(self._log_evidence)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The mixture as a `MixtureDensity` over all of theta; that of particles has `log_density_by` for density."""
        return MixtureDensity(self.components, self.weights, join=self.log_density_by if self.outer == "smc" else None)

    def log_density_by(self, theta: Tensor, terms: Tensor) -> Tensor:
        """That of the mixture; of particles ``log p(h | y) N(x; m(h), H^-1)``, by the nested approximation.

        Particles are draws of ``p(h | y)`` that have no density but the one they were moved by: what their weights say
        is how good the inner approximations are.

        Args:
            theta: draws of the mixture [draws, params].
            terms: ``log w_k q_k(theta)`` [components, draws].

        Returns:
            nats [draws].
        """
        if self.outer != "smc":
            return super().log_density_by(theta, terms)
        which, log_q = terms.argmax(0), torch.empty_like(terms[0])
        for number in which.unique().tolist():
            mine, each = which == number, self.components[number]
            ((index, node),) = each.precision.placed()
            assert isinstance(node, Node)
            log_q[mine] = each.mode.log_joint + node.log_prob_of_inner((theta[mine] - each.theta)[:, index]).to(log_q)
        return log_q - self.log_evidence

    def __repr__(self) -> str:
        """The hyper sites with the reasons, and how they were explored."""
        told = [f"{name!r} ({self.reasons[name]})" if name in self.reasons else repr(name) for name in self.hyper]
        hyper = ", ".join(told) or "none"
        layers = f"; layers explored: {', '.join(map(repr, self.layers))}" if self.layers else ""
        return (
            f"NestedLaplace(hyper: {hyper}{layers}; outer={self.outer!r}, {len(self.weights)} points, "
            f"log_evidence={self.log_evidence:.3f})"
        )
