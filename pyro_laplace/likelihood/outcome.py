"""What the data of an observed site are, whatever their density: numbers or classes, what is expected of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_laplace.likelihood.registry import Family, kin_of
from pyro_laplace.unwrap import innermost


@dataclass(frozen=True, eq=False)
class Outcome:
    """The y of a distribution, as the nearest registered family tells it; a number where there is none.

    Attributes:
        fn: the distribution.
        base: the same within `to_event`, `mask` and `expand`.
        family: of the type that `base` is of or derives from.
    """

    fn: Any
    base: Any
    family: Family | None

    @staticmethod
    def of(fn: Any) -> "Outcome":
        """The outcome of a distribution."""
        base = innermost(fn)
        return Outcome(fn, base, kin_of(type(base)))

    @property
    def is_class(self) -> bool:
        """Whether it is one class."""
        return self.family is not None and self.family.classes

    @property
    def expected(self) -> Tensor | None:
        """Its mean `[*shape]`, or class probabilities `[*shape, classes]`; None where they have no closed form."""
        try:
            mean = self.fn.mean if self.family is None else self.family.expected(self.base)
        except (NotImplementedError, AttributeError):
            return None
        classes = () if self.family is None else mean.shape[len(self.base.shape()) :]
        return mean.expand(self.fn.shape() + torch.Size(classes))

    def hits(self, expected: Tensor, observed: Tensor) -> Tensor:
        """Whether the most probable class is the observed one.

        Args:
            expected: mean or class probabilities.
            observed: the data.

        Returns:
            bool, of the shape of the data.
        """
        assert self.family is not None  # who asks has seen that it is a class
        return self.family.hits(expected, observed)

    def as_data(self, value: Tensor) -> Tensor:
        """The data in a dtype that the density takes."""
        return value if self.family is None else self.family.as_data(value, self.base)
