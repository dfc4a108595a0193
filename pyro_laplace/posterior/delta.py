"""Standard errors of what a program computes, by linearisation at the mode: `AutoLaplace.of`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_laplace._autodiff import jacobian
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption
from pyro_laplace._typing import Theta
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import Batch, Data, as_data
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Run
from pyro_laplace.structure.build import sum_over_data
from pyro_laplace.structure.precision import Precision


class Estimate(NamedTuple):
    """What a posterior says of a value, in the value's own units and shape."""

    mean: Tensor
    std: Tensor


def estimate_of(
    model: Callable[..., Any],
    at: Anchor,
    observed: tuple[str, ...],
    precision: Precision,
    name: str,
    data: Any,
    robust: bool,
) -> Estimate:
    """Mean and standard deviation of a site's value g(theta): g at the mode, and ``sqrt(diag(J Sigma J'))``.

    Args:
        model: the Pyro program.
        at: the mode and the random coordinates, and the hyperparameters.
        observed: names of the observed sites.
        precision: Lambda.
        name: of a deterministic or latent site.
        data: what the program is called with; None calls it with nothing.
        robust: whether Sigma is the sandwich ``Lambda^-1 (sum_n s_n s_n') Lambda^-1`` of the data's scores s.

    Returns:
        the estimate.

    Raises:
        InvalidOption: if there is no such site, listing those there are, or no data where they are needed: of a
            deterministic site of a program with arguments.
    """
    if robust and data is None:
        raise InvalidOption("robust=True needs the data that were fitted to: give data=")
    given = Data(Batch(), one_batch=True) if data is None else as_data(data)
    program = Program(model, at.latents, observed, start=at.theta, params=at.hyperparameters)
    if robust:
        program = Program.trace(model, given, program.unpack(at.theta), at.hyperparameters)
    chunk, latent = Chunk(given.first()), at.latents.get(name)
    shape = latent.shape if latent is not None else _value_of(name, _run(program, chunk, data is None)).shape

    def read(theta: Theta) -> Tensor:
        value = latent.constrain(theta[latent.slice]) if latent is not None else None  # needs no run
        return (_value_of(name, program.run(theta, chunk)) if value is None else value).reshape(-1)

    value = at.on(read)
    with undisturbed(), torch.no_grad():
        mean, rows = value(at.free).detach(), jacobian(value, at.free).double()
        if robust:
            solved = precision.solve(rows)
            scores = sum_over_data(Loop(program, given), at, CURVATURES["empirical_fisher"], "full").likelihood
            variance = (scores.times(solved) * solved).sum(1)
        else:
            variance = precision.push(rows).square().sum(1)
    return Estimate(mean.reshape(shape), variance.clamp(min=0).sqrt().to(mean).reshape(shape))


def mixed(estimates: Sequence[Estimate], weights: Tensor) -> Estimate:
    """Of a mixture: ``m = sum_k w_k m_k``, and the root of ``sum_k w_k (s_k^2 + (m_k - m)^2)``.

    Args:
        estimates: m_k and s_k of each component.
        weights: w_k, which sum to one [components].

    Returns:
        the estimate.
    """
    means = torch.stack([each.mean for each in estimates])
    each = weights.to(means).reshape(-1, *[1] * (means.dim() - 1))
    mean = (each * means).sum(0)
    variances = torch.stack([estimate.std for estimate in estimates]).square() + (means - mean).square()
    return Estimate(mean, (each * variances).sum(0).sqrt())


def _run(program: Program, chunk: Chunk, without_data: bool) -> Run:
    try:
        with undisturbed(), torch.no_grad():
            return program.run(program.start, chunk)
    except TypeError as error:
        if not without_data:
            raise
        raise InvalidOption(f"the model takes arguments ({error}): give them as data=, such as data=(x, y)") from error


def _value_of(name: str, run: Run) -> Tensor:
    site = run.deterministic.get(name) or run.latents.get(name)
    if site is None:
        raise InvalidOption(
            f"of({name!r}): there is no such deterministic site (pyro.deterministic) among {list(run.deterministic)}, "
            f"and no such latent site among {list(run.latents)}"
        )
    return site.value
