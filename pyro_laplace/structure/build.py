"""The one table of structures, and the pass over the data that fills their sums."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption
from pyro_laplace._typing import State, Terms, Theta
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.loop import Loop
from pyro_laplace.capture.run import CapturedRun, Verdicts
from pyro_laplace.curvature.root import Curvature, Root
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.reading.prior import Prior, prior_of
from pyro_laplace.reading.read import Wanted, columns_of, exact_terms
from pyro_laplace.settings import settings
from pyro_laplace.structure.diag import DiagSum
from pyro_laplace.structure.full import Full
from pyro_laplace.structure.grouped import Grouped
from pyro_laplace.structure.kron import KronSum
from pyro_laplace.structure.likelihood_sum import LikelihoodSum
from pyro_laplace.structure.low_rank import LowRankSum
from pyro_laplace.structure.options import Kron, LowRank, Structure, group_sites
from pyro_laplace.structure.sparse import SparseSum
from pyro_laplace.structure.statistics import TermStatistics, statistics_of
from pyro_laplace.structure.sum import Sum, SumOverData

STRUCTURES: dict[Any, type[Sum]] = {
    "full": Full,
    "block": Full,
    "kron": KronSum,
    Kron: KronSum,
    "diag": DiagSum,
    LowRank: LowRankSum,
    "sparse": SparseSum,
}
"""What `structure=` may be, by its name or the type of its options: another structure is one more line.

A "block" is a full sum of each site by itself.
"""


def check_structure(structure: object) -> None:
    """Refuse what is no structure.

    Args:
        structure: what was given.

    Raises:
        InvalidOption: naming it, and listing what is possible.
    """
    names = [repr(each) for each in STRUCTURES if isinstance(each, str)]
    single = ", ".join([*names, *(_written(each) for each in STRUCTURES if not isinstance(each, str))])
    if isinstance(structure, Mapping):
        if not structure:
            raise InvalidOption(f"structure is an empty mapping: give {{site glob: structure}}, of {single}")
        for glob, part in structure.items():
            if not isinstance(glob, str) or _sum_type(part) is None:
                raise InvalidOption(f"structure: {glob!r}: {part!r} is not a site glob with one of {single}")
    elif _sum_type(structure) is None:
        raise InvalidOption(f"structure={structure!r} is not one of {single}, or a mapping {{site glob: one of these}}")


def check_combination(structure: Structure, curvature: Curvature) -> None:
    """Refuse a structure that cannot hold a curvature.

    Args:
        structure: a structure, or a mapping of site globs to structures.
        curvature: how the likelihood's curvature is measured.

    Raises:
        InvalidOption: naming both.
    """
    for part in structure.values() if isinstance(structure, Mapping) else [structure]:
        if _type_of(part).needs_root and not curvature.rooted:
            name = "kron" if isinstance(part, Kron) else part
            raise InvalidOption(
                f"structure={name!r} has no curvature={curvature.name!r}: use 'ggn', or another structure"
            )


def holds(structure: Structure, curvature: Curvature) -> bool:
    """Whether a structure can hold a curvature.

    Args:
        structure: a structure, or a mapping of site globs to structures.
        curvature: how the likelihood's curvature is measured.

    Returns:
        the answer.
    """
    return curvature.rooted or not any(_parts_have(structure, "needs_root"))


@dataclass(frozen=True, eq=False)
class Measured:
    """What one pass over the data gives: the likelihood's sum, and the prior where it was measured."""

    likelihood: LikelihoodSum
    prior: Prior


def sum_over_data(
    loop: Loop,
    anchor: Anchor,
    curvature: Curvature,
    structure: Structure,
    *,
    jacobian: bool = True,
    prior: Prior | None = None,
    double: bool = False,
    first: int = 0,
    progress: bool = False,
) -> Measured:
    """The likelihood's curvature at an anchor, summed over one pass of the data (several for `LowRank(passes=)`).

    Args:
        loop: the program and its data.
        anchor: theta and its free coordinates.
        curvature: how the likelihood's curvature is measured.
        structure: of the sum; of a mapping of site globs the curvature between its groups is dropped.
        jacobian: whether the prior is the density of theta, or of the constrained values.
        prior: the prior there, if it is known; it is read off the first run else.
        double: whether to add up in float64 what would else be added up in the sites' dtype.
        first: number of the first datum, where others were summed before.
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        the sum, and the prior.

    Raises:
        InvalidOption: if the structure does not go with the curvature, or a mapping not with the sites.
    """
    check_combination(structure, curvature)
    total = _Running(anchor, structure, double, prior, first)
    for chunk in loop.chunks("curvature", progress):
        total.take(loop.program, chunk, curvature, jacobian)
    measured = total.measured()
    while total.refine():
        for chunk in loop.chunks("curvature", progress):
            total.take(loop.program, chunk, curvature, jacobian)
    return measured


