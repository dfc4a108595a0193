"""Which weights of a program a dropout layer can be put on: ``W (z * a) = (W diag(z)) a``.

A mask on the units between two layers is a mask on the rows of the weight and bias that made them, or on the columns of
the weight that reads them. Which these are is seen as the program runs, in eval mode, where dropout is called and does
nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_laplace._compat.torch import without_torch_function

_DROPOUTS = {"dropout": -1, "dropout1d": 1, "dropout2d": 1, "dropout3d": 1}
"""Functions that drop units, and the axis of the units."""

_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}

_MATRIX_PRODUCTS = {"matmul", "__matmul__", "mm"}


@dataclass(frozen=True)
class Along:
    """An axis of a site's value that lies along the units.

    Attributes:
        site: its name.
        axis: of its value.
    """

    site: str
    axis: int


@dataclass(eq=False)
class Dropped:
    """One call of dropout, and the weights around it.

    Attributes:
        rate: the share of units that it drops.
        size: number of units.
        axis: theirs: -1, or 1 of channels.
        before: what made the units, where that is a product with its bias and nothing else.
        after: what reads them, as far as it is products.
    """

    rate: float
    size: int
    axis: int
    before: list[Along] = field(default_factory=list)
    after: list[Along] = field(default_factory=list)

    @property
    def targets(self) -> list[Along]:
        """The axes of sites that hold the mask."""
        return self.before or self.after


def spread(mask: Tensor, dims: int, axis: int) -> Tensor:
    """A mask `[*draws, units]` as a factor `[*draws, ...]` of values with `dims` axes."""
    shape = [1] * dims
    shape[axis] = mask.shape[-1]
    return mask.reshape(*mask.shape[:-1], *shape)


class DropoutOn(TorchFunctionMode):
    """Lets dropout drop although the program is in eval mode: units of each datum by themselves, as in training.

    Args:
        rate: in place of the calls' own; None for these.
    """

    def __init__(self, rate: float | None = None) -> None:
        super().__init__()
        self._rate = rate

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, dropout as if in training."""
        kwargs = kwargs or {}
        if (rate := _rate(func, args, kwargs)) is not None:
            return func(args[0], p=rate if self._rate is None else self._rate, training=True)
        return func(*args, **kwargs)


class UnitsMasked(TorchFunctionMode):
    """Gives each call of dropout a mask, the same for all data.

    Args:
        calls: the calls, in order.
        masks: of each [units].
    """

    def __init__(self, calls: Sequence[Dropped], masks: Sequence[Tensor]) -> None:
        super().__init__()
        self._left = list(zip(calls, masks, strict=True))

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, dropout by its mask."""
        kwargs = kwargs or {}
        if _rate(func, args, kwargs) is not None and self._left:
            call, mask = self._left.pop(0)
            return args[0] * spread(mask, args[0].dim(), call.axis).to(args[0])
        return func(*args, **kwargs)


class DropoutSeen(TorchFunctionMode):
    """Sees calls of dropout, and which products of site values lie next to them.

    Args:
        values: latent site to the very tensor that the program receives.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.calls: list[Dropped] = []
        self._sites = {id(value): (name, False) for name, value in values.items()}
        self._made: dict[int, tuple[int, list[Along]]] = {}
        self._dropped: dict[int, Dropped] = {}
        self._alive: list[Any] = [values]  # so that no id is given out twice

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; take down what matters of it."""
        kwargs, kind = kwargs or {}, getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        if (rate := _rate(func, args, kwargs)) is not None:
            with without_torch_function():
                result = result.view_as(result)  # in eval mode it is its input
            axis, (along, made) = _DROPOUTS[kind], self._made.get(id(args[0]), (0, []))
            call = Dropped(rate, args[0].shape[axis], axis, made if along == axis else [])
            self.calls.append(call)
            self._dropped[id(result)] = call
        elif kind in ("t", "__get__", "transpose") and isinstance(result, Tensor) and id(args[0]) in self._sites:
            name, turned = self._sites[id(args[0])]
            if result.dim() == 2 and result.shape == args[0].shape[::-1]:
                self._sites[id(result)] = name, not turned
        elif kind == "linear" or kind in _CONVOLUTIONS or kind in _MATRIX_PRODUCTS:
            self._saw_product(kind, args, kwargs, result)
        self._alive.append(result)
        return result

    def _saw_product(self, kind: str, args: Any, kwargs: Any, result: Any) -> None:
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
        if id(weight) not in self._sites or groups != 1:
            return
        name, turned = self._sites[id(weight)]
        rows = int(turned) if kind not in _MATRIX_PRODUCTS else 1 - int(turned)
        axis = 1 if kind in _CONVOLUTIONS else -1
        call = self._dropped.get(id(args[0]))
        if call is not None and call.axis == axis:
            call.after.append(Along(name, 1 - rows))
        if bias is None or id(bias) in self._sites:
            biases = [] if bias is None else [Along(self._sites[id(bias)][0], 0)]
            self._made[id(result)] = axis, [Along(name, rows), *biases]


def _rate(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> float | None:
    """The rate of a call of dropout that drops anything; None of anything else."""
    if getattr(func, "__name__", "") not in _DROPOUTS:
        return None
    rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    return rate or None
