"""A scale: a number, or one that is random, or learned, or computed as the program runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints, transform_to

from pyro_laplace._compat.torch import cast_like
from pyro_laplace._errors import InvalidOption


@dataclass(frozen=True, eq=False)
class Learned:
    """A scale that is a `pyro.param`, a hyperparameter: `learned` makes one.

    Attributes:
        initial: its value before it is learned.
        name: of the param, by which several scales share it; None names it after the site that it is a scale of.
    """

    initial: float | Tensor = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        """Check both."""
        check_initial(self.initial)
        check_name(self.name)

    def value(self, site: str, like: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """The param as the program runs.

        Args:
            site: its name, unless it has one of its own.
            like: a tensor of its dtype and device.
            shape: of it, where `initial` is one number.

        Returns:
            its value, positive.

        Raises:
            InvalidOption: if the param store holds one of another shape.
        """
        name, initial = self.name or site, Initial.of(self.initial, like, shape)
        if pyro.settings.get("module_local_params"):
            _make_local(name, initial)
        value = pyro.param(name, initial, constraint=constraints.positive)
        if value.shape != initial.value.shape:
            own = "leave name= out of pl.nn.learned, for a param of each parameter's own; or, " if self.name else ""
            raise InvalidOption(
                f"learned: the param {name!r} has shape {list(value.shape)}, and as {site!r} it needs the shape "
                f"{list(initial.value.shape)}: {own}if another program left it in the param store, call "
                "pyro.clear_param_store()"
            )
        return value.to(like)


@dataclass(frozen=True, eq=False)
class Initial:
    """What a learned scale starts from, as `pyro.param` takes it: a function of nothing.

    Attributes:
        value: the tensor.
    """

    value: Tensor

    @staticmethod
    def of(number: float | Tensor, like: Tensor, shape: tuple[int, ...]) -> "Initial":
        """A tensor, or one number expanded to a shape; of a tensor's dtype and device."""
        value = torch.as_tensor(number, dtype=like.dtype, device=like.device).detach()
        return Initial(value if value.dim() else value.expand(shape))

    def __call__(self) -> Tensor:
        """The param's own copy."""
        return self.value.clone()


type Scale = float | Tensor | Distribution | Learned | Callable[[], Tensor]
"""A positive number or tensor; a distribution, which makes it a latent site; `learned`, which makes it a `pyro.param`;
or a function of nothing that is called each time the program runs."""


def check_scale(option: str, scale: Any) -> None:
    """Refuse what is no scale.

    Args:
        option: what the caller writes, such as ``"Isotropic: std"``.
        scale: what was given.

    Raises:
        InvalidOption: naming the option, the value and what is possible.
    """
    if isinstance(scale, Distribution):
        support: Any = scale.support
        if support.is_discrete or (support.event_dim == 0 and bool(torch.as_tensor(support.check(-torch.ones(()))))):
            raise InvalidOption(
                f"{option}={scale!r} has the support {support}, and a scale is positive: use a distribution of "
                "positive numbers, such as dist.HalfNormal(1.0)"
            )
    elif _is_number(scale):
        _check_positive(option, scale)
    elif not isinstance(scale, Learned) and not callable(scale):
        raise InvalidOption(
            f"{option}={scale!r} is none of a positive number, a tensor, a distribution of positive numbers, "
            "pl.nn.learned(), and a function of nothing that returns one of the first two"
        )


def check_initial(initial: Any) -> None:
    """Refuse what a learned scale cannot start from.

    Args:
        initial: what was given.

    Raises:
        InvalidOption: naming it.
    """
    if not _is_number(initial):
        raise InvalidOption(f"learned: initial={initial!r} is not a number or tensor, such as pl.nn.learned(1.0)")
    _check_positive("learned: initial", initial)


def check_name(name: Any) -> None:
    """Refuse what is no name of a param.

    Args:
        name: what was given; None is allowed.

    Raises:
        InvalidOption: naming it.
    """
    if name is not None and not (isinstance(name, str) and name):
        raise InvalidOption(
            f'learned: name={name!r} is not a name, such as name="std"; leave it out for a scale of each parameter'
        )


def scale_value(site: str, scale: Scale, like: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """The scale as the program runs: a latent site if it is a distribution, a param if it is learned.

    Args:
        site: the name of that site or param.
        scale: what was given.
        like: a tensor of its dtype and device.
        shape: to expand a scale's distribution, or a param, to.

    Returns:
        its value.
    """
    if isinstance(scale, Distribution):
        fn = cast_like(scale, like)
        fn = fn.expand(shape) if shape else fn
        return pyro.sample(site, fn.to_event(len(fn.batch_shape)))
    if isinstance(scale, Learned):
        return scale.value(site, like, shape)
    return torch.as_tensor(scale() if callable(scale) else scale, dtype=like.dtype, device=like.device)


def _is_number(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, int | float) and not isinstance(value, bool))


def _check_positive(option: str, number: float | Tensor) -> None:
    value = torch.as_tensor(number)
    if not bool(((value > 0) & value.isfinite()).all()):
        raise InvalidOption(f"{option}={number!r} is not positive and finite")


def _make_local(name: str, initial: Initial) -> None:
    """Make a param one that a module can hold: in Pyro's local mode it refuses all others."""
    store = pyro.get_param_store()
    if name not in store:
        free = transform_to(constraints.positive).inv(initial())
        store.set_state({"params": {name: nn.Parameter(free)}, "constraints": {name: constraints.positive}})
