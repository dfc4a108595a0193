"""Sizes, budgets and tolerances of the package, each named once, with its reason; a file for each kind of thing.

They are read when they are used, so that one that is set holds from then on::

    pl.settings.chunk_bytes = 2**26
    with pl.settings.using(chunk_bytes=2**26, small=50):
        guide = pl.fit_laplace(model, data)

A number that belongs to one formula, as a floor that keeps a division finite, stands in the code beside it.
"""

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from pyro_laplace._errors import InvalidOption
from pyro_laplace.settings.hyperparameters import HyperparameterSearch
from pyro_laplace.settings.nested import Nested
from pyro_laplace.settings.numerics import Numerics
from pyro_laplace.settings.peers import Peers
from pyro_laplace.settings.reports import Reports
from pyro_laplace.settings.search import ModeSearch
from pyro_laplace.settings.work import Work


@dataclass
class Settings(Reports, Peers, HyperparameterSearch, ModeSearch, Nested, Numerics, Work):
    """What `pl.settings` is: numbers by name, each checked when it is set."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set one, checked.

        Raises:
            InvalidOption: for a name that there is not, or a value that is no positive number of its kind.
        """
        kinds = {field.name: type(field.default) for field in fields(Settings)}
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds)
            hint = f"did you mean {', '.join(near)}? It" if near else "it"
            raise InvalidOption(f"settings has no {name!r}: {hint} has {', '.join(sorted(kinds))}")
        allowed = int if kinds[name] is int else int | float
        if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value < math.inf:
            what = "whole number" if kinds[name] is int else "number"
            raise InvalidOption(f"settings.{name}={value!r}: give a positive {what}")
        object.__setattr__(self, name, value)

    @contextmanager
    def using(self, **values: Any) -> Iterator["Settings"]:
        """Set some of them for a while.

        Args:
            **values: name to value.

        Yields:
            the settings; on leaving, all are what they were, exceptions included.

        Raises:
            InvalidOption: for a name that there is not, or a value that is no positive number of its kind.
        """
        before = dict(vars(self))
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            vars(self).update(before)


settings = Settings()
"""The settings in force."""
