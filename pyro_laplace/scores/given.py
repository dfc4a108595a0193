"""Which of the data can be scored."""

from torch import Tensor

from pyro_laplace._errors import InvalidData
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import datum_weight
from pyro_laplace.program.run import Site


def counted(site: Site, chunk: Chunk) -> Tensor:
    """Which data of a site the program does not mask, and no other chunk has, bool `[*batch]`."""
    return datum_weight(site, chunk) != 0


def refuse_without_data(names: list[str]) -> None:
    """Refuse data that lack the observed values of some sites.

    Args:
        names: of these.

    Raises:
        InvalidData: naming them, if there are any.
    """
    if names:
        raise InvalidData(
            f"the data have no observed values of {', '.join(map(repr, names))} to score: give held-out data as the "
            "posterior was fitted to, observed values included: (x, y), not (x,)"
        )
