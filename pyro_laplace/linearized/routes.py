"""How rows of the Jacobian are had: read off the graph of a layer, from captured pairs, or row by row.

A route is chosen by what a run of the program shows, and never changes; each call gives the route to begin the next one
with, which is the same as long as the program has the same structure. What was found out once is known to it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pyro_laplace._autodiff import puller, pusher, unit_rows, vmapped
from pyro_laplace._compat.random import RandomState
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.curvature.root import Root, SiteRoot
from pyro_laplace.likelihood import Likelihood, require_likelihood
from pyro_laplace.linearized.covariance import Spread
from pyro_laplace.linearized.expansion import Expansion, some_data
from pyro_laplace.linearized.graph_layer import GraphLayer, graph_layer, layer_index
from pyro_laplace.linearized.jacobian import Linearized, LinearizedApart, LinearizedPositions, SparselyLinearized
from pyro_laplace.linearized.known import CapturedColumns, CaptureKey, Known, LayerColumns
from pyro_laplace.linearized.logits import operations_of, predictor, written_logits
from pyro_laplace.linearized.pairs import columns, products_by_position, products_of
from pyro_laplace.linearized.positions import are_many, refuse_all_outputs, rows_of_positions
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.run import Site
from pyro_laplace.reading.factors import Factored, factor
from pyro_laplace.reading.records import Product
from pyro_laplace.settings import settings
from pyro_laplace.sparse.rows import NotSparse, sparse_rows


class Route(ABC):
    """How rows of the Jacobian are had."""

    @abstractmethod
    def at(self, chunk: Chunk) -> "Step":
        """The observed sites at given inputs."""

    def informed(self, other: "Route") -> "Route":
        """The same, with what another posterior's route knows of the program's structures."""
        return self


@dataclass(frozen=True, eq=False)
class Step:
    """What a call gives.

    Attributes:
        route: that the next call begins with.
        sites: the observed sites.
    """

    route: Route
    sites: Mapping[str, Linearized]


def first_route(expansion: Expansion, differentiable: bool) -> Route:
    """The route that is likely, before any run.

    Args:
        expansion: what is linearised.
        differentiable: whether the results keep the graph that leads to the inputs.

    Returns:
        the route.
    """
    if differentiable:
        return FirstRoute(expansion, RowRoute(expansion))
    if expansion.is_sparse:
        return FirstRoute(expansion, EntryRoute(expansion))
    return FirstRoute(expansion, (LayerRoute if expansion.holds_sites else CapturedRoute)(expansion, Known()))


@dataclass(frozen=True, eq=False)
class FirstRoute(Route):
    """The first call, which also shows whether the predictor is another one at each call: random numbers are drawn."""

    expansion: Expansion
    likely: Route

    def informed(self, other: Route) -> Route:
        """The likely route, informed."""
        return replace(self, likely=self.likely.informed(other))

    def at(self, chunk: Chunk) -> Step:
        """By the likely route."""
        state = RandomState()
        step = self.likely.at(chunk)
        if not state.is_current():
            try:
                self.expansion.refuse_randomness(chunk)
            finally:
                state.restore()
        return step


@dataclass(frozen=True, eq=False)
class LayerRoute(Route):
    """Logits are a layer's output: seen on each run anew, which nothing has to watch."""

    expansion: Expansion
    known: Known

    def at(self, chunk: Chunk) -> Step:
        """By the layers; by a captured run where the program is something else at these inputs."""
        step = _by_layers(self.expansion, self.known, self.expansion.graph_run(chunk))
        return step or CapturedRoute(self.expansion, self.known).at(chunk)


