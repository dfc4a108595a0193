"""The root of a curvature, factored: captured pairs of inputs and output gradients, and dense columns for the rest.

Axis letters: n data, k columns of the root (for every output of a datum, or every label), t positions that share a
weight, i inputs, o outputs, d dense coordinates. Row (n, k) of the root A in the coordinates of a product is
``sum_t g[n,k,t,o] a[n,t,i]``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from pyro_laplace.capture.anchor import Point
from pyro_laplace.capture.contraction import Scale, Use
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.curvature.root import Root
from pyro_laplace.reading.gradients import Gradients, dense_rows
from pyro_laplace.reading.verification import independent

STREAMED = 2**22
"""Elements of gradients at a time for whoever adds up column after column."""

TOGETHER = 2**25
"""The same for whoever pays for every slice of columns."""


@dataclass(frozen=True, eq=False)
class Product:
    """The root in the coordinates of one product, or of a product and its bias.

    Attributes:
        index: free coordinates [o, i].
        inputs: a [n, t, i].
        gradients: g [n, k, t, o]; k lies outermost in memory.
        has_bias: whether the last input is the 1 of a bias.
    """

    index: Tensor
    inputs: Tensor
    gradients: Tensor
    has_bias: bool = False

    @property
    def shared(self) -> bool:
        """Whether a datum uses the weight at more than one position."""
        return self.inputs.shape[1] > 1

    def rows(self) -> Tensor:
        """The root's rows [n, k, o * i]."""
        return torch.einsum("nkto,nti->nkoi", self.gradients, self.inputs).flatten(2)


@dataclass(frozen=True, eq=False)
class Factors:
    """Some columns of the root of one observed site on one chunk.

    Attributes:
        products: captured coordinates.
        dense_index: free coordinates [d] that were not captured.
        dense: rows [n, k, d] in them for the columns that `products` have.
        dense_only: further rows [r, d] in which the captured coordinates are zero.
    """

    products: list[Product]
    dense_index: Tensor
    dense: Tensor
    dense_only: Tensor


@dataclass(frozen=True, eq=False)
class Layer:
    """A product before its gradients are known."""

    index: Tensor
    inputs: Tensor
    use: Use
    has_bias: bool


@dataclass(frozen=True, eq=False)
class Factored:
    """A curvature's root on a chunk, whose program has been found to have the structure that factors need.

    Attributes:
        run: the program's run.
        root: the curvature's root.
        gradients: of its columns, by observed site.
        layers: the products with the free sites' entries.
        scales: the free sites' entries that meet an activation of their own.
        scale_index: their coordinates in theta, ascending.
        dense_index: coordinates in theta that were not captured.
        position: of each coordinate of theta among the free ones.
    """

    run: CapturedRun
    root: Root
    gradients: dict[str, Gradients]
    layers: list[Layer]
    scales: list[Scale]
    scale_index: Tensor
    dense_index: Tensor
    position: Tensor

    def factors(self, elements: int = TOGETHER) -> Iterator[Factors]:
        """The factors of each observed site that the root covers.

        Args:
            elements: of gradients that are held at a time; where all columns have more, they come in slices.

        Yields:
            columns of the root, whose A'A add up.
        """
        live = self.root.live()
        dense = dense_rows(self.run, self.root, self.dense_index)
        for name, gradients in self.gradients.items():
            for factors in self._of_site(gradients, dense[name], elements):
                yield factors if bool(live.all()) else _of_data(factors, live)

    def _of_site(self, gradients: Gradients, rows: Tensor, elements: int) -> Iterator[Factors]:
        others = torch.ones(gradients.count, dtype=torch.bool, device=rows.device)
        others[gradients.columns] = False
        rest = functional.pad(rows[:, others].flatten(0, 1), (0, len(self.scale_index)))
        rest = rest[(rest != 0).any(1)]
        loose = self.position[torch.cat([self.dense_index, self.scale_index])]
        for columns, found in gradients.slices(elements):
            products = [
                Product(
                    self.position[layer.index],
                    layer.inputs,
                    layer.use.positions(found[id(layer.use.output)]).transpose(0, 1),
                    layer.has_bias,
                )
                for layer in self.layers
            ]
            scaled = _scaled(self.scales, self.scale_index, found, (len(rows), len(columns)))
            yield Factors(products, loose, torch.cat([rows[:, columns], scaled], -1), rest)
            rest = rest[:0]


