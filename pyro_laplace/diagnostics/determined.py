"""What determines a posterior's coordinates: the eigenvalues of its precision, the prior's share, the exact Hessian."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_laplace._typing import Matrix
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.loop import Loop
from pyro_laplace.mode.objective import Objective
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class AtMode:
    """The point that a Laplace posterior is built around.

    Attributes:
        gradient_norm: of the log joint in the random coordinates.
        newton_decrement: distance to the mode, in posterior standard deviations.
        allowed: up to which the point counts as the mode.
    """

    gradient_norm: float
    newton_decrement: float
    allowed: float

    @staticmethod
    def of(guide: AutoLaplace, loop: Loop) -> "AtMode":
        """The point on the data at hand, which may not be those that the posterior was fitted to.

        Args:
            guide: the posterior.
            loop: the program and its data.

        Returns:
            the point judged.
        """
        objective = Objective(loop, guide.jacobian, guide.theta, guide.index)
        _, gradient = objective.value_and_gradient(objective.start)
        return AtMode(float(gradient.norm()), float(guide.precision.push(gradient).norm()), guide.mode.allowed)

    @property
    def is_mode(self) -> bool:
        """Whether the decrement is small enough."""
        return self.newton_decrement <= self.allowed


@dataclass(frozen=True, eq=False)
class Determined:
    """How well the coordinates of a Laplace posterior are determined, and by what.

    Attributes:
        smallest_eigenvalue: of the precision of the unconstrained coordinates; None for more than
            `settings.dense_coordinates`.
        condition_number: its largest over its smallest eigenvalue; None likewise.
        flat_directions: by site, how many directions that it has a part in are flat: known a hundred times less well
            than their coordinates by themselves.
        prior_share: by site, ``diag(Lambda^-1 H_prior)`` in the site's coordinates [size]: 0 where the data say all, 1
            where they say nothing. Empty where no prior was kept.
        hessian_apart: the log ratio of a marginal standard deviation by the exact Hessian to the posterior's own, where
            they differ most: infinite where the Hessian is not positive definite, None where it would cost too much, or
            where the structure drops what it holds.
        farthest: the site of that coordinate.
    """

    smallest_eigenvalue: float | None = None
    condition_number: float | None = None
    flat_directions: Mapping[str, int] = field(default_factory=dict)
    prior_share: Mapping[str, Tensor] = field(default_factory=dict)
    hessian_apart: float | None = None
    farthest: str = ""

    @staticmethod
    def of(guide: AutoLaplace, loop: Loop) -> "Determined":
        """Look at a posterior.

        Args:
            guide: the posterior.
            loop: the program and its data.

        Returns:
            what determines it.
        """
        anchor = Anchor(guide.theta, guide.index, guide.latents)
        if anchor.size > settings.dense_coordinates:
            return Determined(prior_share=_prior_shares(guide, anchor))
        dense = guide.precision.to_dense().double()
        values = torch.linalg.eigvalsh(dense)
        return Determined(
            float(values[0]),
            float(values[-1] / values[0]),
            _flat(dense, anchor),
            _prior_shares(guide, anchor),
            *_hessian_apart(guide, loop, anchor),
        )


def _flat(dense: Matrix, anchor: Anchor) -> dict[str, int]:
    unit = dense.diagonal().rsqrt()
    values, vectors = torch.linalg.eigh(dense * unit * unit.unsqueeze(-1))
    parts = vectors[:, values < settings.flat_direction].square()
    found = {name: int((parts[span].sum(0) > settings.blamed_share).sum()) for name, (span, _) in anchor.spans.items()}
    return {name: count for name, count in found.items() if count}


def _prior_shares(guide: AutoLaplace, anchor: Anchor) -> dict[str, Tensor]:
    if guide.prior is None:
        return {}
    if guide.prior.is_diagonal or anchor.size > settings.dense_coordinates:
        shares = guide.precision.variance().double() * guide.prior.diagonal
    else:
        shares = guide.precision.solve(guide.prior.matrix()).diagonal()
    shares = shares.clamp(0, 1)
    return {name: shares[span] for name, (span, _) in anchor.spans.items()}


def _hessian_apart(guide: AutoLaplace, loop: Loop, anchor: Anchor) -> tuple[float | None, str]:
    if guide.curvature == "hessian" and guide.structure == "full":
        return 0.0, ""
    if guide.latent_dim > settings.small or guide.structure != "full":
        return None, ""
    exact = Objective(loop, guide.jacobian, guide.theta, guide.index).hessian(guide.loc)
    root, info = torch.linalg.cholesky_ex(exact)
    if int(info):
        return math.inf, ""
    apart = (torch.cholesky_inverse(root).diagonal() / guide.precision.variance().double()).log() / 2
    farthest = apart.abs().argmax()
    return float(apart[farthest]), anchor.names_of(farthest.reshape(1))[0]
