"""The hyper points of a nested approximation, and the Gaussian over all sites that each becomes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.mode.mode import Mode
from pyro_laplace.nested.node import Node
from pyro_laplace.posterior.guide import AutoLaplace
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
        kind: "grid", "laplace", "nuts" or "smc".
        failures: hyper points at which there was no inner mode.
    """

    points: list[HyperPoint]
    weights: Tensor
    root: Tensor
    log_evidence: float
    kind: str
    failures: int


def components_of(of: Conditional, outer: OuterPosterior, structure: str, curvature: str) -> list[AutoLaplace]:
    """The Gaussians over all sites, one for each hyper point.

    Args:
        of: the program, its sites divided.
        outer: the hyper points.
        structure: of the inner precision.
        curvature: of the log likelihood.

    Returns:
        the components.
    """
    return [_component(of, outer, point, structure, curvature) for point in outer.points]


def _component(
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
