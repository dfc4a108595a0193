"""How well a posterior predicts the data that it was fitted to, each datum left out: by the method that is right."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, UnsupportedProgram
from pyro_laplace._typing import Values
from pyro_laplace.capture.loop import Loop
from pyro_laplace.diagnostics.weights import Weights
from pyro_laplace.draws.density import log_joint_at
from pyro_laplace.draws.draws import PosteriorDraws
from pyro_laplace.draws.monte_carlo import over_draws
from pyro_laplace.linearized.choose import bend_of, sums_discrete
from pyro_laplace.linearized.left_out import LeftOut, left_out
from pyro_laplace.linearized.program import LinearizedProgram
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.run import Run
from pyro_laplace.report.matching import Unconstrained, matched
from pyro_laplace.report.posterior import theta_of
from pyro_laplace.report.row import APPROXIMATE, AUTO, LAPLACE, PSIS, Elpd
from pyro_laplace.report.weighing import relative_efficiency, weighed
from pyro_laplace.settings import settings

UNMATCHED = "moment matching is of draws from the posterior itself, and these are a guide's"
"""What is said where it was asked for of a guide."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A posterior beside the program that it predicts with, and the data that it was fitted to.

    Attributes:
        model: the program that its draws are read off: the user's, or the linearised one.
        posterior: what was given.
        draws: of it.
        joint: the program on the data, a part of them weighed for all that it stands for.
        loop: the same, each datum once.
        passed: gives log likelihoods [draws, data] of some data after the others, in one pass.
        num_samples: draws of a datum's predictor, in the closed form.
        progress: whether a pass that lasts shows a progress bar.
        method: how to leave data out.
        matching: densities of the program, where moments are to be matched; else None.
    """

    model: Callable[..., Any]
    posterior: Any
    draws: PosteriorDraws
    joint: Loop
    loop: Loop
    passed: Callable[[], Iterator[Tensor]]
    num_samples: int
    progress: bool
    method: str = AUTO
    matching: Unconstrained | None = None

    def elpd(self) -> Elpd:
        """Leave each datum out.

        Returns:
            the densities, in the data's order.

        Raises:
            InvalidOption: if the method that was asked for is none of this posterior's.
        """
        found = self._left_out()
        unmatched = self.matching is not None and self._is_guide and not found.note
        return replace(found, note=UNMATCHED) if unmatched else found

    def _left_out(self) -> Elpd:
        """By the method that was asked for, or the best."""
        if self.method == LAPLACE:
            return self._closed_form()
        draws = self.draws
        if self.method == APPROXIMATE and draws.log_q is None:
            raise InvalidOption(
                f"method={APPROXIMATE!r} weighs draws by the density of a guide, and a "
                f"{type(self.posterior).__name__} has none: use {PSIS!r}"
            )
        distinct = self._distinct
        if distinct < settings.fewest_draws:  # an ensemble repeats its points
            few = f"{distinct} distinct draws are too few to weigh (at least {settings.fewest_draws})"
            return _unknown("a point has no leave-one-out posterior" if distinct == 1 else few)
        method, note = (self._best(), "") if self.method == AUTO else (self.method, "")
        if method == LAPLACE:
            try:
                exact = self._closed_form()
            except (InvalidOption, UnsupportedProgram) as error:
                exact = _unknown(str(error))
            if exact.method:
                return exact
            method, note = PSIS, exact.note
        ratio = self.log_ratio if method == APPROXIMATE else None
        by_chain = {name: draws.by_chain(value) for name, value in draws.values.items()}
        efficiency = 1.0 if draws.independent else relative_efficiency(by_chain)
        parts = [(*weighed(piece, ratio, efficiency), _log_mean(piece)) for piece in self.pieces()]
        density, k, fit = (np.concatenate(each) for each in zip(*parts, strict=True))
        if self.matching is not None and not self._is_guide and bool((k > settings.bad_k).any()):
            whole = torch.cat(list(self.pieces()), 1)
            theta = draws.by_chain(theta_of(self.loop.program, draws))
            density, k = matched(theta, draws.by_chain(whole), self.matching, efficiency)
        return Elpd(method, density, fit, k, note)

    @cached_property
    def weights(self) -> Weights | None:
        """Importance weights p / q of the draws; None of what has no density."""
        return None if self.log_ratio is None else Weights.of(self.log_ratio)

    @cached_property
    def log_ratio(self) -> Tensor | None:
        """``log p(y, theta) - log q(theta)`` [draws], up to a constant; None of what has no density."""
        if self.draws.log_q is None:
            return None
        program = self.joint.program
        theta = theta_of(program, self.draws)
        if self._held is None or program.external:
            log_p = log_joint_at(self.joint, theta, "log joint" if self.progress else None)
        else:
            log_lik = torch.stack([piece.double().sum(1) for piece in self._held]).sum(0)
            log_p = log_lik + log_prior_at(self.loop, self.draws, theta)
        return log_p - self.draws.log_q.double()

    def pieces(self) -> Iterator[Tensor]:
        """Log likelihoods [draws, data] of some data after the other: all held, or as many as memory allows."""
        return iter(self._held) if self._held is not None else self.passed()

    @cached_property
    def _held(self) -> tuple[Tensor, ...] | None:
        """All of them; None where they are larger than `settings.chunk_bytes`."""
        held, size = [], 0
        for piece in self.passed():
            held.append(piece)
            size += piece.nbytes
            if size > settings.chunk_bytes:
                return None
        return tuple(held)

    @cached_property
    def _distinct(self) -> int:
        """How many draws differ from one another, by what they say of the data, or by themselves where that is one."""
        if self.draws.is_point:
            return 1
        some = next(self.pieces())
        telling = some if bool((some != some[0]).any()) else _draws_as_rows(self.draws)
        return len(telling.unique(dim=0))

    def _best(self) -> str:
        """Weights of a guide's draws where these can be trusted; else the closed form, where there is one."""
        weights = self.weights
        if weights is None:
            return PSIS
        if weights.trusted and weights.khat > -math.inf:
            return APPROXIMATE
        return LAPLACE if isinstance(self.posterior, AutoLaplace) and self._straight else PSIS

    @property
    def _is_guide(self) -> bool:
        return isinstance(self.posterior, AutoGuide)

    @cached_property
    def _straight(self) -> bool:
        """Whether the program is linear within the posterior, or is linearised; one with sums has no predictor."""
        if isinstance(self.model, LinearizedProgram):
            return True
        if sums_discrete(self.model, self.posterior, self.loop.data):
            return False
        return bend_of(self.model, self.posterior, self.loop.data) <= settings.linear

    def _closed_form(self) -> Elpd:
        """By the posterior's own curvature; without a method where it is not defined of every datum."""
        if not isinstance(self.posterior, AutoLaplace) or self.posterior.curvature == "none":
            raise InvalidOption(
                f"method={LAPLACE!r} takes a datum's curvature out of a posterior of fit_laplace, and this is a "
                f"{type(self.posterior).__name__}: use {PSIS!r}"
            )
        found: LeftOut = left_out(self.model, self.posterior, self.loop, self.num_samples, self.progress)
        missing = int(found.log_density.isnan().sum())
        if missing:
            return _unknown(
                f"the closed form is not defined of {missing} of {len(found.log_density)} data: the posterior "
                f"(structure {self.posterior.structure!r}) is narrower than their own curvature allows"
            )
        return Elpd(LAPLACE, found.log_density.cpu().numpy(), found.log_fit.cpu().numpy(), None)


