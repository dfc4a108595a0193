"""Running a program without leaving a trace on its modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def modules_kept(program: Any) -> Iterator[None]:
    """Leave the modes and buffers of every module that is called as they are, exceptions included.

    Args:
        program: the program; where it is a module, its own modules are kept whether or not they are called.
    """
    kept: dict[nn.Module, tuple[bool, dict[str, tuple[Tensor, Tensor]]]] = {}

    def keep(module: nn.Module, _: Any = None) -> None:
        if module not in kept:
            own = module.named_buffers(recurse=False) if module._buffers else ()  # most modules have none
            kept[module] = module.training, {name: (buffer, buffer.clone()) for name, buffer in own}

    pending = [program] if isinstance(program, nn.Module) else []
    while pending:
        module = pending.pop()
        if module not in kept:
            keep(module)
            pending += module.children()
    hook = nn.modules.module.register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()
        for module, (training, buffers) in kept.items():
            if module.training is not training:  # PyroModule sets attributes at a price
                module.training = training
            for name, (own, value) in buffers.items():
                _put_back(module, name, own, value)


@torch.no_grad()
def _put_back(module: nn.Module, name: str, own: Tensor, value: Tensor) -> None:
    """Restore a buffer, without a touch if nothing has changed: a graph of the user's may hold it."""
    if getattr(module, name) is not own:
        setattr(module, name, own)
    if not torch.equal(own, value):
        own.copy_(value)
