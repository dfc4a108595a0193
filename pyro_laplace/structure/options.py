"""What `structure=` may be, and which sites each part of a mapping of structures covers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pyro_laplace._errors import InvalidOption, check_option


@dataclass(frozen=True)
class LowRank:
    """The structure ``H_prior + U diag(s) U'``: a diagonal prior, and the likelihood's curvature of highest rank.

    Attributes:
        rank: number of eigenpairs of the prior-whitened curvature that are kept; exact from its own rank on.
        passes: over the data. Each further one is a step of power iteration, which sharpens eigenpairs of a spectrum
            that falls off slowly; a posterior of more than one pass cannot be updated.
    """

    rank: int
    passes: int = 1

    def __post_init__(self) -> None:
        """Check rank and passes.

        Raises:
            InvalidOption: if one is not a positive integer.
        """
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InvalidOption(f"LowRank(rank={self.rank!r}): give the number of eigenpairs to keep, at least 1")
        if isinstance(self.passes, bool) or not isinstance(self.passes, int) or self.passes < 1:
            raise InvalidOption(f"LowRank(passes={self.passes!r}): give the number of passes over the data, at least 1")


@dataclass(frozen=True)
class Kron:
    """The structure "kron", with a choice of how T positions that share a weight (a convolution's, a sequence's) count.

    Eschenhagen et al. 2023, "Kronecker-factored approximate curvature for modern neural network architectures".

    Attributes:
        shared: "expand" takes them for T independent data, ``(sum_nt g g') (x) (sum_nt a a') / (N T)``, which suits
            outputs at every position; "reduce" for one with their mean input and summed gradient,
            ``(sum_n (sum_t g)(sum_t g)') (x) (sum_n (mean_t a)(mean_t a)') / N``, which suits an output that averages
            over positions, and is cheaper. They differ for shared weights only.
    """

    shared: str = "expand"

    def __post_init__(self) -> None:
        """Check the choice."""
        check_option("shared", self.shared, ("expand", "reduce"))


type Structure = Any
"""What `structure=` may be: a name, `Kron`, `LowRank`, what another structure is registered under, or a mapping of site
globs to these. `build.check_structure` says whether something is one."""


def group_sites(structure: Mapping[str, Any], sites: Iterable[str]) -> list[tuple[Any, list[str]]]:
    """The sites of each part of a mapping; the first glob that matches a site takes it.

    Args:
        structure: site glob to structure.
        sites: the random sites.

    Returns:
        each structure with its sites, in the mapping's order.

    Raises:
        InvalidOption: if a site is matched by no glob, or a glob is left without a site, naming them.
    """
    names = list(sites)
    groups: dict[str, list[str]] = {glob: [] for glob in structure}
    unmatched = []
    for name in names:
        glob = next((glob for glob in structure if fnmatchcase(name, glob)), None)
        (unmatched if glob is None else groups[glob]).append(name)
    if unmatched:
        raise InvalidOption(
            f"structure: no glob of {list(structure)} matches the random sites {unmatched}: add one for them, or "
            "'*' as the last"
        )
    idle = [glob for glob, taken in groups.items() if not taken]
    if idle:
        raise InvalidOption(
            f"structure: {idle} match none of the random sites {names}, or only those that an earlier glob has taken "
            "(the first match wins)"
        )
    return [(structure[glob], taken) for glob, taken in groups.items()]
