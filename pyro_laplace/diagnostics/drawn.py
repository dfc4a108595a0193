"""Draws of theta from whatever has a density: a posterior of ours, or any Pyro guide."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.guides import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_laplace._compat.pyro import site_is_deterministic, site_is_factor, site_is_subsample, undisturbed
from pyro_laplace._errors import InvalidOption, UnsupportedProgram
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import Batch, Data
from pyro_laplace.draws.vectorize import over_rows
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.posterior.mixture_density import POINT
from pyro_laplace.posterior.own import observed_of, own_params
from pyro_laplace.program.module_state import modules_kept
from pyro_laplace.program.program import Program
from pyro_laplace.program.sites import unpack
from pyro_laplace.proposals.blend import Blend, Parts
from pyro_laplace.proposals.ellipses import Ellipse, Triangular
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Drawn:
    """Draws with their density.

    Attributes:
        theta: all latent sites, unconstrained [draws, params].
        log_q: log density of the random coordinates [draws], in nats and float64.
    """

    theta: Tensor
    log_q: Tensor

    def __len__(self) -> int:
        """How many."""
        return len(self.theta)

    def and_more(self, other: "Drawn") -> "Drawn":
        """These and other draws."""
        return Drawn(torch.cat([self.theta, other.theta]), torch.cat([self.log_q, other.log_q]))


def refuse_without_density(posterior: Any) -> None:
    """Refuse what has no density to weigh its draws by.

    Args:
        posterior: what was given for the guide.

    Raises:
        InvalidOption: for an `MCMC`, draws, a point, or what is no guide, saying what to do instead.
    """
    if isinstance(posterior, MCMC | Mapping):
        kind = "an MCMC" if isinstance(posterior, MCMC) else "a mapping of values or draws"
        raise InvalidOption(
            f"the guide is {kind}, which has no density to weigh draws by: look at R-hat and effective sample "
            "sizes, arviz.summary(pyro_laplace.to_datatree(model, mcmc, data))"
        )
    components = getattr(posterior, "components", (posterior,))
    if isinstance(posterior, AutoDelta) or any(getattr(each, "structure", "") == POINT for each in components):
        raise InvalidOption(
            f"this {type(posterior).__name__} is a point and has no density: give the posterior that "
            "fit_laplace(model, data, map_guide) makes of it"
        )
    if isinstance(posterior, type) or not callable(posterior):
        raise InvalidOption(f"the guide is a {type(posterior).__name__}: give a guide of the model")


def draw_from(guide: Any, program: Program, data: Data, num_samples: int) -> Drawn:
    """Draw from a guide, with the density of theta.

    Args:
        guide: a posterior of `fit_laplace`, or any Pyro guide whose own variables determine the latent sites.
        program: traced on the data.
        data: what the guide is called with; its first batch.
        num_samples: how many.

    Returns:
        the draws.

    Raises:
        InvalidOption: if the guide lacks a latent site of the model, or was never run.
    """
    if isinstance(guide, AutoLaplace | LaplaceMixture):
        with torch.no_grad():
            theta, blend = guide.sample_theta(num_samples), Blend(around(guide, program, data))
            join = guide.log_density_by if isinstance(guide, LaplaceMixture) else None
            return Drawn(theta, blend.log_prob(theta, join))
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None and not list(guide.children()):
        raise InvalidOption(f"this {type(guide).__name__} has never been run: train it first")
    return _of_any(guide, program, data.first(), num_samples)


def _of_any(guide: Callable[..., Any], program: Program, batch: Batch, num_samples: int) -> Drawn:
    def draw(_: Mapping[str, Tensor]) -> dict[str, Tensor]:
        watched = _Densities()
        with watched:
            guide(*batch.args, **batch.kwargs)
        missing = [name for name in program.latents if name not in watched.values]
        if missing:
            raise InvalidOption(f"the guide has no site for the latent sites {missing} of the model")
        theta = program.pack({name: watched.values[name] for name in program.latents})
        return {"theta": theta, "log_q": torch.stack([each.double().sum() for each in watched.log_probs]).sum()}

    with undisturbed(rng=False), torch.no_grad(), modules_kept(guide):
        found = over_rows(draw, {}, num_samples, settings.guide_draws)
        theta, log_q = found["theta"], found["log_q"]
        varying = (theta != theta[0]).any(0)
        for latent in program.latents.values():  # from the density of the site's value to that of its coordinates
            if latent.constrained and bool(varying[latent.slice].any()):
                log_q = log_q + torch.func.vmap(latent.log_abs_det_jacobian)(theta[:, latent.slice]).double()
    return Drawn(theta, log_q)


def program_at(model: Callable[..., Any], guide: Any, data: Data) -> Program:
    """The program, traced where a posterior is, at the hyperparameters that this was built at.

    Args:
        model: the Pyro program.
        guide: the posterior.
        data: the data.

    Returns:
        the program.

    Raises:
        InvalidOption: if the posterior is of another model.
        UnsupportedProgram: if the program cannot be traced on these data.
        InvalidData: if these lack values of an observed site, or have some that are not finite.
    """
    if not hasattr(guide, "latents"):
        return Program.trace(model, data)
    try:
        values = unpack(guide.latents, guide.theta)
        return Program.trace(model, data, values, own_params(model, guide), observed_of(guide))
    except UnsupportedProgram as error:
        own = {name: tuple(latent.shape) for name, latent in guide.latents.items()}
        there = {name: tuple(latent.shape) for name, latent in Program.trace(model, data).latents.items()}
        if own == there:
            raise
        raise InvalidOption(
            f"this guide is of another model, or of data of another shape: it has the latent sites {own}, and the "
            f"model has {there}"
        ) from error


def log_prior_of_held(guide: Any, loop: Loop) -> float:
    """Log prior density of the coordinates that a Laplace posterior holds, at its mode; 0 where it holds none."""
    if not isinstance(guide, AutoLaplace) or len(guide.index) == len(guide.theta) or guide.prior is None:
        return 0.0
    whole = loop.program.log_prior(guide.theta, next(loop.chunks()))
    return float(whole) - guide.prior.log_density_of_free


def around(guide: Any, program: Program, data: Data) -> Parts:
    """The Gaussians that a posterior is made of; of a guide that is not ours, the one with the moments of its draws.

    Args:
        guide: the posterior.
        program: traced on the data.
        data: what a guide that is not ours is called with.

    Returns:
        each with its share.
    """
    if isinstance(guide, LaplaceMixture):
        shares = guide.weights.tolist()
        return [
            (share, Ellipse(each.theta, each.index, each.precision))
            for share, each in zip(shares, guide.components, strict=True)
            if share > 0
        ]
    if isinstance(guide, AutoLaplace):
        return [(1.0, Ellipse(guide.theta, guide.index, guide.precision))]
    drawn = draw_from(guide, program, data, settings.proposals)
    theta = drawn.theta.double()
    index = (theta != theta[0]).any(0).nonzero()[:, 0]
    free = theta[:, index]
    mean, std = free.mean(0), free.std(0)
    centre = drawn.theta[0].index_copy(0, index, mean.to(drawn.theta))
    if len(free) >= settings.match_draws * len(index):
        scale_tril, info = torch.linalg.cholesky_ex(torch.atleast_2d(free.mT.cov()))
        if not int(info):
            return [(1.0, Ellipse(centre, index, Triangular(scale_tril)))]
    return [(1.0, Ellipse(centre, index, Triangular(std.diag())))]


class _Densities(Messenger):
    """Keeps the values that a guide samples and the log density of each statement, and hides it from other handlers."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        self.log_probs: list[Tensor] = []

    def _process_message(self, msg: Any) -> None:
        msg["stop"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or site_is_deterministic(msg) or site_is_factor(msg) or msg["is_observed"]:
            return
        self.values[msg["name"]] = msg["value"]
        self.log_probs.append(msg["fn"].log_prob(msg["value"]))
