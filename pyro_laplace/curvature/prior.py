"""The prior's part of the precision: minus the Hessian of the log density of the latent sites and of bare factors.

A Normal site whose location and scale depend on nothing latent has its precision for curvature, and most programs have
no other. The rest is differentiated twice along the graph of the run, over the sites that it depends on alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace._compat import scale_and_mask
from pyro_laplace._memory import refuse_too_large
from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.curvature.captured_run import CapturedRun
from pyro_laplace.program import Site, add_up

_CHUNK_ELEMENTS = 2**22
"""Elements of the Hessian's rows that one pass gives."""


@dataclass(frozen=True, eq=False)
class Prior:
    """The curvature over the free coordinates.

    Attributes:
        known: its part from Normal sites, a diagonal [params], in float64.
        gradient: of minus the rest, over the coordinates [rest] that it depends on, with its graph.
        leaves: these coordinates, of one site after the other.
        place: where each of them is among the free coordinates [rest]; -1 if it is held.
    """

    known: Theta
    gradient: Tensor
    leaves: Sequence[Tensor]
    place: Tensor

    def over(self, chosen: Tensor) -> "Prior":
        """The same over some of the free coordinates, by their place among them; the others are held."""
        place = torch.full((len(self.known) + 1,), -1, device=chosen.device)
        place[chosen] = torch.arange(len(chosen), device=chosen.device)
        return replace(self, known=self.known[chosen], place=place[self.place])

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
    """The prior's curvature at a run's point.

    Args:
        run: a run of the program.
        jacobian: whether the density is that of theta, or of the constrained values.

    Returns:
        minus the Hessian of the log prior over the free coordinates.
    """
    program, point, theta = run.program, run.point, run.point.theta
    known = torch.zeros(len(theta), dtype=torch.float64, device=theta.device)
    rest = []
    for name, latent in program.latents.items():
        site = run.run.latents[name]
        precision = None if latent.constrained else _normal_precision(site)
        if precision is None:
            rest.append(name)
        elif name in run.leaves:
            known[latent.slice] = precision.reshape(-1)
    known = known if len(point.index) == len(theta) else known[point.index]
    with torch.enable_grad():
        terms = [run.log_prior(jacobian, frozenset(rest))] if rest else []
        terms += [site.log_prob() for site in run.run.factors.values() if not site.frames]
        log_density = add_up(terms, theta)
        if not log_density.requires_grad:
            return Prior(known, theta[:0], (), point.index[:0])
        leaves = list(run.leaves.values())
        grads = torch.autograd.grad(-log_density, leaves, create_graph=True, allow_unused=True)
        used = {name: gradient for name, gradient in zip(run.leaves, grads, strict=True) if gradient is not None}
        gradient = torch.cat([theta[:0], *used.values()])
    positions = point.positions()
    place = torch.cat([point.index[:0], *(positions[program.layout[name]] for name in used)])
    return Prior(known, gradient, [run.leaves[name] for name in used], place)


def _normal_precision(site: Site) -> Tensor | None:
    """Precisions of a site's entries, of its shape, in float64; None where it is no Normal of known parameters."""
    fn: Any = site.fn
    while isinstance(fn, torch.distributions.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    if isinstance(fn, dist.ImproperUniform):
        precision = torch.zeros((), dtype=torch.float64, device=site.value.device)
    elif isinstance(fn, torch.distributions.Normal) and not (fn.loc.requires_grad or fn.scale.requires_grad):
        precision = fn.scale.double() ** -2
    else:
        return None
    if site.mask is None and isinstance(site.scale, float) and site.scale == 1.0:
        return precision.expand(site.value.shape)
    weight = scale_and_mask(precision.new_ones(site.fn.batch_shape), site.scale, site.mask)
    if weight.shape != site.fn.batch_shape:
        return None
    return precision * weight.reshape(*weight.shape, *(1,) * len(site.fn.event_shape)).expand(site.value.shape)


def _probes(count: int, size: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, size, generator=generator, dtype=torch.float64) + 0.5).to(like)


def _basis(start: int, stop: int, size: int, like: Tensor) -> Tensor:
    basis = torch.zeros(stop - start, size, dtype=like.dtype, device=like.device)
    basis[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
    return basis
