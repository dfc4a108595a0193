"""`fit_ensemble`: a deep ensemble, the modes that a program is trained to from several starts."""

import copy
import time
import warnings
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_laplace._compat.compiler import Adam
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import LaplaceWarning, UnsupportedProgram
from pyro_laplace.data import Data, as_data
from pyro_laplace.inference.options import check_count
from pyro_laplace.mode.fit_map import discard_params, fit_map, params_of
from pyro_laplace.mode.given import values_given
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.module_state import modules_kept
from pyro_laplace.program.program import Program
from pyro_laplace.settings import settings


def fit_ensemble(
    model: Callable[..., Any],
    data: Any,
    num_members: int = 5,
    *,
    optim: Any = None,
    num_steps: int = 5000,
    learning_rate: float = 0.01,
    tolerance: float = 0.1,
    progress: bool = True,
) -> LaplaceMixture:
    """Train a program from several starts: a deep ensemble, whose predictions are averages of its members'.

    The members are modes, trained by `fit_map` one after the other (Lakshminarayanan et al. 2017, "Simple and scalable
    predictive uncertainty estimation using deep ensembles"). Sites without a start of their own start at draws from the
    prior. Those of a `bayesianize`d network start at its weights: the first member does, and for each of the others the
    layers draw theirs anew, by their `reset_parameters`; the network is left as it is.

    The ensemble is a posterior of `num_members` points, a `LaplaceMixture` without covariance. Given to `fit_laplace`
    as its `map_guide` it becomes a mixture of Gaussians, one around each member.

    Args:
        model: a Pyro program.
        data: a batch (tuple, dict or tensor), or a re-iterable of batches.
        num_members: number of starts.
        optim: a Pyro optimiser, by default Adam. Every member is trained by it, also those of a small program.
        num_steps: as in `fit_map`, of each member.
        learning_rate: as in `fit_map`.
        tolerance: as in `fit_map`.
        progress: whether training shows a progress bar.

    Returns:
        the ensemble; `fit_seconds` on it is the wall time of all members.

    Raises:
        InvalidOption: if `num_members` is no number from 1 on.
        UnsupportedProgram: if the program has no Laplace approximation, naming the site and what to do; or has params
            beside its sites that train along, of which there is one value for all members.
        InvalidData: if `data` cannot be iterated anew.
        NotAMode: as `fit_map`.
    """
    start = time.perf_counter()
    check_count("num_members", num_members, 1)
    data = as_data(data)
    layers = _refuse_shared(model, data)
    points = []
    for number in range(num_members):
        member = _FreshStarts(layers)(model) if number else model
        with warnings.catch_warnings():
            if number:  # said once
                warnings.filterwarnings("ignore", "fit_map leaves the hyperparameters", LaplaceWarning)
            guide = fit_map(
                member,
                data,
                optim=optim or PyroOptim(Adam, {"lr": learning_rate}),  # without one fit_map looks for the best mode
                num_steps=num_steps,
                learning_rate=learning_rate,
                tolerance=tolerance,
                progress=progress,
            )
        points.append(values_given(guide, data))
        discard_params(guide)
    ensemble = LaplaceMixture.of_modes(model, data, points)
    _tell_of_one_mode(ensemble)
    ensemble.fit_seconds = time.perf_counter() - start
    return ensemble


class _FreshStarts(Messenger):
    """Lets sites that start at a parameter of a layer start at one that the layer draws anew, the same at every run."""

    def __init__(self, layers: Collection[nn.Module]) -> None:
        super().__init__()
        self._drawn: dict[int, Tensor] = {}  # now, as runs of the program may leave the random state as it was
        for layer in layers:
            own = dict(layer.named_parameters(recurse=False))
            if own and callable(getattr(layer, "reset_parameters", None)):
                new: Any = copy.deepcopy(layer)
                new.reset_parameters()
                fresh = dict(new.named_parameters(recurse=False))
                self._drawn |= {id(parameter): fresh[name].detach() for name, parameter in own.items()}

    def _pyro_sample(self, msg: Any) -> None:
        start = msg["infer"].get("start") if msg["infer"] else None
        if isinstance(start, partial) and start.args:  # computed of the parameter
            parameter = start.args[0]
            fresh = self._drawn.get(id(parameter))
            fresh = None if fresh is None else partial(start.func, fresh, *start.args[1:], **start.keywords)
        else:
            parameter = start
            fresh = self._drawn.get(id(start))
        if fresh is not None:
            msg["infer"] = {**msg["infer"], "start": fresh}
        elif isinstance(parameter, nn.Parameter):  # of a layer that cannot draw it: a prior draw does
            msg["infer"] = {name: value for name, value in msg["infer"].items() if name != "start"}


def _refuse_shared(model: Callable[..., Any], data: Data) -> Collection[nn.Module]:
    """The modules that the program is made of; refuse one of whose params there is one value for all members."""
    program = Program.trace(model, data)
    _, trained = params_of(program, data)
    if trained:
        raise UnsupportedProgram(
            f"the params {sorted(trained)} have no prior and train along with the mode, and the param store holds one "
            "value of each for all members: give them priors (pl.bayesianize puts them on all weights), or fix them"
        )
    with undisturbed(), modules_kept(model) as kept, torch.no_grad():
        program.run(program.start, Chunk(data.first()))
        return list(kept.modes)


def _tell_of_one_mode(ensemble: LaplaceMixture) -> None:
    """Warn of an ensemble that is one point, which says no more than its mode does."""
    modes = ensemble.get_posterior().modes
    spread, size = (modes - modes[0]).abs().amax(), modes.abs().amax()
    if len(modes) > 1 and bool(spread <= settings.same_member * (1 + size)):
        warnings.warn(
            f"all {len(modes)} members came to one point, and predict as fit_map alone does: the program has one mode, "
            "or all starts are the same. fit_laplace gives the width of the posterior around it",
            LaplaceWarning,
            stacklevel=3,
        )
