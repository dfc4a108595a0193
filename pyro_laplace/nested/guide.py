"""`NestedLaplace`: the posterior of all sites as a mixture over hyper points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_laplace.data import Batch
from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.mode.mode import Mode
from pyro_laplace.nested.hyper import Reason
from pyro_laplace.nested.new_groups import with_new_groups
from pyro_laplace.nested.node import Node
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.precision import Precision


@dataclass(frozen=True, eq=False)
class HyperPoint:
    """A point of the outer approximation, with the inner one there.

    Attributes:
        h: hyper coordinates [q].
        log_density: log p(y, h), log-Jacobian included.
        center: mean of the component's h [q].
        x: mean of the component's x at the center [i].
        response: J = dx / dh [i, q].
        inner: precision of x given h; None where there is no inner site.
    """

    h: Tensor
    log_density: float
    center: Tensor
    x: Tensor
    response: Tensor
    inner: Block | None


@dataclass(frozen=True, eq=False)
class OuterPosterior:
    """What is known of the hyper sites' posterior.

    Attributes:
        points: the components.
        weights: of them, summing to 1 [points].
        root: L of the kernel ``K = L L'`` around each [q, q].
        log_evidence: log p(y).
        kind: "grid", "laplace" or "nuts".
        failures: hyper points at which there was no inner mode.
    """

    points: list[HyperPoint]
    weights: Tensor
    root: Tensor
    log_evidence: float
    kind: str
    failures: int


@dataclass(frozen=True, eq=False)
class Explored:
    """What is known of the hyper sites beside the components of a posterior.

    Attributes:
        weights: of the components, summing to 1 [points].
        log_evidence: log p(y).
        hyper: names of the hyper sites.
        reasons: why each is one, where they were found.
        kind: "grid", "laplace" or "nuts".
        failures: hyper points at which there was no inner mode.
        points: hyper site to its values at the points `[points, *shape]`, in its own space.
    """

    weights: Tensor
    log_evidence: float
    hyper: tuple[str, ...]
    reasons: Mapping[str, Reason]
    kind: str
    failures: int
    points: Mapping[str, Tensor]


class NestedLaplace(LaplaceMixture):
    """A posterior in two stages: ``q(h, x) = sum_k w_k N(h; c_k, K) N(x; m_k(h), H_k^-1)``.

    h are the hyper sites' unconstrained coordinates, x those of all others; the points k are those of a grid, or draws.
    It is a guide as `LaplaceMixture` is one, and whatever takes that takes it.

    Attributes:
        hyper: names of the hyper sites, in trace order.
        reasons: why each is one, where they were found and not named.
        outer: how their posterior was explored: "grid", "laplace" or "nuts".
        hyper_points: hyper site to its values at the points `[points, *shape]`, in its own space.
        weights: w_k [points], float64.
        failures: points at which the search found no inner mode; they count for nothing.
        fit_seconds: wall time of `fit_nested_laplace`.
    """

    def __init__(self, components: Sequence[AutoLaplace], explored: Explored) -> None:
        super().__init__(list(components), weights="equal")
        self.weighting, self.explored = "outer", explored
        self.weights = explored.weights.double()
        self.theta = components[int(self.weights.argmax())].theta
        self.register_buffer("_log_evidence", torch.tensor(explored.log_evidence, dtype=torch.float64))
        self.hyper, self.reasons = explored.hyper, dict(explored.reasons)
        self.outer, self.failures = explored.kind, explored.failures
        self.follows_program = components[0].curvature == "hessian"

    @property
    def hyper_points(self) -> dict[str, Tensor]:
        """Hyper site to its values at the points `[points, *shape]`."""
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

    def __repr__(self) -> str:
        """The hyper sites with the reasons, and how they were explored."""
        told = [f"{name!r} ({self.reasons[name]})" if name in self.reasons else repr(name) for name in self.hyper]
        return (
            f"NestedLaplace(hyper: {', '.join(told)}; outer={self.outer!r}, {len(self.weights)} points, "
            f"log_evidence={self.log_evidence:.3f})"
        )


def nested_posterior(
    of: Conditional, outer: OuterPosterior, reasons: Mapping[str, Reason], structure: str, curvature: str
) -> NestedLaplace:
    """The posterior of all sites from that of the hyper sites.

    Args:
        of: the program, its sites divided.
        outer: what is known of the hyper sites' posterior.
        reasons: why each is one, where they were found.
        structure: of the inner precision.
        curvature: of the log likelihood.

    Returns:
        the guide.
    """
    components = [_mixture_component(of, outer, point, structure, curvature) for point in outer.points]
    rows = of.theta(torch.stack([p.x for p in outer.points]), torch.stack([p.h for p in outer.points]))
    latents = of.program.latents
    points = {name: latents[name].constrain(rows[:, latents[name].slice]) for name in of.hyper}
    found = outer.weights, outer.log_evidence, tuple(of.hyper), dict(reasons), outer.kind, outer.failures, points
    return NestedLaplace(components, Explored(*found))


def _mixture_component(
    of: Conditional, outer: OuterPosterior, point: HyperPoint, structure: str, curvature: str
) -> AutoLaplace:
    program = of.program
    theta = of.theta(point.x, point.center)
    node = Node(outer.root, point.response, point.inner)
    precision = Precision([(torch.cat([of.hyper_index, of.inner_index]), node)], theta.dtype)
    mode = Mode(theta, point.log_density, torch.zeros_like(theta, dtype=torch.float64), decrement=0.0, moved=True)
    return AutoLaplace(
        program.model,
        program.latents,
        torch.arange(len(theta), device=theta.device),
        mode,
        precision,
        structure=structure,
        curvature=curvature,
        observed=program.observed,
        log_evidence=outer.log_evidence,
    )
