"""Sums over discrete latent sites, exactly: plated variable elimination on log densities with named axes.

A factor is the log density of one sample statement. Its axes are plates, over which densities multiply, and discrete
sites, over which they add up. The sites of the innermost plates are summed out first, one after the other; the plates
that then no site is left in are multiplied over (Obermeyer et al. 2019, "Tensor variable elimination for plated factor
graphs").
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

Axis = Hashable
"""The name of a plate, or what tells the values of one discrete site from those of another."""


@dataclass(frozen=True, eq=False)
class Factor:
    """A log density with named axes.

    Attributes:
        values: `[*axes]`.
        axes: the name of each axis.
        plates: the plates that it is inside of, also those that have no axis.
        sources: names of the sites that it came from, in the order in which they ran.
    """

    values: Tensor
    axes: tuple[Axis, ...]
    plates: frozenset[str]
    sources: tuple[str, ...]

    def over(self, axes: Sequence[Axis]) -> Tensor:
        """The values with these axes, which have its own among them; of size 1 where it has none."""
        order = sorted(range(len(self.axes)), key=lambda i: axes.index(self.axes[i]))
        sizes = {self.axes[i]: self.values.shape[i] for i in order}
        return self.values.permute(order).reshape([sizes.get(axis, 1) for axis in axes])

    def __add__(self, other: "Factor") -> "Factor":
        """The product of two densities."""
        axes = (*self.axes, *(axis for axis in other.axes if axis not in self.axes))
        sources = tuple(dict.fromkeys(self.sources + other.sources))
        return Factor(self.over(axes) + other.over(axes), axes, self.plates | other.plates, sources)

    def sum_out(self, site: Axis) -> "Factor":
        """The density summed over the values of a discrete site."""
        place = self.axes.index(site)
        axes = self.axes[:place] + self.axes[place + 1 :]
        return Factor(torch.logsumexp(self.values, place), axes, self.plates, self.sources)

    def multiply_out(self, plates: frozenset[str], sizes: Mapping[str, int]) -> "Factor":
        """The density multiplied over the elements of plates."""
        values, repeats = self.values, 1
        for plate in plates:
            if plate not in self.axes:
                repeats *= sizes[plate]
        dims = [i for i, axis in enumerate(self.axes) if axis in plates]
        values = (values.sum(dims) if dims else values) * repeats
        return Factor(values, tuple(a for a in self.axes if a not in plates), self.plates - plates, self.sources)


class Intractable(Exception):
    """Two crossing plates have discrete sites of their own that meet inside both; `args` are these."""


def eliminate(
    factors: Sequence[Factor], owners: Mapping[Axis, frozenset[str]], sizes: Mapping[str, int]
) -> Iterator[Factor]:
    """Sum the discrete sites out of a product of densities.

    Args:
        factors: the densities.
        owners: by discrete site, the plates around it.
        sizes: of the plates.

    Yields:
        factors without discrete sites, one for each set of factors that a site held together.
    """
    for component in connected(factors, owners):
        yield _contract(component, owners, sizes)


def connected(factors: Sequence[Factor], sites: Mapping[Axis, object]) -> Iterator[list[Factor]]:
    """Divide factors into sets that have none of these discrete sites in common."""
    rest = list(factors)
    while rest:
        component, reached = [rest.pop(0)], set()
        while component:
            reached |= {axis for factor in component for axis in factor.axes if axis in sites}
            more = [factor for factor in rest if reached & set(factor.axes)]
            if not more:
                break
            component += more
            rest = [factor for factor in rest if factor not in more]
        yield component


def _contract(factors: list[Factor], owners: Mapping[Axis, frozenset[str]], sizes: Mapping[str, int]) -> Factor:
    """One connected component to one factor, from the innermost plates outwards."""
    while True:
        plates = max((factor.plates for factor in factors), key=len)
        inside = [factor for factor in factors if factor.plates == plates]
        factors = [factor for factor in factors if factor.plates != plates]
        local = {axis: None for factor in inside for axis in factor.axes if owners.get(axis) == plates}
        for part in connected(inside, local):
            factor = _sum_out(part, list(local))
            left = [axis for axis in factor.axes if axis in owners]
            if not left and not factors and len(inside) == len(part):
                return factor
            outer = frozenset().union(*(owners[axis] for axis in left))
            if outer == plates:
                raise Intractable(*left)
            factors.append(factor.multiply_out(plates - outer, sizes))


def _sum_out(factors: list[Factor], sites: list[Axis]) -> Factor:
    """Sum sites out of a product, each time the one whose factors together have the fewest axes."""
    remaining = [site for site in sites if any(site in factor.axes for factor in factors)]
    while remaining:
        meeting = {site: [factor for factor in factors if site in factor.axes] for site in remaining}
        site = min(remaining, key=lambda s: len({axis for factor in meeting[s] for axis in factor.axes}))
        joint = reduce(Factor.__add__, meeting[site]).sum_out(site)
        factors = [factor for factor in factors if factor not in meeting[site]] + [joint]
        remaining.remove(site)
    return reduce(Factor.__add__, factors)
