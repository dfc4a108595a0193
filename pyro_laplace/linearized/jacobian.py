"""The linear predictor at given inputs, and its Jacobian as the pairs that the program's operations show.

Axis letters: n data, k outputs of a datum, t positions that share a weight, o and i outputs and inputs of a product, s
draws. Row (n, k) of the Jacobian in the coordinates of a product is ``sum_t g[n,k,t,o] a[n,t,i]``; a column that was
had in another way is a product whose input is one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._autodiff import puller, push_forward
from pyro_laplace._compat.pyro import RandomState
from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.curvature.root import Root, SiteRoot
from pyro_laplace.likelihood import Likelihood, require_likelihood
from pyro_laplace.linearized.layer import LastLayer, last_layer, layer_index
from pyro_laplace.linearized.logits import as_written, has_logits, predictor, unnormalised
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Site
from pyro_laplace.reading.factors import Factored, factor
from pyro_laplace.reading.gradients import Gradients, dense_rows, pull_each
from pyro_laplace.reading.records import Product

ELEMENTS = 2**24
"""Elements that the rows of a Jacobian, or draws of a predictor, may have at a time."""


@dataclass(frozen=True, eq=False)
class Linearized:
    """One observed site at given inputs: ``eta(theta*) + J (theta - theta*)``.

    Attributes:
        fn: the site's distribution at the mode.
        likelihood: the same, seen through its wrappers.
        eta: its parameters at the mode `[*base batch, outputs]`.
        kept: the outputs that depend on random sites; a known noise scale does not.
        pieces: gives J, some data after the other: products over the free coordinates, -1 for one that is not free.
    """

    fn: Any
    likelihood: Likelihood
    eta: Tensor
    kept: Tensor
    pieces: Callable[[], Iterator[list[Product]]]

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

    @cached_property
    def mean(self) -> Tensor:
        """The linear predictor at the mode [n, k]."""
        whole = len(self.kept) == self.eta.shape[-1]
        return (self.eta if whole else self.eta[..., self.kept]).reshape(self.num_data, -1)

    def by_entry(self, covariance: Tensor) -> Tensor:
        """Covariances [n, k, k] to those of the outputs of one entry `[*base, kept, kept]`."""
        return self._blocks(covariance, len(self.kept)).reshape(*self.base, len(self.kept), len(self.kept))

    def by_datum(self, covariance: Tensor) -> Tensor:
        """Covariances [n, k, k] to those of the outputs of all entries of a datum `[*batch, outputs, outputs]`."""
        size = self.base[len(self.batch) :].numel() * len(self.kept)
        return self._blocks(covariance, size).reshape(*self.batch, size, size)

    def embed(self, change: Tensor) -> Tensor:
        """A change of the predictor `[*lead, n, k]` as one of eta `[*lead, *base, outputs]`."""
        if change.dim() == 2 and change.shape == self.eta.shape:
            return change
        part = change.reshape(*change.shape[:-2], *self.base, len(self.kept))
        if len(self.kept) == self.eta.shape[-1]:
            return part
        whole = part.new_zeros(*part.shape[:-1], self.eta.shape[-1])
        return whole.index_copy(-1, self.kept.to(part.device), part)

    def _blocks(self, covariance: Tensor, size: int) -> Tensor:
        """Diagonal blocks [n, b, size, size]."""
        n, k = covariance.shape[:2]
        if k == size:
            return covariance.unsqueeze(1)
        parts = covariance.reshape(n, k // size, size, k // size, size)
        return parts.diagonal(dim1=1, dim2=3).movedim(-1, 1)


class Linearizer:
    """Linearises a program at the mode of a guide.

    Args:
        model: the Pyro program.
        guide: the posterior.
        differentiable: whether the results keep the graph that leads to the inputs.
    """

    def __init__(self, model: Callable[..., Any], guide: AutoLaplace, differentiable: bool) -> None:
        self.program = Program(model, guide.latents, guide.observed, start=guide.theta)
        self.point = Anchor(guide.theta, guide.index, guide.latents, guide.curvature)
        self.differentiable = differentiable
        self._watched = replace(self.program, model=as_written(model))
        self._kept: dict[_Structure, Tensor] = {}
        self._checked: set[_Structure] = set()
        self._layouts: dict[Any, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self._steady = False  # whether the first run showed that the predictor is the same at each call
        self._direct = len(guide.random) < len(guide.latents)  # likely, where some sites are held

    def at(self, chunk: Chunk) -> dict[str, Linearized]:
        """The observed sites at given inputs."""
        if self.differentiable:
            sites = _refuse_empty(self._steadily(chunk, self._sites))
            return {name: self._dense(site, chunk) for name, site in sites.items()}
        if self._direct:
            run = self._steadily(chunk, self._run)
            if (sites := self._by_layer(run, chunk)) is not None:
                return sites
        run = self._steadily(chunk, partial(CapturedRun.make, self.program, self._whole))
        sites = self._by_layer(run, chunk)
        self._direct = sites is not None  # the next run need not be watched
        return sites or {name: self._captured(run, site, chunk) for name, site in run.run.observed.items()}

    def _run(self, chunk: Chunk) -> CapturedRun:
        """A run with the graph of what it computed, that nothing watches."""
        leaves, values = self._values
        with torch.enable_grad():
            return CapturedRun(self.program, self._whole, chunk, self.program.run_at(values, chunk), leaves)

    def _steadily[T](self, chunk: Chunk, run: Callable[[Chunk], T]) -> T:
        """What a run of the program gives; the first one shows whether the predictor is another one at each call."""
        if self._steady:
            return run(chunk)
        state = RandomState()
        result = run(chunk)
        if not state.is_current():
            try:
                self._refuse_randomness(chunk)
            finally:
                state.restore()
        self._steady = True
        return result

    def _refuse_randomness(self, chunk: Chunk) -> None:
        """Refuse a program whose predictor differs between two runs that draw different random numbers."""
        with torch.no_grad():
            one, other = self._sites(chunk), self._sites(chunk)
        for name, site in one.items():
            if not torch.equal(predictor(site), predictor(other[name])):
                raise UnsupportedProgram(
                    f"the predictor of {name!r} is another one at each call: something random is not a latent site "
                    "(dropout in training mode, say). Call .eval() on the program's modules; to average over what it "
                    "draws, predict with pl.Predictive(pl.linearize(model, guide), guide=guide, num_samples=...)"
                )

    @cached_property
    def _values(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The leaves of the runs that nothing watches, by random site, and the values of all sites.

        The runs share them: no backward pass goes through such a run, whose graph is only read.
        """
        theta, layout = self.point.theta, self.program.layout
        leaves = {name: theta[layout[name]].clone().requires_grad_() for name in self._touched}
        with torch.enable_grad():
            parts = {name: leaves.get(name, theta[place]) for name, place in layout.items()}
            return leaves, {name: latent.constrain(parts[name]) for name, latent in self.program.latents.items()}

    @cached_property
    def _touched(self) -> tuple[str, ...]:
        return self.point.touched

    @cached_property
    def _whole(self) -> Anchor:
        """The point with all coordinates of its sites free."""
        return self.point.whole()

    @cached_property
    def _free(self) -> Tensor:
        """The place of each of those among the guide's random coordinates; -1 for one that is not, and at the end."""
        return torch.nn.functional.pad(self.point.positions[self._whole.index], (0, 1), value=-1)

    def _sites(self, chunk: Chunk) -> dict[str, Site]:
        return self._watched.run(self.point.theta, chunk).observed

    def _by_layer(self, run: CapturedRun, chunk: Chunk) -> dict[str, Linearized] | None:
        """The sites, where the logits of each are the output of a layer of random sites; None otherwise."""
        found = {}
        for name, site in _refuse_empty(run.run.observed).items():
            with torch.enable_grad():
                likelihood = require_likelihood(name, site.fn)
                written = unnormalised(likelihood.base.logits) if has_logits(likelihood) else None
            if written is None or site.fn.batch_shape != written[0].shape[:-1]:
                return None
            layer = last_layer(written[0], run.leaves)
            if layer is None:
                return None
            found[name] = self._of_layer(site, likelihood, written[0], layer, chunk)
        return found

    def _of_layer(self, site: Site, likelihood: Likelihood, eta: Tensor, layer: LastLayer, chunk: Chunk) -> Linearized:
        key = site.name, layer.layout, eta.shape[-1], eta.dtype
        if key not in self._layouts:
            index = self.point.positions[layer_index(layer, eta.shape[-1], self.program.layout)]
            whole = len(self._whole.index) == len(self.point.index)
            kept = torch.arange(eta.shape[-1]) if whole else self._moved_outputs(site.name, eta.shape[-1], chunk)
            basis = torch.eye(eta.shape[-1]).to(eta)[kept.to(eta.device)]  # k o
            one = torch.ones_like(layer.inputs[:1, :1])
            self._layouts[key] = index, kept.to(eta.device), basis.detach(), one
        index, kept, basis, one = self._layouts[key]
        inputs = layer.inputs if layer.bias is None else torch.cat([layer.inputs, one.expand(len(layer.inputs), 1)], 1)
        gradients = basis.unsqueeze(1).expand(len(inputs), -1, -1, -1)  # n k 1 o
        product = Product(index, inputs.unsqueeze(1), gradients, layer.bias is not None)
        return Linearized(site.fn, likelihood, eta.detach(), kept, lambda: iter([[product]]))

    def _captured(self, run: CapturedRun, site: Site, chunk: Chunk) -> Linearized:
        with torch.enable_grad():
            likelihood, eta = require_likelihood(site.name, site.fn), predictor(site)
        if not site.fn.batch_shape or not eta.requires_grad:
            return self._dense(self._sites(chunk)[site.name], chunk)
        structure = site.name, eta.shape[-1], _operations(eta)
        if structure not in self._kept:
            moving = _moving(run, likelihood, eta) if len(self._whole.index) == len(self.point.index) else None
            self._kept[structure] = self._moved_outputs(site.name, eta.shape[-1], chunk) if moving is None else moving
        kept = self._kept[structure]
        columns = torch.eye(eta.shape[-1], dtype=torch.float64, device=eta.device)[:, kept]
        vectors = columns.expand(*eta.shape[:-1], *columns.shape)
        root = SiteRoot(lambda other: eta if other is site else predictor(other), vectors)
        check = structure not in self._checked
        factored = factor(run, Root(self.program, chunk, {site.name: root}), self._whole, check=check)
        if factored is None:
            return self._dense(self._sites(chunk)[site.name], chunk)
        self._checked.add(structure)
        with torch.enable_grad():
            outputs = eta[..., kept].reshape(len(eta), -1) if len(kept) < eta.shape[-1] else eta.flatten(1)
        products = list(_products(factored, site.name, eta, outputs, self._free))
        return Linearized(site.fn, likelihood, eta.detach(), kept, lambda: iter([products]))

    def _dense(self, site: Site, chunk: Chunk) -> Linearized:
        """By reverse mode, row by row: differentiable, and whatever the program does."""
        likelihood, eta = require_likelihood(site.name, site.fn), predictor(site)
        kept = self._moved_outputs(site.name, eta.shape[-1], chunk)
        count = site.fn.batch_shape[0] if site.fn.batch_shape else 1

        def outputs(part: Tensor) -> Tensor:
            theta = self.point.theta.index_copy(0, self.point.index, part)
            return predictor(self._at(theta, site.name, chunk))[..., kept].reshape(count, -1)

        def pieces() -> Iterator[list[Product]]:
            value, pull = puller(outputs, self.point.free)
            index = torch.arange(len(self.point.index), device=value.device).unsqueeze(-1)
            size = max(1, ELEMENTS // max(1, 8 * value.shape[1] * len(index)))
            for start in range(0, count, size):
                rows = torch.func.vmap(pull)(_basis(value, start, min(start + size, count)))  # nk p
                rows = rows.reshape(-1, value.shape[1], 1, len(index))
                yield [Product(index, rows.new_ones(len(rows), 1, 1), rows)]

        return Linearized(site.fn, likelihood, eta if self.differentiable else eta.detach(), kept, pieces)

    def _moved_outputs(self, name: str, outputs: int, chunk: Chunk) -> Tensor:
        """The outputs of a site that depend on random sites: NaN reaches these, as a tangent or as a value."""
        tangent = torch.zeros_like(self.point.theta).index_fill(0, self.point.index, torch.nan)

        def at(theta: Tensor) -> Tensor:
            return predictor(self._at(theta, name, chunk))

        with torch.no_grad():
            varies = push_forward(at, self.point.theta, tangent)[1].isnan().reshape(-1, outputs).any(0)
            if not bool(varies.all()):  # a unit that is off stops a tangent, and not a value
                with suppress(RuntimeError, ValueError):  # of what takes no NaN for an argument
                    varies = varies | at(self.point.theta + tangent).isnan().reshape(-1, outputs).any(0)
        return (varies if bool(varies.any()) else ~varies).nonzero()[:, 0]

    def _at(self, theta: Tensor, name: str, chunk: Chunk) -> Site:
        return self._watched.run(theta, chunk).observed[name]


def _refuse_empty(sites: dict[str, Site]) -> dict[str, Site]:
    """Sites of which each has a datum."""
    for name, site in sites.items():
        if 0 in site.fn.batch_shape:
            raise UnsupportedProgram(
                f"the observed site {name!r} has no data on this call, its batch shape is "
                f"{tuple(site.fn.batch_shape)}: give at least one input"
            )
    return sites


_Structure = tuple[str, int, tuple[Any, ...]]
"""A site, its number of outputs, and the operations that they come from."""


def _operations(tensor: Tensor) -> tuple[Any, ...]:
    """The graph of a tensor, as names of operations in the order of a walk, and numbers of those met again."""
    numbers: dict[Any, int] = {}
    found: list[Any] = []
    pending: list[Any] = [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in numbers:
            found.append(numbers.get(node))
            continue
        numbers[node] = len(numbers)
        found.append(node.name())
        pending += [each for each, _ in node.next_functions]
    return tuple(found)


def _products(factored: Factored, name: str, eta: Tensor, outputs: Tensor, free: Tensor) -> Iterator[Product]:
    """The Jacobian of some outputs [n, k] over the free coordinates, from one backward pass an output."""
    pulled = _pulled(factored.gradients[name], eta, outputs)
    for layer in factored.layers:
        gradients = layer.use.positions(pulled[id(layer.use.output)]).transpose(0, 1)
        yield Product(free[factored.position[layer.index]], layer.inputs.detach(), gradients.detach(), layer.has_bias)
    for scale in factored.scales:
        rows = scale.rows(pulled[id(scale.output)]).transpose(0, 1)
        yield _columns(free[factored.position[scale.index]], rows.detach())
    if len(factored.dense_index):
        rows = dense_rows(factored.run, factored.root, factored.dense_index)[name]
        yield _columns(free[factored.position[factored.dense_index]], rows.to(outputs).detach())


def _pulled(gradients: Gradients, eta: Tensor, outputs: Tensor) -> Mapping[int, Tensor]:
    """The gradients [k, ...] of each output k of a datum in what was captured, by id."""
    basis = torch.eye(outputs.shape[1]).to(outputs).unsqueeze(1).expand(-1, *outputs.shape)  # k n k
    own = [end for end in gradients.outputs if end.edge.node is eta.grad_fn and outputs.shape == eta.shape]
    others = [end for end in gradients.outputs if end not in own]
    found = {id(end): basis for end in own}
    if gradients.known and len(gradients.columns) == gradients.count:  # from the check
        return {**gradients.known, **found}
    return found | {id(end): g for end, g in zip(others, pull_each(outputs, basis, others), strict=True)}


def _moving(run: CapturedRun, likelihood: Likelihood, eta: Tensor) -> Tensor | None:
    """The outputs that depend on random sites, where the run's graph shows it.

    An output may require a gradient for the sake of a parameter that is no random site, unless it is the only one.

    Returns:
        their numbers, or None.
    """
    captured = run.capture.outputs() if run.capture is not None else []
    every = eta.grad_fn is not None and any(output.edge.node is eta.grad_fn for output in captured)
    if every or eta.shape[-1] == 1:  # the output of an operation, of which each entry has a random site's entries in it
        return torch.arange(eta.shape[-1], device=eta.device)
    moving = likelihood.moving()
    return None if moving is None or int(moving.sum()) != 1 else moving.nonzero()[:, 0].to(eta.device)


def _columns(index: Tensor, rows: Tensor) -> Product:
    """Columns [n, k, d] of a Jacobian as a product whose input is one."""
    return Product(index.unsqueeze(-1), rows.new_ones(len(rows), 1, 1), rows.unsqueeze(2))


def _basis(value: Tensor, start: int, stop: int) -> Tensor:
    """Rows of the identity over value [n, k] that belong to some data, [rows, n, k]."""
    n, k = value.shape
    rows = torch.arange(start * k, stop * k, device=value.device)
    basis = value.new_zeros(len(rows), n * k)
    basis[torch.arange(len(rows)), rows] = 1.0
    return basis.reshape(-1, n, k)


def elements_of_draw(products: list[Product]) -> int:
    """About how many elements `moved` has in memory for each deviation."""
    return max(product.index.numel() + product.gradients[:, 0].numel() for product in products)


def moved(products: list[Product], deviation: Tensor) -> Tensor:
    """``J d`` [s, n, k] for deviations d [s, params] from the mode."""
    padded = torch.nn.functional.pad(deviation, (0, 1))  # what an index of -1 takes
    total = torch.zeros((), dtype=deviation.dtype, device=deviation.device)
    for product in products:
        inner = torch.einsum("nti,soi->snto", product.inputs, padded[:, product.index])
        total = total + torch.einsum("nkto,snto->snk", product.gradients, inner)
    return total
