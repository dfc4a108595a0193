"""`discrete_posterior`: which values the discrete sites had that a posterior summed out, given the data."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidData, UnsupportedProgram
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import as_data
from pyro_laplace.draws.draws import PosteriorDraws, draws_of
from pyro_laplace.draws.vectorize import Widest, over_rows
from pyro_laplace.likelihood import family_of
from pyro_laplace.posterior.own import observed_of, own_params
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.settings import settings
from pyro_laplace.unwrap import innermost


def discrete_posterior(model: Callable[..., Any], posterior: Any, data: Any, num_samples: int = 1000) -> dict[str, Any]:
    """Distributions of the enumerated sites given the data: the classes that data of a mixture belong to, for one.

    ``p(z | y) = E p(z | y, theta)``, the mean over draws of theta. Given theta each is exact, the other discrete sites
    summed out, in chains and nested plates too. They are those of the data given, which need not be those of the fit:
    new data are classified so.

    Args:
        model: the Pyro program, its discrete sites marked ``infer={"enumerate": "parallel"}``.
        posterior: of its other latent sites: any guide, a `pyro.infer.MCMC` that has run, or draws, a mapping of site
            name to `[draws, *shape]`.
        data: a batch (tuple, dict or tensor), or a re-iterable of batches, observed values included.
        num_samples: draws from a guide.

    Returns:
        name of a discrete site to the distribution of it, of its own kind (a `Bernoulli`, a `Categorical`), with the
        site's batch shape; of other kinds a `Categorical` over the values in ascending order. Several sites are not
        independent of one another: these are the distributions of each.

    Raises:
        UnsupportedProgram: if no site of the program is enumerated, or a plate draws its own subsample.
        InvalidData: if the data lack values of an observed site; if a site is in several plates, and the data come in
            several batches.
    """
    data = as_data(data).held()
    draws = draws_of(posterior, data, num_samples)
    first = {name: value[0] for name, value in draws.values.items()}
    program = Program.trace(model, data, first, own_params(model, draws.source), observed_of(draws.source))
    if program.nesting is None:
        raise UnsupportedProgram(
            "no latent site of the model is discrete and enumerated: mark the one that is asked for with "
            "infer={'enumerate': 'parallel'}, or wrap the model in pyro.infer.config_enumerate"
        )
    if program.own_indices:
        raise UnsupportedProgram(
            f"the plates {sorted(program.own_indices)} draw their own subsamples: leave subsample_size out of the "
            "model for this call"
        )
    with undisturbed(rng=False), torch.no_grad():
        parts = [_mean_probs(program, draws, chunk) for chunk in Loop(program, data).chunks()]
        run = program.run(program.start, Chunk(data.first()), sample=True)
    plates = {name: [frame.name for frame in site.frames] for name, site in run.discrete.items()}
    return {name: _of_probs(_of_all_chunks(name, plates[name], parts), run.discrete[name].fn) for name in parts[0]}


def _mean_probs(program: Program, draws: PosteriorDraws, chunk: Chunk) -> dict[str, Tensor]:
    """By site, the mean over draws of its conditional probabilities `[*batch, values]`."""

    def at(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return program.conditionals(values, chunk)

    values = {n: draws.values[n].reshape(-1, *latent.shape) for n, latent in program.latents.items()}
    with Widest() as widest:
        one = at({name: value[0] for name, value in values.items()})
    step = max(1, settings.density_elements // sum(probs.numel() for probs in one.values()))
    total = {name: torch.zeros_like(probs, dtype=torch.float64) for name, probs in one.items()}
    for start in range(0, len(draws), step):
        some = {name: value[start : start + step] for name, value in values.items()}
        found = over_rows(at, some, len(next(iter(some.values()))), widest.chunk_size)
        total = {name: total[name] + found[name].double().sum(0) for name in total}
    return {name: (value / len(draws)).to(one[name]) for name, value in total.items()}


def _of_all_chunks(name: str, plates: list[str], parts: list[dict[str, Tensor]]) -> Tensor:
    """Chunks of the data behind one another."""
    if len(parts) > 1 and len(plates) > 1:
        raise InvalidData(
            f"the discrete site {name!r} is in the plates {plates}, and which of them the batches divide is unclear: "
            "give all data as one batch"
        )
    return torch.cat([part[name] for part in parts])


def _of_probs(probs: Tensor, fn: Any) -> Any:
    """The distribution of a discrete site, of its own kind where its values are classes."""
    base = innermost(fn)
    family = family_of(type(base))
    if family is None or not family.classes:
        return dist.Categorical(probs)
    return family.distribution(family.of_log_classes(probs.log()), base)
