"""What the tests of the evidence hold it against: the store's values changed by hand, and differences between them."""

from collections.abc import Callable, Mapping

import pyro
import torch
from torch import Tensor


def store_values() -> dict[str, Tensor]:
    """A copy of what the param store holds, constrained."""
    store = pyro.get_param_store()
    return {name: store[name].detach().clone() for name in store}


def put(**values: Tensor | float) -> None:
    """Write constrained values into the param store, in place of those that it holds."""
    put_all(values)


def put_all(values: Mapping[str, Tensor | float]) -> None:
    store = pyro.get_param_store()
    for name, value in values.items():
        held = store[name].detach()
        store[name] = torch.as_tensor(value).to(held).expand_as(held).clone()


def along(value: Callable[[], float], directions: Mapping[str, Tensor], step: float = 1e-4) -> float:
    """The derivative of a function of the store along a direction in unconstrained numbers, from two values."""
    store, ends = pyro.get_param_store(), []
    own = {name: store[name].unconstrained().detach().clone() for name in directions}
    for sign in (1, -1):
        for name, direction in directions.items():
            store[name].unconstrained().detach().copy_(own[name] + sign * step * direction)
        ends.append(value())
    for name in directions:
        store[name].unconstrained().detach().copy_(own[name])
    return (ends[0] - ends[1]) / (2 * step)


def differences(value: Callable[[], float], names: list[str]) -> dict[str, Tensor]:
    """The gradient of a function of the store in unconstrained numbers, number by number."""
    store, found = pyro.get_param_store(), {}
    for name in names:
        shape = store[name].unconstrained().shape
        each = torch.eye(shape.numel()).reshape(-1, *shape)
        found[name] = torch.tensor([along(value, {name: one}) for one in each]).reshape(shape)
    return found


def gradients(value: Tensor, names: list[str]) -> dict[str, Tensor]:
    """What `value.backward()` leaves at each name's unconstrained number."""
    store = pyro.get_param_store()
    free = {name: store[name].unconstrained() for name in names}
    for each in free.values():
        each.grad = None
    value.backward()
    return {name: torch.zeros_like(each) if each.grad is None else each.grad.clone() for name, each in free.items()}
