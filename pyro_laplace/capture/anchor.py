"""Where a curvature is measured: theta, some of whose coordinates are free."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from pyro_laplace._typing import Theta
from pyro_laplace.program.sites import Latent, coordinates_of, counts_of


@dataclass(frozen=True, eq=False)
class Anchor:
    """A point theta of a program, of which the coordinates `index`, in ascending order, are free.

    It knows the layout of theta and not the program, so that what is anchored can be kept, copied and saved without the
    user's model.

    Attributes:
        theta: all latent sites, unconstrained [params].
        index: the free coordinates [free].
        latents: the latent sites by name, in trace order.
        curvature: name of the curvature that is measured there.
        hyperparameters: values of the `pyro.param`s that the prior depends on there.
    """

    theta: Tensor
    index: Tensor
    latents: Mapping[str, Latent]
    curvature: str = "ggn"
    hyperparameters: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of free coordinates."""
        return len(self.index)

    @property
    def free(self) -> Theta:
        """Values of the free coordinates."""
        return self.theta[self.index]

    def on(self, fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A function of theta as a function of the free coordinates."""
        if len(self.index) == len(self.theta):
            return fn
        return lambda free: fn(self.theta.index_copy(0, self.index, free))

    def only(self, chosen: Tensor) -> "Anchor":
        """The same with some of its free coordinates, chosen by their ascending place among them, left free."""
        return replace(self, index=self.index[chosen])

    def whole(self) -> "Anchor":
        """The same with every site of which a coordinate is free left free as a whole."""
        if all(count in (0, self.latents[name].size) for name, count in self._counts.items()):
            return self
        index = coordinates_of(self.latents, self.touched).to(self.index.device)
        return replace(self, index=index)

    @property
    def touched(self) -> tuple[str, ...]:
        """The sites of which a coordinate is free, in trace order."""
        return tuple(name for name, count in self._counts.items() if count)

    @property
    def whole_sites(self) -> frozenset[str]:
        """The sites that are free as a whole."""
        return frozenset(name for name, count in self._counts.items() if count == self.latents[name].size)

    def names_of(self, chosen: Tensor) -> list[str]:
        """The sites that hold some of the free coordinates, chosen by their place among them, in any order."""
        counts = counts_of(self.latents, self.index[chosen].sort().values)
        return [name for name, count in counts.items() if count]

    def of_sites(self, names: list[str] | tuple[str, ...]) -> Tensor:
        """Where the coordinates of some sites lie among the free ones, ascending."""
        taken = torch.zeros_like(self.index, dtype=torch.bool)
        for name in names:
            place = self.latents[name].slice
            taken |= (self.index >= place.start) & (self.index < place.stop)
        return taken.nonzero()[:, 0]

    @cached_property
    def spans(self) -> dict[str, tuple[slice, slice | Tensor]]:
        """Of each site with free coordinates, where these lie among all free ones, and which of the site's they are."""
        found: dict[str, tuple[slice, slice | Tensor]] = {}
        start = 0
        for name, count in self._counts.items():
            if count:
                latent, span = self.latents[name], slice(start, start + count)
                found[name] = span, slice(None) if count == latent.size else self.index[span] - latent.slice.start
                start += count
        return found

    @property
    def places(self) -> list[slice]:
        """Where the free coordinates of one site after the other lie among all."""
        return [span for span, _ in self.spans.values()]

    @cached_property
    def positions(self) -> Tensor:
        """Where each coordinate of theta lies among the free ones [params]; -1 if it does not."""
        positions = torch.full((len(self.theta),), -1, device=self.index.device)
        return positions.index_copy(0, self.index, torch.arange(self.size, device=self.index.device))

    def differs_from(self, other: "Anchor") -> str | None:
        """What keeps sums at both from being added; None if they are the same point of the same program.

        Args:
            other: another anchor.

        Returns:
            a word for it: theta, coordinates, curvature, or the hyperparameter's name.
        """
        if self.theta.shape != other.theta.shape or not torch.equal(self.theta, other.theta.to(self.theta)):
            return "theta"
        if not torch.equal(self.index, other.index.to(self.index)):
            return "coordinates"
        if self.curvature != other.curvature:
            return "curvature"
        for name in {*self.hyperparameters, *other.hyperparameters}:
            one, two = self.hyperparameters.get(name), other.hyperparameters.get(name)
            if one is None or two is None or not torch.equal(one, two.to(one)):
                return f"hyperparameter {name!r}"
        return None

    @cached_property
    def _counts(self) -> dict[str, int]:
        return counts_of(self.latents, self.index)
