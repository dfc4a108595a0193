"""What of a network's output is predicted: an attribute, an entry, or what a function makes of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._errors import InvalidData, InvalidOption

type Pick = str | int | Callable[[Any], Any] | None
"""An attribute or key, the place in a tuple, or a function of the output; None takes all of it."""


def check_pick(output: Any) -> None:
    """Refuse what picks nothing.

    Args:
        output: as `bayesianize` takes it.

    Raises:
        InvalidOption: naming it.
    """
    named = isinstance(output, str | int) and not isinstance(output, bool) and output != ""
    if output is not None and not named and (isinstance(output, type) or not callable(output)):
        raise InvalidOption(
            f"output={output!r} is none of an attribute or key of the network's output, such as 'logits', the place "
            "of one in a tuple, and a function of the output"
        )


def pick(output: Any, how: Pick) -> Any:
    """What is predicted.

    Args:
        output: of the network.
        how: as `bayesianize` takes it.

    Returns:
        the part.

    Raises:
        InvalidData: if the output has no such part, listing those it has.
    """
    if how is None:
        return output
    if not isinstance(how, str | int):
        return how(output)
    if isinstance(output, Mapping) and how in output:
        return output[how]
    if isinstance(how, str):
        if hasattr(output, how):
            return getattr(output, how)
    elif isinstance(output, list | tuple) and -len(output) <= how < len(output):
        return output[how]
    raise InvalidData(f"output={how!r}: the network's output is {described(output)}")


def described(output: Any) -> str:
    """What a network's output is, in words.

    Args:
        output: of the network.

    Returns:
        its shape, or its type and the names of its parts.
    """
    if isinstance(output, Tensor):
        return f"a tensor of shape {list(output.shape)}"
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {kind} of {', '.join(map(repr, output))}"
    if dataclasses.is_dataclass(output):
        return f"a {kind} of {', '.join(repr(each.name) for each in dataclasses.fields(output))}"
    if isinstance(output, list | tuple):
        return f"a {kind} of {len(output)}"
    return f"a {kind}"


def require_tensor(likelihood: str, output: Any) -> Tensor:
    """The output as the one tensor that a likelihood speaks of.

    Args:
        likelihood: its name.
        output: of the network.

    Returns:
        the output.

    Raises:
        InvalidData: if it is none, naming the parts it has.
    """
    if not isinstance(output, Tensor):
        raise InvalidData(
            f"{likelihood}: the network's output is {described(output)}, and a tensor is wanted: say which with "
            "bayesianize(..., output=), as output='logits' or output=0"
        )
    if not output.is_floating_point():
        raise InvalidData(
            f"{likelihood}: the network's output is {described(output)} of {output.dtype}: logits or locations are "
            f"wanted, of {torch.get_default_dtype()} or another floating-point dtype"
        )
    return output
