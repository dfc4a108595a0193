"""The hyper sites' posterior by particles moved from their prior to it, the likelihood let in little by little.

A sequential Monte Carlo sampler (Del Moral, Doucet and Jasra 2006, "Sequential Monte Carlo samplers"): particles drawn
from the prior follow ``p(h) p(y | h)^t`` as t goes from 0 to 1, by steps that leave half of them counting; after each
they are drawn anew by their weights and moved by Hamiltonian Monte Carlo, all in one batch. The prior knows all modes,
those that are others permuted among them, so that the particles are spread over them and the evidence counts them.
Letters: b particles, q hyper coordinates.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._errors import InvalidOption, LaplaceWarning, NotAMode
from pyro_laplace.draws.systematic import systematic
from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.inner.rows import prior_gradients
from pyro_laplace.nested.surface import HyperSurface
from pyro_laplace.program.run import Recorder, run_model
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Particles:
    """Draws of the hyper sites' posterior.

    Attributes:
        h: of the last moves, equally weighted [draws, q].
        log_evidence: log p(y).
    """

    h: Tensor
    log_evidence: float


def drawn_by_tempering(surface: HyperSurface) -> Particles:
    """Particles from the prior to the posterior.

    Args:
        surface: log p(y, h), of which gradients are to be had.

    Returns:
        the particles.

    Raises:
        InvalidOption: if a hyper site's prior cannot be drawn from, naming it.
        NotAMode: if no particle has an inner mode.
    """
    cloud = _Cloud.at(surface, prior_draws(surface.of, settings.particles))
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    if not bool(cloud.likelihood.isfinite().any()):
        raise NotAMode(
            f"no mode of the inner sites {list(surface.of.inner)[:5]} was found at any of {settings.particles} draws "
            f"from the prior of {list(surface.of.hyper)}: give these priors that are less wide, or outer='grid'"
        )
    share, log_evidence, move = 0.0, 0.0, _Move()
    while share < 1:
        step = _stride(cloud.likelihood, 1 - share)
        log_w = step * cloud.likelihood
        log_evidence += float(log_w.logsumexp(0)) - math.log(len(log_w))
        share = min(1.0, share + step)
        cloud = cloud.chosen(systematic(log_w.softmax(0), len(log_w), float(torch.rand((), generator=generator))))
        for _ in range(settings.particle_moves):
            cloud = move.applied(surface, cloud, share, generator)
    cloud = _settled(surface, cloud, move, generator)
    kept = []
    for _ in range(settings.particle_kept):
        cloud = move.applied(surface, cloud, 1.0, generator)
        kept.append(cloud.h)
    return Particles(torch.cat(kept), log_evidence)


def _settled(surface: HyperSurface, cloud: "_Cloud", move: "_Move", generator: torch.Generator) -> "_Cloud":
    """The particles moved under the posterior until its density does not rise any more."""
    for _ in range(settings.particle_rounds):
        before = cloud.log_density(1.0)
        for _ in range(settings.particle_settling):
            cloud = move.applied(surface, cloud, 1.0, generator)
        rise = cloud.log_density(1.0) - before
        if not float(rise.mean()) > settings.particle_rising * float(rise.std()) / len(rise) ** 0.5:
            return cloud
    warnings.warn(
        f"the particles of outer='smc' have not settled on the posterior of {list(surface.of.hyper)} after "
        f"{settings.particle_rounds * settings.particle_settling} moves, of which {move.accepted:.0%} were accepted in "
        "the end: its log density still rises. Give priors that are less wide, allow more by "
        "pl.settings.particle_rounds, or look at outer='grid'",
        LaplaceWarning,
        stacklevel=5,
    )
    return cloud


def prior_draws(of: Conditional, count: int) -> Tensor:
    """Draws of the hyper sites' prior, in unconstrained coordinates [count, q].

    Args:
        of: the program split.
        count: how many.

    Returns:
        the draws.

    Raises:
        InvalidOption: if a prior cannot be drawn from, naming the site.
    """
    program = of.program

    def draw(msg: Mapping[str, Any]) -> Tensor:
        name = msg["name"]
        if name not in of.hyper:
            return program.latents[name].constrain(program.start[program.latents[name].slice])
        try:
            return msg["fn"].sample()
        except NotImplementedError:
            raise InvalidOption(
                f"outer='smc' begins at draws of the prior, and that of {name!r} ({type(msg['fn']).__name__}) has "
                "none: give it a proper prior, or take outer='grid'"
            ) from None

    rows = []
    for _ in range(count):
        run = run_model(program.model, of.loop.data.first(), Recorder({}, frozenset(program.observed), fill=draw))
        theta = program.pack({name: site.value for name, site in run.latents.items()}).double()
        rows.append(torch.where(theta.isfinite(), theta, program.start.double())[of.hyper_index])
    return torch.stack(rows)


@dataclass(frozen=True, eq=False)
class _Cloud:
    """Particles with what is known of the surface at them.

    Attributes:
        h: [b, q].
        prior: log p(h) [b].
        likelihood: log p(y | h) [b]; minus infinity where there is no inner mode.
        prior_slope: gradient of the one [b, q].
        likelihood_slope: gradient of the other [b, q].
    """

    h: Tensor
    prior: Tensor
    likelihood: Tensor
    prior_slope: Tensor
    likelihood_slope: Tensor

    @staticmethod
    def at(surface: HyperSurface, h: Tensor) -> "_Cloud":
        """The particles h [b, q]."""
        points = surface.at(h)
        there = points.value.isfinite()
        prior = torch.where(there, points.value - points.marginal, 0.0)
        likelihood = torch.where(there, points.marginal, -torch.inf)
        return _Cloud(h, prior, likelihood, prior_gradients(surface.of, h), points.solved.gradient())

    def log_density(self, share: float) -> Tensor:
        """``log p(h) + t log p(y | h)`` [b]."""
        return self.prior + share * self.likelihood

    def slope(self, share: float) -> Tensor:
        """Its gradient [b, q]; zero where it is not known."""
        return (self.prior_slope + share * self.likelihood_slope).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def chosen(self, numbers: Tensor) -> "_Cloud":
        """Some of the particles, or some of them several times."""
        return _Cloud(*(each[numbers] for each in vars(self).values()))

    def instead(self, other: "_Cloud", taken: Tensor) -> "_Cloud":
        """Those of another cloud where they are taken [b]."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Cloud(*(torch.where(taken if a.dim() == 1 else taken.unsqueeze(1), b, a) for a, b in pairs))


