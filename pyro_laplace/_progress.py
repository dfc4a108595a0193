"""The one progress bar: of whatever lasts longer than `settings.progress_seconds`, with rate and remaining time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from pyro_laplace.settings import settings


@contextmanager
def progress_bar(what: str, total: int | None, unit: str, shown: bool) -> Iterator[Any]:
    """A bar that appears once its work has lasted for a while.

    Args:
        what: what the work is for, which the bar says.
        total: units of it, if that is known.
        unit: name of one.
        shown: whether there is to be a bar at all.

    Yields:
        the bar, whose `update` is told of units that are done.
    """
    options = {"delay": settings.progress_seconds, "disable": not shown, "leave": False}
    with tqdm(total=total, desc=what, unit=unit, **options) as bar:
        yield bar
