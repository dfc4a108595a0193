"""What the axes of a network's parameters are called: its modules have units, and a bias shares those of its weight."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pyro_laplace.linearized.program import LinearizedProgram

_AXES: Mapping[tuple[type, ...], Mapping[str, tuple[str, ...]]] = {
    (nn.Linear,): {"weight": ("out", "in"), "bias": ("out",)},
    (nn.Conv1d, nn.Conv2d, nn.Conv3d): {"weight": ("out", "in", "kernel_0", "kernel_1", "kernel_2"), "bias": ("out",)},
    (nn.Embedding,): {"weight": ("word", "out")},
    (nn.LayerNorm, nn.GroupNorm): {"weight": ("unit",), "bias": ("unit",)},
}
"""Module types to the axes of their parameters."""


def axes_of_module(model: Callable[..., Any], site: str, num_axes: int) -> list[str] | None:
    """Names of the axes of a module's parameter.

    Args:
        model: the program.
        site: name of a latent site, the path of a parameter.
        num_axes: how many axes it has.

    Returns:
        ``{path of the module}_{axis}`` for each, such as ``net.0_out``; None of what is no such parameter.
    """
    path, _, parameter = site.rpartition(".")
    module = _module_at(model.model if isinstance(model, LinearizedProgram) else model, path)
    for kinds, axes in _AXES.items():
        names = axes.get(parameter, ())[:num_axes]
        if isinstance(module, kinds) and len(names) == num_axes:
            return [f"{path}_{name}" for name in names]
    return None


def _module_at(model: Any, path: str) -> nn.Module | None:
    """The module of a path, in a network or in the program that has one for an attribute."""
    if not isinstance(model, nn.Module) or not path:
        return None
    for owner in (model, *model.children()):
        try:
            return owner.get_submodule(path)
        except AttributeError:
            continue
    return None
