"""Data and priors of which there is no evidence, or half of one."""

import math
import warnings

import pyro.distributions as dist
import torch

from pyro_laplace._errors import InvalidData, LaplaceWarning
from pyro_laplace.capture.loop import Loop
from pyro_laplace.posterior.search import PosteriorAt
from pyro_laplace.reading.hyperparameters import Hyperparameters
from pyro_laplace.unwrap import innermost


def refuse_not_finite(posterior: PosteriorAt) -> None:
    """Refuse data of which no evidence can be had.

    Args:
        posterior: the sum over data, with the log likelihood of each term.

    Raises:
        InvalidData: naming the site.
    """
    bad = {n: each.log_lik for n, each in posterior.likelihood.statistics.items() if not math.isfinite(each.log_lik)}
    if bad:
        raise InvalidData(
            f"the log likelihood of {', '.join(f'{name!r} is {value}' for name, value in bad.items())} at this point: "
            "there is no evidence: look for NaN or infinite values, and for ones outside the support, in the data"
        )


def tell_of_improper(loop: Loop, sites: tuple[str, ...], found: Hyperparameters) -> None:
    """Warn where the evidence is known up to a constant alone.

    Args:
        loop: the program and its data.
        sites: the random sites.
        found: the hyperparameters.
    """
    with torch.no_grad():
        run = loop.program.run(loop.program.start, loop.few_rows())
    improper = [name for name in sites if isinstance(innermost(run.latents[name].fn), dist.ImproperUniform)]
    if not improper:
        return
    inside = [name for name in found.names if set(found.sites[name]) & set(improper)]
    compared = [name for name in found.names if name not in inside]
    warnings.warn(
        f"the prior of {improper} is improper, so that the evidence is known up to a factor only: values of {compared} "
        "may be compared by it, as they leave that factor as it is; programs may not",
        LaplaceWarning,
        stacklevel=3,
    )
