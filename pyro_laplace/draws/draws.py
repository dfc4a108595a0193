"""Draws of the latent sites from whatever holds a posterior: a guide, an MCMC, or draws themselves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.guides import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_laplace._compat.pyro import site_is_deterministic, site_is_factor, site_is_subsample, undisturbed
from pyro_laplace._errors import InvalidOption
from pyro_laplace.data import Batch, Data
from pyro_laplace.draws.vectorize import over_rows
from pyro_laplace.draws.warm_up import WarmUp
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.program.module_state import modules_kept
from pyro_laplace.program.sites import unpack
from pyro_laplace.settings import settings


@dataclass(frozen=True)
class PosteriorDraws:
    """Draws of the latent sites, chain after chain.

    Attributes:
        values: site name to `[chains * draws, *shape]`, constrained.
        num_chains: number of chains; 1 for independent draws.
        independent: whether the draws are independent of one another.
        log_q: log density of the approximation at its draws of theta [draws], where it is known.
        stats: further statistics by draw, name to [chains, draws].
        attrs: further statistics by chain.
        source: the posterior, where it is one of `fit_laplace`.
        warm_up: draws before these, site name to `[chains, steps, *shape]`, where they were kept.
    """

    values: Mapping[str, Tensor]
    num_chains: int = 1
    independent: bool = True
    log_q: Tensor | None = None
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    source: AutoLaplace | LaplaceMixture | None = None
    warm_up: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """All draws of all chains."""
        return len(next(iter(self.values.values())))

    @property
    def is_point(self) -> bool:
        """Whether there is one draw only, a point estimate."""
        return len(self) == 1

    def at_least(self, num_samples: int) -> dict[str, Tensor]:
        """The draws, all repeated equally often: enough of them for the quantiles of what they predict."""
        repeats = -(-num_samples // len(self))
        return {name: value.repeat(repeats, *(1,) * (value.dim() - 1)) for name, value in self.values.items()}

    def by_chain(self, value: Tensor) -> Tensor:
        """`[chains * draws, ...]` to [chains, draws, ...]."""
        return value.reshape(self.num_chains, -1, *value.shape[1:])


def draws_of(posterior: Any, data: Data, num_samples: int) -> PosteriorDraws:
    """Draw from a posterior.

    Args:
        posterior: a guide (an autoguide, or any callable with the model's arguments), an `MCMC` that has run, or a
            mapping of site name to draws `[draws, *shape]`. An `AutoDelta` gives its one point.
        data: what a guide is called with; only its first batch.
        num_samples: number of draws from a guide. An `MCMC` and a mapping keep all of theirs.

    Returns:
        the draws.

    Raises:
        InvalidOption: for anything else, for a guide or `MCMC` that has not been run, and for draws of unequal number.
    """
    if isinstance(posterior, MCMC):
        return _of_mcmc(posterior)
    if isinstance(posterior, Mapping):
        return _of_mapping(posterior)
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise InvalidOption(f"num_samples={num_samples!r}: give a positive number of draws")
    if isinstance(posterior, AutoLaplace | LaplaceMixture):
        return _of_laplace(posterior, num_samples)
    if not callable(posterior):
        raise InvalidOption(
            f"posterior is a {type(posterior).__name__}: give a guide, a pyro.infer.MCMC that has run, or a mapping of "
            "site name to draws [draws, ...]"
        )
    if (
        isinstance(posterior, AutoGuide)
        and getattr(posterior, "prototype_trace", None) is None
        and not list(posterior.children())
    ):
        raise InvalidOption(f"posterior is an {type(posterior).__name__} that has never been run: train it first")
    batch = data.first()
    if isinstance(posterior, AutoDelta):
        point = posterior.median(*batch.args, **batch.kwargs)
        return PosteriorDraws({name: value.detach().clone()[None] for name, value in point.items()})
    with modules_kept(posterior):  # a guide may be a network too
        return PosteriorDraws(_of_guide(posterior, batch, num_samples))


def _of_laplace(guide: AutoLaplace | LaplaceMixture, num_samples: int) -> PosteriorDraws:
    with torch.no_grad():
        theta = guide.sample_theta(num_samples)
        random = theta[:, guide.index] if isinstance(guide, AutoLaplace) else theta
        log_q = guide.get_posterior().log_prob(random)
        return PosteriorDraws(unpack(guide.latents, theta), log_q=log_q, source=guide)


def _of_mcmc(mcmc: MCMC) -> PosteriorDraws:
    samples = mcmc.get_samples(group_by_chain=True)
    if not samples:
        raise InvalidOption("posterior is an MCMC that has not been run: call its .run(*data) first")
    num_chains, num_draws = next(iter(samples.values())).shape[:2]
    values = {name: value.detach().reshape(-1, *value.shape[2:]) for name, value in samples.items()}
    stats, attrs = {}, {}
    diagnostics = mcmc.diagnostics() if num_draws >= 4 else {}
    if "divergences" in diagnostics:
        stats["diverging"] = torch.zeros(num_chains, num_draws, dtype=torch.bool)
        for chain, where in enumerate(diagnostics["divergences"].values()):
            stats["diverging"][chain, list(where)] = True
    if "acceptance rate" in diagnostics:
        attrs["acceptance_rate"] = [float(rate) for rate in diagnostics["acceptance rate"].values()]
    kept = getattr(mcmc, "warm_up", None)
    before = kept.values(mcmc.transforms or {}) if isinstance(kept, WarmUp) else {}
    return PosteriorDraws(values, num_chains, independent=False, stats=stats, attrs=attrs, warm_up=before)


def _of_mapping(draws: Mapping[str, Any]) -> PosteriorDraws:
    values = {name: torch.as_tensor(value).detach() for name, value in draws.items()}
    lengths = {name: len(value) if value.dim() else 0 for name, value in values.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise InvalidOption(
            f"posterior: a mapping holds the same number of draws [draws, ...] of each site, not {lengths}"
        )
    return PosteriorDraws(values)


class _Latents(Messenger):
    """Keeps the values that a guide samples, and hides it from the handlers around it."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}

    def _process_message(self, msg: Any) -> None:
        msg["stop"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        helper = site_is_subsample(msg) or site_is_deterministic(msg) or site_is_factor(msg)
        if not helper and not msg["is_observed"] and not msg["infer"].get("is_auxiliary"):
            self.values[msg["name"]] = msg["value"]


def _of_guide(guide: Callable[..., Any], batch: Batch, num_samples: int) -> dict[str, Tensor]:
    """Draws from any guide: vectorised, or one by one where it does not vectorise; no trace is kept."""

    def draw(_: Mapping[str, Tensor]) -> dict[str, Tensor]:
        latents = _Latents()
        with latents:
            guide(*batch.args, **batch.kwargs)
        return latents.values

    with undisturbed(rng=False), torch.no_grad():
        return over_rows(draw, {}, num_samples, settings.guide_draws)
