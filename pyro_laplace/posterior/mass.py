"""Whether the mode of a small program is where the posterior's mass is, by a few draws.

At the Gaussian that fits a posterior best the gradient of the log joint averages to zero over draws (Opper and
Archambeau 2009, "The variational Gaussian approximation revisited"). Around a mode off the mass it does not: one Newton
step by the average says how far off the mass is, in posterior standard deviations, however many coordinates there are.
Importance weights tell whether the posterior is a Gaussian after all.
"""

import warnings

import torch
from torch import Tensor

from pyro_laplace._autodiff import vmapped
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import LinAlgError
from pyro_laplace._errors import LaplaceWarning
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.posterior.search import PosteriorAt, Search
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.settings import settings


def tell_of_far_mass(search: Search, found: PosteriorAt, statistical: bool) -> None:
    """Warn where the mass of a posterior lies elsewhere than its mode.

    Args:
        search: how the posterior was made.
        found: the posterior, of few coordinates, at a mode.
        statistical: whether the program is no network: of one, whose draws predict through the linearised program, only
            sites of several scales are looked at.
    """
    anchor = found.likelihood.anchor
    size = _elements_of_one(search, anchor)
    if size * settings.mass_draws_one_by_one > settings.mass_elements:
        return
    chunks = list(search.loop.chunks())
    half = torch.randn(settings.mass_draws // 2, anchor.size, generator=torch.Generator().manual_seed(0))
    white = torch.stack([half, -half], 1).flatten(0, 1).to(found.theta)
    draws = anchor.theta[anchor.index] + found.precision.color(white)
    at_once = size * len(draws) <= settings.pass_elements
    log_joint, gradients = _evaluated(search, anchor, draws, chunks if at_once else [])
    log_weight = log_joint + 0.5 * white[: len(log_joint)].double().square().sum(-1)
    weight = torch.softmax(log_weight.nan_to_num(nan=-torch.inf, neginf=-torch.inf), 0)
    share = float((1 / weight.square().sum()).nan_to_num(nan=0.0)) / len(weight)
    finite = gradients.isfinite().all(-1)
    shift = found.precision.solve(gradients[finite].mean(0)) / found.precision.variance().double().sqrt()
    shift = shift.nan_to_num(nan=torch.inf)  # where the density is finite at no draw at all
    far = shift.abs() > settings.mass_shift
    for name, (span, _) in anchor.spans.items():
        latent = anchor.latents[name]
        far[span] &= statistical or (latent.constrained and latent.size > 1)
    if share > settings.mass_share or not bool(far.any()):
        return
    sites = {name: float(shift[span].abs().max()) for name, (span, _) in anchor.spans.items() if bool(far[span].any())}
    named = sorted(sites, key=lambda name: -sites[name])
    warnings.warn(
        "the mode is not where the posterior's mass is: over draws from the Gaussian around it the log joint slopes "
        f"away in {', '.join(map(repr, named[: settings.shown_names]))} (a Newton step by its mean gradient moves "
        f"{named[0]!r} by {sites[named[0]]:.2g} standard deviations), and {share:.1%} of such draws are worth much. "
        "A scale or a length that many other coordinates are spread by has its joint mode where they lie at one point. "
        "Integrate them out by hand (x ~ Normal(mu, tau) and y ~ Normal(x, s) are y ~ Normal(mu, sqrt(tau^2 + s^2)); "
        "values of a Gaussian process, or missing ones, likewise), or draw with fit_nuts(model, data, "
        "precondition=guide)",
        LaplaceWarning,
        stacklevel=3,
    )


def _evaluated(search: Search, anchor: Anchor, draws: Tensor, chunks: list[Chunk]) -> tuple[Tensor, Tensor]:
    """The log joint at draws [draws, free] of the free coordinates, and its gradient, in float64.

    All at once on some chunks; without these, or where that cannot be, at the first draws one by one.

    Returns:
        both, of as many draws as were evaluated.
    """

    def log_joint(free: Tensor) -> Tensor:
        theta = anchor.theta.index_copy(0, anchor.index, free)
        parts = [
            search.loop.program.log_joint(theta, chunk, search.jacobian, float(i == 0))
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
    objective = search.objective(anchor.theta, anchor.index)
    found = [objective.value_and_gradient(draw.double()) for draw in draws[: settings.mass_draws_one_by_one]]
    values, gradients = (-torch.stack(each) for each in zip(*found, strict=True))
    return values, gradients


def _elements_of_one(search: Search, anchor: Anchor) -> int:
    """Elements that the graph of one log joint keeps: a Gaussian process has the square of its data."""
    counts = [0]

    def counted(tensor: Tensor) -> Tensor:
        counts.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(counted, lambda tensor: tensor):
        objective = search.objective(anchor.theta, anchor.index)
        objective.value_and_gradient(objective.start)
    return sum(counts)
