"""What a structure is given: some columns of a likelihood term's root on one chunk, in the form in which they were had.

Every structure may ask the questions that all forms answer (`diagonal`, `times`, `matrix`, `symmetric`), or look at
the form itself where that is cheaper.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.reading.gram import Gram, diagonal_of
from pyro_laplace.reading.gram_sparse import symmetric_of
from pyro_laplace.reading.gram_times import gram_times
from pyro_laplace.reading.records import Direct, Factors, of_rows
from pyro_laplace.reading.rest import Rest
from pyro_laplace.reading.restrict import restrict
from pyro_laplace.sparse.symmetric import Symmetric


@dataclass(frozen=True, eq=False)
class Columns:
    """What is added to a curvature over the free coordinates of an anchor; it has one of three forms.

    Attributes:
        size: number of free coordinates.
        factors: captured pairs (a, G) and dense columns of a root A: what is added is A'A.
        direct: the inputs and the Fisher information of a layer that is the likelihood's own.
        rest: what had to be had by automatic differentiation.
        data: a name for the data that these columns are of; terms over the same data have one.
        with_inputs: whether the inputs a count; of columns that come in slices, those of the first slice do.
    """

    size: int
    factors: Factors | None = None
    direct: Direct | None = None
    rest: Rest | None = None
    data: str = ""
    with_inputs: bool = True

    def rooted(self) -> Iterator[Factors] | None:
        """The rows of a root, as factors, some after the other; None where there is no root."""
        if self.rest is None:
            return iter([self._factors.without_entries()])
        rows = self.rest.rows()
        return None if rows is None else (of_rows(each) for each in rows)

    def diagonal(self) -> Theta:
        """The diagonal of what is added [params], in float64."""
        if self.rest is not None:
            return self.rest.diagonal()
        if self.direct is not None:
            total = torch.zeros(self.size, dtype=torch.float64, device=self.direct.index.device)
            return total.index_copy(0, self.direct.index.reshape(-1), self.direct.diagonal().reshape(-1))
        return diagonal_of(self._factors, self.size)

    def times(self, vectors: Tensor) -> Tensor:
        """Its products with vectors [v, params], in float64."""
        if self.rest is not None:
            return self.rest.times(vectors)
        return gram_times(self._factors, vectors, self.size)

    def matrix(self) -> Matrix:
        """All of it [params, params], in float64."""
        if self.rest is not None:
            return self.rest.matrix()
        gram = Gram(self.size, self._factors.dense_index.device)
        gram.add(self._factors.without_entries())
        return gram.matrix()

    def symmetric(self) -> Symmetric:
        """The entries of it that are not zero, where these are few."""
        return symmetric_of(self._factors, self.size) if self.rest is None else self.rest.symmetric()

    def over(self, chosen: Tensor) -> "Columns":
        """The same over some of the free coordinates, by their place among them; the others are held."""
        if self.rest is not None:
            return Columns(len(chosen), rest=self.rest.over(chosen))
        factors = restrict(self._factors, chosen, self.size)
        return Columns(len(chosen), factors=factors, data=self.data, with_inputs=self.with_inputs)

    @property
    def _factors(self) -> Factors:
        if self.factors is not None:
            return self.factors
        assert self.direct is not None
        return self.direct.factors()
