"""What `structure=` may be, and which sites each part of a mapping of structures covers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pyro_laplace._errors import InvalidOption, check_option

NAMES = ("full", "block", "kron", "diag")
"""The structures that have no option of their own."""


@dataclass(frozen=True)
class LowRank:
    """The structure ``H_prior + U diag(s) U'``: a diagonal prior, and the likelihood's curvature of highest rank.

    Attributes:
        rank: number of eigenpairs of the prior-whitened curvature that are kept; exact from its own rank on.
    """

    rank: int

    def __post_init__(self) -> None:
        """Check the rank.

        Raises:
            InvalidOption: if it is not a positive integer.
        """
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InvalidOption(f"LowRank(rank={self.rank!r}): give the number of eigenpairs to keep, at least 1")


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


Single = str | LowRank | Kron
"""One structure for a group of sites."""

Structure = Single | Mapping[str, Single]
"""What `structure=` may be."""


def check_structure(structure: object) -> None:
    """Refuse what is no structure.

    Args:
        structure: what was given.

    Raises:
        InvalidOption: naming it, and listing what is possible.
    """
    single = f"{', '.join(map(repr, NAMES))}, pl.Kron(shared) or pl.LowRank(rank)"
    if isinstance(structure, Mapping):
        if not structure:
            raise InvalidOption(f"structure is an empty mapping: give {{site glob: structure}}, of {single}")
        for glob, part in structure.items():
            if not isinstance(glob, str) or not _is_single(part):
                raise InvalidOption(f"structure: {glob!r}: {part!r} is not a site glob with one of {single}")
    elif not _is_single(structure):
        raise InvalidOption(f"structure={structure!r} is not one of {single}, or a mapping {{site glob: one of these}}")


def group_sites(structure: Mapping[str, Single], sites: Iterable[str]) -> list[tuple[Single, list[str]]]:
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


def _is_single(structure: object) -> bool:
    return isinstance(structure, LowRank | Kron) or (isinstance(structure, str) and structure in NAMES)
