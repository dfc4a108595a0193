"""The parameter that a prior is put on, and the two ways of drawing it."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_laplace._compat.torch import cast_like
from pyro_laplace._errors import InvalidOption


@dataclass(frozen=True, eq=False)
class Target:
    """A parameter of a network.

    Attributes:
        name: of its site, the name that `named_parameters` gives.
        parameter: its value in the network, where the search for the mode starts.
        module: the layer that holds it.
        attribute: its name in that layer.
    """

    name: str
    parameter: Tensor
    module: nn.Module
    attribute: str

    def sample(self, fn: Any) -> Tensor:
        """Draw the value from a distribution.

        Args:
            fn: a distribution that broadcasts to the parameter's shape; all of its axes are made event axes, and its
                parameters take the parameter's dtype and device.

        Returns:
            the value of the site `name`.

        Raises:
            InvalidOption: if it does not broadcast.
        """
        infer: Any = {"start": self.parameter}
        return pyro.sample(self.name, self._shaped(cast_like(fn, self.parameter)), infer=infer)

    def sample_scaled(self, scale: Tensor, std: Tensor | None = None) -> Tensor:
        """Draw the value as ``raw * scale``, ``raw ~ Normal(0, std)``: the non-centred form of Normal(0, std scale).

        With a random scale the centred form has no joint mode: the density grows without bound as scale and value
        go to zero together.

        Args:
            scale: broadcasts to the parameter's shape.
            std: of `raw`, the part of the scale that is not random; broadcasts too. None means 1.

        Returns:
            the value, of the deterministic site `name`; the latent one is `name.raw`.
        """
        fn = dist.Normal(self.parameter.new_zeros(()), self.parameter.new_ones(()) if std is None else std)
        # computed where it is asked for only: the program runs often, and starts once
        infer: Any = {"start": partial(torch.div, self.parameter, scale.detach())}
        raw = pyro.sample(f"{self.name}.raw", self._shaped(fn), infer=infer)
        return pyro.deterministic(self.name, raw * scale, event_dim=raw.dim())

    def _shaped(self, fn: Any) -> Any:
        shape = self.parameter.shape
        with suppress(RuntimeError, ValueError):  # what does not broadcast is refused below
            fn = fn.expand(shape[: len(shape) - len(fn.event_shape)])
        if fn.shape() != shape:
            raise InvalidOption(
                f"the prior of parameter {self.name!r} has shape {list(fn.shape())}, which does not broadcast to the "
                f"parameter's {list(shape)}"
            )
        return fn.to_event(len(fn.batch_shape))
