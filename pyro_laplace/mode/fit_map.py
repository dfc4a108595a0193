"""`fit_map`: the mode of the program by Pyro's AutoDelta."""

import math
import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.utils import deep_setattr

from pyro_laplace._compat.compiler import without_compiler
from pyro_laplace._compat.pyro import as_start, forget_gradients, name_apart, undisturbed
from pyro_laplace._errors import LaplaceWarning, NotAModeWarning
from pyro_laplace._typing import Theta
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import Data, as_data
from pyro_laplace.mode.collapse import Collapse, refuse_collapse
from pyro_laplace.mode.descent import descend
from pyro_laplace.mode.feasible import feasible_start
from pyro_laplace.mode.given import values_given
from pyro_laplace.mode.newton import minimise
from pyro_laplace.mode.objective import Objective
from pyro_laplace.mode.quadratic import quadratic
from pyro_laplace.mode.rising import Rise, rising
from pyro_laplace.mode.starts import log_mass, search, tell_many_sites
from pyro_laplace.mode.training import check_num_steps, train
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.program.start import init_to_start
from pyro_laplace.settings import settings


def fit_map(
    model: Callable[..., Any],
    data: Any,
    *,
    optim: Any = None,
    num_steps: int = 5000,
    learning_rate: float = 0.01,
    tolerance: float = 0.1,
    progress: bool = True,
) -> AutoDelta:
    """Fit the mode of a Pyro program with `AutoDelta`: by `SVI` and `Trace_ELBO`, a small program by Newton's method.

    AutoDelta maximises the density of the *constrained* values, ``log p(y, x)``. Ordinary params of the model (a
    network's weights without a prior) train along; params that the log prior depends on are hyperparameters, and stay.
    A program of at most `settings.small` coordinates is taken to its mode by Newton's method in the end, however badly
    scaled it is. If nothing but its latent sites is to be trained, and no `optim` is given, there is no SVI before
    that, and the search is from a few starts (`starts.search`); what is said below of training then has no use.

    Args:
        model: a Pyro program.
        data: a batch (tuple, dict or tensor), or a re-iterable of batches; mini-batches are weighted so that prior and
            likelihood keep their proportion, whether or not the model's plates subsample.
        optim: a Pyro optimiser to train with; by default Adam, whose rate falls twice when the loss settles.
        num_steps: of training at most so many SVI steps.
        learning_rate: of training Adam's step size.
        tolerance: of training the fall of the loss over 100 steps, in nats, under which it counts as settled.
        progress: whether training shows a progress bar.

    Returns:
        the trained guide; `fit_seconds` on it is the wall time that the fit took.

    Raises:
        UnsupportedProgram: if the program has no Laplace approximation, naming the site and what to do.
        InvalidData: if `data` cannot be iterated anew.
        NotAMode: if there is no mode, because a scale collapses to zero, naming its site; or no start at which the log
            joint is finite. Where the log joint rises for ever (separated classes under a flat prior) that is a
            `NotAModeWarning` here.
    """
    data = as_data(data)
    guide, held = _fitted(model, data, optim, num_steps, learning_rate, tolerance, progress)
    if (rise := _rises(model, data, guide)) is not None:
        warnings.warn(rise.message, NotAModeWarning, stacklevel=2)
    if held:
        warnings.warn(
            f"fit_map leaves the hyperparameters {sorted(held)}, which the log prior depends on, where they are: "
            "the joint density has no maximum in them. pl.maximize_evidence(model, data) or pl.tune(model, data) "
            "chooses them",
            LaplaceWarning,
            stacklevel=2,
        )
    return guide


def find_mode(model: Callable[..., Any], data: Any, progress: bool = True, hold: Collection[str] = ()) -> AutoDelta:
    """`fit_map` for what chooses the hyperparameters itself, or takes them as they are.

    Args:
        model: a Pyro program.
        data: the data.
        progress: whether training shows a progress bar.
        hold: params that are not trained along, as they are chosen afterwards.

    Returns:
        the guide at the mode.
    """
    return _fitted(model, as_data(data), None, 5000, 0.01, 0.1, progress, hold)[0]


@without_compiler()
def _fitted(
    model: Callable[..., Any],
    data: Data,
    optim: Any,
    num_steps: int,
    learning_rate: float,
    tolerance: float,
    progress: bool,
    hold: Collection[str] = (),
) -> tuple[AutoDelta, frozenset[str]]:
    """The trained guide, and the hyperparameters that were held."""
    start = time.perf_counter()
    check_num_steps(num_steps)
    program = Program.trace(model, data)
    program.visit(data)
    tell_many_sites(program)
    seen = poutine.block(model, hide=sorted(program.hidden)) if program.hidden else model
    loop = Loop(program, data)
    theta = feasible_start(_objective(loop, program.start))
    if torch.equal(theta, program.start):
        guide = AutoDelta(seen, init_loc_fn=init_to_start)
    else:
        program = replace(program, start=theta)
        loop, values = Loop(program, data), program.unpack(theta)
        guide = AutoDelta(seen, init_loc_fn=lambda site: as_start(values[site["name"]]))
    name_apart(guide)
    held, trained = params_of(program, data)
    small = program.num_params <= settings.small
    held, trained = held | trained & frozenset(hold), trained - frozenset(hold)
    try:
        if not (small and optim is None and not trained and _searched(loop, guide)):
            train(
                program,
                guide,
                data,
                hide=held,
                optim=optim,
                num_steps=min(num_steps, settings.small_training_steps) if small and optim is None else num_steps,
                learning_rate=learning_rate,
                tolerance=tolerance,
                progress=progress,
                description="MAP",
            )
            _settle(loop, guide)
    except BaseException:
        discard_params(guide)
        raise
    forget_gradients(held)
    guide.fit_seconds = time.perf_counter() - start
    return guide, held


