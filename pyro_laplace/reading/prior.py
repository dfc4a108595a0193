"""The prior's part of the precision: minus the Hessian of the log density of the latent sites and of bare factors.

A Normal site whose location and scale depend on nothing latent has its precision for curvature, and most programs have
no other. The rest is differentiated twice along the graph of the run, over the sites that it depends on alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace._typing import Matrix, Scalar, Theta
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.program.program import add_up
from pyro_laplace.program.run import Site
from pyro_laplace.reading.second_order import Differentiated, SecondOrder, Stored
from pyro_laplace.sparse.symmetric import Symmetric
from pyro_laplace.unwrap import innermost_unmasked


@dataclass(frozen=True, eq=False)
class Prior:
    """The log prior, and minus its Hessian over the free coordinates of an anchor.

    Attributes:
        log_density: log p(theta), or of the constrained values, in nats.
        log_density_of_free: log p of the free sites' theta, its log-Jacobian included.
        log_gradient: of `log_density` over the free coordinates [params], in float64.
        known: the curvature's part from Normal sites, a diagonal [params], in float64.
        rest: the part of everything else.
        hyperparameters: values of the `pyro.param`s that it depends on.
        generic: the diagonal at other values of these, which shows what form it has whatever they are; None where there
            are none.
    """

    log_density: float
    log_density_of_free: float
    log_gradient: Theta
    known: Theta
    rest: SecondOrder
    hyperparameters: Mapping[str, Tensor] = field(default_factory=dict)
    generic: Theta | None = None

    @staticmethod
    def of_diagonal(precision: Theta) -> "Prior":
        """The prior of independent Normal coordinates around zero, at zero: its precision [params]."""
        known = precision.double()
        log_p = float((known.log().sum() - len(known) * math.log(2 * math.pi)) / 2)
        nothing = Stored(torch.zeros(0, dtype=torch.long, device=known.device), known[:0], None)
        return Prior(log_p, log_p, torch.zeros_like(known), known, nothing)

    def over(self, chosen: Tensor) -> "Prior":
        """The same over some free coordinates, by their place, the others held; the log densities stay those of all."""
        moved = torch.full((len(self.known) + 1,), -1, device=chosen.device)  # the last entry is that of -1
        moved[chosen] = torch.arange(len(chosen), device=chosen.device)
        rest = self.rest.moved(moved)
        generic = None if self.generic is None else self.generic[chosen]
        return replace(
            self, log_gradient=self.log_gradient[chosen], known=self.known[chosen], rest=rest, generic=generic
        )

    def detached(self) -> "Prior":
        """The same as plain numbers, without the graph of the run that it was read off."""
        return replace(self, rest=self.rest.stored())

    @property
    def diagonal(self) -> Theta:
        """The diagonal [params], in float64."""
        return self.known.index_add(0, self.rest.index, self.rest.diagonal)

    @property
    def is_diagonal(self) -> bool:
        """Whether everything beside the diagonal is zero."""
        return self.rest.is_diagonal

    @property
    def is_proper(self) -> bool:
        """Whether it is a positive diagonal, which whitens."""
        return self.is_diagonal and bool((self.diagonal > 0).all())

    @property
    def coupled(self) -> Tensor:
        """Which free coordinates are coupled with others [params]."""
        coupled = torch.zeros(len(self.known), dtype=torch.bool, device=self.known.device)
        return coupled if self.is_diagonal else coupled.index_copy(0, self.rest.index, self.rest.coupled)

    def matrix(self) -> Matrix:
        """All of it, [params, params]."""
        total = self.known.new_zeros(len(self.known), len(self.known))
        self.add_to(total, torch.arange(len(total), device=total.device))
        return total

    def symmetric(self) -> Symmetric:
        """All of it, by its entries; raises `NotSparse` where these are many."""
        return Symmetric.total([Symmetric.of_diagonal(self.known), self.symmetric_of_rest()])

    def symmetric_of_rest(self) -> Symmetric:
        """The part beyond Normal sites, by its entries over all free coordinates."""
        return self.rest.symmetric.moved(self.rest.index, len(self.known))

    def add_to(self, total: Matrix, order: Tensor) -> None:
        """Add it to a matrix whose entry i is the coordinate `order[i]`."""
        if self.is_diagonal:
            total.diagonal().add_(self.diagonal[order])
            return
        total.diagonal().add_(self.known[order])
        back = torch.empty_like(order).index_copy(0, order, torch.arange(len(order), device=order.device))
        where = back[self.rest.index]
        total[where.unsqueeze(1), where] += self.rest.matrix


def prior_of(run: CapturedRun, jacobian: bool) -> Prior:
    """The log prior at a run's point, with its gradient and curvature, and the form of that.

    Args:
        run: a run of the program.
        jacobian: whether the density is that of theta, or of the constrained values.

    Returns:
        the log prior, and minus its Hessian over the free coordinates.
    """
    values = _hyperparameters(run, jacobian)
    if not values:
        return _read(run, jacobian)
    generator = torch.Generator().manual_seed(0)
    other = {
        name: value * (0.5 + torch.rand(value.shape, generator=generator).to(value)) for name, value in values.items()
    }
    held, moved = (  # their graph is none of the latent sites'
        CapturedRun.make(run.program, run.anchor, run.chunk, captured=False, params=each) for each in (values, other)
    )
    generic = _read(moved, jacobian).diagonal
    generic = generic if bool(generic.isfinite().all()) else None
    return replace(_read(held, jacobian), hyperparameters=values, generic=generic)


def _read(run: CapturedRun, jacobian: bool) -> Prior:
    """The log prior at a run's point, with its gradient and curvature."""
    program, anchor, theta = run.program, run.anchor, run.anchor.theta
    normals, rest = {}, []
    for name, latent in program.latents.items():
        fn: Any = None if latent.constrained else counted_once(run.run.latents[name])
        if is_free_normal(fn):
            normals[name] = fn
        elif not isinstance(fn, dist.ImproperUniform):
            rest.append(name)
    normal = _of_normals(run, normals)
    with torch.enable_grad():
        terms = [run.log_prior(jacobian, frozenset(rest))] if rest else []
        terms += [site.log_prob() for site in run.run.other_priors]
        log_density = add_up(terms, theta)
        used = run.gradient(log_density, create_graph=True)
        negative = torch.cat([theta[:0], *(-each for each in used.values())])
    gradient = normal.gradient
    run.add_over_free(gradient, {name: each.detach() for name, each in used.items()})
    positions = anchor.positions if used else anchor.index
    place = torch.cat([anchor.index[:0], *(positions[program.layout[name]] for name in used)])
    return Prior(
        float(sum(normal.log_p, log_density.detach())),
        float(sum(normal.log_p_of_free)) + _of_free(run, rest, log_density, jacobian),
        gradient,
        normal.precision,
        Differentiated(negative, [run.leaves[name] for name in used], place),
    )


