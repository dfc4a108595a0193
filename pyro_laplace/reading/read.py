"""From the run of one chunk to what it adds to each likelihood term's curvature."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from pyro_laplace._errors import LaplaceWarning
from pyro_laplace._typing import Terms
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.curvature.root import Root
from pyro_laplace.reading.columns import Columns
from pyro_laplace.reading.direct import direct_of
from pyro_laplace.reading.factors import Factored, factor
from pyro_laplace.reading.records import Factors
from pyro_laplace.reading.rest import DenseRoot, ExactHessian
from pyro_laplace.reading.restrict import restrict
from pyro_laplace.settings import settings


@dataclass(frozen=True)
class Wanted:
    """In what form a structure takes what is read off a run.

    Attributes:
        direct: whether a layer that is the likelihood's own may be given by its Fisher information.
        positions: whether it may be where a datum has several positions.
        products: whether there is no use for dense rows: data that reach one another's rows then are one datum.
        elements: of gradients that are held at a time; where all columns have more, they come in slices.
        searched: whether the entries of a root are searched for by its products, so that nothing need be factored.
    """

    direct: bool
    products: bool
    elements: int
    positions: bool = False
    searched: bool = False


def exact_terms(run: CapturedRun, root: Root | None) -> Terms:
    """The terms of the log likelihood that a root does not cover: they have their exact Hessian."""
    covered = frozenset() if root is None else root.sites.keys()
    return tuple(sorted(run.program.terms - covered))


def columns_of(run: CapturedRun, root: Root | None, anchor: Anchor, wanted: Wanted) -> Iterator[tuple[Terms, Columns]]:
    """What a chunk adds to the curvature.

    Args:
        run: the program's run, captured if there is a root.
        root: of the curvature on its chunk, or None where it has none.
        anchor: theta and its free coordinates, among those of the run.
        wanted: in what form.

    Yields:
        the terms, and some of their columns.
    """
    if root is not None and root.sites:
        found = direct_of(run, root, anchor, wanted.direct) if wanted.direct or wanted.positions else None
        if found is not None:
            yield tuple(root.sites), Columns(anchor.size, direct=found)
        else:
            for part in _affordable(run, root, anchor, wanted).by_size():
                yield from _of_part(run, part, anchor, wanted)
    exact = exact_terms(run, root)
    if exact:
        yield exact, Columns(anchor.size, rest=ExactHessian(run.program, run.chunk, exact, anchor))


def _affordable(run: CapturedRun, root: Root, anchor: Anchor, wanted: Wanted) -> Root:
    """The root by labels drawn at each position, where a structure takes columns one by one and they are too many."""
    limit = settings.exact_columns
    if not wanted.products and (not wanted.direct or anchor.size <= limit):  # few coordinates: by forward mode
        return root
    few, many = root.of_few_columns(limit)
    question = "columns", frozenset(many)
    if many and question not in run.verdicts:
        run.verdicts[question] = True
        said = ", ".join(f"{columns} columns a datum for {name!r}" for name, columns in many.items())
        warnings.warn(
            f"curvature='ggn' has {said} (positions times outputs), a backward pass each: it is estimated by "
            f"{settings.position_labels} labels drawn at each position (pl.settings.position_labels; all columns are "
            f"made up to pl.settings.exact_columns, {limit}). subset='last_layer' with 'kron' or 'diag' is exact",
            LaplaceWarning,
            stacklevel=2,
        )
    return few


def _of_part(run: CapturedRun, root: Root, anchor: Anchor, wanted: Wanted) -> Iterator[tuple[Terms, Columns]]:
    """The columns of observed sites of equally many data: as products with weights, or by dense rows of their root."""
    factored = None if wanted.searched else factor(run, root, anchor.whole())
    if wanted.products and (factored is None or factored.leaves_out):
        one = factor(run, root.as_one(), anchor.whole())
        if one is not None and (factored is None or len(one.dense_index) < len(factored.dense_index)):
            factored = one
    captured = None if factored is None else _restricted(factored, anchor, wanted.elements, wanted.products)
    if captured is None:
        for name in root.sites:
            yield (name,), Columns(anchor.size, rest=DenseRoot(root.only(name), anchor))
        return
    seen: set[str] = set()
    data = next(iter(root.sites))
    for name, factors in captured:
        yield (name,), Columns(anchor.size, factors=factors, data=data, with_inputs=name not in seen)
        seen.add(name)


def _restricted(factored: Factored, anchor: Anchor, elements: int, paired: bool) -> Iterator[tuple[str, Factors]]:
    """The factors of a root by site, also where a site is free in part only."""
    whole = anchor.whole()
    if len(whole.index) == len(anchor.index):
        return factored.factors(elements, paired)
    chosen = whole.positions[anchor.index]
    return ((name, restrict(each, chosen, whole.size)) for name, each in factored.factors(elements, paired))
