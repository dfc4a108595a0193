"""The latent sites of a program, their layout in theta, and coordinates of theta by site."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint

from pyro_laplace._typing import Theta, Values


@dataclass(frozen=True)
class Latent:
    """One latent site: where it lies in theta and how it maps to unconstrained space.

    Attributes:
        name: the site's name.
        support: the constraint that its values meet.
        batch_shape: of its distribution, plates included.
        event_shape: of its distribution.
        unconstrained_shape: of its unconstrained value (a simplex of 3 has 2 coordinates).
        slice: its coordinates in theta.
        frames: the plates around it, innermost last.
    """

    name: str
    support: Constraint
    batch_shape: torch.Size
    event_shape: torch.Size
    unconstrained_shape: torch.Size
    slice: slice
    frames: tuple

    @property
    def shape(self) -> torch.Size:
        """Of the site's value."""
        return self.batch_shape + self.event_shape

    @property
    def size(self) -> int:
        """Number of coordinates in theta."""
        return self.slice.stop - self.slice.start

    @cached_property
    def constrained(self) -> bool:
        """Whether the map to unconstrained space is anything but the identity."""
        support = self.support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        return support is not constraints.real

    def constrain(self, part: Tensor) -> Tensor:
        """Unconstrained coordinates [..., size] to the site's value `[..., *shape]`."""
        batch = part.shape[:-1]
        if not self.constrained:
            return part.reshape((*batch, *self.unconstrained_shape))
        if not self.unconstrained_shape:  # forward-mode AD promotes tangents of 0-dim tensors to float64
            return biject_to(self.support)(part).reshape(batch)
        return biject_to(self.support)(part.reshape((*batch, *self.unconstrained_shape)))

    def unconstrain(self, value: Tensor) -> Tensor:
        """The site's value `[*shape]` to its coordinates [size]."""
        same = value.numel() == self.shape.numel()  # which Pyro's Predictive pads with singleton plate dims
        value = value.reshape(self.shape) if same else value.expand(self.shape)
        return (biject_to(self.support).inv(value) if self.constrained else value).reshape(-1)

    def log_abs_det_jacobian(self, part: Tensor) -> Tensor:
        """``log |d value / d coordinates|``, summed over the site."""
        unconstrained = part.reshape(self.unconstrained_shape)
        transform = biject_to(self.support)
        return transform.log_abs_det_jacobian(unconstrained, transform(unconstrained)).sum()


def unpack(latents: Mapping[str, Latent], theta: Tensor) -> dict[str, Tensor]:
    """theta [..., params] to site values `[..., *shape]`."""
    return {name: latent.constrain(theta[..., latent.slice]) for name, latent in latents.items()}


def pack(latents: Mapping[str, Latent], values: Values) -> Theta:
    """Site values to theta."""
    return torch.cat([latent.unconstrain(values[name]) for name, latent in latents.items()])


def coordinates_of(latents: Mapping[str, Latent], names: Iterable[str]) -> Tensor:
    """The coordinates of some sites in theta, ascending."""
    chosen = set(names)
    parts = [torch.arange(site.slice.start, site.slice.stop) for name, site in latents.items() if name in chosen]
    return torch.cat([torch.zeros(0, dtype=torch.long), *parts])


def counts_of(latents: Mapping[str, Latent], index: Tensor) -> dict[str, int]:
    """How many of some coordinates of theta, given in ascending order, each site holds."""
    stops = torch.tensor([latent.slice.stop for latent in latents.values()], device=index.device)
    before = [0, *torch.searchsorted(index, stops).tolist()]
    return {name: stop - start for name, start, stop in zip(latents, before, before[1:], strict=False)}