@dataclass(frozen=True, eq=False)
class CapturedRoute(Route):
    """Pairs of inputs and output gradients of what consumes random sites; each structure is verified once."""

    expansion: Expansion
    known: Known

    def informed(self, other: Route) -> Route:
        """With the structures that were verified around another posterior."""
        return replace(self, known=self.known.beside(other.known)) if isinstance(other, CapturedRoute) else self

    def at(self, chunk: Chunk) -> Step:
        """From the pairs; by a layer where the run shows that it would have done, row by row where there are none."""
        run = self.expansion.captured_run(chunk)
        if (step := _by_layers(self.expansion, self.known, run)) is not None:
            return step
        captured, sites = dict(self.known.captured), {}
        for name, site in run.run.observed.items():
            sites[name] = _of_positions(self.expansion, run, site) or _of_pairs(self.expansion, run, site, captured)
        if None in sites.values():
            plain = self.expansion.sites(chunk)
            for name in [name for name, found in sites.items() if found is None]:
                refuse_all_outputs(plain[name], predictor(plain[name]))
            sites |= {n: _row_by_row(self.expansion, plain[n], chunk) for n, found in sites.items() if found is None}
        return Step(CapturedRoute(self.expansion, replace(self.known, captured=captured)), sites)


@dataclass(frozen=True, eq=False)
class RowRoute(Route):
    """Reverse mode, row by row: whatever the program does, and gradients flow to the inputs."""

    expansion: Expansion

    def at(self, chunk: Chunk) -> Step:
        """Of each site."""
        sites = self.expansion.sites(chunk)
        return Step(self, {name: _row_by_row(self.expansion, site, chunk) for name, site in sites.items()})


@dataclass(frozen=True, eq=False)
class EntryRoute(Route):
    """The few entries of each row, of a posterior that holds few entries itself; row by row where there are many."""

    expansion: Expansion

    def at(self, chunk: Chunk) -> Step:
        """Of each site."""
        sites = self.expansion.sites(chunk)
        return Step(self, {name: _by_entries(self.expansion, site, chunk) for name, site in sites.items()})


# --- by layers ------------------------------------------------------------------------------------


def _by_layers(expansion: Expansion, known: Known, run: CapturedRun) -> Step | None:
    """The sites of a run, where its graph shows that the logits of each are a layer's output."""
    layers, sites = dict(known.layers), {}
    for name, site in some_data(run.run.observed).items():
        with torch.enable_grad():
            likelihood = require_likelihood(name, site.fn)
            logits = written_logits(likelihood)
        if logits is None or site.fn.batch_shape != logits.shape[:-1]:
            return None
        layer = graph_layer(logits, run.leaves)
        if layer is None:
            return None
        key = name, layer.layout, logits.shape[-1], logits.dtype
        if key not in layers:
            layers[key] = _layer_columns(expansion, site, logits, layer, run.chunk)
        sites[name] = _of_layer(site, likelihood, logits, layer, layers[key])
    return Step(LayerRoute(expansion, replace(known, layers=layers)), sites)


def _layer_columns(expansion: Expansion, site: Site, logits: Tensor, layer: GraphLayer, chunk: Chunk) -> LayerColumns:
    """What a layer's rows have in common, whatever the inputs."""
    classes = logits.shape[-1]
    index = expansion.point.positions[layer_index(layer, classes, expansion.program.layout)]
    every = torch.arange(classes, device=logits.device)
    kept = every if expansion.whole_sites else expansion.moved_outputs(site.name, classes, chunk).to(logits.device)
    spread = Spread.of(expansion.precision, [index], layer.inputs.dtype)
    return LayerColumns(
        kept, torch.eye(classes).to(logits.detach())[kept], torch.ones_like(layer.inputs[:1, :1]), spread
    )


def _of_layer(site: Site, likelihood: Likelihood, eta: Tensor, layer: GraphLayer, known: LayerColumns) -> Linearized:
    inputs = layer.inputs
    if layer.bias is not None:
        inputs = torch.cat([inputs, known.one.expand(len(inputs), 1)], 1)
    gradients = known.basis.unsqueeze(1).expand(len(inputs), -1, -1, -1)  # n k 1 o
    product = Product(known.spread.indices[0], inputs.unsqueeze(1), gradients, layer.bias is not None)
    return Linearized(site.fn, likelihood, eta.detach(), known.kept, lambda: iter([[product]]), known.spread)


