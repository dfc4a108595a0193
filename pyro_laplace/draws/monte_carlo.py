"""Running a program at many draws of its latent values at once."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, UnsupportedProgram
from pyro_laplace._typing import Values
from pyro_laplace.capture.loop import Loop
from pyro_laplace.draws.vectorize import Widest, over_rows
from pyro_laplace.likelihood.outcome import Outcome
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program, log_lik_of
from pyro_laplace.program.run import Run

type Read = Callable[[Run, Chunk], Mapping[str, Tensor]]
"""What is read off a run: name to `[*shape]`."""


def draw_log_lik(loop: Loop, draws: Values, progress: bool = False) -> dict[str, Tensor]:
    """Pointwise log likelihood of every draw.

    Args:
        loop: the program and its data, visited once; batches are joined along the leftmost dim of each site that has
            one.
        draws: latent site to draws `[draws, *shape]`, constrained.
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        observed site name to `[draws, *batch_shape]`.
    """
    return _join_batches(loop, _each_chunk(loop, draws, log_lik_of, "log likelihood", progress))


def draw_log_prior(loop: Loop, draws: Values) -> dict[str, Tensor]:
    """Log prior density of every draw, of the constrained values: what of it each site is.

    Args:
        loop: the program and its data, of which the first chunk is looked at.
        draws: latent site to draws `[draws, *shape]`, constrained.

    Returns:
        name of a latent site, or of a factor outside any plate, to `[draws, *batch_shape]`.
    """
    return over_draws(loop.program, draws, next(loop.chunks()), _prior_of_sites, sample=False)


def draw_observed(loop: Loop, draws: Values, progress: bool = False) -> dict[str, Tensor]:
    """One draw of the observed sites per draw of the latent ones, whether or not `data` holds their values.

    Args:
        loop: the program and its data; observed values in these are not looked at.
        draws: latent site to draws `[draws, *shape]`, constrained.
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        observed site name to `[draws, *shape]`.
    """
    return _join_batches(loop, _each_chunk(loop, draws, _observed, "replicates", progress, sample=True))


def draw_deterministic(loop: Loop, draws: Values, progress: bool = False) -> list[dict[str, Tensor]]:
    """The `pyro.deterministic` sites at every draw: of each chunk, site name to `[draws, *shape]`."""
    return _each_chunk(loop, draws, _deterministic, "deterministic sites", progress)


def draw_means(loop: Loop, draws: Values, progress: bool = False) -> dict[str, Tensor]:
    """Mean of each observed site at every draw, or its class probabilities; of those for which there is one."""
    return _join_batches(loop, _each_chunk(loop, draws, _means, "means", progress))


def _each_chunk(
    loop: Loop, draws: Values, read: Read, what: str, progress: bool, sample: bool = False
) -> list[dict[str, Tensor]]:
    chunks = loop.chunks(what, progress)
    return [over_draws(loop.program, draws, chunk, read, sample, what if progress else None) for chunk in chunks]


def _means(run: Run, chunk: Chunk) -> dict[str, Tensor]:
    means = {name: Outcome.of(site.fn).expected for name, site in run.observed.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def _prior_of_sites(run: Run, chunk: Chunk) -> dict[str, Tensor]:
    return {site.name: site.log_prob() for site in [*run.latents.values(), *run.other_priors]}


def _observed(run: Run, chunk: Chunk) -> dict[str, Tensor]:
    return {name: site.value for name, site in run.observed.items()}


def _deterministic(run: Run, chunk: Chunk) -> dict[str, Tensor]:
    return {name: site.value for name, site in run.deterministic.items()}


def over_draws(
    program: Program,
    draws: Values,
    chunk: Chunk,
    read: Read,
    sample: bool,
    what: str | None = None,
) -> dict[str, Tensor]:
    """Read something off a run at every draw: vectorised, or one by one where the program does not vectorise.

    Sites that have one value at all draws are given once: what a program makes of these alone is made once a pass.

    Returns:
        name to `[draws, *shape]`.
    """
    draws = {name: _draws_of(name, draws, program) for name in program.latents}
    count = len(next(iter(draws.values())))
    held = {name: value[0] for name, value in draws.items() if count > 1 and bool((value == value[:1]).all())}
    moving = {name: value for name, value in draws.items() if name not in held}

    def at(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(read(program.run_at({**held, **values}, chunk, sample), chunk))

    with undisturbed(rng=False), torch.no_grad():
        with Widest() as widest:
            first = at({name: value[0] for name, value in moving.items()})
        return over_rows(at, moving, count, widest.chunk_size, what=what) if first else {}


def _draws_of(name: str, draws: Values, program: Program) -> Tensor:
    if name not in draws:
        raise InvalidOption(f"the draws have no latent site {name!r}; they have {sorted(draws)}")
    value, shape = draws[name], program.latents[name].shape
    return value.reshape(len(value), *shape)  # Pyro's Predictive pads with singleton plate dims


def _join_batches(loop: Loop, parts: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Batches' results [draws, ...] behind one another along the leftmost batch dim, [draws] beside one another."""
    if len(parts) == 1:
        return parts[0]
    if loop.cut is not None:  # all have a row a datum
        return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}
    program = loop.program
    with undisturbed(), torch.no_grad():
        run = program.run(program.start, next(loop.chunks()))
    for name, site in {**run.observed, **run.factors}.items():
        left = [frame.name for frame in sorted(site.frames, key=lambda frame: frame.dim)]
        if len(left) > 1 and left[0] not in {**program.external, **program.own_indices}:
            raise UnsupportedProgram(
                f"site {name!r} is in the plates {left}, and which of them the batches divide is unclear: give all "
                "data as one batch"
            )
    scalars = {name for name, value in parts[0].items() if value.dim() == 1}  # one value a batch
    return {n: (torch.stack if n in scalars else torch.cat)([part[n] for part in parts], 1) for n in parts[0]}
