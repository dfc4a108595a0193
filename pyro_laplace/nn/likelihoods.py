"""Likelihoods of a network's output: each gives the distribution of y, one element of its first batch axis a datum.

Letters: n data, d numbers observed of each, c classes. An output [n, 1] speaks of one number a datum: y is [n] then.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace._errors import InvalidData
from pyro_laplace.likelihood.outcome import Outcome
from pyro_laplace.nn.scale import Scale, check_scale, scale_value

type Likelihood = Callable[..., Any]
"""A function of the network's output (and of whatever the program is called with after y) that gives y's distribution.

Its first batch axis is the data's, and other batch axes are made event axes. It may hold sample statements of its own.
"""


@dataclass(frozen=True, eq=False)
class Regression:
    """``y ~ Normal(f, noise)`` for an output f, [n] or [n, d].

    Attributes:
        noise: the standard deviation: a number, or a tensor [d]; a distribution makes it the latent site ``noise``, one
            for all outputs unless it is expanded to [d]; `learned()` makes it the `pyro.param` ``noise``.
    """

    noise: Scale

    def __post_init__(self) -> None:
        """Check the noise."""
        check_scale("Regression: noise", self.noise)

    def __call__(self, output: Tensor) -> Any:
        """The distribution of y."""
        return dist.Normal(_per_datum(output), scale_value("noise", self.noise, output))


@dataclass(frozen=True)
class HeteroscedasticRegression:
    """``y ~ Normal(loc, exp(log_scale))``: the network gives both, [n, 2 d] (first the locs), or as two outputs."""

    def __call__(self, output: Any) -> Any:
        """The distribution of y.

        Args:
            output: of the network.

        Returns:
            the Normal distribution.

        Raises:
            InvalidData: if the output is no pair and its last axis is odd.
        """
        if isinstance(output, Tensor):
            if output.dim() < 2 or output.shape[-1] % 2:
                raise InvalidData(
                    f"HeteroscedasticRegression: the network's output has shape {list(output.shape)}: give it a loc "
                    "and a log scale for each number observed, [n, 2 d], or two outputs"
                )
            output = output.chunk(2, -1)
        loc, log_scale = output
        return dist.Normal(_per_datum(loc), _per_datum(log_scale).exp())


@dataclass(frozen=True)
class Classification:
    """``y ~ Categorical(logits=f)`` for an output f, [n, c]; y holds class numbers [n]."""

    def __call__(self, output: Tensor) -> Any:
        """The distribution of y.

        Args:
            output: of the network.

        Returns:
            the Categorical distribution.

        Raises:
            InvalidData: if the output has one class.
        """
        if output.dim() < 2 or output.shape[-1] < 2:
            raise InvalidData(
                f"Classification: the network's output has shape {list(output.shape)}, and needs an axis of at least 2 "
                "classes: use pl.nn.BinaryClassification() for one logit"
            )
        return dist.Categorical(logits=output)


@dataclass(frozen=True)
class BinaryClassification:
    """``y ~ Bernoulli(logits=f)`` for an output f, [n] or [n, d], each of whose labels is 0 or 1."""

    def __call__(self, output: Tensor) -> Any:
        """The distribution of y."""
        return dist.Bernoulli(logits=_per_datum(output))


@dataclass(frozen=True)
class Counts:
    """``y ~ Poisson(exposure exp(f + offset))`` for an output f, [n] or [n, d]."""

    def __call__(self, output: Tensor, exposure: Tensor | None = None, offset: Tensor | None = None) -> Any:
        """The distribution of y.

        Args:
            output: of the network.
            exposure: time, area or population at risk, [n]: the program's third argument, ``model(x, y, exposure)``.
            offset: added to the log rate, [n].

        Returns:
            the Poisson distribution.

        Raises:
            InvalidData: if exposure or offset have other shapes.
        """
        log_rate = _per_datum(output)
        for name, value in (("exposure", exposure), ("offset", offset)):
            if value is not None and value.shape not in (log_rate.shape, log_rate.shape[:1]):
                raise InvalidData(f"Counts: {name} has shape {list(value.shape)}, and the rates {list(log_rate.shape)}")
        if offset is not None:
            log_rate = log_rate + _with_axes_of(offset, log_rate)
        rate = log_rate.exp()
        return dist.Poisson(rate if exposure is None else rate * _with_axes_of(exposure, rate))


def observation(fn: Any, y: Tensor) -> Tensor | None:
    """The data as their distribution takes them; None where the shape is another.

    A column [n, 1] is taken for [n], and integers become floating-point numbers where the parameters are.

    Args:
        fn: the distribution.
        y: the data.

    Returns:
        y of the distribution's shape.
    """
    if y.shape == (*fn.shape(), 1):
        y = y.squeeze(-1)
    if y.shape != fn.shape():
        return None
    return Outcome.of(fn).as_data(y)


def _per_datum(output: Tensor) -> Tensor:
    """An output [n, 1] as [n]."""
    return output.squeeze(-1) if output.dim() == 2 else output


def _with_axes_of(per_datum: Tensor, like: Tensor) -> Tensor:
    """A tensor [n] with axes of size 1 for those of `like` that follow."""
    return per_datum.reshape(*per_datum.shape, *(1,) * (like.dim() - per_datum.dim())).to(
        torch.promote_types(per_datum.dtype, like.dtype)
    )