# --- by captured pairs ----------------------------------------------------------------------------


def _of_pairs(
    expansion: Expansion, run: CapturedRun, site: Site, known: dict[CaptureKey, CapturedColumns]
) -> Linearized | None:
    """A site by the pairs of a run, noted among what is known; None where the program has no such structure."""
    with torch.enable_grad():
        likelihood, eta = require_likelihood(site.name, site.fn), predictor(site)
    if not site.fn.batch_shape or not eta.requires_grad:
        return None
    structure = site.name, eta.shape[-1], operations_of(eta)
    before = known.get(structure)
    kept = _kept_outputs(expansion, run, site, likelihood, eta) if before is None else before.kept
    unit = torch.eye(eta.shape[-1], dtype=torch.float64, device=eta.device)[:, kept]
    vectors = unit.expand(*eta.shape[:-1], *unit.shape)
    root = SiteRoot(lambda other: eta if other is site else predictor(other), vectors)
    of_chunk = Root(expansion.program, run.chunk, {site.name: root})
    factored = factor(run, of_chunk, expansion.whole, check=before is None)
    if factored is None:
        return None
    if are_many(site, eta) and not len(factored.dense_index):
        return _apart(expansion, site, factored, eta, kept)
    refuse_all_outputs(site, eta)
    products = list(products_of(factored, site.name, eta, kept, expansion.random_places))
    spread = None if before is None else before.spread
    if spread is None:
        spread = _spread_of(expansion, products)
        known[structure] = CapturedColumns(kept, spread)
    spread = spread if spread.fits(products) else _spread_of(expansion, products)
    return Linearized(site.fn, likelihood, eta.detach(), kept, lambda: iter([products]), spread)


def _of_positions(expansion: Expansion, run: CapturedRun, site: Site) -> Linearized | None:
    """A site of many positions by the layer whose outputs they are; None where there is none."""
    found = rows_of_positions(run, site, expansion.whole if expansion.whole_sites else None, expansion.random_places)
    if found is None:
        return None
    eta, product = found
    spread, every = _spread_of(expansion, [product]), torch.arange(eta.shape[-1], device=eta.device)
    likelihood = require_likelihood(site.name, site.fn)
    return LinearizedPositions(site.fn, likelihood, eta, every, lambda: iter([[product]]), spread)


def _apart(expansion: Expansion, site: Site, factored: Factored, eta: Tensor, kept: Tensor) -> LinearizedApart:
    """A site of more outputs at more positions than gradients can be held of: some positions after the others."""
    positions = partial(products_by_position, factored, site.name, len(kept), expansion.random_places)
    plain, point = expansion.sites(factored.run.chunk)[site.name], expansion.point

    def pieces() -> Iterator[list[Product]]:
        refuse_all_outputs(site, eta)
        yield list(products_of(factored, site.name, eta, kept, expansion.random_places))

    _, push = pusher(_outputs_of(expansion, plain, factored.run.chunk, kept), point.free)
    return LinearizedApart(
        site.fn,
        require_likelihood(site.name, site.fn),
        eta.detach(),
        kept,
        pieces,
        _spread_of(expansion, next(positions())),
        site.name,
        positions,
        push,
        eta.numel() + factored.gradients[site.name].elements,
    )


def _spread_of(expansion: Expansion, products: list[Product]) -> Spread:
    dtype = products[0].inputs.dtype if products else expansion.point.theta.dtype
    return Spread.of(expansion.precision, [product.index for product in products], dtype)


