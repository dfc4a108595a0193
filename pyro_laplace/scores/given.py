"""Which of the data can be scored, and what draws."""

from typing import Any

import pyro.infer
from torch import Tensor

from pyro_laplace._errors import InvalidData, InvalidOption
from pyro_laplace.data import Batch
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import datum_weight
from pyro_laplace.program.run import Site


def counted(site: Site, chunk: Chunk) -> Tensor:
    """Which data of a site the program does not mask, and no other chunk has, bool `[*batch]`."""
    return datum_weight(site, chunk) != 0


def refuse_without_data(names: list[str], batch: Batch) -> None:
    """Refuse data that lack the observed values of some sites.

    Args:
        names: of these.
        batch: the arguments of the call.

    Raises:
        InvalidData: naming them, if there are any.
    """
    if names:
        entries = ", ".join(map(repr, batch.kwargs))
        given = f"an entry for them beside {entries}" if entries else "(x, y), not (x,)"
        raise InvalidData(
            f"the data have no observed values of {', '.join(map(repr, names))} to score: give held-out data as the "
            f"posterior was fitted to, observed values included: {given}"
        )


def posterior_of(predictive: pyro.infer.Predictive) -> Any:
    """What a predictive draws from: a guide, or draws.

    Args:
        predictive: of Pyro's, or of this package.

    Returns:
        the guide, or site name to draws.

    Raises:
        InvalidOption: if it has neither.
    """
    posterior = predictive.posterior_samples if predictive.guide is None else predictive.guide
    if predictive.guide is None and not posterior:
        raise InvalidOption(
            "predictive has neither a guide nor posterior_samples: what it draws is the prior's. Give "
            f"{type(predictive).__name__}(model, guide=guide, num_samples=1000)"
        )
    return posterior
