"""What a curvature is: a square root A of A'A, as vectors that each datum's outputs are multiplied by.

``z = S_n' f_n(theta)`` with S_n held at the mode has the rows of A for Jacobian. The captured path reads A off one
backward pass for each column of S, the dense path off z as a function of theta.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace.likelihood import Likelihood, of_totals, require_likelihood
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.observations import Place, refuse_outside_support
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Run, Site


@dataclass(frozen=True, eq=False)
class Information:
    """The Fisher information of a site in its outputs, for what needs no root of it.

    Attributes:
        likelihood: the site's distribution.
        eta: its outputs at the mode `[*batch, outputs]`, in float64.
        weight: of each datum `[*batch]`.
    """

    likelihood: Likelihood
    eta: Tensor
    weight: Tensor

    def root(self) -> Tensor:
        """sqrt(w_n) S_n `[*batch, outputs, columns]`."""
        return self.likelihood.fisher_root(self.eta) * self.weight.sqrt()[..., None, None]

    def sum(self) -> Tensor:
        """``sum_n w_n I_n`` [outputs, outputs]."""
        return self.likelihood.information_sum(self.eta, self.weight)

    def diagonals(self) -> Tensor:
        """The diagonal of each ``w_n I_n`` `[*batch, outputs]`."""
        return self.likelihood.information_diagonal(self.eta) * self.weight.unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class SiteRoot:
    """The root of one observed site on a chunk.

    Attributes:
        outputs: the site's outputs f, `[*batch, *joint, outputs]`, from the site of any run.
        given: the vectors, or the Fisher information that they are made from when they are asked for.
        joint: how many of the axes before `outputs` one row of the root sums over: those of a datum's event, where it
            has one row for all of them.
        drawn: the same in expectation with few columns, by labels drawn at all positions of a datum together; None
            where it has one position.
        weight: of each position `[*batch, *joint]`, where `given` are vectors and there are several.
    """

    outputs: Callable[[Site], Tensor]
    given: Tensor | Information
    joint: int = 0
    drawn: Callable[[], "SiteRoot"] | None = None
    weight: Tensor | None = None

    @cached_property
    def vectors(self) -> Tensor:
        """sqrt(w_n) S_n `[*batch, *joint, outputs, columns]` in float64, at the mode."""
        return self.given.root() if isinstance(self.given, Information) else self.given

    @property
    def live(self) -> Tensor:
        """Which data have a weight, and a row that is not zero [n]."""
        weight = self.given.weight if isinstance(self.given, Information) else self.given
        return weight.flatten(1).any(1) if weight.dim() > 1 else weight != 0

    @property
    def masked(self) -> Tensor | None:
        """Which positions of the data weigh nothing [n, positions]; None where all do, or a datum has but one."""
        weight = self.given.weight if isinstance(self.given, Information) else self.weight
        if weight is None or weight.dim() < 2:
            return None
        masked = weight.flatten(1) == 0
        return masked if bool(masked.any()) else None

    @property
    def num_obs(self) -> int | None:
        """Length of the first axis of the data; None where the site is a single datum."""
        shape = self.given.weight.shape if isinstance(self.given, Information) else self.given.shape[:-2]
        return shape[0] if len(shape) > self.joint else None

    @property
    def columns(self) -> int:
        """How many rows of the root each datum has: b times k of `by_datum`."""
        return self.vectors.shape[1 : self.vectors.dim() - 2 - self.joint].numel() * self.vectors.shape[-1]

    @cached_property
    def _silent(self) -> Tensor | None:
        """The outputs that no row has a part of, some of which are not finite: the logits of masked classes are not."""
        silent = (self.vectors == 0).all(-1)
        return silent if bool(silent.any()) else None

    def whiten(self, site: Site) -> Tensor:
        """z = S'f `[*batch, k]`, of a run anywhere."""
        outputs = self.outputs(site).double()
        if self._silent is not None:
            outputs = outputs.masked_fill(self._silent, 0.0)
        products = torch.einsum("...ok,...o->...k", self.vectors, outputs)
        return products.sum(tuple(range(-1 - self.joint, -1))) if self.joint else products

    def as_one(self) -> "SiteRoot":
        """The same with all data for one datum, which has as many more columns."""
        return SiteRoot(lambda site: self.outputs(site).unsqueeze(0), self.vectors.unsqueeze(0), self.joint)

    def by_datum(self, site: Site) -> tuple[Tensor, Tensor]:
        """f [n, b, e, o] and its vectors [n, b, e, o, k]: row (n, b, k) of the root sums over the entries e."""
        axes = self.vectors.dim() - 2 - self.joint
        batch, entries = self.vectors.shape[:axes], self.vectors.shape[axes:-2]
        shape = (batch[0], batch[1:].numel(), entries.numel(), self.vectors.shape[-2])
        return self.outputs(site).reshape(shape), self.vectors.reshape(*shape, -1)