def factor(run: CapturedRun, root: Root, point: Point | None = None, check: bool = True) -> Factored | None:
    """Factor a curvature's root; None where the program does not have the structure that this needs.

    Args:
        run: the program's run, captured.
        root: on its chunk.
        point: theta and its free coordinates, whole sites, if not all of the run's.
        check: whether to find out that rows are independent and all uses seen, unless another run of the pass has.

    Returns:
        the factored root, or None.
    """
    program, point = run.program, (run.point if point is None else point)
    counts = {site_root.num_obs for site_root in root.sites.values()}
    count = counts.pop() if len(counts) == 1 else None
    if run.capture is None or count is None:
        return None
    captured = run.capture.captured(count, lambda: _first_datum(run, root))
    free = point.sites(program)
    uncaptured = {name for name in free if program.latents[name].constrained} | (captured.opaque & free)
    if captured.scales and captured.uses:  # a scale and a weight at once
        weights = torch.cat([use.index.reshape(-1) for use in captured.uses])
        twice = (each for each in captured.scales if bool(torch.isin(each.index, weights).any()))
        uncaptured |= {run.site_of(each.index) for each in twice}
    names = free - uncaptured
    uses = [use for use in captured.uses if run.site_of(use.index) in names]
    scales = [scale for scale in captured.scales if run.site_of(scale.index) in names]
    outputs = [each.output for each in (*uses, *scales)]
    gradients = {name: Gradients.of_site(run, name, site, outputs) for name, site in root.sites.items()}
    if check and ("rows", names) not in run.verdicts:
        run.verdicts["rows", names] = independent(run, gradients, uses, scales, names, STREAMED)
    if check and not run.verdicts["rows", names]:
        return None
    held = [torch.arange(place.start, place.stop) for name, place in program.layout.items() if name in uncaptured]
    nothing = torch.zeros(0, dtype=torch.long, device=point.theta.device)
    return Factored(
        run,
        root,
        gradients,
        layers_of(uses),
        scales,
        torch.cat([nothing, *(scale.index for scale in scales)]).unique(),
        torch.cat([nothing, *(each.to(nothing) for each in held)]),
        point.positions(),
    )


def _first_datum(run: CapturedRun, root: Root) -> Tensor:
    with torch.enable_grad():
        first = sum(site.by_datum(run.run.observed[name])[0][0].sum() for name, site in root.sites.items())
    return torch.as_tensor(first)


def _of_data(factors: Factors, live: Tensor) -> Factors:
    """Without the data that weigh nothing: Kronecker factors, whose inputs carry no weight, must not see them."""
    products = [replace(p, inputs=p.inputs[live], gradients=p.gradients[live]) for p in factors.products]
    return replace(factors, products=products, dense=factors.dense[live])


def layers_of(uses: list[Use]) -> list[Layer]:
    """A product and the bias that is added to it share their output's gradient: one product, with a 1 appended to a."""
    joined: dict[int, list[Use]] = {}
    for use in uses:
        joined.setdefault(id(use.output), []).append(use)
    return [layer for group in joined.values() for layer in _join(group)]


def _join(group: list[Use]) -> list[Layer]:
    weights, biases = [use for use in group if not use.bias], [use for use in group if use.bias]
    if len(weights) == len(biases) == 1:
        (weight,), (bias,) = weights, biases
        if len(weight.index) == len(bias.index) and weight.inputs.shape[1] == bias.inputs.shape[1]:
            index = torch.cat([weight.index, bias.index], 1)
            return [Layer(index, _beside(weight.inputs, bias.inputs), weight, has_bias=True)]
    return [Layer(use.index, use.inputs, use, has_bias=False) for use in group]


def _beside(left: Tensor, last: Tensor) -> Tensor:
    """[left, last] along the last axis: a view where `last`, a single column, follows `left` in memory as it is."""
    follows = last.storage_offset() == left.storage_offset() + left.shape[-1] and left.stride(-1) == 1
    shared = last.untyped_storage().data_ptr() == left.untyped_storage().data_ptr()
    if shared and follows and left.stride()[:-1] == last.stride()[:-1]:
        return left.as_strided((*left.shape[:-1], left.shape[-1] + 1), left.stride(), left.storage_offset())
    return torch.cat([left, last], -1)


def _scaled(scales: list[Scale], index: Tensor, found: dict[int, Tensor], shape: tuple[int, int]) -> Tensor:
    """Rows of the root [n, k, d] in the coordinates of scales, float64; those of one used more than once add up."""
    total = torch.zeros(*shape, len(index), dtype=torch.float64, device=index.device)
    for scale in scales:
        rows = scale.rows(found[id(scale.output)]).transpose(0, 1).double()
        total.index_add_(2, torch.searchsorted(index, scale.index), rows)
    return total
