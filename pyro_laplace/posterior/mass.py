"""Whether a posterior's mass is around its mode, by a few draws.

At the Gaussian that fits a posterior best the gradient of the log joint averages to zero over draws (Opper and
Archambeau 2009, "The variational Gaussian approximation revisited"). Around a mode off the mass it does not: one Newton
step by the average says how far off the mass is, in posterior standard deviations, however many coordinates there are.
Importance weights tell whether the posterior is a Gaussian after all.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._autodiff import vmapped
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._errors import LaplaceWarning
from pyro_laplace._typing import Theta
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.mode.objective import Objective
from pyro_laplace.posterior.search import PosteriorAt, Search
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.settings import settings
from pyro_laplace.structure.precision import Precision


@dataclass(frozen=True, eq=False)
class Mass:
    """Where a posterior's mass is, seen from its mode.

    Attributes:
        share: effective share of the draws under importance weights.
        shift: of the mass from the mode, in posterior standard deviations [free].
        anchor: the mode and the free coordinates.
    """

    share: float
    shift: Theta
    anchor: Anchor

    @staticmethod
    def around(objective: Objective, anchor: Anchor, precision: Precision) -> "Mass | None":
        """Look at a few draws, the same ones for the same posterior.

        Args:
            objective: minus the log joint over the free coordinates.
            anchor: the mode and the free coordinates.
            precision: of the posterior.

        Returns:
            where the mass is; None where that would cost more than the fit.
        """
        size = _elements_of_one(objective)
        if size * settings.mass_draws_one_by_one > settings.mass_elements:
            return None
        half = torch.randn(settings.mass_draws // 2, anchor.size, generator=torch.Generator().manual_seed(0))
        white = torch.stack([half, -half], 1).flatten(0, 1).to(anchor.theta)
        draws = anchor.free + precision.color(white)
        at_once = size * len(draws) <= settings.pass_elements
        log_joint, gradients = _evaluated(objective, draws, list(objective.loop.chunks()) if at_once else [])
        log_weight = log_joint + 0.5 * white[: len(log_joint)].double().square().sum(-1)
        weight = torch.softmax(log_weight.nan_to_num(nan=-torch.inf, neginf=-torch.inf), 0)
        share = float((1 / weight.square().sum()).nan_to_num(nan=0.0)) / len(weight)
        finite = gradients.isfinite().all(-1)
        shift = precision.solve(gradients[finite].mean(0)) / precision.variance().double().sqrt()
        return Mass(share, shift.nan_to_num(nan=torch.inf), anchor)  # where the density is finite at no draw at all

    def far(self, only_scales: bool = False) -> dict[str, float]:
        """The sites whose mass lies elsewhere, farthest first, each with its largest shift.

        Args:
            only_scales: whether only sites of several constrained numbers are looked at.

        Returns:
            none where enough of the draws count.
        """
        if self.share > settings.mass_share:
            return {}
        found = {}
        for name, (span, _) in self.anchor.spans.items():
            latent, largest = self.anchor.latents[name], float(self.shift[span].abs().max())
            looked_at = not only_scales or (latent.constrained and latent.size > 1)
            if looked_at and largest > settings.mass_shift:
                found[name] = largest
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def tell_of_far_mass(search: Search, found: PosteriorAt, statistical: bool) -> None:
    """Warn where the mass of a posterior lies elsewhere than its mode.

    Args:
        search: how the posterior was made.
        found: the posterior, of few coordinates, at a mode.
        statistical: whether the program is no network: of one, whose draws predict through the linearised program, only
            sites of several scales are looked at.
    """
    anchor = found.likelihood.anchor
    mass = Mass.around(search.objective(anchor.theta, anchor.index), anchor, found.precision)
    far = {} if mass is None else mass.far(only_scales=not statistical)
    if mass is not None and far:
        spreads = any(anchor.latents[name].constrained for name in far)
        warnings.warn(_far_message(far, mass.share, spreads), LaplaceWarning, stacklevel=3)


def _far_message(far: Mapping[str, float], share: float, spreads: bool) -> str:
    names = list(far)
    cause = (
        "A scale or a length that many other coordinates are spread by has its joint mode where they lie at one point: "
        "integrate them out, by pl.fit_nested_laplace(model, data) or by hand (x ~ Normal(mu, tau) and "
        "y ~ Normal(x, s) are y ~ Normal(mu, sqrt(tau^2 + s^2)))"
        if spreads
        else "A posterior that is flat to one side, as of classes that are separated, has most of its mass there"
    )
    return (
        "the mode is not where the posterior's mass is: over draws from the Gaussian around it the log joint slopes "
        f"away in {', '.join(map(repr, names[: settings.shown_names]))} (a Newton step by its mean gradient moves "
        f"{names[0]!r} by {far[names[0]]:.2g} standard deviations), and {share:.1%} of such draws are worth much. "
        f"{cause}. pl.diagnose(model, guide, data) says what is wrong; pl.importance_resample(model, guide, data) "
        "corrects it where that can be done; pl.fit_nuts(model, data, precondition=guide) draws from the posterior"
    )


def _evaluated(objective: Objective, draws: Tensor, chunks: list[Chunk]) -> tuple[Tensor, Tensor]:
    """The log joint at draws [draws, free] of the free coordinates, and its gradient, in float64.

    All at once on some chunks; without these, or where that cannot be, at the first draws one by one.

    Returns:
        both, of as many draws as were evaluated.
    """

    def log_joint(free: Tensor) -> Tensor:
        theta = objective.theta.index_copy(0, objective.index, free)
        parts = [
            objective.program.log_joint(theta, chunk, objective.jacobian, float(i == 0))
            for i, chunk in enumerate(chunks)
        ]
        return torch.stack(parts).sum()

    def both(free: Tensor) -> tuple[Tensor, Tensor]:
        gradient, value = torch.func.grad_and_value(log_joint)(free)
        return value, gradient

    if chunks:
        try:
            with undisturbed(), torch.no_grad():
                values, gradients = vmapped(both, draws)
            return values.double(), gradients.double()
        except (RuntimeError, LinAlgError):  # what cannot be vectorised, or one draw that cannot be evaluated
            pass
    found = [objective.value_and_gradient(draw.double()) for draw in draws[: settings.mass_draws_one_by_one]]
    values, gradients = (-torch.stack(each) for each in zip(*found, strict=True))
    return values, gradients


def _elements_of_one(objective: Objective) -> int:
    """Elements that the graph of one log joint keeps: a Gaussian process has the square of its data."""
    counts = [0]

    def counted(tensor: Tensor) -> Tensor:
        counts.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(counted, lambda tensor: tensor):
        objective.value_and_gradient(objective.start)
    return sum(counts)
