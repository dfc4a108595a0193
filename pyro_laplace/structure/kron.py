"""The Kronecker-factored curvature: two factors for every layer, a dense matrix for coordinates in no layer.

What the factors are is said in `kron_factors`, and the precision that they make with a prior in `kron_block`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_laplace._errors import InvalidOption, UnsupportedProgram
from pyro_laplace._memory import refuse_too_large
from pyro_laplace._typing import State
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.reading.columns import Columns
from pyro_laplace.reading.prior import Prior
from pyro_laplace.settings import settings
from pyro_laplace.structure.block import Block
from pyro_laplace.structure.dense import dense_posterior
from pyro_laplace.structure.diag_block import DiagBlock
from pyro_laplace.structure.kron_block import KronBlock
from pyro_laplace.structure.kron_factors import KronFactors, by_weight
from pyro_laplace.structure.options import Kron
from pyro_laplace.structure.precision import Precision
from pyro_laplace.structure.sum import NeedsDouble, Sum

_NO_LAYER = "use structure='sparse' where these are groups, pl.LowRank(rank), 'diag', or fewer sites (subset=)"


class KronSum(Sum):
    """Factors by layer, and the matrix of what no product holds.

    Args:
        anchor: theta and its free coordinates, whole sites.
        shared: how positions that share a weight count, "expand" or "reduce".
        dtype: of the products that are summed up.
    """

    needs_root: ClassVar[bool] = True
    needs_products: ClassVar[bool] = True
    takes_direct: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def __init__(self, anchor: Anchor, shared: str, dtype: torch.dtype) -> None:
        self.anchor, self.shared, self.dtype = anchor, shared, dtype
        self.rounding = torch.finfo(dtype).eps  # relative, of the coarsest products that were summed
        self.layers: list[KronFactors] = []
        self.index = anchor.index[:0]
        self.matrix = torch.zeros(0, 0, dtype=torch.float64, device=anchor.theta.device)

    @classmethod
    def plan(
        cls, option: Any, anchor: Anchor, prior: Prior, exact: Sequence[str] = (), double: bool = False
    ) -> "KronSum":
        """Whole sites, terms with a root, and float64 at once where a flat prior leaves nothing to hide rounding in.

        Returns:
            the empty sum.

        Raises:
            InvalidOption: if a site is free in part only.
            UnsupportedProgram: if a term has no root.
        """
        partial = [name for name in anchor.touched if name not in anchor.whole_sites]
        if partial:
            raise InvalidOption(
                f"structure='kron' covers whole sites, and the subset holds a part of sites {partial}: use 'full', "
                "'block' or 'diag'"
            )
        if exact:
            raise UnsupportedProgram(
                f"structure='kron' has no place for the exact Hessian of {list(exact)} (a pyro.factor, or a "
                "distribution without Fisher information): use structure='full' or 'diag'"
            )
        exactly = double or not bool((prior.diagonal > 0).all())
        dtype = torch.float64 if exactly else anchor.theta.dtype
        return cls(anchor, option.shared if isinstance(option, Kron) else "expand", dtype)

    def add(self, columns: Columns) -> None:
        """Add products to their layers, and dense columns to the matrix.

        Args:
            columns: of a chunk.

        Raises:
            UnsupportedProgram: if the program's operations cannot be captured.
        """
        if columns.direct is not None:
            self._layer(columns.direct.index, columns.direct.has_bias).add_direct(
                columns.direct, self.shared, self.dtype
            )
            return
        factors = None if columns.factors is None else columns.factors.without_entries()
        if factors is None:
            raise UnsupportedProgram(
                f"structure='kron' needs products of data with the weights of sites {list(self.anchor.touched)}, one "
                "row a datum, and the operations of this program could not be captured as such: use structure='full' "
                "or 'diag'"
            )
        for product in by_weight(factors.products):
            layer = self._layer(product.index, product.has_bias, columns.data)
            layer.add(product, self.shared, columns.with_inputs, self.dtype)
        if len(factors.dense_index):
            places = self._places_of(factors.dense_index)
            rows = torch.cat([factors.dense.flatten(0, 1), factors.dense_only]).double()
            wide = rows.new_zeros(len(rows), len(self.index)).index_copy_(1, places, rows)
            self.matrix.addmm_(wide.mT, wide)

    def merge(self, other: "KronSum") -> None:
        """Factors and counts add up.

        Args:
            other: the sum over other data.

        Raises:
            UnsupportedProgram: if it has other layers.
        """
        theirs = [each for own in self.layers for each in other.layers if each.is_over(own.index)]
        if not len(self.layers) == len(theirs) == len(other.layers):
            raise UnsupportedProgram(
                "the new data use the weights by other operations than the data of the fit did: fit all data jointly"
            )
        for own, each in zip(self.layers, theirs, strict=True):
            own.merge(each)
        self._add_dense(other.index, other.matrix)
        self._work_like(other)

    @classmethod
    def weighted(cls, parts: Sequence[tuple["KronSum", float]]) -> "KronSum":
        """Terms over the same data have the same inputs: their gradients' factors add up. Over other data both do."""
        first = parts[0][0]
        total = cls(first.anchor, first.shared, first.dtype)
        if len(parts) == 1:
            total._work_like(first)
            total.layers = [layer.scaled(parts[0][1]) for layer in first.layers]
            total.index, total.matrix = first.index, first.matrix * parts[0][1]
            return total
        for part, factor in parts:
            total._work_like(part)
            for layer in part.layers:
                total._layer(layer.index, layer.has_bias).add_term(layer, factor)
            total._add_dense(part.index, part.matrix * factor)
        return total

    def state(self) -> State:
        """The factors of each layer, and the matrix."""
        layers = [layer.state() for layer in self.layers]
        precision = {"double": self.dtype == torch.float64, "rounding": self.rounding}
        return {"shared": self.shared, **precision, "layers": layers, "index": self.index, "matrix": self.matrix}

    @classmethod
    def from_state(cls, state: State, anchor: Anchor) -> "KronSum":
        """What `state` gave."""
        total = cls(anchor, state["shared"], torch.float64 if state["double"] else anchor.theta.dtype)
        total.rounding = state["rounding"]
        total.layers = [KronFactors.from_state(layer) for layer in state["layers"]]
        total.index, total.matrix = state["index"], state["matrix"].clone()
        return total

    def times(self, vectors: Tensor) -> Tensor:
        """``(B (x) A / count) v`` by layer."""
        v = vectors.to(self.matrix)
        total = torch.zeros_like(v)
        for layer in self.layers:
            index = layer.index.reshape(-1)
            total[:, index] = layer.times(v[:, index])
        total[:, self.index] = v[:, self.index] @ self.matrix
        return total

    def posterior(self, prior: Prior) -> Block:
        """A Kronecker product for every layer, whose prior is whitened into its factors, and a dense block.

        Args:
            prior: of whose diagonal each layer's part is an outer product.

        Returns:
            the blocks.

        Raises:
            NeedsDouble: if rounding of the sums counts against this prior.
        """
        unreached = self._unreached()
        if self.layers and not prior.is_diagonal:
            self._refuse_coupled(prior)
        placed: list[tuple[Tensor, Block]] = [block for layer in self.layers for block in self._blocks(layer, prior)]
        if self.rounding > torch.finfo(torch.float64).eps:
            self._refuse_rounding(placed)
        if len(self.index):
            everything = torch.arange(len(self.index), device=self.index.device)
            anchor = self.anchor.only(self.index)
            placed.append((self.index, dense_posterior(self.matrix, everything, prior.over(self.index), anchor)))
        if len(unreached):
            placed.append((unreached, self._of_prior(unreached, prior.over(unreached))))
        return Precision(placed)

    def _of_prior(self, index: Tensor, prior: Prior) -> Block:
        """Coordinates that the data say nothing of, such as the rows of a table that none of them looks up."""
        if not prior.is_diagonal or not bool((prior.diagonal > 0).all()):
            raise UnsupportedProgram(
                f"structure='kron': parts of sites {self.anchor.names_of(index)} do not reach the observed sites, and "
                "their prior is flat or couples them: use structure='full' or 'diag', or give them another prior"
            )
        return DiagBlock(prior.diagonal)

    def _layer(self, index: Tensor, has_bias: bool, data: str = "") -> KronFactors:
        """The factors over these coordinates, which may be new ones."""
        found = next((layer for layer in self.layers if layer.is_over(index)), None)
        if found is None:
            out, fan_in = index.shape
            refuse_too_large(
                out**2 + fan_in**2,
                8,
                f"structure='kron': the factors [{out}, {out}] and [{fan_in}, {fan_in}] of sites "
                f"{self.anchor.names_of(index.reshape(-1))}",
                "leave these out (subset=, or a prior of None for them), or use structure='diag'",
            )
            found = KronFactors.empty(index, has_bias, frozenset({data} if data else ()))
            self.layers.append(found)
        return found

    def _places_of(self, index: Tensor) -> Tensor:
        """Where coordinates that no product holds lie in the matrix, which makes room; they are in ascending order."""
        known = torch.cat([self.index, index]).unique()
        if len(known) > len(self.index):
            size = len(known)
            refuse_too_large(size**2, 8, f"the curvature [{size}, {size}] of uncaptured sites", _NO_LAYER)
            total = torch.zeros(size, size, dtype=torch.float64, device=index.device)
            places = torch.searchsorted(known, self.index)
            total[places.unsqueeze(1), places] = self.matrix
            self.index, self.matrix = known, total
        return torch.searchsorted(self.index, index)

    def _add_dense(self, index: Tensor, matrix: Tensor) -> None:
        """Add the curvature of coordinates that no product holds."""
        places = self._places_of(index)
        self.matrix[places.unsqueeze(1), places] += matrix

    def _work_like(self, other: "KronSum") -> None:
        """Take over the finer dtype to work in, and the coarser rounding."""
        self.dtype = torch.promote_types(self.dtype, other.dtype)
        self.rounding = max(self.rounding, other.rounding)

    def _blocks(self, layer: KronFactors, prior: Prior) -> Iterator[tuple[Tensor, Block]]:
        """One block for a weight and its bias where the prior factorises over both, else one for each.

        It must do so whatever its hyperparameters are: a form that their values decide would jump as these are learned.

        Args:
            layer: the layer's factors.
            prior: of which each part is an outer product.

        Yields:
            coordinates and block.

        Raises:
            UnsupportedProgram: if a part is no outer product, naming its sites.
        """
        diagonal, generic = prior.diagonal, prior.generic
        split = _outer(diagonal[layer.index])
        if generic is not None and _outer(generic[layer.index]) is None:
            split = None
        if split is None and layer.has_bias:
            parts = layer.without_last_input()
            splits = [_outer(diagonal[part.index]) for part in parts]
        else:
            parts, splits = (layer,), [split]
        for part, factors in zip(parts, splits, strict=True):
            index = part.index.reshape(-1)
            if factors is None:
                raise UnsupportedProgram(
                    f"structure='kron': the prior precision of sites {self.anchor.names_of(index)} is not an outer "
                    "product of one vector over outputs and one over inputs: use structure='full' or 'diag', or a "
                    "prior that is (isotropic, by output, by input)"
                )
            yield index, KronBlock(*part.pair(*factors, self.dtype), part.count)

    def _refuse_rounding(self, placed: list[tuple[Tensor, Block]]) -> None:
        for index, block in placed:
            assert isinstance(block, KronBlock)
            found = self.rounding * float(block.eigenvalues.max())
            if found >= settings.kron_rounding:
                raise NeedsDouble(
                    f"structure='kron': the sums over data of sites {self.anchor.names_of(index)} were made in "
                    f"{self.anchor.theta.dtype}, whose rounding is {found:.2g} of this prior's precision: fit again "
                    "under 'with pl.settings.using(kron_rounding=1e-9)', which makes them in float64"
                )

    def _unreached(self) -> Tensor:
        """The coordinates that nothing was seen of; those that were seen twice are refused."""
        together = torch.cat([self.index, *(layer.index.reshape(-1) for layer in self.layers)])
        counts = torch.bincount(together, minlength=self.anchor.size)
        twice = (counts > 1).nonzero()[:, 0]
        if len(twice):
            raise UnsupportedProgram(
                f"structure='kron': products of sites {self.anchor.names_of(twice)} share a part of a weight, or are "
                "captured as such in some chunks of the data only (position embeddings of batches of several lengths): "
                "use structure='full' or 'diag', or leave them out (subset=, or a prior of None for them)"
            )
        return (counts == 0).nonzero()[:, 0]

    def _refuse_coupled(self, prior: Prior) -> None:
        """Refuse a prior whose Hessian couples entries of captured weights, with one another or with other sites."""
        index = torch.cat([layer.index.reshape(-1) for layer in self.layers])
        if not prior.over(index).is_diagonal:
            raise UnsupportedProgram(
                f"structure='kron': the prior couples the entries of sites {self.anchor.names_of(index)}, which a "
                "Kronecker product cannot hold: use structure='full'"
            )


def _outer(prior: Tensor) -> tuple[Tensor, Tensor] | None:
    """Vectors with prior [out, in] = d_out d_in', or None."""
    first = prior[0, 0]
    if bool((prior == first).all()):  # one number, most often, which may be zero
        return torch.ones_like(prior[:, 0]) * (first != 0), torch.full_like(prior[0], float(first))
    if not bool((prior > 0).all()):
        return None
    out_prior, in_prior = prior[:, 0] / prior[0, 0], prior[0]
    close = torch.allclose(out_prior.unsqueeze(-1) * in_prior, prior, rtol=settings.outer_prior)
    return (out_prior, in_prior) if close else None
