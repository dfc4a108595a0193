"""A pass over the data that visits every datum once, however the program's plates subsample."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_laplace.data import Batch


@dataclass(frozen=True)
class Chunk:
    """One call's share of a pass.

    Attributes:
        batch: the call's arguments.
        indices: what the plates that draw their own indices shall visit.
        weights: plate name to the weight of each of its elements. 0 for an index that another chunk already visited;
            size / visited where the data given are only a part of what the plate stands for.
        rows: of the batch that the user gave, where the chunk is a part of it, or several joined; else None.
    """

    batch: Batch
    indices: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    rows: int | None = None


def index_chunks(subsampled: Mapping[str, tuple[int, int]]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Indices and weights by which subsampling plates visit each of their elements once.

    A plate's subsample has a fixed size, so the last chunk reaches back and weighs what it repeats by zero.

    Args:
        subsampled: plate name to (size, subsample size).

    Yields:
        plate name to indices [subsample size], and plate name to weights [subsample size].
    """
    per_plate = []
    for name, (size, subsample_size) in subsampled.items():
        chunks = []
        for start in range(0, size, subsample_size):
            first = min(start, size - subsample_size)
            index = torch.arange(first, first + subsample_size)
            chunks.append((name, index, (index >= start).to(torch.get_default_dtype())))
        per_plate.append(chunks)
    for combination in itertools.product(*per_plate):
        yield {name: index for name, index, _ in combination}, {name: weight for name, _, weight in combination}