def _hyperparameters(run: CapturedRun, jacobian: bool) -> dict[str, Tensor]:
    """Values of the `pyro.param`s that the log prior depends on."""
    params = {name: value.detach().clone().requires_grad_() for name, value in run.run.params.items()}
    if not params:
        return {}
    probe = CapturedRun.make(run.program, run.anchor, run.chunk, captured=False, params=params)
    with torch.enable_grad():
        terms = [probe.log_prior(jacobian), *(site.log_prob() for site in probe.run.other_priors)]
        log_p = add_up(terms, run.anchor.theta)
    if not log_p.requires_grad:
        return {}
    grads = torch.autograd.grad(log_p, list(params.values()), allow_unused=True)
    return {name: params[name].detach() for name, g in zip(params, grads, strict=True) if g is not None}


@dataclass(frozen=True, eq=False)
class _Normals:
    """What Normal sites say.

    Attributes:
        precision: over the free coordinates, zero beside these sites.
        gradient: of their log densities there.
        log_p: the log density of each.
        log_p_of_free: that of each one's free coordinates.
    """

    precision: Theta
    gradient: Theta
    log_p: list[Scalar]
    log_p_of_free: list[Scalar]


def _of_normals(run: CapturedRun, normals: Mapping[str, Any]) -> _Normals:
    """Precision, gradient and log densities of the Normal sites."""
    theta, layout, spans = run.anchor.theta, run.program.layout, run.anchor.spans
    precision = torch.zeros(run.anchor.size, dtype=torch.float64, device=theta.device)
    found = _Normals(precision, torch.zeros_like(precision), [], [])
    for name, fn in normals.items():
        shape = run.run.latents[name].value.shape
        loc, scale = (without_copies(param.detach(), shape) for param in (fn.loc, fn.scale))
        prec, deviation = scale.square().reciprocal(), loc - theta[layout[name]].double()
        pull = deviation * prec
        found.log_p.append(log_p_of_normal(deviation @ pull, scale, len(deviation)))
        if name in spans:
            span, own = spans[name]
            scale = scale[own] if scale.dim() else scale
            found.precision[span], found.gradient[span] = prec[own] if prec.dim() else prec, pull[own]
            found.log_p_of_free.append(log_p_of_normal(deviation[own] @ pull[own], scale, span.stop - span.start))
    return found


def log_p_of_normal(squares: Scalar, scale: Tensor, count: int) -> Scalar:
    """Log density of Normal entries with so many squares of standardised deviations, summed, and one scale or each."""
    log_det = scale.log().sum() if scale.dim() else count * scale.log()
    return -0.5 * squares - log_det - 0.5 * count * math.log(2 * math.pi)


def without_copies(param: Tensor, shape: torch.Size) -> Tensor:
    """A parameter of a site's entries in float64: one number [] that stands for all of them, or flat."""
    if param.numel() and not any(param.stride()):
        return param[(0,) * param.dim()].double()
    return param.expand(shape).reshape(-1).double()


def _of_free(run: CapturedRun, rest: list[str], log_density: Scalar, jacobian: bool) -> float:
    """Log density of the rest of the free sites, log-Jacobian included; bare factors count if every site is free."""
    latents, free = run.program.latents, frozenset(run.leaves)
    if len(free) == len(latents) and (jacobian or not any(latent.constrained for latent in latents.values())):
        return float(log_density.detach())
    found = 0.0
    if len(free) == len(latents):
        factors = [site.log_prob() for site in run.run.other_priors]
        found += float(add_up(factors, run.anchor.theta).detach())
    return found + float(run.log_prior(True, free & frozenset(rest)).detach())


def counted_once(site: Site) -> Any:
    """The distribution of a site's entries, if the site counts once, without scale and mask; else None."""
    fn = innermost_unmasked(site.fn)
    return fn if site.mask is None and isinstance(site.scale, float) and site.scale == 1.0 else None


def is_free_normal(fn: Any) -> bool:
    """Whether a distribution is a Normal whose location and scale depend on nothing latent, in a run under autograd."""
    return type(fn) in _NORMAL and not (fn.loc.requires_grad or fn.scale.requires_grad)


_NORMAL = (torch.distributions.Normal, dist.Normal)
