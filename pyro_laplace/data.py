"""What `data` may be: one batch, or a re-iterable of batches.

A `tuple` is one batch called as ``model(*batch)``, a `dict` one called as ``model(**batch)``, a tensor one called as
``model(batch)``. Any other iterable (a `DataLoader`, a list) is a sequence of batches, whose items may also be lists.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from pyro_laplace._errors import InvalidData, LaplaceWarning


@dataclass(frozen=True)
class Batch:
    """The arguments of one call of the model."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """A re-iterable of batches; `one_batch` if the caller gave a single one.

    With `prior_alone`, a program that observes nothing on them has its prior for posterior, and is not refused. What is
    wrong with them is told by `name`, that of the argument that they were given as.
    """

    source: Any
    one_batch: bool
    prior_alone: bool = False
    name: str = "data"

    def __iter__(self) -> Iterator[Batch]:
        if self.one_batch:
            yield _as_batch(self.source)
            return
        for item in self.source:
            yield _as_batch(tuple(item) if isinstance(item, list) else item)

    def held(self) -> "Data":
        """The batches of one pass, the same ever after: a loader that shuffles makes others each time."""
        return self if self.one_batch else replace(self, source=list(self))

    def first(self) -> Batch:
        """The first batch.

        Returns:
            the arguments of its call.

        Raises:
            InvalidData: if there is none.
        """
        for batch in self:
            return batch
        raise InvalidData(
            f"{self.name} holds no batch: give a tuple (x, y), a dict, a tensor, or a list or DataLoader of these"
        )


def as_data(data: Any, name: str = "data") -> Data:
    """Read a user's `data` argument.

    Args:
        data: a tuple, dict or tensor (one batch), or a re-iterable of these.
        name: of the argument.

    Returns:
        a re-iterable of `Batch`.

    Raises:
        InvalidData: for a one-shot iterator, or for something that is not iterable.
    """
    if isinstance(data, Data):
        return data
    if isinstance(data, Batch | tuple | Mapping | Tensor):
        return Data(data, one_batch=True, name=name)
    if isinstance(data, Iterator):
        raise InvalidData(
            f"{name} is a one-shot {type(data).__name__}, and every pass over the data needs it anew: "
            "give list(data), or a DataLoader"
        )
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise InvalidData(
            f"{name} is a {type(data).__name__}: give a tuple called as model(*data), a dict called as model(**data), "
            "a tensor called as model(data), () for a model without arguments, or a list or DataLoader of batches"
        )
    if isinstance(data, DataLoader) and (reason := _other_each_pass(data)) is not None:
        warnings.warn(
            f"each pass over the DataLoader has other data: {reason}. A posterior is of one data set, and takes "
            "several passes: give DataLoader(dataset, batch_size), without sampler and drop_last",
            LaplaceWarning,
            stacklevel=3,
        )
    return Data(data, one_batch=False, name=name)


def _other_each_pass(loader: DataLoader) -> str | None:
    """Why a loader's data are others at each pass, as far as its options say."""
    if isinstance(loader.dataset, IterableDataset):
        return None
    sampler = loader.sampler
    if isinstance(sampler, WeightedRandomSampler | RandomSampler) and sampler.replacement:
        return f"its {type(sampler).__name__} draws with replacement"
    shuffles = isinstance(sampler, WeightedRandomSampler | RandomSampler | SubsetRandomSampler)
    if isinstance(sampler, RandomSampler) and sampler.num_samples < len(sampler.data_source):
        return f"its sampler draws {sampler.num_samples} of {len(sampler.data_source)}"
    left = len(sampler) % loader.batch_size if shuffles and loader.drop_last and loader.batch_size else 0
    return f"it shuffles, and drop_last leaves out {left} of {len(sampler)}" if left else None  # pyright: ignore


def _as_batch(item: Any) -> Batch:
    if isinstance(item, Batch):
        return item
    if isinstance(item, Mapping):
        return Batch(kwargs=item)
    if isinstance(item, tuple):
        return Batch(args=item)
    if isinstance(item, Tensor):
        return Batch(args=(item,))
    raise InvalidData(f"a batch is a {type(item).__name__}: expected a tuple, list, dict or tensor")
