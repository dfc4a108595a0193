"""Running a program at many draws of its latent values at once."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, UnsupportedProgram
from pyro_laplace._typing import Values
from pyro_laplace.data import Data
from pyro_laplace.draws.vectorize import Widest, over_rows
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program, log_lik_of
from pyro_laplace.program.run import Run


def draw_log_lik(program: Program, draws: Values, data: Data) -> dict[str, Tensor]:
    """Pointwise log likelihood of every draw.

    Args:
        program: the traced program.
        draws: latent site to draws `[draws, *shape]`, constrained.
        data: the data, visited once; batches are joined along the leftmost dim of each site that has one.

    Returns:
        observed site name to `[draws, *batch_shape]`.
    """
    parts = [over_draws(program, draws, chunk, log_lik_of, sample=False) for chunk in program.chunks(data)]
    return _join_batches(program, data, parts)


def draw_observed(program: Program, draws: Values, data: Data) -> dict[str, Tensor]:
    """One draw of the observed sites per draw of the latent ones, whether or not `data` holds their values.

    Args:
        program: the traced program.
        draws: latent site to draws `[draws, *shape]`, constrained.
        data: the data; observed values in it are not looked at.

    Returns:
        observed site name to `[draws, *shape]`.
    """
    parts = [over_draws(program, draws, chunk, _observed, sample=True) for chunk in program.chunks(data)]
    return _join_batches(program, data, parts)


def draw_deterministic(program: Program, draws: Values, data: Data) -> dict[str, Tensor]:
    """The `pyro.deterministic` sites at every draw: site name to `[draws, *shape]`, on the first chunk of the data."""
    chunk = next(program.chunks(data))
    return over_draws(program, draws, chunk, _deterministic, sample=False)


def _observed(run: Run, chunk: Chunk) -> dict[str, Tensor]:
    return {name: site.value for name, site in run.observed.items()}


def _deterministic(run: Run, chunk: Chunk) -> dict[str, Tensor]:
    return {name: site.value for name, site in run.deterministic.items()}


def over_draws(
    program: Program,
    draws: Values,
    chunk: Chunk,
    read: Callable[[Run, Chunk], Mapping[str, Tensor]],
    sample: bool,
) -> dict[str, Tensor]:
    """Read something off a run at every draw: vectorised, or one by one where the program does not vectorise."""
    draws = {name: _draws_of(name, draws, program) for name in program.latents}

    def at(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(read(program.run_at(values, chunk, sample), chunk))

    with undisturbed(rng=False), torch.no_grad():
        with Widest() as widest:
            first = at({name: value[0] for name, value in draws.items()})
        count = len(next(iter(draws.values())))
        return over_rows(at, draws, count, widest.chunk_size) if first else {}


def _draws_of(name: str, draws: Values, program: Program) -> Tensor:
    if name not in draws:
        raise InvalidOption(f"the draws have no latent site {name!r}; they have {sorted(draws)}")
    value, shape = draws[name], program.latents[name].shape
    return value.reshape(len(value), *shape)  # Pyro's Predictive pads with singleton plate dims


def _join_batches(program: Program, data: Data, parts: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Batches' results [draws, ...] behind one another along the leftmost batch dim, [draws] beside one another."""
    if len(parts) == 1:
        return parts[0]
    with undisturbed(), torch.no_grad():
        run = program.run(program.start, next(program.chunks(data)))
    for name, site in {**run.observed, **run.factors}.items():
        left = [frame.name for frame in sorted(site.frames, key=lambda frame: frame.dim)]
        if len(left) > 1 and left[0] not in {**program.external, **program.own_indices}:
            raise UnsupportedProgram(
                f"site {name!r} is in the plates {left}, and which of them the batches divide is unclear: give all "
                "data as one batch"
            )
    scalars = {name for name, value in parts[0].items() if value.dim() == 1}  # one value a batch
    return {n: (torch.stack if n in scalars else torch.cat)([part[n] for part in parts], 1) for n in parts[0]}
