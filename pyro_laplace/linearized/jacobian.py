"""The linear predictor at given inputs, and its Jacobian as the pairs that the program's operations show.

Axis letters: n data, k outputs of a datum, t positions that share a weight, o and i outputs and inputs of a product, s
draws. Row (n, k) of the Jacobian in the coordinates of a product is ``sum_t g[n,k,t,o] a[n,t,i]``; a column that was
had in another way is a product whose input is one.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._autodiff import vmapped
from pyro_laplace._errors import LaplaceWarning
from pyro_laplace._memory import refuse_too_large
from pyro_laplace.likelihood import Likelihood
from pyro_laplace.likelihood.gaussian import GaussianEta
from pyro_laplace.linearized.covariance import Spread
from pyro_laplace.linearized.marginal import chunks_of_draws, is_regular, triangular
from pyro_laplace.reading.records import Product
from pyro_laplace.settings import settings
from pyro_laplace.sparse.rows import Triplets
from pyro_laplace.structure.precision import Precision


@dataclass(frozen=True, eq=False)
class Linearized:
    """One observed site at given inputs: ``eta(theta*) + J (theta - theta*)``.

    Attributes:
        fn: the site's distribution at the mode.
        likelihood: the same, seen through its wrappers.
        eta: its parameters at the mode `[*base batch, outputs]`.
        kept: the outputs that depend on random sites; a known noise scale does not.
        pieces: gives J, some data after the other: products over the random coordinates, -1 for one that is not random.
        spread: gives the covariance of such products.
    """

    fn: Any
    likelihood: Likelihood
    eta: Tensor
    kept: Tensor
    pieces: Callable[[], Iterator[list[Product]]]
    spread: Spread

    @property
    def batch(self) -> torch.Size:
        """The site's batch shape: its data."""
        return self.fn.batch_shape

    @property
    def base(self) -> torch.Size:
        """The data with the entries of each."""
        return self.eta.shape[:-1]

    @property
    def num_data(self) -> int:
        """Length n of the first axis of the data; 1 where there is none."""
        return self.batch[0] if self.batch else 1

    @property
    def outputs_of_datum(self) -> int:
        """Number of kept outputs of all entries of a datum."""
        return self.base[len(self.batch) :].numel() * len(self.kept)

    @cached_property
    def mean(self) -> Tensor:
        """The linear predictor at the mode [n, k]."""
        whole = len(self.kept) == self.eta.shape[-1]
        return (self.eta if whole else self.eta[..., self.kept]).reshape(self.num_data, -1)

    def variance(self) -> Tensor:
        """Variances of each entry's outputs `[*base, kept]`, in the dtype of the predictor."""
        parts = [self.spread.variance(products) for products in self.pieces()]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.to(self.eta).reshape(*self.base, len(self.kept))

    def covariance_of_entry(self) -> Tensor:
        """Covariances of the outputs of one entry `[*base, kept, kept]`."""
        return self._covariance(len(self.kept)).reshape(*self.base, len(self.kept), len(self.kept))

    def covariance_of_datum(self) -> Tensor:
        """Covariances of the outputs of all entries of a datum, one entry after the other `[*batch, size, size]`."""
        size = self.outputs_of_datum
        return self._covariance(size).reshape(*self.batch, size, size)

    def covariance_of_all(self) -> Tensor:
        """Covariances of all data's outputs [n k, n k]."""
        n, k = self.mean.shape
        refuse_too_large((n * k) ** 2, 16, f"the joint covariance [{n * k}, {n * k}]", "give fewer inputs at a time")
        return self.spread.joint(joined_data(self.pieces())).to(self.mean)

    def changes(self, deviation: Tensor) -> Tensor:
        """``J d`` [s, n, k] for deviations d [s, params] from the mode."""
        return torch.cat([shift(products, deviation) for products in self.pieces()], 1)

    def elements_of_draw(self) -> int:
        """About how many elements `changes` has in memory for each deviation."""
        products = next(self.pieces())
        return max(product.index.numel() + product.gradients[:, 0].numel() for product in products)

    def gaussian(self, site: str, num_samples: int, together: Callable[[], Iterator[Tensor]]) -> GaussianEta:
        """What a family is told of it.

        Its draws are of each datum's own Gaussian, unless draws of theta cost less.

        Args:
            site: its name.
            num_samples: how many draws it has.
            together: gives so many draws of the predictor's change, some after the others `[some, n, k]`, of which one
                has one theta for all data.

        Returns:
            eta, Gaussian.
        """
        event = self.base[len(self.base) - self.likelihood.event_dims :]
        changes = partial(self._apart, num_samples, together) if self._apart_is_cheaper(num_samples) else together
        return GaussianEta(
            site=site,
            mean=self.eta,
            kept=self.kept,
            event=event,
            variance=self.variance,
            covariance=self.covariance_of_entry,
            joint=self.covariance_of_datum,
            draws=lambda: (self.eta + self.embed(change) for change in changes()),
        )

    def _apart(self, num_samples: int, together: Callable[[], Iterator[Tensor]]) -> Iterator[Tensor]:
        """Draws of the predictor's change, of each datum by itself.

        Where gradients are to flow, and the root of a covariance has none, they are `together`'s, which are linear.

        Yields:
            some after the others `[some, n, k]`.
        """
        size = self.outputs_of_datum
        covariances = self._covariance(size, torch.float64).flatten(0, 1)
        certain = self.mean.isinf().reshape(-1, size)
        if covariances.requires_grad and not is_regular(covariances, certain):
            yield from together()
            return
        step = max(1, settings.pass_elements // size**2)
        pairs = zip(covariances.split(step), certain.split(step), strict=True)
        root = torch.cat([triangular(*some).to(self.mean) for some in pairs])
        for change in chunks_of_draws(root, num_samples):
            yield change.reshape(len(change), *self.mean.shape)

    def _apart_is_cheaper(self, num_samples: int) -> bool:
        """Whether the covariances of data, their roots and draws cost less than draws of theta."""
        n, k = self.mean.shape
        size = self.outputs_of_datum
        of_draws = num_samples * n * k * (size + settings.noise_work)
        apart = self.spread.work(n, k) + n * k * size**2 + of_draws
        return apart <= num_samples * self.spread.work_of_draw(n, k)

    def embed(self, change: Tensor) -> Tensor:
        """A change of the predictor `[*lead, n, k]` as one of eta `[*lead, *base, outputs]`."""
        part = change.reshape(*change.shape[:-2], *self.base, len(self.kept))
        if len(self.kept) == self.eta.shape[-1]:
            return part
        whole = part.new_zeros(*part.shape[:-1], self.eta.shape[-1])
        return whole.index_copy(-1, self.kept.to(part.device), part)

    def _covariance(self, size: int, dtype: torch.dtype | None = None) -> Tensor:
        """Diagonal blocks [n, b, size, size] of the covariance of each n, in the predictor's dtype or another."""
        covariance = torch.cat([self.spread.covariance(products) for products in self.pieces()])
        covariance = covariance.to(self.mean.device, dtype or self.mean.dtype)
        n, k = covariance.shape[:2]
        if k == size:
            return covariance.unsqueeze(1)
        parts = covariance.reshape(n, k // size, size, k // size, size)
        return parts.diagonal(dim1=1, dim2=3).movedim(-1, 1)


@dataclass(frozen=True, eq=False)
class LinearizedPositions(Linearized):
    """The same with `pieces` that have a position, and not a datum, for row n."""

    def covariance_of_datum(self) -> Tensor:
        """Of all positions of a datum, whose rows are in their product's positions t."""
        size = self.outputs_of_datum
        self._refuse(self.num_data * size**2, f"covariances [{self.num_data}, {size}, {size}] of all positions of data")
        return self.spread.covariance(list(self._by_datum())).to(self.mean).reshape(*self.batch, size, size)

    def covariance_of_all(self) -> Tensor:
        """Of all data together."""
        size = self.mean.numel()
        self._refuse(size**2, f"the joint covariance [{size}, {size}]")
        return self.spread.joint(list(self._by_datum())).to(self.mean)

    def _apart_is_cheaper(self, num_samples: int) -> bool:
        """Draws are of theta, so that a datum's positions are drawn together."""
        return False

    def _refuse(self, numel: int, what: str) -> None:
        refuse_too_large(numel, 8, what, "predict fewer inputs at a time, or ask for draws: .sample(...)")

    def _by_datum(self) -> Iterator[Product]:
        """The products with a datum for row n: output (p, o) has a gradient at position p alone."""
        (products,) = self.pieces()
        number = self.base[len(self.batch) :].numel()
        for product in products:
            k, o = product.gradients.shape[1], product.gradients.shape[3]
            own = torch.eye(number).to(product.gradients).reshape(number, 1, number, 1)  # p - t -
            rows = (own * product.gradients[0].reshape(1, k, 1, o)).reshape(number * k, number, o)
            inputs = product.inputs.reshape(self.num_data, number, -1)
            yield Product(product.index, inputs, rows.expand(self.num_data, -1, -1, -1), product.has_bias)


@dataclass(frozen=True, eq=False)
class LinearizedApart(Linearized):
    """The same with some positions (tokens, pixels) of all data at a time, where all layers lead to these.

    Each output of a position is a backward pass, for all data at once, whose rows are used and forgotten: what a
    position by itself needs is exact, in the memory of one position. `pieces`, some data at a time with what their
    positions share, may be refused by their size; draws have that too.

    Attributes:
        site: its name.
        positions: gives J, some positions after the other: products [n, k] of some positions' outputs.
        push: J v of a vector v over the random coordinates [n, k].
        elements: that it has in memory.
    """

    site: str
    positions: Callable[[], Iterator[list[Product]]]
    push: Callable[[Tensor], Tensor]
    elements: int

    def variance(self) -> Tensor:
        """Position after position."""
        self._say_how_many()
        parts = [self.spread.variance(products) for products in self.positions()]
        return torch.cat(parts, 1).to(self.eta).reshape(*self.base, len(self.kept))

    def changes(self, deviation: Tensor) -> Tensor:
        """By forward mode: a draw moves all positions in one pass."""
        return vmapped(self.push, deviation)

    def elements_of_draw(self) -> int:
        """What a pass over the data makes."""
        return self.elements

    def _say_how_many(self) -> None:
        if self.outputs_of_datum > settings.exact_columns:
            warnings.warn(
                f"the predictive of all layers has {self.outputs_of_datum} outputs a datum for {self.site!r}, a pass "
                "backward each. Draws cost one pass for all of them: .sample(...); a posterior of "
                "subset='last_layer' costs none",
                LaplaceWarning,
                stacklevel=2,
            )

    def _apart_is_cheaper(self, num_samples: int) -> bool:
        """Draws are of theta, so that a datum's positions are drawn together."""
        return False

    def _covariance(self, size: int, dtype: torch.dtype | None = None) -> Tensor:
        """Of the outputs of one position."""
        if size != len(self.kept):
            return super()._covariance(size, dtype)
        self._say_how_many()
        parts = []
        for products in self.positions():
            covariance = self.spread.covariance(products)  # n, positions x outputs, positions x outputs
            blocks = covariance.unflatten(2, (-1, size)).unflatten(1, (-1, size))
            parts.append(blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1))
        return torch.cat(parts, 1).to(self.mean.device, dtype or self.mean.dtype)


@dataclass(frozen=True, eq=False)
class SparselyLinearized(Linearized):
    """The same, by the entries of J that are not zero; `pieces` are of few data each, and serve draws alone.

    Attributes:
        entries: of J [n k, params].
        precision: Lambda over the random coordinates.
    """

    entries: Triplets
    precision: Precision

    def variance(self) -> Tensor:
        """From entries of Sigma."""
        return self._covariance(1, self.eta.dtype).reshape(*self.base, len(self.kept))

    def covariance_of_all(self) -> Tensor:
        """By solves."""
        rows, size = self.mean.numel(), self.precision.size
        refuse_too_large(rows**2, 16, f"the joint covariance [{rows}, {rows}]", "give fewer inputs at a time")
        own, parts = self.entries, []
        step = max(1, settings.pass_elements // max(1, size, len(own.value)))
        for start in range(0, rows, step):
            some = ((own.row >= start) & (own.row < start + step)).nonzero()[:, 0]
            unit = own.value.new_zeros(min(step, rows - start), size)
            unit[own.row[some] - start, own.col[some]] = own.value[some]
            solved = self.precision.solve(unit).mT[own.col] * own.value.unsqueeze(1)
            parts.append(solved.new_zeros(rows, len(unit)).index_add_(0, own.row, solved))
        return torch.cat(parts, 1).to(self.mean)

    def _apart_is_cheaper(self, num_samples: int) -> bool:
        """Entries of Sigma cost less than draws."""
        return True

    def _covariance(self, size: int, dtype: torch.dtype | None = None) -> Tensor:
        """``sum_ij J_ai Sigma_ij J_bj`` over the pairs of entries of rows a and b of one block."""
        own, blocks = self.entries, self.mean.numel() // size
        block = own.row // size
        counts = torch.bincount(block, minlength=blocks)
        pairs = counts.square().cumsum(0)
        total = torch.zeros(blocks * size**2, dtype=torch.float64, device=own.value.device)
        for number in (pairs // settings.pass_elements).unique():
            left, right = _pairs_of(block, counts, pairs // settings.pass_elements == number)
            sigma = self.precision.covariance_at(own.col[left], own.col[right])
            place = block[left] * size**2 + own.row[left] % size * size + own.row[right] % size
            total.index_add_(0, place, own.value[left] * own.value[right] * sigma)
        n = len(self.mean)
        return total.reshape(n, -1, size, size).to(self.mean.device, dtype or self.mean.dtype)


def _pairs_of(block: Tensor, counts: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of entries, ascending by block, that lie in one of the chosen blocks."""
    begin = counts.cumsum(0) - counts
    own = chosen[block].nonzero()[:, 0]
    times = counts[block[own]]
    left = own.repeat_interleave(times)
    within = torch.arange(len(left), device=left.device) - (times.cumsum(0) - times).repeat_interleave(times)
    return left, begin[block[left]] + within


def joined_data(pieces: Iterable[list[Product]]) -> list[Product]:
    """The pieces' data behind one another."""
    return [
        replace(
            parts[0],
            inputs=torch.cat([part.inputs for part in parts]),
            gradients=torch.cat([part.gradients for part in parts]),
        )
        for parts in zip(*pieces, strict=True)
    ]


def shift(products: list[Product], deviation: Tensor) -> Tensor:
    """``J d`` [s, n, k] for deviations d [s, params] from the mode."""
    padded = torch.nn.functional.pad(deviation, (0, 1))  # what an index of -1 takes
    total = torch.zeros((), dtype=deviation.dtype, device=deviation.device)
    for product in products:
        weights = padded[:, product.index].permute(2, 1, 0).flatten(1)  # i (o s)
        inner = (product.inputs @ weights).unflatten(-1, (-1, len(deviation))).flatten(1, 2)  # n (t o) s
        total = total + (product.gradients.flatten(2) @ inner).movedim(-1, 0)
    return total
