"""The prior's part of the precision: minus the Hessian of the log density of the latent sites and of bare factors.

A Normal site whose location and scale depend on nothing latent has its precision for curvature, and most programs have
no other. The rest is differentiated twice along the graph of the run, over the sites that it depends on alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace._memory import refuse_too_large
from pyro_laplace._typing import Matrix, Scalar, Theta
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.program.program import add_up
from pyro_laplace.program.run import Site
from pyro_laplace.unwrap import innermost_unmasked

_CHUNK_ELEMENTS = 2**22
"""Elements of the Hessian's rows that one pass gives."""


@dataclass(frozen=True, eq=False)
class Prior:
    """The log prior, and minus its Hessian over the free coordinates.

    Attributes:
        log_density: log p(theta), or of the constrained values, in nats.
        log_density_of_free: log p of the free sites' theta, its log-Jacobian included.
        log_gradient: of `log_density` over the free coordinates [params], in float64.
        known: the curvature's part from Normal sites, a diagonal [params], in float64.
        gradient: of minus the rest, over the coordinates [rest] that it depends on, with its graph.
        leaves: these coordinates, of one site after the other.
        place: where each of them is among the free coordinates [rest]; -1 if it is held.
    """

    log_density: float
    log_density_of_free: float
    log_gradient: Theta
    known: Theta
    gradient: Tensor
    leaves: Sequence[Tensor]
    place: Tensor

    def over(self, chosen: Tensor) -> "Prior":
        """The same over some of the free coordinates, by their place among them; the others are held."""
        place = torch.full((len(self.known) + 1,), -1, device=chosen.device)
        place[chosen] = torch.arange(len(chosen), device=chosen.device)
        return replace(self, log_gradient=self.log_gradient[chosen], known=self.known[chosen], place=place[self.place])

    @property
    def diagonal(self) -> Theta:
        """The diagonal [params], in float64."""
        return self.known.index_add(0, self._index, self._rest[0])

    @property
    def is_diagonal(self) -> bool:
        """Whether everything beside the diagonal is zero."""
        return self._rest[1]

    def matrix(self) -> Matrix:
        """All of it, [params, params]."""
        matrix = self.known.diag()
        if self.is_diagonal:
            return self.diagonal.diag()
        matrix[self._index.unsqueeze(1), self._index] += self._hessian
        return matrix

    def add_to(self, total: Matrix, order: Tensor) -> None:
        """Add it to a matrix whose entry i is the coordinate `order[i]`."""
        if self.is_diagonal:
            total.diagonal().add_(self.diagonal[order])
            return
        total.diagonal().add_(self.known[order])
        back = torch.empty_like(order).index_copy(0, order, torch.arange(len(order), device=order.device))
        where = back[self._index]
        total[where.unsqueeze(1), where] += self._hessian

    @property
    def coupled(self) -> Tensor:
        """Which free coordinates are coupled with others [params], by one product with a vector."""
        coupled = torch.zeros(len(self.known), dtype=torch.bool, device=self.known.device)
        if not self.is_diagonal:
            probe = _probes(1, len(self._index), self.gradient)[0]
            off = self._multiply(probe) - self._rest[0] * probe.double()
            threshold = 1e3 * torch.finfo(self.gradient.dtype).eps * self._rest[0].abs().max()
            coupled[self._index] = off.abs() > threshold
        return coupled

    @property
    def _index(self) -> Tensor:
        """Places of the rest's free coordinates."""
        return self.place[self.place >= 0]

    @cached_property
    def _rest(self) -> tuple[Theta, bool]:
        """The rest's diagonal, and whether it is all.

        For a diagonal H, ``(H v) / v = diag H`` for every v; two random ones that disagree disprove it.
        """
        if not len(self._index):
            return self.known[:0], True
        probes = _probes(2, len(self._index), self.gradient)
        first, second = (self._multiply(probe) / probe for probe in probes)
        close = 1e2 * torch.finfo(self.gradient.dtype).eps
        if torch.allclose(first, second, rtol=close, atol=close * float(first.abs().max().nan_to_num())):
            return first, True
        if "_hessian" in self.__dict__ or len(first) ** 2 <= _CHUNK_ELEMENTS:
            return self._hessian.diagonal(), False
        diagonal = [rows.diagonal(start) for start, rows in self._rows()]
        return torch.cat(diagonal), False

    @cached_property
    def _hessian(self) -> Matrix:
        size = len(self._index)
        refuse_too_large(size**2, 8, f"the Hessian [{size}, {size}] of the log prior", "use a subset of sites")
        dense = torch.cat([rows for _, rows in self._rows()])
        return (dense + dense.mT) / 2

    def _rows(self) -> Iterator[tuple[int, Tensor]]:
        size = len(self._index)
        step = max(1, _CHUNK_ELEMENTS // size)
        for start in range(0, size, step):
            yield start, self._multiply(_basis(start, min(start + step, size), size, self.gradient))

    def _multiply(self, vectors: Tensor) -> Tensor:
        """Rows v [..., free] of the rest to H v, in float64."""
        free = self.place >= 0
        if not self.gradient.requires_grad:
            return torch.zeros_like(vectors, dtype=torch.float64)
        wide = vectors.new_zeros(*vectors.shape[:-1], len(free))
        wide[..., free] = vectors
        if vectors.dim() == 1:
            return self._pull(wide)[free].double()
        try:
            return self._pull(wide, is_grads_batched=True)[..., free].double()
        except RuntimeError:  # an operation that cannot be vectorised
            return torch.stack([self._pull(row) for row in wide])[..., free].double()

    def _pull(self, vectors: Tensor, **options: Any) -> Tensor:
        grads = torch.autograd.grad(
            self.gradient, self.leaves, vectors, retain_graph=True, allow_unused=True, materialize_grads=True, **options
        )
        return torch.cat(grads, -1)


def prior_of(run: CapturedRun, jacobian: bool) -> Prior:
    """The log prior at a run's point, with its gradient and curvature.

    Args:
        run: a run of the program.
        jacobian: whether the density is that of theta, or of the constrained values.

    Returns:
        the log prior, and minus its Hessian over the free coordinates.
    """
    program, point, theta = run.program, run.point, run.point.theta
    normals, rest = {}, []
    for name, latent in program.latents.items():
        fn: Any = None if latent.constrained else _counted_once(run.run.latents[name])
        if type(fn) in _NORMAL and not (fn.loc.requires_grad or fn.scale.requires_grad):
            normals[name] = fn
        elif not isinstance(fn, dist.ImproperUniform):
            rest.append(name)
    precision, log_p, gradient = _of_normals(run, normals)
    with torch.enable_grad():
        terms = [run.log_prior(jacobian, frozenset(rest))] if rest else []
        terms += [site.log_prob() for site in run.run.other_priors]
        log_density = add_up(terms, theta)
        used = run.gradient(log_density, create_graph=True)
        negative = torch.cat([theta[:0], *(-each for each in used.values())])
    run.add_over_free(gradient, {name: each.detach() for name, each in used.items()})
    positions = point.positions() if used else point.index
    place = torch.cat([point.index[:0], *(positions[program.layout[name]] for name in used)])
    total = sum(log_p.values(), log_density.detach())
    return Prior(
        float(total),
        _of_free(run, log_p, total, rest, log_density, jacobian),
        gradient,
        precision,
        negative,
        [run.leaves[name] for name in used],
        place,
    )


def _of_normals(run: CapturedRun, normals: Mapping[str, Any]) -> tuple[Theta, dict[str, Scalar], Theta]:
    """Precision and gradient over the free coordinates, zero beside the Normal sites, and their log densities."""
    theta, layout, spans = run.point.theta, run.program.layout, run.point.spans(run.program)
    precision, log_p = torch.zeros(len(run.point.index), dtype=torch.float64, device=theta.device), {}
    gradient = torch.zeros_like(precision)
    for name, fn in normals.items():
        shape = run.run.latents[name].value.shape
        loc, scale = (_without_copies(param.detach(), shape) for param in (fn.loc, fn.scale))
        prec, deviation = scale.square().reciprocal(), loc - theta[layout[name]].double()
        pull, count = deviation * prec, len(deviation)
        log_det = scale.log().sum() if scale.dim() else count * scale.log()
        log_p[name] = -0.5 * (deviation @ pull) - log_det - 0.5 * count * math.log(2 * math.pi)
        if name in spans:
            span, own = spans[name]
            precision[span], gradient[span] = prec[own] if prec.dim() else prec, pull[own]
    return precision, log_p, gradient


def _without_copies(param: Tensor, shape: torch.Size) -> Tensor:
    """A parameter of a site's entries in float64: one number [] that stands for all of them, or flat."""
    if param.numel() and not any(param.stride()):
        return param[(0,) * param.dim()].double()
    return param.expand(shape).reshape(-1).double()


def _of_free(
    run: CapturedRun,
    log_p: Mapping[str, Scalar],
    total: Scalar,
    rest: list[str],
    log_density: Scalar,
    jacobian: bool,
) -> float:
    """Log density of the free sites' theta, log-Jacobian included; bare factors count if every site is free."""
    latents, free = run.program.latents, frozenset(run.leaves)
    if len(free) == len(latents) and (jacobian or not any(latent.constrained for latent in latents.values())):
        return float(total)
    found = sum(float(value) for name, value in log_p.items() if name in free)
    if len(free) == len(latents):
        factors = [site.log_prob() for site in run.run.other_priors]
        found += float(add_up(factors, run.point.theta).detach())
    return found + float(run.log_prior(True, free & frozenset(rest)).detach())


def _counted_once(site: Site) -> Any:
    """The distribution of a site's entries, if the site counts once, without scale and mask; else None."""
    fn = innermost_unmasked(site.fn)
    return fn if site.mask is None and isinstance(site.scale, float) and site.scale == 1.0 else None


_NORMAL = (torch.distributions.Normal, dist.Normal)


def _probes(count: int, size: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, size, generator=generator, dtype=torch.float64) + 0.5).to(like)


def _basis(start: int, stop: int, size: int, like: Tensor) -> Tensor:
    basis = torch.zeros(stop - start, size, dtype=like.dtype, device=like.device)
    basis[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
    return basis
