"""`importance_resample`: draws of the program's own posterior, from those of an approximation by their weights."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, LaplaceWarning, check_option
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import as_data
from pyro_laplace.diagnostics.correction import correct
from pyro_laplace.diagnostics.drawn import around, log_prior_of_held, program_at, refuse_without_density
from pyro_laplace.diagnostics.weights import Weights
from pyro_laplace.draws.systematic import systematic
from pyro_laplace.program.sites import unpack
from pyro_laplace.settings import settings


class ImportanceDraws(dict[str, Tensor]):
    """Draws of the latent sites by importance resampling, ``{site: [num_samples, *shape]}``.

    What takes draws takes them: `to_datatree`, `compare`, `Predictive(model, posterior_samples=...)`.

    Args:
        values: site name to draws.
        weights: of the proposals that they were chosen from.
        held: log prior density of what is held, which the evidence is given.

    Attributes:
        khat: Pareto k of these weights.
        ess: how many independent draws of the posterior the proposals are worth; the draws are no better.
        log_evidence: log p(y), corrected, in nats; of a posterior over some sites given the others, as the guide's own.
        log_evidence_error: its Monte Carlo standard error.
        exact: whether the draws are those of the posterior around the modes that were drawn from, but for Monte Carlo
            error: k-hat is at most 0.7, and a twentieth of the proposals counts.
        num_proposals: how many draws they were chosen from.
    """

    def __init__(self, values: dict[str, Tensor], weights: Weights, held: float = 0.0) -> None:
        super().__init__(values)
        self.khat, self.ess = weights.khat, weights.ess
        self.log_evidence, self.log_evidence_error = weights.log_mean - held, weights.log_mean_error
        self.exact = weights.trusted
        self.num_proposals = len(weights.log_ratio)

    def __repr__(self) -> str:
        """A short report."""
        sites = ", ".join(f"{name}: {tuple(value.shape)}" for name, value in self.items())
        word = "exact around these modes but for Monte Carlo error" if self.exact else "NOT exact"
        return (
            f"ImportanceDraws({sites}; {word}: k-hat {self.khat:.2f}, {self.ess:,.0f} effective of "
            f"{self.num_proposals:,} draws, log evidence {self.log_evidence:.4g} +- {self.log_evidence_error:.2g})"
        )


def importance_resample(
    model: Callable[..., Any],
    guide: Any,
    data: Any,
    num_samples: int = 1000,
    *,
    num_proposals: int | None = None,
    moment_matching: bool | str = "auto",
    progress: bool = True,
) -> ImportanceDraws:
    """Correct a posterior by importance sampling.

    Draws come half from the posterior's Gaussians and half from Student's t around them, ``q = (N + t_5) / 2``. Each is
    weighed by the whole mixture, ``p(y, theta) / q(theta)`` (Veach and Guibas 1995, "Optimally combining sampling
    techniques"), and the weights are Pareto-smoothed: they can be trusted where the shape k of their tail is at most
    0.7 (Vehtari et al. 2024, "Pareto smoothed importance sampling"). Moment matching moves the t to the mean and
    covariance of weighted draws, several times (Paananen et al. 2021, "Implicitly adaptive importance sampling"); what
    comes out is weighed on draws of its own, which took no part in that. The result is a systematic resample.

    Args:
        model: the Pyro program, or what `linearize` makes of one.
        guide: a posterior of `fit_laplace`, or any Pyro guide with a density, from which then Gaussian and t are made
            by its moments.
        data: what it was fitted to: a batch (tuple, dict or tensor), or a re-iterable of batches.
        num_samples: draws to return.
        num_proposals: draws to choose from. By default twice as many, at least 4,000, and four times as many again, up
            to `settings.most_proposals`, as long as the weights cannot be trusted.
        moment_matching: True, False, or "auto": where k-hat is over 0.7 without it, or few of the draws count.
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        the draws, with k-hat, effective sample size, and the corrected log evidence. Where k-hat is over 0.7 they do
        not call themselves exact, and a warning says so.

    Raises:
        InvalidOption: for an option out of range, a guide without a density, or a nested one of particles.
        UnsupportedProgram: if the program cannot be traced.
        InvalidData: if `data` cannot be iterated anew, lack values of an observed site, or hold some that are not
            finite.
    """
    _check_count("num_samples", num_samples)
    if num_proposals is not None:
        _check_count("num_proposals", num_proposals, settings.fewest_draws)
    check_option("moment_matching", moment_matching, (True, False, "auto"))
    refuse_without_density(guide)
    if getattr(guide, "outer", None) == "smc":
        raise InvalidOption(
            "importance_resample draws around a posterior's Gaussians, and those of outer='smc' are points: draw from "
            "the guide itself, guide.sample_posterior(1000), which diagnose(model, guide, data) judges"
        )
    data = as_data(data)
    count = max(2 * num_samples, settings.proposals) if num_proposals is None else num_proposals
    with torch.no_grad():
        program = program_at(model, guide, data)
        loop = Loop(program, data)
        with undisturbed(rng=False):
            parts = around(guide, program, data)
            found = correct(loop, parts, count, moment_matching, progress)
            most = 0 if num_proposals is not None else settings.most_proposals
            while not found.weights.trusted and moment_matching is not False and 4 * count <= most:
                count *= 4
                found = correct(loop, parts, count, moment_matching, progress)
            held = log_prior_of_held(guide, loop)
        values = unpack(program.latents, found.theta[_resampled(found.weights.normalised, num_samples)])
    draws = ImportanceDraws(values, found.weights, held)
    if not draws.exact:
        warnings.warn(
            f"importance_resample: Pareto k-hat is {draws.khat:.2f} (up to {settings.bad_k} can be trusted), and "
            f"{draws.ess:,.0f} of {draws.num_proposals:,} draws count: these draws and log_evidence are not those of "
            "the posterior. Draw with pl.fit_nuts(model, data)",
            LaplaceWarning,
            stacklevel=2,
        )
    return draws


def _resampled(weights: Tensor, count: int) -> Tensor:
    """Which draws a systematic resample takes, in random order."""
    chosen = systematic(weights, count, float(torch.rand((), dtype=torch.float64)))
    return chosen[torch.randperm(count).to(chosen.device)]


def _check_count(option: str, value: Any, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(f"{option}={value!r}: give a whole number of draws, at least {least}")
