"""What is asked of a nested approximation, checked once: the hyper sites, and how the inner problem is solved."""

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pyro_laplace._errors import InvalidOption, LaplaceWarning, NotAMode, check_option
from pyro_laplace._typing import Theta
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.network import is_network, readout_of
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import Data
from pyro_laplace.inner.conditional import Conditional, chosen_sites, parents_of, refuse_inner_parents, tamed
from pyro_laplace.inner.dense import DenseInner
from pyro_laplace.inner.problem import Inner
from pyro_laplace.inner.searched import SearchedInner
from pyro_laplace.inner.sparse import SparseInner
from pyro_laplace.mode.collapse import Collapse
from pyro_laplace.mode.newton import minimise
from pyro_laplace.mode.objective import Objective
from pyro_laplace.mode.rising import rising
from pyro_laplace.mode.starts import other_starts
from pyro_laplace.nested.hyper import Reason, find_hyper
from pyro_laplace.posterior.search import Search
from pyro_laplace.program.program import Program
from pyro_laplace.settings import settings
from pyro_laplace.sparse.rows import NotSparse
from pyro_laplace.structure.build import check_combination, check_structure
from pyro_laplace.structure.options import Structure

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Nesting:
    """A program split, with a way to solve the inner problem.

    Attributes:
        of: the conditional density; its program starts where an inner mode is.
        inner: the way.
        reasons: why each hyper site is one, where they were found and not named.
        layers: weights of a network, under its last layer, that are explored with the hyper sites.
    """

    of: Conditional
    inner: Inner
    reasons: Mapping[str, Reason]
    layers: tuple[str, ...] = ()


def begin(
    model: Callable[..., Any],
    data: Data,
    hyper: str | Iterable[str],
    structure: Structure,
    curvature: str,
    everything: bool,
    layers: float = 0.0,
) -> Nesting:
    """Check the options, split the program, and find a first inner mode.

    Args:
        model: a Pyro program.
        data: its data.
        hyper: "auto", or names and globs.
        structure: of the inner precision, or "auto".
        curvature: of the log likelihood, or "auto".
        everything: whether "auto" may find that all sites are hyper sites.
        layers: the work, in numbers made at one move of particles, up to which a small network's weights under its last
            layer are explored with the hyper sites.

    Returns:
        the program split.

    Raises:
        InvalidOption: for an option's unknown value, or options that do not go together.
    """
    if structure != "auto":
        check_structure(structure)
    check_option("curvature", curvature, ("auto", *CURVATURES))
    program = Program.trace(model, data)
    program.visit(data)
    loop = Loop(program, data)
    reasons = find_hyper(program, loop.few_rows()) if hyper == "auto" else {}
    if hyper == "auto":
        names = tuple(reasons)
        if len(names) == len(program.latents) and not everything:
            raise InvalidOption(
                f"hyper='auto' takes every latent site {list(names)}, and none is left to be integrated out: the "
                "program is its own marginal. Draw from it with pl.fit_nuts(model, data), or by a grid with "
                "pl.fit_nested_laplace(model, data)"
            )
    else:
        names = chosen_sites("hyper", hyper, tuple(program.latents))
        refuse_inner_parents(program, names, next(loop.chunks()))
    of = Conditional.of(loop, names)
    under = _under_readout(of, layers) if layers else ()
    if not names and not under:
        raise InvalidOption(
            "hyper='auto' found none: no latent site of a few coordinates sets the scale of others, multiplies them in "
            f"the predictor, or is the noise of the data (the latent sites are {list(program.latents)}). Such a "
            "program is pl.fit_laplace's; or name them, hyper=[...]"
        )
    if under:
        of = Conditional.of(loop, tuple(name for name in program.latents if name in names or name in under))
    _tell_of_shared(of)
    inner = _inner_problem(of, structure, curvature)
    return Nesting(*_with_mode(of, inner), reasons, under)


def _under_readout(of: Conditional, most: float) -> tuple[str, ...]:
    """The weights of a small network under its last layer, given which that is the weights of a linear model."""
    program, rows = of.program, of.loop.few_rows()
    if program.num_params > settings.small or not is_network(program, program.start, rows, of.inner):
        return ()
    readout = readout_of(program, rows, of.inner)
    work = settings.particles * of.data_size * sum(program.latents[name].size for name in readout)
    under = tuple(name for name in of.inner if name not in readout)
    parents = {parent for found in parents_of(program, under, of.chunks[0]).values() for parent in found}
    why = ""
    if not readout:
        why = "its predictors bend in the weights of each layer"
    elif depends := parents.intersection(readout):
        why = f"priors of lower layers depend on {sorted(depends)}"
    elif work > most:
        why = f"a move of its particles makes {work:,} numbers, more than settings.particle_work = {int(most):,}"
    if not why:
        return under
    _LOG.info("a network whose layers are not explored, so that its modes are not counted: %s", why)
    return ()


