"""The root of the GGN in factored form: captured pairs of inputs and output gradients, and dense columns for the rest.

Axis letters: n data, k columns of the Fisher root (for every output of a datum), t positions that share a weight, i
inputs, o outputs, d dense coordinates. Row (n, k) of the root A in the coordinates of a product is
``sum_t g[n,k,t,o] a[n,t,i]``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_laplace._autodiff import column_blocks, pusher
from pyro_laplace.curvature.capture import Capture, Captured, Use
from pyro_laplace.curvature.ggn import fisher_roots, root
from pyro_laplace.curvature.point import Point
from pyro_laplace.likelihood import likelihood_of, require_likelihood
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


def factors_of(program: Program, point: Point, chunk: Chunk) -> list[Factors] | None:
    """The GGN's root on a chunk, factored; None where the program at hand does not have the structure that this needs.

    What is assumed (a row of an input reaches its own datum only, every use of a site was seen) is checked by one
    forward-mode product ``A v`` in a random direction, which every row must agree with.

    Returns:
        the factors of each observed site that the GGN covers, or None.
    """
    run, captured = _run(program, point, chunk)
    dense_sites = _dense_sites(program, point, run, captured)
    if dense_sites is None:
        return None
    names = [name for name in program.latents if name in point.sites(program) and name not in dense_sites]
    uses = [use for use in captured.uses if _site_of(use, program) in names]
    whitened = root(program, point.theta, chunk)
    position = point.positions()
    dense_index = torch.cat(
        [torch.zeros(0, dtype=torch.long), *(_coordinates(program, n) for n in program.latents if n in dense_sites)]
    )
    dense_index = dense_index.to(point.theta.device)
    direction = torch.randn(len(point.theta), generator=torch.Generator().manual_seed(0)).to(point.theta)
    captured_index = torch.cat([dense_index[:0], *(_coordinates(program, n).to(dense_index) for n in names)])
    tangent = torch.zeros_like(direction).index_copy(0, captured_index, direction[captured_index])
    pushed = pusher(whitened, point.theta)[1](tangent)
    dense_rows = _dense_rows(whitened, point, dense_index, len(pushed))
    result, start = [], 0
    for name, fisher_root in fisher_roots(program, run, chunk).items():
        with torch.enable_grad():
            eta = require_likelihood(name, run.observed[name].fn).link()
            eta = eta.reshape(len(eta), -1, eta.shape[-1])  # n, event, outputs
        fisher_root = fisher_root.reshape(*eta.shape, -1)
        n, k = eta.shape[0], eta.shape[1] * fisher_root.shape[-1]
        piece = slice(start, start + n * k)
        start += n * k
        expected = pushed[piece].reshape(n, k)
        columns = (expected != 0).any(0).nonzero()[:, 0]
        products = _products(uses, eta, fisher_root, columns)
        if not _agrees(products, direction, expected[:, columns]):
            return None
        rows = dense_rows[:, piece].reshape(-1, n, k).permute(1, 2, 0)
        others = torch.ones(k, dtype=torch.bool, device=columns.device).index_fill(0, columns, False)
        rest = rows[:, others].flatten(0, 1)
        placed = [replace(product, index=position[product.index]) for product in products]
        result.append(Factors(placed, position[dense_index], rows[:, columns], rest[(rest != 0).any(1)]))
    return result


def _run(program: Program, point: Point, chunk: Chunk) -> tuple[Run, Captured]:
    """Run the program at the point with the free sites' values as leaves, and capture what consumes them."""
    free = point.sites(program)
    values, index = program.unpack(point.theta), {}
    for name, latent in program.latents.items():
        values[name] = values[name].detach().clone()
        if name in free and not latent.constrained:
            values[name].requires_grad_()
            index[name] = _coordinates(program, name).to(point.theta.device).reshape(latent.shape)
    with torch.enable_grad(), Capture({name: values[name] for name in index}, index) as capture:
        run = program.run_at(values, chunk)
    return run, capture.captured


def _dense_sites(program: Program, point: Point, run: Run, captured: Captured) -> set[str] | None:
    """Free sites that need dense columns; None if the data have no common first axis."""
    counts = set()
    for name, site in run.observed.items():
        likelihood = likelihood_of(site.fn)
        if likelihood is None or name in program.derived:
            continue
        eta = likelihood.link()
        counts.add(eta.shape[0] if eta.dim() > 1 else -1)
    if len(counts) != 1 or -1 in counts:
        return None
    count = counts.pop()
    free = point.sites(program)
    dense = {name for name in free if program.latents[name].constrained} | (captured.opaque & free)
    return dense | {_site_of(use, program) for use in captured.uses if use.inputs.shape[0] != count}


def _dense_rows(whitened: Callable[[Tensor], Tensor], point: Point, index: Tensor, rows: int) -> Tensor:
    """Rows of the root in some coordinates of theta, [d, rows]."""
    if not len(index):
        return torch.zeros(0, rows, dtype=torch.float64, device=point.theta.device)
    dense = Point(point.theta, index)
    return torch.cat([block for _, block in column_blocks(dense.on(whitened), dense.part)])


def _products(uses: list[Use], eta: Tensor, fisher_root: Tensor, columns: Tensor) -> list[Product]:
    """One backward pass per column of the Fisher root gives the gradients of every product's output at once."""
    outputs = list({id(use.output): use.output for use in uses}.values())
    per_output = fisher_root.shape[-1]
    passes = []
    for column in columns.tolist():
        vector = fisher_root[:, column // per_output, :, column % per_output].to(eta)  # column of S, per datum
        with torch.enable_grad():
            scalar = (eta[:, column // per_output] * vector).sum()
        passes.append(torch.autograd.grad(scalar, outputs, retain_graph=True, allow_unused=True))
    gradients = {
        id(output): [zero if (g := grads[i]) is None else g for grads in passes]
        for i, output in enumerate(outputs)
        for zero in [torch.zeros_like(output)]
    }
    joined: dict[int, list[Use]] = {}
    for use in uses:
        joined.setdefault(id(use.output), []).append(use)
    return [product for group in joined.values() for product in _join(group, gradients[id(group[0].output)])]


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


def _agrees(products: list[Product], direction: Tensor, expected: Tensor) -> bool:
    """Whether A v from the captured pairs equals forward mode's, row by row."""
    found = torch.zeros_like(expected)
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


def _site_of(use: Use, program: Program) -> str:
    first = int(use.index.reshape(-1)[0])
    return next(name for name, latent in program.latents.items() if latent.slice.start <= first < latent.slice.stop)
