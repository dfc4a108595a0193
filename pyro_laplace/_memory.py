"""An allocation that cannot succeed is refused before it is tried."""

from pyro_laplace._errors import TooLarge
from pyro_laplace.settings import settings


def refuse_too_large(numel: int, itemsize: int, what: str, remedy: str) -> None:
    """Refuse to allocate more than `settings.block_bytes`.

    Args:
        numel: number of elements.
        itemsize: bytes of one.
        what: what would be allocated, with its shape.
        remedy: what to do instead.

    Raises:
        TooLarge: with the size and the remedy.
    """
    size, limit = numel * itemsize, settings.block_bytes
    if size > limit:
        raise TooLarge(f"{what} would take {size / 2**30:.1f} GiB (limit {limit / 2**30:.3g} GiB): {remedy}")
