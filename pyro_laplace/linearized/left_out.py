"""The density of each datum given all others, from the posterior of all: its own curvature is taken out again.

A Gaussian posterior is a prior times one quadratic a datum. In the linearised program that of datum n lies in its own
predictor eta_n alone, which is Gaussian too, with mean m and covariance ``V = J_n Lambda^-1 J_n'``. Without its score g
and its information I, both at the mode,

    V_-n = (V^-1 - I)^-1,    m_-n = m - V_-n g,

and its density given the others is the likelihood averaged over that Gaussian: LA-LOO of Vehtari, Mononen, Tolvanen,
Sivula and Winther 2016, "Bayesian leave-one-out cross-validation approximations for Gaussian latent variable models".
It is exact for linear-Gaussian programs, and needs neither draws of theta nor another pass over the data.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.capture.loop import Loop
from pyro_laplace.linearized.expansion import Expansion
from pyro_laplace.linearized.jacobian import Linearized
from pyro_laplace.linearized.program import LinearizedProgram
from pyro_laplace.linearized.routes import first_route
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.module_state import in_place_refused, modules_kept
from pyro_laplace.program.observations import refuse_outside_support
from pyro_laplace.program.program import datum_weight, likelihood_sites
from pyro_laplace.program.run import Site
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Log predictive densities of data, in nats and float64.

    Attributes:
        log_density: of each datum given the others [data]; NaN where the posterior is narrower than the datum's own
            curvature alone would leave it, as one of an approximate structure may be.
        log_fit: of each given all data, itself included [data].
    """

    log_density: Tensor
    log_fit: Tensor


def left_out(
    model: Callable[..., Any], guide: AutoLaplace, loop: Loop, num_samples: int, progress: bool = False
) -> LeftOut:
    """The density of each datum given the others, by the linearised program.

    Args:
        model: the Pyro program, or what `linearize` makes of one.
        guide: its posterior.
        loop: the program, traced on its data, each datum once.
        num_samples: draws of each datum's predictor, where its likelihood has no closed form under a Gaussian.
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        the densities of data that count, in the data's order.

    Raises:
        UnsupportedProgram: if a datum's quadratic is not its own predictor's alone: of several sites that are observed
            together, discrete sites summed out, factors, or data that are weighed.
    """
    own = model.model if isinstance(model, LinearizedProgram) else model
    parts = []
    with undisturbed(rng=False), modules_kept(own), in_place_refused(), torch.no_grad():
        route = first_route(Expansion.of(own, guide), differentiable=False)
        for chunk in loop.chunks("leave-one-out", progress):
            run = loop.program.run(guide.theta, chunk)
            refuse_outside_support(run, loop.program.derived)
            site = _only_site(likelihood_sites(run), loop.program.nesting, len(loop.program.derived))
            step = route.at(chunk)
            route = step.route
            linear = step.sites[site.name]
            parts.append(_densities_of(linear, site, _kept_data(site, chunk, linear), guide.curvature, num_samples))
    return LeftOut(torch.cat([part.log_density for part in parts]), torch.cat([part.log_fit for part in parts]))


def _only_site(sites: dict[str, Site], nesting: int | None, derived: int) -> Site:
    if len(sites) != 1 or nesting is not None or derived:
        raise UnsupportedProgram(
            f"a datum's own curvature can be taken out where it is that of one observed site; here are {list(sites)}"
            f"{', with discrete sites summed out' if nesting is not None else ''}: method='psis' weighs draws instead"
        )
    return next(iter(sites.values()))


def _kept_data(site: Site, chunk: Chunk, linear: Linearized) -> Tensor:
    """Which data count, bool [data]."""
    weight = datum_weight(site, chunk).expand(linear.batch)
    if bool(((weight != 0) & (weight != 1)).any()):
        raise UnsupportedProgram(
            f"the data of {site.name!r} are weighed by poutine.scale: method='psis' takes each out with its weight"
        )
    inner = linear.likelihood.weight(weight, site.value)
    return (inner.reshape(*linear.batch, -1) != 0).any(-1).reshape(-1)


def _densities_of(linear: Linearized, site: Site, kept: Tensor, curvature: str, num_samples: int) -> LeftOut:
    size = linear.outputs_of_datum
    mean = linear.mean.reshape(-1, size).double()
    covariance = linear.covariance_of_datum().reshape(-1, size, size).double()
    likelihood = _Likelihood(linear, site)
    score, observed = likelihood.derivatives(mean)
    if curvature == "empirical_fisher":
        information = score.unsqueeze(-1) * score.unsqueeze(-2)
    else:
        information = observed if curvature == "hessian" else likelihood.expected_information(observed.shape)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0.0).sqrt().unsqueeze(-2)
    eye = torch.eye(size, dtype=torch.float64, device=root.device)
    scale_tril, info = torch.linalg.cholesky_ex(eye - root.mT @ information @ root)
    cavity = torch.linalg.solve_triangular(scale_tril, root.mT, upper=False).mT  # V_-n = cavity cavity'
    moved = mean - (cavity @ (cavity.mT @ score.unsqueeze(-1))).squeeze(-1)
    density = likelihood.averaged(moved, cavity, num_samples)
    fit = likelihood.averaged(mean, root, num_samples)
    return LeftOut(torch.where(info == 0, density, math.nan)[kept], fit[kept])