def _kept_outputs(expansion: Expansion, run: CapturedRun, site: Site, likelihood: Likelihood, eta: Tensor) -> Tensor:
    """The outputs that depend on random sites.

    The run's graph may show them: an output may require a gradient for the sake of a parameter that is no random site,
    unless it is the only one.

    Returns:
        their numbers.
    """
    count = eta.shape[-1]
    if expansion.whole_sites:
        captured = run.capture.outputs() if run.capture is not None else []
        if count == 1 or any(output.edge.node is eta.grad_fn for output in captured):
            return torch.arange(count, device=eta.device)  # each entry of an operation has a random site's in it
        moving = likelihood.moving()
        if moving is not None and int(moving.sum()) == 1:
            return moving.nonzero()[:, 0].to(eta.device)
    return expansion.moved_outputs(site.name, count, run.chunk)


# --- row by row -----------------------------------------------------------------------------------


def _row_by_row(expansion: Expansion, site: Site, chunk: Chunk) -> Linearized:
    """By reverse mode; with the graph that leads to the inputs, where gradients are enabled."""
    likelihood, eta = require_likelihood(site.name, site.fn), predictor(site)
    point = expansion.point
    kept = expansion.moved_outputs(site.name, eta.shape[-1], chunk)
    index = torch.arange(len(point.index), device=eta.device)

    def pieces() -> Iterator[list[Product]]:
        value, pull = puller(_outputs_of(expansion, site, chunk, kept), point.free)
        count = len(value)
        of_one = value.shape[1] * max(
            len(index), value.numel()
        )  # its rows, and the outputs of all data that each pulls on
        size = max(1, settings.pass_elements // max(1, 8 * of_one))
        for start in range(0, count, size):
            stop = min(start + size, count)
            unit = unit_rows(start * value.shape[1], stop * value.shape[1], value.numel(), value)
            rows = torch.func.vmap(pull)(unit.reshape(-1, *value.shape))  # nk p
            yield [columns(index, rows.reshape(-1, value.shape[1], len(index)))]

    mean = eta if torch.is_grad_enabled() else eta.detach()
    return Linearized(site.fn, likelihood, mean, kept, pieces, expansion.row_spread)


def _outputs_of(expansion: Expansion, site: Site, chunk: Chunk, kept: Tensor) -> Callable[[Tensor], Tensor]:
    """The kept outputs [n, k] of a site as a function of the random coordinates."""
    count = site.fn.batch_shape[0] if site.fn.batch_shape else 1

    def outputs(part: Tensor) -> Tensor:
        theta = expansion.point.theta.index_copy(0, expansion.point.index, part)
        return expansion.predictor_at(theta, site.name, chunk)[..., kept].reshape(count, -1)

    return outputs


def _by_entries(expansion: Expansion, site: Site, chunk: Chunk) -> Linearized:
    """By products of the Jacobian with vectors, as far as these show its entries."""
    likelihood, eta, point = require_likelihood(site.name, site.fn), predictor(site).detach(), expansion.point
    kept = expansion.moved_outputs(site.name, eta.shape[-1], chunk)
    value, push = pusher(_outputs_of(expansion, site, chunk, kept), point.free)
    count = value.shape[1]
    try:
        found = sparse_rows(lambda v: vmapped(push, v).flatten(1), value.numel(), point.places, point.size, point.free)
    except NotSparse:
        return _row_by_row(expansion, site, chunk)

    def pieces() -> Iterator[list[Product]]:
        for start in range(0, len(value), settings.enough_rows):
            rows = min(settings.enough_rows, len(value) - start) * count
            own = (found.row >= start * count) & (found.row < start * count + rows)
            present, place = found.col[own].unique(return_inverse=True)
            wide = eta.new_zeros(rows, len(present))
            wide[found.row[own] - start * count, place] = found.value[own].to(eta)
            yield [columns(present, wide.unflatten(0, (-1, count)))]

    return SparselyLinearized(site.fn, likelihood, eta, kept, pieces, expansion.row_spread, found, expansion.precision)