class _Running:
    """The sums of a pass that is under way.

    Args:
        anchor: theta and its free coordinates.
        structure: of the sums.
        double: whether everything is added up in float64.
        prior: the prior's curvature, if it is known.
        first: number of the first datum.
    """

    def __init__(self, anchor: Anchor, structure: Structure, double: bool, prior: Prior | None, first: int) -> None:
        self.anchor, self.structure, self.double, self.prior = anchor, structure, double, prior
        self.first = self.seen = first
        self.sums: dict[Terms, SumOverData] = {}
        self.statistics: dict[str, TermStatistics] = {}
        self.gradient = torch.zeros(anchor.size, dtype=torch.float64, device=anchor.theta.device)
        self.verdicts: Verdicts = {}
        streams, searched = all(_parts_have(structure, "streams")), all(_parts_have(structure, "searches"))
        self.wanted = Wanted(
            direct=_parts(structure, anchor) is None and all(_parts_have(structure, "takes_direct")),
            positions=_parts(structure, anchor) is None and all(_parts_have(structure, "takes_positions")),
            products=any(_parts_have(structure, "needs_products")),
            searched=searched,
            elements=settings.streamed_elements if streams else settings.together_elements,
        )

    def take(self, program: Program, chunk: Chunk, curvature: Curvature, jacobian: bool) -> None:
        """Run the program on a chunk, and add what it says."""
        with undisturbed(rng=False):
            watched = curvature.rooted and not self.wanted.searched
            run = CapturedRun.make(program, self.anchor, chunk, captured=watched, verdicts=self.verdicts)
            root = curvature.root(program, run.run, chunk, self.seen)
            if not self.sums:
                self._plan(run, root, jacobian)
            for terms, columns in columns_of(run, root, self.anchor, self.wanted):
                self.sums[terms].add(columns)
            for name, own in statistics_of(run).items():
                self.statistics[name] = self.statistics[name] + own if name in self.statistics else own
            run.add_over_free(self.gradient, run.score.leaves)
            self.seen += run.num_data
            run.release()

    def refine(self) -> bool:
        """Whether some sum takes one more pass, which adds to the sums alone."""
        further = [each.refine() for each in self.sums.values()]
        self.seen, self.gradient, self.statistics = self.first, torch.zeros_like(self.gradient), {}
        return any(further)

    def measured(self) -> Measured:
        """The sums, which further passes go on adding to."""
        assert self.prior is not None
        numbers = self.statistics, self.gradient, self.seen - self.first, self.double
        return Measured(LikelihoodSum(self.anchor, self.structure, self.sums, *numbers), self.prior)

    def _plan(self, run: CapturedRun, root: Root | None, jacobian: bool) -> None:
        """The empty sums, one for each term that has a root, and one for all that have none."""
        self.prior = prior_of(run, jacobian) if self.prior is None else self.prior
        self.anchor = replace(self.anchor, hyperparameters=self.prior.hyperparameters)
        exact = exact_terms(run, root)
        rooted: list[Terms] = [] if root is None else [(name,) for name in root.sites]
        for terms in [*rooted, *([exact] if exact or not rooted else [])]:
            own = exact if terms == exact else ()
            self.sums[terms] = _plan(self.structure, self.anchor, self.prior, own, self.double)


def restore(state: State, anchor: Anchor, structure: Structure) -> LikelihoodSum:
    """What `LikelihoodSum.state` gave.

    Args:
        state: plain tensors, numbers and names.
        anchor: that it was made at.
        structure: of the sums.

    Returns:
        the sum.
    """
    return LikelihoodSum(
        anchor,
        structure,
        {tuple(each["terms"]): _restored(structure, each["sum"], anchor) for each in state["sums"]},
        {name: TermStatistics(**each) for name, each in state["statistics"].items()},
        state["gradient"],
        state["num_data"],
        state["double"],
    )


def moved(likelihood: LikelihoodSum, theta: Theta) -> LikelihoodSum:
    """What a sum over data says at another point, as far as its quadratic model goes; it stays as it is.

    Args:
        likelihood: the sum.
        theta: the point, whose coordinates that are not free are the anchor's.

    Returns:
        the same curvature, anchored there.
    """
    there = likelihood.at(theta)
    again = restore(likelihood.state(), replace(likelihood.anchor, theta=theta), likelihood.structure)
    return replace(again, gradient=there.gradient, statistics=likelihood.statistics_at(there.log_lik))


def _written(option: type) -> str:
    """How an object with a structure's options is made, such as LowRank(rank, passes)."""
    return f"{option.__name__}({', '.join(inspect.signature(option).parameters)})"


def _plan(structure: Structure, anchor: Anchor, prior: Prior, exact: Sequence[str], double: bool) -> SumOverData:
    """The empty sum of some terms."""
    parts = _parts(structure, anchor)
    if parts is None:
        return _type_of(structure).plan(structure, anchor, prior, exact, double)
    groups = [(own, _plan(part, anchor.only(own), prior.over(own), exact, double)) for part, own in parts]
    return Grouped(anchor, groups)


def _restored(structure: Structure, state: State, anchor: Anchor) -> SumOverData:
    parts = _parts(structure, anchor)
    if parts is None:
        return _type_of(structure).from_state(state, anchor)
    states = zip(parts, state["groups"], strict=True)
    return Grouped(anchor, [(own, _restored(part, each, anchor.only(own))) for (part, own), each in states])


def _parts(structure: Structure, anchor: Anchor) -> list[tuple[Structure, Tensor]] | None:
    """The structures that one is made of, each with its coordinates, by their place among the free ones."""
    if isinstance(structure, Mapping):
        return [(part, anchor.of_sites(sites)) for part, sites in group_sites(structure, anchor.touched)]
    if structure == "block":
        return [("full", anchor.of_sites([name])) for name in anchor.touched]
    return None


def _sum_type(option: object) -> type[Sum] | None:
    return STRUCTURES.get(option if isinstance(option, str) else type(option))


def _type_of(option: object) -> type[Sum]:
    found = _sum_type(option)
    assert found is not None, option
    return found


def _parts_have(structure: Structure, attribute: str) -> Iterator[bool]:
    """Of each part of a structure, whether its sum has an attribute."""
    parts = structure.values() if isinstance(structure, Mapping) else [structure]
    return (getattr(_type_of(part), attribute) for part in parts)
