"""The root of a curvature, factored: captured pairs of inputs and output gradients, and dense columns for the rest.

Axis letters: n data, k columns of the root (for every output of a datum, or every label), t positions that share a
weight, i inputs, o outputs, d dense coordinates. Row (n, k) of the root A in the coordinates of a product is
``sum_t g[n,k,t,o] a[n,t,i]``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from pyro_laplace._autodiff import column_blocks, push_forward
from pyro_laplace.curvature.capture import Capture, Captured
from pyro_laplace.curvature.contraction import Output, Scale, Use
from pyro_laplace.curvature.ggn import root as ggn_root
from pyro_laplace.curvature.point import Point
from pyro_laplace.curvature.root import Root
from pyro_laplace.program import Chunk, Program, Run

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass(frozen=True, eq=False)
class Product:
    """The root in the coordinates of one product, or of a product and its bias.

    Attributes:
        index: free coordinates [o, i].
        inputs: a [n, t, i].
        gradients: g [n, k, t, o].
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
    """The root of one observed site on one chunk.

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


def factors_of(program: Program, point: Point, chunk: Chunk, root: Root | None = None) -> list[Factors] | None:
    """A curvature's root on a chunk, factored; None where the program does not have the structure that this needs.

    What is assumed (a row of an input reaches its own datum only, every use of a site was seen) is checked by one
    forward-mode product ``A v`` in a random direction, which every row must agree with.

    Args:
        program: the traced program.
        point: theta and its free coordinates.
        chunk: the data.
        root: on that chunk; None means the GGN's.

    Returns:
        the factors of each observed site that the root covers, or None.
    """
    root = ggn_root(program, point.theta, chunk) if root is None else root
    count = _count(root)
    if count is None:
        return None
    run, captured = _run(program, point, root, count)
    dense_sites = _dense_sites(program, point, captured)
    names = [name for name in program.latents if name in point.sites(program) and name not in dense_sites]
    uses = [use for use in captured.uses if _site_of(use, program) in names]
    scales = [scale for scale in captured.scales if _site_of(scale, program) in names]
    scale_index = torch.cat([point.index[:0], *(scale.index for scale in scales)]).unique()
    position = point.positions()
    dense_index = torch.cat(
        [torch.zeros(0, dtype=torch.long), *(_coordinates(program, n) for n in program.latents if n in dense_sites)]
    )
    dense_index = dense_index.to(point.theta.device)
    direction = torch.randn(len(point.theta), generator=torch.Generator().manual_seed(0)).to(point.theta)
    captured_index = torch.cat([dense_index[:0], *(_coordinates(program, n).to(dense_index) for n in names)])
    tangent = torch.zeros_like(direction).index_copy(0, captured_index, direction[captured_index])
    pushed = push_forward(root, point.theta, tangent)[1]
    dense_rows = _dense_rows(root, point, dense_index, len(pushed))
    result, start = [], 0
    for name, site_root in root.sites.items():
        with torch.enable_grad():
            outputs, vectors = site_root.by_datum(run.observed[name])
        n, k = len(vectors), vectors.shape[1] * vectors.shape[-1]
        piece = slice(start, start + n * k)
        start += n * k
        expected = pushed[piece].reshape(n, k)
        columns = (expected != 0).any(0).nonzero()[:, 0]
        gradients = _gradients([use.output for use in (*uses, *scales)], outputs, vectors, columns)
        products, scaled = _products(uses, gradients), _scaled(scales, scale_index, gradients, n)
        if not _agrees(products, scaled, direction, scale_index, expected[:, columns]):
            return None
        rows = dense_rows[:, piece].reshape(-1, n, k).permute(1, 2, 0)
        others = torch.ones(k, dtype=torch.bool, device=columns.device).index_fill(0, columns, False)
        rest = functional.pad(rows[:, others].flatten(0, 1), (0, len(scale_index)))
        dense = torch.cat([rows[:, columns], scaled], -1)
        placed = [replace(product, index=position[product.index]) for product in products]
        loose = position[torch.cat([dense_index, scale_index])]
        result.append(Factors(placed, loose, dense, rest[(rest != 0).any(1)]))
    return [_of_data(factors, root.live()) for factors in result]


def _of_data(factors: Factors, live: Tensor) -> Factors:
    """Without the data that weigh nothing: Kronecker factors, whose inputs carry no weight, must not see them."""
    if bool(live.all()):
        return factors
    products = [replace(p, inputs=p.inputs[live], gradients=p.gradients[live]) for p in factors.products]
    return replace(factors, products=products, dense=factors.dense[live])


def _count(root: Root) -> int | None:
    """How many data there are; None if they have no common first axis."""
    counts = {site_root.num_obs for site_root in root.sites.values()}
    return counts.pop() if len(counts) == 1 else None


def _run(program: Program, point: Point, root: Root, count: int) -> tuple[Run, Captured]:
    """Run the program at the point with the free sites' values as leaves, and capture what consumes them."""
    free = point.sites(program)
    values, index = program.unpack(point.theta), {}
    for name, latent in program.latents.items():
        values[name] = values[name].detach().clone()
        if name in free and not latent.constrained:
            values[name].requires_grad_()
            index[name] = _coordinates(program, name).to(point.theta.device).reshape(latent.shape)
    with torch.enable_grad(), Capture({name: values[name] for name in index}, index) as capture:
        run = program.run_at(values, root.chunk)
    with torch.enable_grad():
        first = sum(site.by_datum(run.observed[name])[0][0].sum() for name, site in root.sites.items())
    return run, capture.captured(count, torch.as_tensor(first))


