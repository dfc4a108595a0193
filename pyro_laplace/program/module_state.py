"""Running a program without leaving a trace on its modules, and refusing one that cannot be run so."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_laplace._compat.torch import is_lazy, own_buffers, own_children
from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.settings import settings


class _Buffer(NamedTuple):
    """A buffer as it was.

    Attributes:
        module: whose it is.
        key: its name there.
        name: its full name.
        own: the tensor itself.
        value: a copy; None of one that cannot be compared, of which only the identity is kept.
    """

    module: nn.Module
    key: str
    name: str
    own: Tensor | None
    value: Tensor | None

    @property
    def now(self) -> Tensor | None:
        """What is in its place."""
        return getattr(self.module, self.key, None)

    def has_changed(self) -> bool:
        """Whether it is no longer what it was; another tensor of the same value is."""
        now = self.now
        return now is not self.own if self.value is None or now is None else not _same_values(now, self.value)

    def restore(self) -> None:
        """Put it back, without a touch of what has not changed: a graph of the user's may hold it."""
        if self.now is not self.own:
            setattr(self.module, self.key, self.own)
        if self.own is not None and self.value is not None and not _same_values(self.own, self.value):
            self.own.copy_(self.value)


class ModulesKept:
    """Modules as they were.

    Attributes:
        modes: whether each was in training.
        buffers: theirs.
    """

    def __init__(self) -> None:
        self.modes: dict[nn.Module, bool] = {}
        self.buffers: list[_Buffer] = []

    def keep(self, root: nn.Module, name: str) -> None:
        """Take down a module and those inside it, unless they are known.

        Args:
            root: the module.
            name: of the root, with which those of its buffers begin; may be empty.
        """
        pending = [(name, root)]
        while pending:  # as `named_modules`, at half its price
            path, module = pending.pop()
            if module not in self.modes:
                self.modes[module] = module.training
                for key, own in own_buffers(module).items():
                    full_name = f"{path}.{key}" if path else key
                    self.buffers.append(_Buffer(module, key, full_name, own, _copy_of(own)))
                inside = reversed(own_children(module).items())
                pending += [(f"{path}.{key}" if path else key, child) for key, child in inside if child is not None]

    def changed(self) -> Collection[str]:
        """Full names of the buffers that are no longer what they were."""
        return [buffer.name for buffer in self.buffers if buffer.has_changed()]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for module, training in self.modes.items():
            if module.training is not training:  # PyroModule sets attributes at a price
                module.training = training
        for buffer in self.buffers:
            buffer.restore()


@contextmanager
def modules_kept(program: Any = None) -> Iterator[ModulesKept]:
    """Leave the modes and buffers of every module that is called, or is in one, as they are, exceptions included.

    Args:
        program: where it is a module, its own modules are kept whether or not they are called.

    Yields:
        what they were.
    """
    kept = ModulesKept()

    def keep(module: nn.Module, _: Any) -> None:
        if module not in kept.modes:
            kept.keep(module, type(module).__name__)

    if isinstance(program, nn.Module):
        kept.keep(program, "")
    hook = nn.modules.module.register_module_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()
        kept.restore()


def refuse_changed_buffers(changed: Collection[str], random: bool = False) -> None:
    """Refuse a program that changes its own buffers when it is run.

    Args:
        changed: their names.
        random: whether its log density also changes from run to run.

    Raises:
        UnsupportedProgram: naming the buffers.
    """
    if not changed:
        return
    shown = ", ".join(map(repr, list(changed)[: settings.shown_names]))
    more = f", ... ({len(changed)} in all)" if len(changed) > settings.shown_names else ""
    besides = ", and its log density changes from run to run (as with dropout)" if random else ""
    raise UnsupportedProgram(
        f"the program changes its own buffers [{shown}{more}] as it runs (as a batch normalisation in training mode "
        f"does), so that its data are not independent given the latent sites{besides}: call .eval() on its modules"
    )


@contextmanager
def in_place_refused() -> Iterator[None]:
    """Around `torch.func`: refuse a program that writes into a tensor of its own.

    Raises:
        UnsupportedProgram: saying what to do, in place of torch's error.
        RuntimeError: any other of the program's.
    """
    try:
        yield
    except RuntimeError as error:
        if "in-place operation" not in str(error):
            raise
        raise UnsupportedProgram(
            "the program changes a tensor of its own in place while it runs (a batch normalisation in training "
            "mode, say), and cannot be differentiated as a function: call .eval() on its modules"
        ) from error


def _copy_of(buffer: Tensor | None) -> Tensor | None:
    if buffer is None or is_lazy(buffer) or buffer.layout is not torch.strided:
        return None
    return buffer.detach().clone()


def _same_values(one: Tensor, other: Tensor) -> bool:
    kinds = ((each.shape, each.dtype, each.device, each.layout) for each in (one, other))
    if next(kinds) != next(kinds):
        return False
    # NaN where NaN was
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())
