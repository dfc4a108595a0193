"""An allocation that cannot succeed is refused before it is tried."""

from collections.abc import Callable

from pyro_laplace._errors import TooLarge
from pyro_laplace.settings import settings


def refuse_too_large(numel: int, itemsize: int, what: str, remedy: str | Callable[[], str]) -> None:
    """Refuse to allocate more than `settings.block_bytes`.

    Args:
        numel: number of elements.
        itemsize: bytes of one.
        what: what would be allocated, with its shape.
        remedy: what to do instead, or what says it.

    Raises:
        TooLarge: with the size and the remedy.
    """
    size, limit = numel * itemsize, settings.block_bytes
    if size > limit:
        remedy = remedy if isinstance(remedy, str) else remedy()
        raise TooLarge(f"{what} would take {size / 2**30:.1f} GiB (limit {limit / 2**30:.3g} GiB): {remedy}")


def shown_bytes(size: int) -> str:
    """A number of bytes in the unit that one reads it in."""
    units = ("bytes", "KiB", "MiB", "GiB")
    power = min(max(size, 1).bit_length() // 10, len(units) - 1)
    return f"{size / 1024**power:.4g} {units[power]}"
