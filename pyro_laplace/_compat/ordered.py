"""Pyro's `OrderedLogistic`, as `torch.func` can follow it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch


@contextmanager
def plain_ordinals() -> Iterator[None]:
    """Make `OrderedLogistic` by operations that `torch.func.vmap` knows: its own writes into a tensor of all rows."""
    own = dist.OrderedLogistic.__init__
    try:
        dist.OrderedLogistic.__init__ = _ordered_logistic
        yield
    finally:
        dist.OrderedLogistic.__init__ = own


def _ordered_logistic(self: Any, predictor: torch.Tensor, cutpoints: torch.Tensor, validate_args: Any = None) -> None:
    below = torch.sigmoid(cutpoints - predictor.unsqueeze(-1))
    self.predictor, self.cutpoints = predictor.expand(below.shape[:-1]), cutpoints.expand(below.shape)
    probs = torch.cat([below[..., :1], below.diff(dim=-1), 1 - below[..., -1:]], -1)
    super(dist.OrderedLogistic, self).__init__(probs, validate_args=validate_args)