def _rises(model: Callable[..., Any], data: Data, guide: AutoDelta) -> Rise | None:
    """Of a small program: a line along which the density of the constrained values never falls."""
    with undisturbed(), torch.no_grad():
        program = Program.trace(model, data, values_given(guide, data))
        if program.num_params > settings.small:
            return None
        objective = _objective(Loop(program, data), program.start)
        arrived = _decrement(objective) <= settings.mode_decrement * program.num_params**0.5
        return rising(objective, objective.start) if arrived else None


def _decrement(objective: Objective) -> float:
    _, gradient = objective.value_and_gradient(objective.start)
    return quadratic(objective, objective.start, gradient).decrement


def discard_params(guide: AutoDelta) -> None:
    """Take the parameters of a guide that nobody will call again out of Pyro's param store.

    Left there, they would be those of the next guide of this name.
    """
    own = {id(parameter) for parameter in guide.parameters()}
    store = pyro.get_param_store()
    for name in [name for name, parameter in store.named_parameters() if id(parameter) in own]:
        del store[name]


def params_of(program: Program, data: Data) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the Pyro params that the log prior depends on, the hyperparameters, and those of all others."""
    chunk = Chunk(data.first())
    with undisturbed(), torch.enable_grad():
        run = program.run(program.start, chunk)
        params = {name: value for name, value in run.params.items() if value.requires_grad}
        log_prior = program.log_prior_of(run, program.start)
        if not params or not log_prior.requires_grad:
            return frozenset(), frozenset(params)
        gradients = torch.autograd.grad(log_prior, list(params.values()), allow_unused=True)
    held = frozenset(name for name, gradient in zip(params, gradients, strict=True) if gradient is not None)
    return held, frozenset(params) - held


def _objective(loop: Loop, theta: Theta) -> Objective:
    """Minus the log joint density of the constrained values, over all of theta."""
    return Objective(loop, False, theta, torch.arange(len(theta), device=theta.device))


def _searched(loop: Loop, guide: AutoDelta) -> bool:
    """Move the guide of a small program to the mode by Newton's method alone; whether that reached one."""
    program, batch = loop.program, loop.data.first()
    guide(*batch.args, **batch.kwargs)  # makes the params of guide and model, which cannot be made under torch.func
    objective = _objective(loop, program.start)
    try:
        found = search(objective, minimise)
        if not found.settled:  # the density of theta may yet show why
            objective = replace(objective, jacobian=True)
            minimise(objective)
            return False
        theta = found.theta
    except Collapse as collapse:
        theta = _from_wide_scales(objective, collapse)
    _move(guide, program, theta)
    return True


def _settle(loop: Loop, guide: AutoDelta) -> None:
    """Move the guide of a small program to the mode of the constrained density; see that a large one has a mode."""
    program, batch = loop.program, loop.data.first()
    theta = program.pack({k: v for k, v in guide.median(*batch.args, **batch.kwargs).items() if k in program.latents})
    start = _objective(loop, program.start.to(theta))
    try:
        if len(theta) <= settings.small:
            objective = _objective(loop, theta)
            theta = objective.embed(minimise(objective).part)
        # from the very start: training may have left a scale so small that the search did not see it fall
        refuse_collapse(start, theta.double())
        if len(theta) > settings.small:
            return
    except Collapse as collapse:
        theta = _from_wide_scales(start, collapse)
    _move(guide, program, theta)


def _move(guide: AutoDelta, program: Program, theta: Theta) -> None:
    for name, value in program.unpack(theta).items():
        deep_setattr(guide, name, value)


def _from_wide_scales(objective: Objective, collapse: Collapse) -> Theta:
    """Search again, first with the scale that collapsed held where it started or wider, then with everything free.

    Where the data say enough about what the scale spreads, there is a mode beside the singularity at zero: what is
    spread finds its place before the scale may fall.

    Returns:
        theta at that mode.

    Raises:
        Collapse: the first one, if the scale falls to zero again and again.
    """
    layout, small = objective.program.layout, len(objective.theta) <= settings.small
    descent, factors = (minimise, _WIDER) if small else (descend, _WIDER[:1])
    latents = dict.fromkeys(collapse.latents)
    for factor in factors:
        held = torch.cat([objective.index[layout[name]] for name in latents])
        rest = objective.index[~torch.isin(objective.index, held)]
        if not len(rest):  # a network whose every weight enters the scale: nothing is left to find its place first
            break
        theta = objective.theta.index_add(0, held, torch.full_like(objective.theta[held], math.log(factor)))
        try:
            fixed = replace(objective, theta=theta, index=rest)
            moved = replace(objective, theta=fixed.embed(descent(fixed).part))
            part = descent(moved).part
            if small and log_mass(moved, part) == -math.inf:
                continue
        except Collapse as again:
            if factor > 1.0 and latents.keys() >= set(again.latents):
                break
            latents |= dict.fromkeys(again.latents)
            continue
        return moved.embed(part)
    raise collapse


_WIDER = (1.0, 10.0, 100.0)
"""Factors by which a positive scale is wider than it started; the last is for one that collapses beside the first."""