def check_matching(moment_matching: bool, method: str, posteriors: Iterable[Any]) -> None:
    """Refuse moment matching that would match nothing.

    Args:
        moment_matching: whether it was asked for.
        method: how a datum is left out.
        posteriors: what it is asked of.

    Raises:
        InvalidOption: if the method has no use for it, or all posteriors are guides.
    """
    if moment_matching and method not in (AUTO, PSIS):
        raise InvalidOption(
            f"moment_matching=True and method={method!r}: draws are moved by {PSIS!r} alone. Leave moment_matching "
            f"out, or give method={PSIS!r} and draws of the posterior itself"
        )
    if moment_matching and all(isinstance(posterior, AutoGuide) for posterior in posteriors):
        raise InvalidOption(
            f"moment_matching=True and method={method!r}: {UNMATCHED}. Leave moment_matching out, or give an MCMC "
            "(pl.fit_nuts), or draws of the posterior"
        )


def log_prior_at(loop: Loop, draws: PosteriorDraws, theta: Tensor) -> Tensor:
    """Log prior density of draws of theta, factors outside any plate and the log-Jacobian included [draws]."""
    program = loop.program
    if isinstance(program.model, LinearizedProgram):  # has the model's own prior
        program = replace(program, model=program.model.model)

    def prior(run: Run, chunk: Chunk) -> Mapping[str, Tensor]:
        terms = [site.log_prob().double().sum() for site in [*run.latents.values(), *run.other_priors]]
        return {"prior": torch.stack(terms).sum()}

    total = over_draws(program, draws.values, loop.few_rows(), prior, False)["prior"]
    with undisturbed(rng=False), torch.no_grad():
        for latent in program.latents.values():
            if latent.constrained:
                total = total + torch.func.vmap(latent.log_abs_det_jacobian)(theta[:, latent.slice]).double()
    return total


