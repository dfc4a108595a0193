"""The SVI loop, full batch or mini-batches: prior and likelihood in their true proportion, until the loss settles."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from torch import Tensor
from tqdm.auto import tqdm

from pyro_laplace._compat.compiler import Adam
from pyro_laplace._compat.pyro import site_is_subsample
from pyro_laplace._errors import InvalidOption
from pyro_laplace.data import Batch, Data
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import is_enumerated, without_masked_nan
from pyro_laplace.settings import settings

DECAYS = (0.1, 0.1)
"""Factors by which the step size falls, one after the other, before the training stops."""


class _Proportion(Messenger):
    """Scales one batch's log density so that the batches of a pass add up to that of all data.

    Latent sites count 1 / batches, and what `obs_mask` leaves unobserved nothing; a plate's own subsample scale is
    undone at observed sites, which the batches of a pass visit once. A plate that draws its own indices states the
    proportion already.
    """

    def __init__(self, program: Program, batches: int) -> None:
        super().__init__()
        self.program, self.batches = program, batches

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        if msg["name"] in self.program.hidden and not is_enumerated(msg):
            msg["stop"] = True  # what obs_mask leaves unobserved integrates to 1: the ELBO shall not see it
            return
        if msg["is_observed"] and msg["value"] is not None:
            msg["value"] = without_masked_nan(msg["value"], msg["mask"], msg["fn"])
        if self.program.own_indices:
            return
        if msg["name"] in self.program.latents:
            msg["scale"] = msg["scale"] / self.batches
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name in self.program.external:
                _, visited = self.program.external[frame.name]
                msg["scale"] = msg["scale"] * (frame.size / visited)


def train(
    program: Program,
    guide: Callable[..., Any],
    data: Data,
    *,
    hide: frozenset[str] = frozenset(),
    optim: Any = None,
    num_steps: int = 5000,
    learning_rate: float = 0.01,
    tolerance: float = 0.1,
    progress: bool = True,
    description: str = "SVI",
) -> list[float]:
    """Train a guide with `SVI` and `Trace_ELBO` until the loss settles.

    The loss is averaged over windows of `settings.window_steps`. When it has not fallen by `tolerance` nats for
    `settings.patience` windows, the step size is divided by ten, twice, then the training ends. Steps after which a
    distribution refuses its parameters (a ValueError of the arguments' validation) are undone, and the step size is
    divided by ten then too.

    Args:
        program: the traced program.
        guide: the guide, which the model's own params train with.
        data: the data, visited in order.
        hide: params that stay as they are.
        optim: a Pyro optimiser; None means Adam with `learning_rate`.
        num_steps: at most so many steps.
        learning_rate: Adam's step size.
        tolerance: improvement of the ELBO, in nats over all data, that counts as one.
        progress: whether to show a progress bar.
        description: the bar's label.

    Returns:
        the loss of every window, in nats over all data.

    Raises:
        InvalidOption: if `num_steps` is not positive.
        ValueError: if the program refuses the data or its parameters on the first pass, or again and again.
    """
    check_num_steps(num_steps)
    batches = sum(1 for _ in data)
    optim = optim or PyroOptim(Adam, {"lr": learning_rate})
    model = _Proportion(program, batches)(poutine.block(program.model, hide=sorted(hide)) if hide else program.model)
    scaled_guide = poutine.scale(guide, scale=1.0 if program.own_indices else 1.0 / batches)
    elbo = Trace_ELBO() if program.nesting is None else TraceEnum_ELBO(max_plate_nesting=program.nesting)
    svi = SVI(model, scaled_guide, optim, elbo)
    window = max(settings.window_steps // batches, 1) * batches
    losses: list[float] = []
    kept = _Params({})
    decays, best, stale, total = list(DECAYS), float("inf"), 0, 0.0
    with tqdm(total=num_steps, desc=description, disable=not progress) as bar:
        for step, batch in enumerate(_forever(data), start=1):
            try:
                total += cast(float, svi.step(*batch.args, **batch.kwargs))
            except ValueError:  # a distribution refuses what the steps have made of its parameters
                if step <= batches or not decays:
                    raise
                kept.restore(optim)
                _slow_down(optim, decays.pop(0))
                continue
            bar.update()
            if step == batches or step % window == 0:
                kept = _Params.kept()
            if step % window == 0:
                losses.append(total * batches / window)
                total = 0.0
                bar.set_postfix(loss=f"{losses[-1]:.4g}")
                stale = 0 if losses[-1] < best - tolerance else stale + 1
                best = min(best, losses[-1])
                if stale >= settings.patience:
                    if not decays:
                        break
                    _slow_down(optim, decays.pop(0))
                    stale = 0
            if step >= num_steps:
                break
    return losses


def check_num_steps(num_steps: int) -> None:
    """Refuse a number of steps that is not positive.

    Args:
        num_steps: as the user gave it.

    Raises:
        InvalidOption: naming it.
    """
    if num_steps < 1:
        raise InvalidOption(f"num_steps={num_steps} leaves nothing to train: give a positive number")


@dataclass(frozen=True)
class _Params:
    """What the param store held at some step, to go back to."""

    values: Mapping[str, Tensor]

    @staticmethod
    def kept() -> "_Params":
        store = pyro.get_param_store().named_parameters()
        return _Params({name: parameter.detach().clone() for name, parameter in store})

    @torch.no_grad()
    def restore(self, optim: Any) -> None:
        """Put them back, and let the optimiser forget the steps that led astray."""
        for name, parameter in pyro.get_param_store().named_parameters():
            if name in self.values:
                parameter.copy_(self.values[name])
        for each in getattr(optim, "optim_objs", {}).values():
            if isinstance(each, torch.optim.Optimizer):
                each.state.clear()


def _forever(data: Data) -> Iterator[Batch]:
    if data.one_batch:
        yield from cycle(data)
    while True:
        yield from data


def _slow_down(optim: Any, factor: float) -> None:
    for each in getattr(optim, "optim_objs", {}).values():
        if isinstance(each, torch.optim.Optimizer):
            for group in each.param_groups:
                group["lr"] *= factor