def _tell_of_shared(of: Conditional) -> None:
    """Warn of an enumerated site that all data share: the inner density then has a mode for each of its values."""
    shared, inner = of.program.shared_discrete(of.chunks[0]), list(of.inner)
    if shared and inner:
        warnings.warn(
            f"the enumerated site {shared[0]!r} is outside the data's plate, and all data share it: at given hyper "
            f"points the inner sites {inner} may have a mode for each of its values, of which the nested approximation "
            f"sees one. Fit the program at each value, poutine.condition(model, data={{{shared[0]!r}: value}}), and "
            "weigh the posteriors by their log_evidence",
            LaplaceWarning,
            stacklevel=4,
        )


def _inner_problem(of: Conditional, structure: Structure, curvature: str) -> Inner:
    """How the inner problem is solved."""
    if curvature == "auto":
        small = of.program.num_params <= settings.small
        network = small and is_network(of.program, of.program.start, of.loop.few_rows(), of.inner)
        exact = structure in ("auto", "full", "sparse") and not network
        curvature = "hessian" if exact else "ggn"
    if curvature == "hessian":
        if structure not in ("auto", "full", "sparse"):
            raise InvalidOption(
                f"structure={structure!r} has no curvature='hessian' here: use 'full', 'sparse', or curvature='ggn'"
            )
        return _by_exact_hessians(of, structure)
    form = "full" if structure == "auto" else structure
    measure = CURVATURES[curvature].drawn()
    check_combination(form, measure)
    search = Search(of.loop, of.inner_index, form, measure, jacobian=True, progress=False)
    return SearchedInner(of, search, measure.name)


def _by_exact_hessians(of: Conditional, structure: Structure) -> Inner:
    """By exact Hessians: dense ones of few inner coordinates, or of many that are coupled with many."""
    if structure == "full" or (structure == "auto" and of.inner_index.numel() <= settings.small):
        return DenseInner(of)
    try:
        return SparseInner.find(of)
    except NotSparse as error:
        if structure == "auto":
            return DenseInner(of)
        names = [name for name in of.inner if bool(_holds(of, name, error.places))]
        raise InvalidOption(
            f"structure='sparse': {len(error.places)} coordinates of the inner sites {names} are coupled with many "
            "others: use structure='full', or 'auto'"
        ) from None


def _holds(of: Conditional, name: str, places: Tensor) -> Tensor:
    place, coordinates = of.program.latents[name].slice, of.inner_index[places]
    return ((coordinates >= place.start) & (coordinates < place.stop)).any()


def _with_mode(of: Conditional, inner: Inner) -> tuple[Conditional, Inner]:
    """The inner problem with a first mode in its memory, at the program's start or at a draw of the hyper sites."""
    if _solves(inner):
        return of, inner
    near = tamed(of.program.start)  # under a wide prior the start may be far from all, and draws are no nearer
    if found := _begun_at(of, inner, [near]):
        return found
    error = _no_mode(of)
    drawn = of.loop.data.one_batch and not isinstance(error, Collapse)
    if drawn and (found := _begun_at(of, inner, other_starts(of.loop, of.program.start))):
        return found
    raise error


def _begun_at(of: Conditional, inner: Inner, starts: Iterable[Theta]) -> tuple[Conditional, Inner] | None:
    """The problem from the first of some points that leads to a mode."""
    for theta in starts:
        moved = replace(of, loop=of.loop.at(theta, {}))
        if _solves(other := inner.moved(moved)):
            return moved, other
    return None


def _solves(inner: Inner) -> bool:
    """Whether there is an inner mode at the hyper sites' start, which is then in memory."""
    return bool(inner.solve(inner.of.start[1].unsqueeze(0)).value.isfinite().all())


def _no_mode(of: Conditional) -> NotAMode:
    """Why there is none: a scale among the inner sites that collapses, or a direction in which the density rises."""
    objective = Objective(of.loop, True, of.program.start, of.inner_index)
    said = "its search found no point where the density is highest and falls off on all sides"
    try:
        reached = minimise(objective, settings.first_search_steps)
        rise = rising(objective, reached.part)
        if rise is not None:
            said = rise.message
    except Collapse as collapse:
        return Collapse(
            f"the inner problem, over {list(of.inner)} at given {list(of.hyper)}, has no mode: {collapse}. Or take "
            f"what the scale depends on for hyper sites: hyper={[*of.hyper, *collapse.latents]}",
            collapse.latents,
        )
    except NotAMode as error:
        said = str(error)
    values = {name: value.flatten()[:5].tolist() for name, value in of.program.unpack(of.program.start).items()}
    shown = {name: values[name] for name in of.hyper}
    return NotAMode(
        f"the inner problem, over {list(of.inner)} at {shown}, has no mode: {said}. Give the inner sites priors that "
        "hold them, or take more of them for hyper sites"
    )