def _unknown(note: str) -> Elpd:
    none = np.full(0, math.nan)
    return Elpd("", none, none, None, note)


def _log_mean(piece: Tensor) -> np.ndarray:
    return (piece.double().logsumexp(0) - math.log(len(piece))).cpu().numpy()


def _draws_as_rows(draws: PosteriorDraws) -> Tensor:
    """The draws, a row each."""
    return torch.cat([value.reshape(len(draws), -1) for value in draws.values.values()], 1)


@runtime_checkable
class PassedOver(Protocol):
    """What is asked of the likelihood at a posterior's draws: `scores.drawn.Mixture`, or what does as it does."""

    @property
    def view(self) -> Any:
        """The program on the data."""
        ...

    @property
    def draws(self) -> PosteriorDraws:
        """Of the posterior."""
        ...

    @property
    def num_samples(self) -> int:
        """Draws where something has no closed form."""
        ...

    def log_likelihoods(self) -> Iterator[Tensor]:
        """Of the data that count [draws, data], some after the others."""
        ...

    def at_values(self, values: Values) -> "PassedOver":
        """The same program and data at other draws."""
        ...


def fitted(
    model: Callable[..., Any], posterior: Any, mixture: PassedOver, method: str, moment_matching: bool
) -> Fitted:
    """A posterior beside the program that it predicts with."""
    view = mixture.view
    return Fitted(
        model,
        posterior,
        mixture.draws,
        joint=Loop(view.program, view.data),
        loop=view.loop,
        passed=mixture.log_likelihoods,
        num_samples=mixture.num_samples,
        progress=view.progress,
        method=method,
        matching=densities_of(mixture) if moment_matching else None,
    )


def densities_of(mixture: PassedOver) -> Unconstrained:
    """The densities of a program as functions of unconstrained theta."""
    view = mixture.view
    joint = Loop(view.program, view.data)
    return Unconstrained(joint, view.log_lik, lambda values: mixture.at_values(values).log_likelihoods())


def as_arviz(elpd: Elpd, num_draws: int) -> Any:
    """An `Elpd` as ArviZ has it."""
    from arviz_stats.utils import ELPDDataLOO  # takes a second to load
    from xarray import DataArray

    k = elpd.k
    options: dict[str, Any] = {} if k is None else {"pareto_k": DataArray(k, dims=["datum"])}
    return ELPDDataLOO(
        elpd=elpd.total,
        se=elpd.error,
        p=float((elpd.log_fit - elpd.log_density).sum()) if elpd.method else math.nan,
        n_samples=0 if elpd.method == LAPLACE else num_draws,
        n_data_points=len(elpd.log_density),
        scale="log",
        warning=False if k is None else bool(np.any(k > settings.bad_k)),
        good_k=settings.bad_k,
        elpd_i=DataArray(elpd.log_density, dims=["datum"]),
        approx_posterior=elpd.method == APPROXIMATE,
        **options,
    )
