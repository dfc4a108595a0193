"""What is wrong with what a model is called with, where the call or its density fails: said in the data's own terms."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.torch import leaves_of
from pyro_laplace._errors import InvalidData, LaplaceError
from pyro_laplace.data import Batch
from pyro_laplace.program.mismatch import Failed, named
from pyro_laplace.program.run import Run

_FOREIGN = ("numpy", "pandas", "xarray", "polars")


def trouble_with(batch: Batch) -> str | None:
    """What a program can hardly do anything with among its arguments.

    Args:
        batch: the arguments of a call.

    Returns:
        a sentence that names the first such argument; None if there is none.
    """
    for name, value in named(batch):
        for leaf in leaves_of(value):
            if type(leaf).__module__.split(".")[0] in _FOREIGN and hasattr(leaf, "shape"):
                kind = f"{type(leaf).__module__.split('.')[0]}.{type(leaf).__name__}"
                return f"{name} of the data is a {kind}: give tensors, as torch.as_tensor(values, dtype=...) makes them"
            if not isinstance(leaf, Tensor):
                continue
            if leaf.dim() and not leaf.numel():
                return f"{name} of the data is empty, of shape {list(leaf.shape)}: give at least one datum"
            if leaf.is_floating_point() and leaf.layout == torch.strided and not bool(leaf.isfinite().all()):
                where = leaf.isfinite().logical_not().nonzero()[0].tolist()
                return (
                    f"{name} of the data has the value {float(leaf[tuple(where)])} at {where}: leave such data out, or "
                    "give a missing input a value, or a site of its own"
                )
    return None


def refuse_spoilt(run: Run, batch: Batch) -> None:
    """Refuse arguments that are not finite where the log density is not either.

    Args:
        run: of the program on them, at values of its latent sites where that should be finite.
        batch: the arguments.

    Raises:
        InvalidData: naming the argument, the value and its place.
    """
    trouble = trouble_with(batch)
    if trouble is None:
        return
    with torch.no_grad():
        finite = (
            bool(s.log_prob().isfinite().all()) for s in (*run.observed.values(), *run.factors.values()) if s.given
        )
        if not all(finite):
            raise InvalidData(f"the log density of the data is not finite, and {trouble}")


@contextmanager
def told_of_arguments(
    model: Callable[..., Any],
    batch: Batch,
    run: Run | None = None,
    values: Callable[[], Mapping[str, Tensor]] | None = None,
) -> Iterator[None]:
    """Inside, an error that a model raises says what of its arguments caused it, where that can be told.

    Args:
        model: the program.
        batch: what it is called with.
        run: what there is of its run, as it goes on.
        values: gives values of its latent sites; None reads them off the run.

    Raises:
        InvalidData: if an argument is no tensor, empty or not finite, or does not go with the model.
        LaplaceError: as the model or the package raised it; UnsupportedProgram, if the model is none.
        Warning: as the user has made one an error.
    """
    try:
        yield
    except (LaplaceError, Warning):  # a warning that the user has made an error
        raise
    except Exception as error:  # whatever a model can raise
        trouble = trouble_with(batch)
        if trouble is not None:
            raise InvalidData(f"{trouble} (the model raised {type(error).__name__}: {error})") from error
        run = run or Run()
        known = {name: site.value for name, site in run.latents.items()} if values is None else values()
        found = Failed(model, batch, known, len(run.observed) + len(known), error).explained()
        if found is None:
            raise
        raise found from error
