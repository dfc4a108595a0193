"""Likelihoods of a network's output: each gives the distribution of y, one element of its first batch axis a datum.

Letters: n data, d numbers observed of each, c classes. An output [n, 1] speaks of one number a datum: y is [n] then.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_laplace._errors import InvalidData, InvalidOption
from pyro_laplace.likelihood.outcome import Outcome
from pyro_laplace.nn.output import require_tensor
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

    def __call__(self, output: Any) -> Any:
        """The distribution of y."""
        loc = require_tensor("Regression", output)
        return dist.Normal(_per_datum(loc), scale_value("noise", self.noise, loc))


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
    """``y ~ Categorical(logits=f)`` for an output f, [n, c], and classes y [n]; or a class at each position, y [n, t].

    Attributes:
        axis: that of the classes: -1 for tokens [n, t, c], 1 for images [n, c, h, w].
        ignore_index: the label of what is left out, as in torch's `cross_entropy`; None leaves nothing out.
    """

    axis: int = -1
    ignore_index: int | None = -100

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InvalidOption: if one is no whole number, or `axis` is that of the data.
        """
        for name, value in (("axis", self.axis), ("ignore_index", self.ignore_index)):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole and not (name == "ignore_index" and value is None):
                raise InvalidOption(f"Classification: {name}={value!r} is not a whole number")
        if self.axis == 0:
            raise InvalidOption("Classification: axis=0 is the data's: the classes lie along another, such as axis=1")

    def __call__(self, output: Any) -> Any:
        """The distribution of y.

        Args:
            output: of the network.

        Returns:
            the Categorical distribution.

        Raises:
            InvalidData: if the output is no tensor, or has one class.
        """
        logits = require_tensor("Classification", output)
        inside = logits.dim() >= 2 and -logits.dim() < self.axis < logits.dim()
        if not inside or logits.shape[self.axis] < 2:
            raise InvalidData(
                f"Classification: the network's output has shape {list(logits.shape)}, and needs at least 2 classes "
                f"along axis {self.axis}: say which axis is theirs with axis=, or use pl.nn.BinaryClassification() for "
                "one logit"
            )
        return dist.Categorical(logits=logits if self.axis == -1 else logits.movedim(self.axis, -1))


@dataclass(frozen=True)
class BinaryClassification:
    """``y ~ Bernoulli(logits=f)`` for an output f, [n] or [n, d], each of whose labels is 0 or 1."""

    def __call__(self, output: Any) -> Any:
        """The distribution of y."""
        return dist.Bernoulli(logits=_per_datum(require_tensor("BinaryClassification", output)))


@dataclass(frozen=True)
class Counts:
    """``y ~ Poisson(exposure exp(f + offset))`` for an output f, [n] or [n, d]."""

    def __call__(self, output: Any, exposure: Tensor | None = None, offset: Tensor | None = None) -> Any:
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
        log_rate = _per_datum(require_tensor("Counts", output))
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


def masked(fn: Any, y: Tensor | None, mask: Tensor | None, ignored: int | None) -> tuple[Any, Tensor | None]:
    """Leave out the positions that a mask or a label says.

    Args:
        fn: the distribution of y, its positions batch axes.
        y: the data, of its shape; None where they are to be drawn.
        mask: which positions count, of its first batch axes.
        ignored: the label of what does not.

    Returns:
        the distribution with its mask, and y with a class in place of that label.

    Raises:
        InvalidData: if the mask has another shape.
    """
    shape, kept = fn.batch_shape, None
    if mask is not None:
        if mask.shape != shape[: mask.dim()] or not mask.dim():
            raise InvalidData(
                f"the mask has shape {list(mask.shape)}, and y's distribution {list(shape)}: a mask is of the first "
                "axes of y, one for each position"
            )
        kept = (mask != 0).reshape(*mask.shape, *(1,) * (len(shape) - mask.dim())).expand(shape)
    if y is not None and ignored is not None:
        counts = y != ignored
        if not bool(counts.all()):
            kept = counts if kept is None else kept & counts
            y = torch.where(counts, y, 0)
    return (fn if kept is None else fn.mask(kept)), y


def _per_datum(output: Tensor) -> Tensor:
    """An output [n, 1] as [n]."""
    return output.squeeze(-1) if output.dim() == 2 else output


def _with_axes_of(per_datum: Tensor, like: Tensor) -> Tensor:
    """A tensor [n] with axes of size 1 for those of `like` that follow."""
    return per_datum.reshape(*per_datum.shape, *(1,) * (like.dim() - per_datum.dim())).to(
        torch.promote_types(per_datum.dtype, like.dtype)
    )
