"""`fit_svi`: variational inference with any guide, by the loop that `fit_map` trains with."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide.guides import AutoGuide

from pyro_laplace._compat.pyro import name_apart, site_is_subsample, undisturbed
from pyro_laplace._errors import InvalidOption
from pyro_laplace.data import Batch, as_data
from pyro_laplace.mode.training import train
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program


def fit_svi(
    model: Callable[..., Any],
    data: Any,
    guide: Callable[..., Any],
    *,
    optim: Any = None,
    num_steps: int = 5000,
    learning_rate: float = 0.01,
    tolerance: float = 0.1,
    progress: bool = True,
) -> Any:
    """Train a guide with `SVI` and `Trace_ELBO`, by the same loop as `fit_map`.

    It maximises the ELBO, ``E_q[log p(y, x) - log q(x)]`` (Ranganath et al. 2014, "Black box variational inference").
    As in Pyro it trains every param of model and guide, hyperparameters of the prior included: `poutine.block` hides
    those that shall stay.

    Args:
        model: a Pyro program.
        data: a batch (tuple, dict or tensor), or a re-iterable of batches; mini-batches are weighted so that prior,
            guide and likelihood keep their proportion, whether or not the model's plates subsample.
        guide: an autoguide such as `AutoNormal(model)`, or any callable with the model's arguments. An autoguide that
            was run before goes on from where it is; a new one gets a name of its own in the param store.
        optim: a Pyro optimiser; by default Adam with `learning_rate`, lowered twice when the loss settles.
        num_steps: at most so many SVI steps.
        learning_rate: Adam's step size.
        tolerance: fall of the loss over 100 steps, in nats, under which it counts as settled.
        progress: whether to show a progress bar.

    Returns:
        the guide that was given, trained; `fit_seconds` on it is the wall time that the fit took.

    Raises:
        InvalidOption: if the guide is not callable, is fitted already, is of other sites, or cannot initialise itself.
        UnsupportedProgram: if the model has discrete or subsampled latent sites, naming the site.
        InvalidData: if `data` cannot be iterated anew.
    """
    start = time.perf_counter()
    if isinstance(guide, type) or not callable(guide):
        raise InvalidOption(
            f"guide={guide!r} is not a guide: give an autoguide such as AutoNormal(model), or a callable"
        )
    if isinstance(guide, AutoLaplace | LaplaceMixture):
        raise InvalidOption(
            f"this {type(guide).__name__} is fitted already and has no params to train: give another guide"
        )
    data = as_data(data)
    program = Program.trace(model, data)
    if isinstance(guide, AutoGuide):
        _set_up(guide, program, data.first())
    train(
        program,
        guide,
        data,
        optim=optim,
        num_steps=num_steps,
        learning_rate=learning_rate,
        tolerance=tolerance,
        progress=progress,
        description="SVI",
    )
    with suppress(AttributeError):  # a bound method takes no attributes
        setattr(guide, "fit_seconds", time.perf_counter() - start)  # noqa: B010 (any callable may be a guide)
    return guide


def _set_up(guide: AutoGuide, program: Program, batch: Batch) -> None:
    """Initialise an autoguide on observed data, under a name of its own; check one that was initialised elsewhere."""
    kind = type(guide).__name__
    if guide.prototype_trace is not None:
        sites = sorted(name for name, site in guide.prototype_trace.nodes.items() if _is_latent(site))
        if sites != sorted(program.latents):
            raise InvalidOption(
                f"this {kind} was first run for the latent sites {sites}, but on this data the model has "
                f"{sorted(program.latents)}. Make it anew: {kind}(model)"
            )
        return
    name_apart(guide)
    try:
        guide(*batch.args, **batch.kwargs)
    except NotImplementedError as error:
        improper = _improper(program, batch)
        if not improper:
            raise
        raise InvalidOption(
            f"{kind} starts from prior draws, and there are none of the improper prior of "
            f"{', '.join(map(repr, improper))}. Give {kind}(model, init_loc_fn=pyro_laplace.init_to_start)"
        ) from error


def _is_latent(site: Any) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def _improper(program: Program, batch: Batch) -> list[str]:
    """Latent sites whose prior cannot be sampled."""
    with undisturbed(), torch.no_grad():
        run = program.run(program.start, Chunk(batch))
    return [name for name, site in run.latents.items() if isinstance(site.fn, dist.ImproperUniform)]