@dataclass
class _Move:
    """Hamiltonian Monte Carlo on all particles at once, in coordinates in which the cloud is round.

    Attributes:
        step: of the leapfrog scheme, in sd of the cloud; it follows the share of proposals that are accepted.
        accepted: that share, of the last move.
    """

    step: float = 0.3
    accepted: float = 1.0

    def applied(self, surface: HyperSurface, cloud: _Cloud, share: float, generator: torch.Generator) -> _Cloud:
        """The particles after one move under ``p(h) p(y | h)^share``."""
        root, like = covariance_root(cloud.h), cloud.h
        jitter = 1 + settings.particle_jitter * (2 * torch.rand(len(like), 1, generator=generator) - 1).to(like)
        step = self.step * jitter
        start = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
        momentum, moved = start + 0.5 * step * (cloud.slope(share) @ root), cloud
        before, lost = cloud.log_density(share), torch.zeros_like(cloud.prior, dtype=torch.bool)
        count = min(settings.particle_leaps, max(1, math.ceil(settings.particle_path / self.step)))
        for number in range(count):
            # one that a path throws far off stays where it began: there, nobody need look for an inner mode
            ahead = torch.where(lost.unsqueeze(1), cloud.h, moved.h + step * momentum @ root.mT)
            moved = _Cloud.at(surface, ahead)
            lost = lost | ~(moved.log_density(share) > before - settings.particle_lost)
            momentum = momentum + (0.5 if number == count - 1 else 1.0) * step * (moved.slope(share) @ root)
        change = moved.log_density(share) - before - 0.5 * (momentum.square().sum(1) - start.square().sum(1))
        chance = torch.where(lost, 0.0, change.clamp(max=0.0).exp().nan_to_num(nan=0.0))
        taken = torch.rand(len(like), generator=generator, dtype=torch.float64).to(like) < chance
        self.accepted = float(chance.mean())
        self.step *= math.exp(settings.particle_rate * (self.accepted - settings.particle_accepted))
        return cloud.instead(moved, taken)


def covariance_root(h: Tensor) -> Tensor:
    """Cholesky root of particles' covariance [q, q], as if further ones, as many as coordinates, were uncorrelated."""
    centred = h - h.mean(0)
    covariance = centred.mT @ centred / len(h)
    own = len(h) / (len(h) + h.shape[1])
    variance = covariance.diagonal().clamp(min=torch.finfo(h.dtype).eps)  # where all are one
    return torch.linalg.cholesky(own * covariance + (1 - own) * torch.diag(variance))


def _stride(log_lik: Tensor, most: float) -> float:
    """The step of t, up to `most`, after which `settings.particle_share` of the particles still count."""

    def effective(step: float) -> float:
        return float(1 / (step * log_lik).softmax(0).square().sum())

    wanted = settings.particle_share * int(log_lik.isfinite().sum())
    if effective(most) >= wanted:
        return most
    low, high = 0.0, most
    for _ in range(settings.bisections):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle) >= wanted else (low, middle)
    return high
