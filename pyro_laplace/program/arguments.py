"""What is wrong with what a model is called with, where the call or its density fails: said in the data's own terms."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.torch import leaves_of
from pyro_laplace._errors import InvalidData, LaplaceError
from pyro_laplace.data import Batch

_FOREIGN = ("numpy", "pandas", "xarray", "polars")


def trouble_with(batch: Batch) -> str | None:
    """What a program can hardly do anything with among its arguments.

    Args:
        batch: the arguments of a call.

    Returns:
        a sentence that names the first such argument; None if there is none.
    """
    for name, value in _arguments_of(batch):
        for leaf in leaves_of(value):
            if type(leaf).__module__.split(".")[0] in _FOREIGN and hasattr(leaf, "shape"):
                kind = f"{type(leaf).__module__.split('.')[0]}.{type(leaf).__name__}"
                return f"{name} of the data is a {kind}: give tensors, as torch.as_tensor(values, dtype=...) makes them"
            if not isinstance(leaf, Tensor):
                continue
            if leaf.dim() and not leaf.numel():
                return (
                    f"{name} of the data has shape {list(leaf.shape)}: there is nothing to fit. Give at least one datum"
                )
            if leaf.is_floating_point() and leaf.layout == torch.strided and not bool(leaf.isfinite().all()):
                where = leaf.isfinite().logical_not().nonzero()[0].tolist()
                return (
                    f"{name} of the data has the value {float(leaf[tuple(where)])} at {where}: leave such data out, or "
                    "give a missing input a value, or a site of its own"
                )
    return None


def _other_dtype(batch: Batch) -> str | None:
    """The first argument whose dtype is not the default one, which priors without one of their own draw."""
    for name, value in _arguments_of(batch):
        for leaf in leaves_of(value):
            if isinstance(leaf, Tensor) and leaf.dtype != torch.get_default_dtype():
                return (
                    f"{name} of the data is of {leaf.dtype}, and the program's sites may be of "
                    f"{torch.get_default_dtype()}: convert one of them, as x.float(), net.double() or "
                    "torch.set_default_dtype(torch.float64) do"
                )
    return None


def _arguments_of(batch: Batch) -> list[tuple[str, Any]]:
    return [*((f"argument {k}", each) for k, each in enumerate(batch.args)), *batch.kwargs.items()]


@contextmanager
def told_of_arguments(batch: Batch) -> Iterator[None]:
    """Inside, an error of the model's own is one of its arguments, where these explain it."""
    try:
        yield
    except LaplaceError:
        raise
    except Exception as error:  # whatever a model can raise
        trouble = trouble_with(batch) or (_other_dtype(batch) if "dtype" in str(error) else None)
        if trouble is None:
            raise
        raise InvalidData(f"{trouble} (the model raised {type(error).__name__}: {error})") from error
