"""Data that are split off to be predicted."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import flattened, unflattened
from pyro_laplace._errors import InvalidData, InvalidOption
from pyro_laplace.data import Batch, Data, as_data
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program


def split(data: Data, share: float, seed: int, counts: Sequence[int]) -> tuple[Data, Data]:
    """Data to fit and data to predict, at random.

    Of few batches, rows are chosen of each: elements of the first axis of every tensor that is as long as the observed
    sites. Of many, whole batches. A batch too small for the share stays with the data to fit.

    Args:
        data: all of them.
        share: of the data that are to be predicted.
        seed: of the choice.
        counts: length of the observed sites on each batch, as `rows_of` has it.

    Returns:
        both parts.

    Raises:
        InvalidOption: if the share leaves one of them empty.
        InvalidData: if no rows can be told apart.
    """
    if not 0 < share < 1:
        raise InvalidOption(f"validation_share={share}: give a number between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    batches = list(data)
    if len(batches) >= 2 * math.ceil(1 / share):
        order = torch.randperm(len(batches), generator=generator).tolist()
        held = set(order[: max(1, round(share * len(batches)))])
        return _joined([b for i, b in enumerate(batches) if i not in held]), _joined([batches[i] for i in sorted(held)])
    parts = [_rows(batch, count, share, generator) for batch, count in zip(batches, counts, strict=True)]
    held_parts = [second for _, second in parts if second is not None]
    if not held_parts or all(first is None for first, _ in parts):
        raise InvalidOption(f"validation_share={share} of {sum(counts)} data leaves nothing to fit or to predict")
    return _joined([first for first, _ in parts if first is not None]), _joined(held_parts)


def refuse_what_does_not_run(model: Callable[..., Any], rest: Data) -> None:
    """Refuse a part of the data on which the program does not run, as a plate of fixed size does not.

    Args:
        model: the Pyro program.
        rest: the part.

    Raises:
        InvalidData: with what the program says.
    """
    try:
        with undisturbed(), torch.no_grad():
            Program.trace(model, rest)
    except (ValueError, RuntimeError, InvalidData) as error:
        raise InvalidData(
            f"the program does not run on a part of the data ({str(error).splitlines()[0]}): give validation_data="
        ) from error


def rows_of(model: Callable[..., Any], data: Data) -> list[int]:
    """How many data each batch has.

    Args:
        model: the Pyro program.
        data: the data.

    Returns:
        length of the observed sites on each batch.

    Raises:
        InvalidData: if the sites of a batch differ in it.
    """
    counts = []
    with undisturbed(), torch.no_grad():
        program = Program.trace(model, data)
        for batch in data:
            run = program.run(program.start, Chunk(batch))
            lengths = {site.fn.batch_shape[0] if site.fn.batch_shape else 1 for site in run.observed.values()}
            if len(lengths) > 1:
                raise InvalidData(
                    f"the observed sites {list(run.observed)} have {sorted(lengths)} data, so that no row stands for "
                    "one datum of each: give validation_data="
                )
            counts.append(lengths.pop())
    return counts


def _rows(batch: Batch, count: int, share: float, generator: torch.Generator) -> tuple[Batch | None, Batch | None]:
    """Rows to fit and rows to predict of one batch; None where there are none."""
    values, form = flattened((batch.args, dict(batch.kwargs)))
    lengths = [len(value) for value in values if isinstance(value, Tensor) and value.dim()]
    held = round(share * count)
    if count not in lengths:
        raise InvalidData(
            f"no tensor among the data has {count} rows, one for each datum of the observed site, so that none can be "
            "split off: give validation_data="
        )
    order = torch.randperm(count, generator=generator)

    def chosen(rows: Tensor) -> Batch | None:
        if not len(rows):
            return None
        own = [v[rows.to(v.device)] if isinstance(v, Tensor) and v.dim() and len(v) == count else v for v in values]
        args, kwargs = unflattened(own, form)
        return Batch(tuple(args), kwargs)

    return chosen(order[held:].sort().values), chosen(order[:held].sort().values)


def _joined(batches: Sequence[Any]) -> Data:
    return as_data(batches[0]) if len(batches) == 1 else as_data(list(batches))
