"""Options that several of the fits take."""

from typing import Any

from pyro_laplace._errors import InvalidOption


def check_count(option: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least some size.

    Args:
        option: its name.
        value: as the user gave it.
        least: the smallest that will do.

    Raises:
        InvalidOption: naming it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(f"{option}={value!r}: give a whole number from {least} on")
