"""What every structure keeps of a curvature: its sum over data, as a value of its own, apart from the prior."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from pyro_laplace._errors import LaplaceError
from pyro_laplace._typing import State
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.reading.columns import Columns
from pyro_laplace.reading.prior import Prior
from pyro_laplace.structure.block import Block


class NeedsDouble(LaplaceError, ArithmeticError):
    """A sum that was made in the sites' own dtype is too coarse for a prior: it is to be made anew in float64."""


class SumOverData(ABC):
    """The curvature H of one likelihood term (or of several together), summed over data.

    A posterior precision is ``Lambda = H + H_prior``: it takes no data, and may be had for as many priors as are asked
    about. All vectors are over the free coordinates of the anchor, in float64.
    """

    @abstractmethod
    def add(self, columns: Columns) -> None:
        """Add what some columns of a chunk say."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Add the sum over other data at the same anchor: later data, those of another process, or another half."""

    @classmethod
    @abstractmethod
    def weighted(cls, parts: Sequence[tuple[Any, float]]) -> "SumOverData":
        """The sum of several terms over the same data, each multiplied by a factor; the parts stay as they are."""

    @abstractmethod
    def state(self) -> State:
        """All of it as plain tensors and numbers, to be saved, gathered or copied."""

    @abstractmethod
    def times(self, vectors: Tensor) -> Tensor:
        """H v for vectors v [v, params]: what the quadratic says away from the anchor."""

    @abstractmethod
    def posterior(self, prior: Prior) -> Block:
        """The precision ``H + H_prior``; the sum stays as it is.

        Args:
            prior: the prior's curvature at the anchor.

        Returns:
            its square root, as a block over the free coordinates.
        """

    def refine(self) -> bool:
        """Get ready for one more pass over the same data, whether or not it takes one.

        Returns:
            whether it does; what is added from then on is the new pass's.
        """
        return False


class Sum(SumOverData):
    """A sum in one structure, which the table of `build` lists."""

    needs_root: ClassVar[bool] = False
    """Whether it can hold nothing but the A'A of a root: no exact Hessian."""

    needs_products: ClassVar[bool] = False
    """Whether it holds products with weights alone, and has no use for dense rows."""

    takes_direct: ClassVar[bool] = False
    """Whether it makes use of a layer's Fisher information in place of its root."""

    takes_positions: ClassVar[bool] = False
    """Whether it does so where a datum has several positions: its root has a column for each output at each."""

    streams: ClassVar[bool] = False
    """Whether columns may come a few at a time at no price, so that fewer gradients are held."""

    searches: ClassVar[bool] = False
    """Whether it asks columns for their few entries alone, which are searched for where nothing is factored."""

    @classmethod
    @abstractmethod
    def plan(cls, option: Any, anchor: Anchor, prior: Prior, exact: Sequence[str] = (), double: bool = False) -> "Sum":
        """The empty sum, before a pass over the data.

        Args:
            option: what the user gave for `structure`: its name, or the object with its options.
            anchor: theta and its free coordinates.
            prior: the prior's curvature there.
            exact: the terms that have no root and are summed here, if any.
            double: whether to add up in float64 what would else be added up in the sites' dtype.

        Returns:
            a sum without data. A structure that cannot hold the program says so here, by the sites' names.
        """

    @classmethod
    @abstractmethod
    def from_state(cls, state: State, anchor: Anchor) -> "Sum":
        """What `state` gave, at the anchor that it was given at."""
