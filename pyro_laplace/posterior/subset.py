"""Which sites, or which coordinates of them, are random; the others stay at the mode."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from pyro_laplace._errors import InvalidOption, check_option
from pyro_laplace._typing import Theta
from pyro_laplace.capture.last_layer import last_layer
from pyro_laplace.data import Data
from pyro_laplace.program.program import Program

CRITERIA = ("variance", "magnitude", "random")
"""How a subnetwork's coordinates may be chosen."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Subnetwork:
    """The subset of single coordinates (Daxberger et al. 2021, "Bayesian deep learning via subnetwork inference").

    Coordinates are those of theta, unconstrained, and are chosen at the mode. The curvature of the chosen ones costs
    one pass over the data that grows with their number; "variance" takes one more, of the diagonal over all of theta.
    Into the evidence enters the prior of these coordinates, given those that are held; of a site whose entries depend
    on one another, and of one that is constrained, the prior of the whole site.

    Attributes:
        size: number of random coordinates; or give `mask`.
        by: "variance" takes those of largest marginal variance under the diagonal approximation, "magnitude" of largest
            absolute value, "random" any, drawn from torch's global generator.
        mask: site name to what is random of it, boolean, of the shape of its unconstrained value; other sites are held.
    """

    size: int | None = None
    by: str = "variance"
    mask: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without a program.

        Raises:
            InvalidOption: for an unknown value, or if not exactly one of `size` and `mask` is given.
        """
        check_option("Subnetwork: by", self.by, CRITERIA)
        if (self.size is None) == (self.mask is None):
            raise InvalidOption("Subnetwork: give either size= (and by=), or mask={site: boolean tensor}")
        if self.size is not None and (isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1):
            raise InvalidOption(f"Subnetwork(size={self.size!r}): give a number of coordinates, at least 1")
        for name, chosen in (self.mask or {}).items():
            if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool:
                kind = chosen.dtype if isinstance(chosen, Tensor) else type(chosen).__name__
                raise InvalidOption(f"Subnetwork: the mask of site {name!r} is no boolean tensor, but {kind}")
        if self.mask is not None and not any(bool(chosen.any()) for chosen in self.mask.values()):
            raise InvalidOption("Subnetwork: the mask chooses no coordinate")

    def generator(self) -> torch.Generator:
        """What `choose` draws from; where it draws, it is seeded from torch's global generator."""
        return torch.Generator().manual_seed(int(torch.randint(2**31, ())) if self.by == "random" and self.size else 0)

    def check(self, program: Program) -> None:
        """Check the subnetwork against a program.

        Args:
            program: the traced program.

        Raises:
            InvalidOption: if it has fewer coordinates, no such site, or a site of another shape.
        """
        if self.size is not None and self.size > program.num_params:
            raise InvalidOption(f"Subnetwork(size={self.size}): the program has {program.num_params} coordinates")
        for name, chosen in (self.mask or {}).items():
            if name not in program.latents:
                raise InvalidOption(
                    f"Subnetwork: the mask names {name!r}, which is none of the latent sites {list(program.latents)}"
                )
            shape = program.latents[name].unconstrained_shape
            if chosen.shape != shape:
                raise InvalidOption(
                    f"Subnetwork: the mask of site {name!r} has shape {list(chosen.shape)}, and its unconstrained "
                    f"value {list(shape)}"
                )

    def choose(
        self, program: Program, theta: Theta, variance: Callable[[], Theta], generator: torch.Generator
    ) -> Tensor:
        """The random coordinates of theta, ascending.

        Args:
            program: the traced program.
            theta: the mode.
            variance: gives the marginal variances of all of theta.
            generator: of `generator`.

        Returns:
            their indices.
        """
        if self.mask is not None:
            flags = torch.zeros(len(theta), dtype=torch.bool, device=theta.device)
            for name, chosen in self.mask.items():
                flags[program.latents[name].slice] = chosen.reshape(-1).to(flags.device)
            return flags.nonzero()[:, 0]
        if self.by == "random":
            score = torch.rand(len(theta), generator=generator).to(theta.device)
        else:
            score = variance() if self.by == "variance" else theta.abs()
        return score.topk(self.size or len(theta)).indices.sort().values


type Subset = str | Iterable[str] | Callable[[str], bool] | Subnetwork
"""What `subset=` may be."""


def select(subset: Subset, program: Program, data: Data) -> tuple[str, ...]:
    """The random sites, in trace order.

    Args:
        subset: "all"; "last_layer", the sites of the last operation with parameters before the observed sites; a site
            name or glob or several; a callable of the site name; or a `Subnetwork`, whose coordinates are chosen
            later and may lie in any site (of its mask).
        program: the traced program.
        data: the data.

    Returns:
        their names, at least one.

    Raises:
        InvalidOption: if nothing matches, listing the sites there are.
    """
    names = tuple(program.latents)
    if isinstance(subset, Subnetwork):
        subset.check(program)
        return names if subset.mask is None else tuple(name for name in names if name in subset.mask)
    if isinstance(subset, str) and subset == "all":
        return names
    if isinstance(subset, str) and subset == "last_layer":
        found = last_layer(program, data)
        if not found:
            raise InvalidOption(
                "subset='last_layer': no product of an activation with a latent site was found before the observed "
                f"sites; name the sites of the last layer instead, among {list(names)}"
            )
        return tuple(name for name in names if name in found)
    if callable(subset):
        chosen = tuple(name for name in names if subset(name))
        if not chosen:
            raise InvalidOption(f"subset: the callable chose none of the latent sites {list(names)}")
        return chosen
    patterns = [subset] if isinstance(subset, str) else list(subset)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidOption(f"subset: {pattern!r} is not a site name; the latent sites are {list(names)}")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InvalidOption(
                f"subset: {pattern!r} matches none of the latent sites {list(names)}; it may also be 'all', "
                "'last_layer', a callable of the site name, or a pl.Subnetwork"
            )
    if not patterns:
        raise InvalidOption(f"subset is empty; the latent sites are {list(names)}")
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))
