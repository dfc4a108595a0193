"""`log_evidence`: Laplace's log p(y) of a posterior as a function of the hyperparameters, with its terms."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import live_param, undisturbed
from pyro_laplace._errors import InvalidOption
from pyro_laplace._typing import Scalar, Values
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import as_data
from pyro_laplace.evidence.checks import refuse_not_finite, tell_of_improper
from pyro_laplace.evidence.prior_det import effective_counts, log_det_of_prior
from pyro_laplace.evidence.surface import EvidenceAt, Surface
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.search import PosteriorAt, Search
from pyro_laplace.program.program import Program
from pyro_laplace.reading.hyperparameters import Names


@dataclass(frozen=True, eq=False)
class Evidence:
    """Laplace's log evidence ``log p(y)`` and its terms, in nats.

    ``value = log_lik + log_prior + log_volume`` (MacKay 1992, "A practical Bayesian framework for backpropagation
    networks"); where the prior is Gaussian it is also ``log_lik - scatter / 2 - log_det_ratio / 2``, with the scatter
    ``(theta* - m)' H_prior (theta* - m)`` of theta* around the prior's mean.

    Attributes:
        value: the log evidence [], differentiable in the pyro.params that the store holds, theta held.
        log_lik: ``log p(y | theta*)`` of all data [].
        log_prior: ``log p(theta*)`` of the random coordinates, log-Jacobian included [].
        log_volume: ``P/2 log 2 pi - 1/2 log det Lambda`` [], of the posterior.
        log_det_ratio: ``log det Lambda - log det H_prior`` []: twice the log of how much smaller the posterior's volume
            is than the prior's; infinite for a flat prior.
        effective_dim: ``tr(Lambda^-1 H)``, how many of the P parameters the data determine.
        effective_dim_by_site: the same by random site.
        num_params: P.
        hyperparameters: the values that it is taken at, by name.
    """

    value: Scalar
    log_lik: Scalar
    log_prior: Scalar
    log_volume: Scalar
    log_det_ratio: Scalar
    effective_dim: float
    effective_dim_by_site: Mapping[str, float]
    num_params: int
    hyperparameters: Mapping[str, Tensor]

    def __float__(self) -> float:
        """The log evidence, without its graph."""
        return float(self.value.detach())

    def __repr__(self) -> str:
        """A short table."""
        rows = [(name, f"{float(getattr(self, key).detach()):.6g}") for name, key in _ROWS]
        rows.append(("effective parameters", f"{self.effective_dim:.4g} of {self.num_params}"))
        if len(self.effective_dim_by_site) > 1:
            rows += [(f"  {name}", f"{count:.4g}") for name, count in self.effective_dim_by_site.items()]
        rows += [(name, _short(value)) for name, value in self.hyperparameters.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


_ROWS = (
    ("log evidence", "value"),
    ("  log likelihood", "log_lik"),
    ("  log prior", "log_prior"),
    ("  log posterior volume", "log_volume"),
    ("log-determinant ratio", "log_det_ratio"),
)


def log_evidence(
    model: Callable[..., Any],
    guide: Any,
    data: Any,
    *,
    hyperparameters: Names = "auto",
    progress: bool = True,
) -> Evidence:
    """Laplace's log evidence of a posterior, with its terms, as a function of the hyperparameters.

    Theta is held at the guide's mode, and so are its random coordinates, structure and curvature. Hyperparameters are
    pyro.params at the values that the param store holds now, which may be others than the guide was built at: so the
    evidence of other values is had by setting them, and its gradient by ``evidence.value.backward()``, which adds to
    the ``.grad`` of ``pyro.param(name).unconstrained()``. Of a guide that was made with ``keep=False`` the values are
    its own.

    One pass over the data; a gradient in something that is neither a prior's nor a homoscedastic Normal noise takes two
    more a number.

    Args:
        model: the Pyro program.
        guide: its posterior, from `fit_laplace`, `maximize_evidence` or `tune`.
        data: the data that it was fitted to.
        hyperparameters: what `value` is differentiable in: "auto", those of the random sites' priors and of noise, or
            names and globs of pyro.params.
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        the evidence.

    Raises:
        InvalidOption: if the guide is no `AutoLaplace`, or a name matches nothing.
        InvalidData: if the log likelihood is not finite.
        IndefiniteCurvature: if Lambda is not positive definite at these hyperparameters.
    """
    if not isinstance(guide, AutoLaplace):
        raise InvalidOption(f"log_evidence takes a posterior from fit_laplace, not a {type(guide).__name__}")
    data = as_data(data)
    live = {name: live_param(model, name) for name in guide.hyperparameters} if guide.path.kept else {}
    own = {name: value for name, value in guide.hyperparameters.items() if live.get(name) is None}
    curvature = CURVATURES[guide.curvature].drawn()
    with undisturbed():
        with torch.no_grad():
            program = Program.trace(model, data, guide.median(), own)
            loop = Loop(replace(program, start=guide.theta), data)
            search = Search(loop, guide.index, guide.structure, curvature, guide.jacobian, progress)
            found, posterior = search.hyperparameters(hyperparameters), search.measured(guide.theta)
            refuse_not_finite(posterior)
        tell_of_improper(loop, posterior.likelihood.anchor.touched, found)
        surface = Surface.around(search, posterior, found)
        values = {
            name: _or(live_param(model, name) if guide.path.kept else None, v) for name, v in found.values.items()
        }
        at = surface.at_values(values)
        return _evidence(at, posterior, found.values)


def _evidence(at: EvidenceAt, posterior: PosteriorAt, values: Values) -> Evidence:
    anchor, prior = posterior.likelihood.anchor, at.prior
    volume = 0.5 * anchor.size * math.log(2 * math.pi) - 0.5 * at.solved.log_det
    counts = effective_counts(posterior.precision, posterior.prior)
    by_site = {name: float(counts[span].sum()) for name, (span, _) in anchor.spans.items()}
    return Evidence(
        value=at.value,
        log_lik=at.log_lik,
        log_prior=prior.log_density,
        log_volume=volume,
        log_det_ratio=at.solved.log_det - log_det_of_prior(prior),
        effective_dim=sum(by_site.values()),
        effective_dim_by_site=by_site,
        num_params=anchor.size,
        hyperparameters=dict(values),
    )


def _or(live: Tensor | None, value: Tensor) -> Tensor:
    return value if live is None else live.to(value.device)


def _short(value: Tensor) -> str:
    numbers = value.detach().reshape(-1)
    shown = ", ".join(f"{float(each):.4g}" for each in numbers[:4])
    return shown if value.dim() == 0 else f"[{shown}{', ...' if len(numbers) > 4 else ''}]"
