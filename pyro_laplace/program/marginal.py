"""Discrete latent sites that are summed out: what depends on them becomes one factor with their exact sum.

The program runs with such a site at all its values at once, each site along an axis of its own to the left of all
plates (``infer={"enumerate": "parallel"}``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace._compat.pyro import scale_and_mask
from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.program.eliminate import Axis, Factor, Intractable, eliminate
from pyro_laplace.program.run import Run, Site


def marginalise(run: Run, nesting: int) -> Run:
    """Sum the discrete latent sites out of a run that enumerated them.

    Args:
        run: the run; its `axes` say which axis is which site's.
        nesting: number of axes from the right that plates may take.

    Returns:
        the run without the discrete sites. What depends on them is no longer among the observed sites: a factor has
        its place, named by the observed site if there is one, by the first discrete site else. A latent site that
        depends on them has a flat density, for its own is in that factor.

    Raises:
        UnsupportedProgram: if the sum cannot be formed, naming the sites.
    """
    product = _Product.of(run, nesting)
    sums = [_term(factor, run, product.sites, product.frames) for factor in product.sums()]
    gone = {name for factor in product.factors for name in factor.sources}
    return replace(
        run,
        latents={name: _without_density(site, nesting) if name in gone else site for name, site in run.latents.items()},
        observed={name: site for name, site in run.observed.items() if name not in gone},
        factors={name: site for name, site in run.factors.items() if name not in gone} | {s.name: s for s in sums},
        discrete={},
    )


def conditional_probs(run: Run, nesting: int) -> dict[str, Tensor]:
    """Probabilities of each discrete site's values given all that was observed, the other discrete sites summed out.

    With Z(e) the sum in which the k-th value of the site counts exp(e_k) times, they are ``d log Z / d e_k`` at e = 0,
    for each element of the site's plates (Darwiche 2003, "A differential approach to inference in Bayesian networks").

    Args:
        run: a run that enumerated them.
        nesting: number of axes from the right that plates may take.

    Returns:
        site name to `[*batch_shape, values]`. What is masked has the probabilities of what depends on it.
    """
    product = _Product.of(run, nesting)
    ones = {name: product.one_of(name) for name in run.discrete}

    def log_sum(exponents: dict[str, Tensor]) -> Tensor:
        counted = [replace(factor, values=exponents[name]) for name, factor in ones.items()]
        sums = replace(product, factors=[*product.factors, *counted]).sums()
        return torch.stack([factor.values.sum() for factor in sums]).sum()

    probs = torch.func.grad(log_sum)({name: factor.values for name, factor in ones.items()})
    return {name: _laid_out(probs[name], run.discrete[name]) for name in ones}


def shared_sites(run: Run) -> tuple[str, ...]:
    """The discrete sites outside all plates that a site inside a plate depends on, of a run that enumerated them."""
    inside = [name for name, site in {**run.observed, **run.factors, **run.discrete}.items() if site.frames]
    axes = {axis for name in inside for axis in run.axes[name].values()}
    alone = [name for name, site in run.discrete.items() if not site.frames]
    return tuple(name for name in alone if run.axes[name].get(run.own_axis[name]) in axes)


@dataclass(frozen=True)
class _Product:
    """The densities that depend on discrete sites, as factors.

    Attributes:
        factors: the densities.
        axis_of: by name of a discrete site, the axis of its values.
        sites: all sites by name.
        frames: all plates by name.
    """

    factors: Sequence[Factor]
    axis_of: Mapping[str, Axis]
    sites: Mapping[str, Site]
    frames: Mapping[str, Any]

    @staticmethod
    def of(run: Run, nesting: int) -> "_Product":
        """Of a run that enumerated its discrete sites."""
        sites = {**run.discrete, **run.latents, **run.observed, **run.factors}
        depending = [name for name, site in sites.items() if _depends(name, site, run, nesting)]
        factors = [_factor(sites[name], run.axes[name], run.own_axis.get(name)) for name in depending]
        axis_of: dict[str, Axis] = {name: run.axes[name].get(run.own_axis[name]) for name in run.discrete}
        frames = {frame.name: frame for site in sites.values() for frame in site.frames}
        return _Product(factors, axis_of, sites, frames)

    def sums(self) -> list[Factor]:
        """The factors with the discrete sites summed out.

        Returns:
            one factor for each set of factors that a discrete site holds together.

        Raises:
            UnsupportedProgram: if discrete sites meet in crossing plates.
        """
        owners = {axis: frozenset(f.name for f in self.sites[name].frames) for name, axis in self.axis_of.items()}
        try:
            return list(eliminate(self.factors, owners, {name: frame.size for name, frame in self.frames.items()}))
        except Intractable as error:
            raise UnsupportedProgram(
                f"the discrete sites {[name for name, axis in self.axis_of.items() if axis in error.args]} lie in "
                "crossing plates and meet inside both, so that their sum has a term for every combination of their "
                "values: hold one of them with poutine.condition, or write one of the plates as a loop"
            ) from None

    def one_of(self, name: str) -> Factor:
        """The factor 1 over the values of a discrete site, and over the elements of its plates."""
        site = self.sites[name]
        like = self.factors[0].values
        plates = _by_dim(site)
        values = like.new_zeros(len(site.fn.enumerate_support(expand=False)), *(frame.size for frame in plates))
        names = tuple(frame.name for frame in plates)
        return Factor(values, (self.axis_of[name], *names), frozenset(names), (name,))


def _by_dim(site: Site) -> list[Any]:
    """The plates around a site, from left to right."""
    return sorted(site.frames, key=lambda frame: frame.dim)


def _laid_out(probs: Tensor, site: Site) -> Tensor:
    """Probabilities [values, *plates] as `[*batch_shape, values]`."""
    sizes = {frame.dim: frame.size for frame in site.frames}
    shape = [sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0)]
    return probs.movedim(0, -1).reshape(*shape, len(probs))


def _depends(name: str, site: Site, run: Run, nesting: int) -> bool:
    """Whether a site is discrete, or its density has axes to the left of all plates."""
    value_dims = site.value.dim() - len(site.fn.event_shape)
    return name in run.discrete or max(len(site.fn.batch_shape), value_dims) > nesting


def _factor(site: Site, axes: Mapping[int, Axis], own_axis: int | None) -> Factor:
    """The log density of a site, its mask counted and its scale not; a masked discrete site is uniform."""
    log_density = scale_and_mask(site.fn.log_prob(site.value), 1.0, site.mask)
    if own_axis is not None and site.mask is not None:
        uniform = -math.log(len(site.fn.enumerate_support(expand=False)))
        log_density = torch.where(torch.as_tensor(site.mask), log_density, uniform)
    lowest = torch.finfo(log_density.dtype).min / 1e3  # a value of probability 0: the gradient of -inf is no number
    log_density = log_density.clamp(min=lowest)
    names = {frame.dim: frame.name for frame in site.frames}
    shape = log_density.shape
    kept = [dim for dim in range(-len(shape), 0) if shape[dim] > 1]
    unknown = [dim for dim in kept if dim not in names and dim not in axes]
    if unknown:
        raise UnsupportedProgram(
            f"site {site.name!r} has a density of shape {list(shape)}, whose axis {unknown[0]} is no plate: give its "
            "distribution .to_event(), or put it inside a pyro.plate, so that discrete sites can be enumerated"
        )
    values = log_density.reshape([shape[dim] for dim in kept])
    return Factor(values, tuple(names.get(dim, axes.get(dim)) for dim in kept), frozenset(names.values()), (site.name,))


def _term(factor: Factor, run: Run, sites: Mapping[str, Site], frames: Mapping[str, Any]) -> Site:
    """A factor as a sample statement like that of `pyro.factor`."""
    around = tuple(frames[name] for name in frames if name in factor.plates)
    by_dim = {frame.dim: frame.name for frame in around}
    depth = -min(by_dim, default=0)
    sizes = dict(zip(factor.axes, factor.values.shape, strict=True))
    shape = [sizes.get(by_dim.get(dim), 1) for dim in range(-depth, 0)]
    order = [by_dim[dim] for dim in sorted(by_dim) if by_dim[dim] in sizes]
    log_factor = factor.over(order).reshape(shape)
    log_factor = log_factor.expand([frames[by_dim[d]].size if d in by_dim else 1 for d in range(-depth, 0)])
    seen = [name for name in factor.sources if name in run.observed]
    name = seen[0] if len(seen) == 1 else next(name for name in run.discrete if name in factor.sources)
    fn = dist.Unit(log_factor)
    return Site(name, fn, fn.sample(), _common_scale([sites[source] for source in factor.sources]), None, around)


def _common_scale(sites: Sequence[Site]) -> float | Tensor:
    for one, other in pairwise(sites):
        if one.scale is not other.scale and not torch.equal(torch.as_tensor(one.scale), torch.as_tensor(other.scale)):
            raise UnsupportedProgram(
                f"sites {one.name!r} and {other.name!r} depend on the same discrete site, and their densities are "
                "scaled differently (poutine.scale, or a plate that subsamples around one of them only), so that the "
                "sum over its values is not defined: give all that depend on it one scale and, if the data share it, "
                "all data as one batch"
            )
    return sites[0].scale


def _without_density(site: Site, nesting: int) -> Site:
    """A latent site whose density is counted elsewhere."""
    batch = site.value.shape[: site.value.dim() - len(site.fn.event_shape)]
    return replace(site, fn=dist.ImproperUniform(site.fn.support, batch, site.fn.event_shape))
