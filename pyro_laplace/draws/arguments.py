"""The tensors that a model is called with, by the names that its signature gives them."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_laplace.data import Batch, Data
from pyro_laplace.program.mismatch import signature_of


def tensor_arguments(model: Callable[..., Any], data: Data) -> dict[str, Tensor]:
    """Tensor arguments over all batches, joined along their first axis; one that no batch changes is kept once.

    Args:
        model: the program; of a module it is `forward` that names the arguments.
        data: the data.

    Returns:
        argument name to value. Those of ``*args`` are numbered, those of ``**kwargs`` have their own names.
    """
    batches = [_named(model, batch) for batch in data]
    joined = {}
    for name in batches[0]:
        parts = [batch[name] for batch in batches if name in batch]
        same = all(part is parts[0] or torch.equal(part, parts[0]) for part in parts)
        joined[name] = parts[0] if same or not parts[0].dim() else torch.cat(parts)
    return {name: value.detach() for name, value in joined.items()}


def _named(model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
    signature = signature_of(model)
    try:
        bound = None if signature is None else signature.bind(*batch.args, **batch.kwargs)
    except TypeError:
        bound = None
    if bound is None:
        arguments = {f"arg_{i}": value for i, value in enumerate(batch.args)} | dict(batch.kwargs)
    else:
        arguments = {}
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                arguments |= {f"{name}_{i}": item for i, item in enumerate(value)}
            elif kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= value
            else:
                arguments[name] = value
    return {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