@dataclass(frozen=True, eq=False)
class _Likelihood:
    """The density of the data of a site as a function of their predictor, the outputs of a datum beside one another.

    Letters: n a datum, k an output of one, r a column of a root, s a draw.
    """

    linear: Linearized
    site: Site

    def log_prob(self, predictor: Tensor) -> Tensor:
        """``log p(y_n | eta_n)`` `[*lead, n]` of predictors `[*lead, n, k]`."""
        linear = self.linear
        part = predictor.reshape(*predictor.shape[:-2], *linear.base, len(linear.kept))
        eta = linear.eta.double().expand(*part.shape[:-1], -1).index_copy(-1, linear.kept.to(part.device), part)
        fn = linear.likelihood.distribution(eta)
        found = fn.log_prob(linear.likelihood.family.as_data(self.site.value, linear.likelihood.base))
        return found.expand(*predictor.shape[:-2], *linear.batch).flatten(predictor.dim() - 2)

    def derivatives(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """The score [n, k] and the observed information [n, k, k], ``-d^2 log p / d eta^2``."""
        with torch.enable_grad():
            at = mean.clone().requires_grad_()
            (score,) = torch.autograd.grad(self.log_prob(at).sum(), at, create_graph=True)
            rows = [self._row(score[:, k].sum(), at) for k in range(mean.shape[1])]
        second = torch.stack(rows, 1)
        return score.detach(), -(second + second.mT) / 2

    def expected_information(self, shape: torch.Size) -> Tensor:
        """Fisher's information [n, k, k], without entries that are masked."""
        linear = self.linear
        weight = linear.likelihood.weight(torch.ones(linear.batch, dtype=torch.float64), self.site.value)
        root = linear.likelihood.fisher_root(linear.eta.double()) * weight.sqrt()[..., None, None]
        root = root.index_select(-2, linear.kept.to(root.device))
        root = root.reshape(shape[0], -1, *root.shape[-2:])  # n entry k r
        blocks = root @ root.mT
        count, each = blocks.shape[1:3]
        whole = blocks.new_zeros(shape[0], count, each, count, each)
        place = torch.arange(count)
        whole[:, place, :, place, :] = blocks.transpose(0, 1)
        return whole.reshape(shape)

    def averaged(self, mean: Tensor, root: Tensor, num_samples: int) -> Tensor:
        """``log E p(y_n | m + R z)`` [n] over standard normal z: in closed form of Normal data of known noise."""
        exact = self._normal(mean, root)
        if exact is not None:
            return exact
        total, count = None, 0
        for size in self._steps(num_samples, mean):
            white = torch.randn(size, *root.shape[:1], root.shape[-1], dtype=torch.float64, device=mean.device)
            drawn = mean + torch.einsum("nkr,snr->snk", root, white)
            part = self.log_prob(drawn).logsumexp(0)
            total, count = part if total is None else torch.logaddexp(total, part), count + size
        assert total is not None  # there is one draw at least
        return total - math.log(count)

    def _normal(self, mean: Tensor, root: Tensor) -> Tensor | None:
        """Of Normal data of known noise, each or several in a datum by `to_event`; None of others."""
        likelihood, base = self.linear.likelihood, self.linear.likelihood.base
        plain = all(isinstance(wrapper, Independent) for wrapper in likelihood.wrappers)
        if not plain or type(base) not in (dist.Normal, Normal) or self.linear.kept.tolist() != [0]:
            return None
        noise = base.scale.expand(self.linear.base).reshape(mean.shape).double()
        value = self.site.value.expand(self.linear.base).reshape(mean.shape).double()
        covariance = root @ root.mT + noise.square().diag_embed()
        return MultivariateNormal(mean, covariance, validate_args=False).log_prob(value)

    @staticmethod
    def _row(entry: Tensor, at: Tensor) -> Tensor:
        """The gradient of a sum of scores; zero where they do not depend on the predictor."""
        if not entry.requires_grad:
            return torch.zeros_like(at)
        (row,) = torch.autograd.grad(entry, at, retain_graph=True, allow_unused=True)
        return torch.zeros_like(at) if row is None else row

    @staticmethod
    def _steps(num_samples: int, mean: Tensor) -> Iterator[int]:
        step = max(1, settings.pass_elements // max(1, mean.numel()))
        for start in range(0, num_samples, step):
            yield min(step, num_samples - start)