def _dense_sites(program: Program, point: Point, captured: Captured) -> set[str]:
    """Free sites that need dense columns: those of which a use is unknown, or that are a scale and a weight at once."""
    free = point.sites(program)
    dense = {name for name in free if program.latents[name].constrained} | (captured.opaque & free)
    if captured.scales and captured.uses:
        weights = torch.cat([use.index.reshape(-1) for use in captured.uses])
        dense |= {_site_of(each, program) for each in captured.scales if bool(torch.isin(each.index, weights).any())}
    return dense


def _dense_rows(whitened: Callable[[Tensor], Tensor], point: Point, index: Tensor, rows: int) -> Tensor:
    """Rows of the root in some coordinates of theta, [d, rows]."""
    if not len(index):
        return torch.zeros(0, rows, dtype=torch.float64, device=point.theta.device)
    dense = Point(point.theta, index)
    return torch.cat([block for _, block in column_blocks(dense.on(whitened), dense.part)])


def _gradients(outputs: list[Output], eta: Tensor, vectors: Tensor, columns: Tensor) -> dict[int, list[Tensor]]:
    """One backward pass per column of the root gives the gradients of every operation's output at once."""
    outputs = list({id(output): output for output in outputs}.values())
    if not outputs:
        return {}
    edges = [output.edge for output in outputs]
    per_output = vectors.shape[-1]
    passes = []
    for column in columns.tolist():
        vector = vectors[:, column // per_output, ..., column % per_output].to(eta)  # column of S, per datum: n e o
        with torch.enable_grad():
            scalar = (eta[:, column // per_output] * vector).sum()
        passes.append(torch.autograd.grad(scalar, edges, retain_graph=True, allow_unused=True))
    return {
        id(output): [output.zeros() if (g := grads[i]) is None else g for grads in passes]
        for i, output in enumerate(outputs)
    }


def _products(uses: list[Use], gradients: dict[int, list[Tensor]]) -> list[Product]:
    joined: dict[int, list[Use]] = {}
    for use in uses:
        joined.setdefault(id(use.output), []).append(use)
    return [product for output, group in joined.items() for product in _join(group, gradients[output])]


def _scaled(scales: list[Scale], index: Tensor, gradients: dict[int, list[Tensor]], count: int) -> Tensor:
    """Rows of the root [n, k, d] in the coordinates of scales, float64; those of one used more than once add up."""
    columns = len(next(iter(gradients.values()), []))
    total = torch.zeros(count, columns, len(index), dtype=torch.float64, device=index.device)
    for scale in scales:
        place = torch.searchsorted(index, scale.index)
        for column, g in enumerate(gradients[id(scale.output)]):
            total[:, column].index_add_(1, place, scale.rows(g).double())
    return total


def _join(group: list[Use], gradients: list[Tensor]) -> Iterator[Product]:
    """A product and the bias that is added to it share their output's gradient: one product, with a 1 appended to a."""
    if not gradients:
        return
    weights, biases = [use for use in group if not use.bias], [use for use in group if use.bias]
    if len(weights) == 1 and len(biases) == 1 and len(weights[0].index) == len(biases[0].index):
        weight, bias = weights[0], biases[0]
        if weight.inputs.shape[1] == bias.inputs.shape[1]:
            index = torch.cat([weight.index, bias.index], 1)
            inputs = torch.cat([weight.inputs, bias.inputs], -1)
            yield Product(index, inputs, torch.stack([weight.positions(g) for g in gradients], 1), has_bias=True)
            return
    for use in group:
        yield Product(use.index, use.inputs, torch.stack([use.positions(g) for g in gradients], 1))


def _agrees(products: list[Product], scaled: Tensor, direction: Tensor, scale_index: Tensor, expected: Tensor) -> bool:
    """Whether A v from the captured pairs equals forward mode's, row by row."""
    found = torch.zeros_like(expected)
    if len(scale_index):
        found += scaled @ direction[scale_index].double()
    for product in products:
        moved = torch.einsum("nti,oi->nto", product.inputs, direction[product.index])
        found += torch.einsum("nkto,nto->nk", product.gradients, moved)
    if not found.numel():
        return True
    tolerance = _TOLERANCE.get(direction.dtype, 1e-2)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _coordinates(program: Program, name: str) -> Tensor:
    place = program.latents[name].slice
    return torch.arange(place.start, place.stop)


def _site_of(use: Use | Scale, program: Program) -> str:
    first = int(use.index.reshape(-1)[0])
    return next(name for name, latent in program.latents.items() if latent.slice.start <= first < latent.slice.stop)
