"""The hyper sites of a program by themselves: the program runs, and shows nothing else to whoever watches."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_laplace._compat.pyro import site_is_subsample
from pyro_laplace.data import Batch
from pyro_laplace.program.program import Program


class _Enough(Exception):
    """All hyper sites have their values."""


class _HyperOnly(Messenger):
    """Lets some sites through, and gives the other latent ones values unseen; the run ends when all have had theirs."""

    def __init__(self, names: tuple[str, ...], held: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names, self.held = frozenset(names), held
        self.values: dict[str, Tensor] = {}

    def _pyro_param(self, msg: Any) -> None:
        msg["stop"] = True

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.names or (site_is_subsample(msg) and not _subsamples(msg)):
            return
        msg["stop"] = True
        if site_is_subsample(msg):
            msg["value"], msg["done"] = torch.arange(msg["fn"].subsample_size), True
        elif name in self.held:
            msg["value"], msg["done"] = self.held[name], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            self.values[msg["name"]] = msg["value"]
            if len(self.values) == len(self.names):
                raise _Enough


def _subsamples(msg: Any) -> bool:
    fn = msg["fn"]
    return fn.subsample_size is not None and fn.subsample_size < fn.size


def sample_hyper(program: Program, names: tuple[str, ...], batch: Batch) -> dict[str, Tensor]:
    """Sample some sites of a program with their own priors, plates and scales; nothing else is seen of the run.

    Args:
        program: the traced program.
        names: the sites; their priors depend on no other ones.
        batch: what the program is called with.

    Returns:
        site name to value, in trace order.
    """
    held = {n: value for n, value in program.unpack(program.start).items() if n not in names}
    only = _HyperOnly(names, held)
    with suppress(_Enough), only:
        program.model(*batch.args, **batch.kwargs)
    return {name: only.values[name] for name in names}
