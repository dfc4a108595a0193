"""Data that are split off to be predicted."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.torch import flattened, unflattened
from pyro_laplace._errors import InvalidData, InvalidOption
from pyro_laplace.data import Batch, Data, as_data


def split(data: Data, share: float, seed: int, num_rows: int) -> tuple[Data, Data]:
    """Data to fit and data to predict, at random.

    Of one batch, rows are chosen: the elements of the first axis of every tensor that is as long as the observed site.
    Of several, whole batches, where there are enough of them, or rows of each.

    Args:
        data: all of them.
        share: of the data that are to be predicted.
        seed: of the choice.
        num_rows: length of the observed site on the first batch.

    Returns:
        both parts.

    Raises:
        InvalidOption: if the share leaves one of them empty.
        InvalidData: if no tensor has a row for each datum.
    """
    if not 0 < share < 1:
        raise InvalidOption(f"validation_share={share}: give a number between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    batches = list(data)
    enough = math.ceil(1 / share)
    if len(batches) >= 2 * enough:
        order = torch.randperm(len(batches), generator=generator).tolist()
        held = sorted(order[: max(1, round(share * len(batches)))])
        return _joined([b for i, b in enumerate(batches) if i not in held]), _joined([batches[i] for i in held])
    parts = [_rows(batch, share, generator, num_rows if len(batches) == 1 else None) for batch in batches]
    return _joined([first for first, _ in parts]), _joined([second for _, second in parts])


def _rows(batch: Batch, share: float, generator: torch.Generator, num_rows: int | None) -> tuple[Batch, Batch]:
    values, form = flattened((batch.args, dict(batch.kwargs)))
    lengths = [len(value) for value in values if isinstance(value, Tensor) and value.dim()]
    count = num_rows if num_rows is not None else max(lengths, default=0)
    held = round(share * count)
    if count not in lengths:
        raise InvalidData(
            f"no tensor among the data has {count} rows, one for each datum of the observed site, so that none can be "
            "split off: give validation_data="
        )
    if not 0 < held < count:
        raise InvalidOption(f"validation_share={share} of {count} data leaves nothing to fit or to predict")
    order = torch.randperm(count, generator=generator)

    def chosen(rows: Tensor) -> Batch:
        own = [v[rows.to(v.device)] if isinstance(v, Tensor) and v.dim() and len(v) == count else v for v in values]
        args, kwargs = unflattened(own, form)
        return Batch(tuple(args), kwargs)

    return chosen(order[held:].sort().values), chosen(order[:held].sort().values)


def _joined(batches: Sequence[Any]) -> Data:
    return as_data(batches[0]) if len(batches) == 1 else as_data(list(batches))
