"""An allocation that cannot succeed is refused before it is tried."""

from pyro_laplace._errors import TooLarge

LIMIT = 8 * 2**30
"""Bytes that one block of memory may take."""


def refuse_too_large(numel: int, itemsize: int, what: str, remedy: str) -> None:
    """Refuse to allocate more than `LIMIT` bytes.

    Args:
        numel: number of elements.
        itemsize: bytes of one.
        what: what would be allocated, with its shape.
        remedy: what to do instead.

    Raises:
        TooLarge: with the size and the remedy.
    """
    size = numel * itemsize
    if size > LIMIT:
        raise TooLarge(f"{what} would take {size / 2**30:.1f} GiB (limit {LIMIT / 2**30:.0f} GiB): {remedy}")