@dataclass(frozen=True, eq=False)
class Root:
    """The root on one chunk: the function of theta whose Jacobian [rows, params] is A, in float64.

    Attributes:
        program: the traced program.
        chunk: the data.
        sites: the observed sites that the root covers; the others get their exact Hessian.
    """

    program: Program
    chunk: Chunk
    sites: Mapping[str, SiteRoot]

    def __call__(self, theta: Tensor) -> Tensor:
        """z = S'f(theta) of every datum and column, flat."""
        observed = self.program.run(theta, self.chunk).observed
        parts = [site_root.whiten(observed[name]).flatten() for name, site_root in self.sites.items()]
        return torch.cat([torch.zeros(0, dtype=torch.float64, device=theta.device), *parts])

    def live(self) -> Tensor:
        """Which data have a row that is not zero [n]; the others are masked, or a chunk's repetitions."""
        return torch.stack([site_root.live for site_root in self.sites.values()]).any(0)

    def of_few_columns(self, limit: int) -> tuple["Root", dict[str, int]]:
        """The same by drawn labels for those sites that have more columns a datum, which are not made then.

        Args:
            limit: how many columns a datum may have.

        Returns:
            the root, and by name how many columns those sites would have.
        """
        many = {
            name: columns
            for name, site in self.sites.items()
            if isinstance(site.given, Information)
            and site.drawn is not None
            and (columns := site.given.eta[0].numel()) > limit
        }
        sites = {name: site.drawn() if name in many and site.drawn else site for name, site in self.sites.items()}
        return Root(self.program, self.chunk, sites), many

    def only(self, *names: str) -> "Root":
        """The root of some of the observed sites."""
        return Root(self.program, self.chunk, {name: self.sites[name] for name in names})

    def by_size(self) -> list["Root"]:
        """The same in parts, each of observed sites of equally many data."""
        sizes: dict[int | None, list[str]] = {}
        for name, site in self.sites.items():
            sizes.setdefault(site.num_obs, []).append(name)
        return [self.only(*names) for names in sizes.values()]

    def as_one(self) -> "Root":
        """The same rows as those of one datum alone: what needs no row to be one datum's."""
        return Root(self.program, self.chunk, {name: site.as_one() for name, site in self.sites.items()})


@dataclass(frozen=True)
class Draw:
    """By what random labels are drawn: the same for a datum whichever chunk it comes in.

    Attributes:
        seed: of a pass over the data.
        first: number of a chunk's first datum in the pass.
    """

    seed: int
    first: int


FIRST = Draw(0, 0)
"""Of the first chunk of a pass."""


@dataclass(frozen=True)
class Curvature:
    """How the likelihood's curvature is measured.

    Attributes:
        name: the option's value.
        make: makes the root A of the curvature A'A from a run, whose first datum has a number, and a seed; None where
            every site gets its exact Hessian.
        seed: of what a random root draws in one pass over the data; None where nothing is drawn.
        noise_power: the curvature in the location is that power of one over the noise scale, of Normal data.
    """

    name: str
    make: Callable[[Program, Run, Chunk, Draw], Root] | None
    seed: int | None = None
    noise_power: int = 2

    @property
    def rooted(self) -> bool:
        """Whether it has a root, and is then positive semi-definite."""
        return self.make is not None

    def drawn(self) -> "Curvature":
        """The same with its random choices made, by one draw from torch's global generator if there are any.

        Returns:
            a curvature of which every pass over the data draws the same, so that a search has one objective.
        """
        return self if self.seed is None else replace(self, seed=int(torch.randint(2**31, ())))

    def root(self, program: Program, run: Run, chunk: Chunk, first: int = 0) -> Root | None:
        """The root on one chunk; None where there is none.

        Args:
            program: the traced program.
            run: of the program on the chunk, at the mode.
            chunk: the data.
            first: number of the chunk's first datum in the pass, by which random labels are drawn.

        Returns:
            the root.

        Raises:
            InvalidData: if an observed value is outside its distribution's support.
        """
        refuse_outside_support(run, program.derived, Place(first, chunk.indices))
        if self.make is None:
            return None
        with undisturbed(rng=False), torch.no_grad():
            return self.make(program, run, chunk, Draw(self.seed or 0, first))


def link_of(site: Site) -> Tensor:
    """The unconstrained parameters eta of a site's distribution."""
    return require_likelihood(site.name, site.fn).link()


def of_data(site: Site) -> Site:
    """A site with the distribution that its data are of: counts have the totals of the data, where these are given."""
    return replace(site, fn=of_totals(site.fn, site.value)) if site.given else site
