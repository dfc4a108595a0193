"""The Jacobian of a site's outputs as the products that a captured run shows, from backward passes.

Axis letters as in `jacobian`.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pyro_laplace.reading.factors import Factored
from pyro_laplace.reading.gradients import Gradients, dense_rows, pull_each
from pyro_laplace.reading.records import Product
from pyro_laplace.settings import settings


def products_of(factored: Factored, name: str, eta: Tensor, kept: Tensor, places: Tensor) -> Iterator[Product]:
    """The Jacobian of some outputs of each entry over the random coordinates, from one backward pass an output."""
    with torch.enable_grad():
        outputs = eta[..., kept].reshape(len(eta), -1) if len(kept) < eta.shape[-1] else eta.flatten(1)
    yield from _from_gradients(factored, _pulled(factored.gradients[name], eta, outputs), places)
    if len(factored.dense_index):
        rows = dense_rows(factored.run, factored.root, factored.dense_index)[name]
        yield columns(places[factored.position[factored.dense_index]], rows.to(outputs).detach())


def products_by_position(factored: Factored, name: str, outputs: int, places: Tensor) -> Iterator[list[Product]]:
    """The same of all outputs at some positions after the others, where nothing is dense.

    Args:
        factored: whose columns are the outputs, position after position.
        name: of the observed site.
        outputs: of one position.
        places: of the coordinates among the random ones.

    Yields:
        products [n, k] of some positions' outputs.
    """
    gradients = factored.gradients[name]
    step = outputs * max(1, settings.streamed_elements // max(1, outputs * gradients.elements))
    for some in gradients.columns.split(step):
        found = gradients.of_columns(some)
        pulled = {id(output): g for output, g in zip(gradients.outputs, found, strict=True)}
        yield list(_from_gradients(factored, pulled, places))


def _from_gradients(factored: Factored, pulled: Mapping[int, Tensor], places: Tensor) -> Iterator[Product]:
    for layer in factored.layers:
        gradients = layer.use.positions(pulled[id(layer.use.output)]).transpose(0, 1)
        index = places[factored.position[layer.index]]
        yield Product(index, layer.inputs.detach(), gradients.detach(), layer.has_bias)
    for scale in factored.scales:
        rows = scale.rows(pulled[id(scale.output)]).transpose(0, 1)
        yield columns(places[factored.position[scale.index]], rows.detach())
    for each in factored.lookups:
        present, place = each.index.unique(return_inverse=True)
        rows = each.rows(pulled[id(each.output)]).transpose(0, 1)
        wide = rows.new_zeros(*rows.shape[:2], len(present))
        wide = wide.scatter_add(2, place.unsqueeze(1).expand(rows.shape), rows)
        yield columns(places[factored.position[present]], wide.detach())


def _pulled(gradients: Gradients, eta: Tensor, outputs: Tensor) -> Mapping[int, Tensor]:
    """The gradients [k, ...] of each output k of a datum in what was captured, by id."""
    basis = torch.eye(outputs.shape[1]).to(outputs).unsqueeze(1).expand(-1, *outputs.shape)  # k n k
    own = [end for end in gradients.outputs if end.edge.node is eta.grad_fn and outputs.shape == eta.shape]
    others = [end for end in gradients.outputs if end not in own]
    found = {id(end): basis for end in own}
    if gradients.known and len(gradients.columns) == gradients.count:  # from the check
        return {**gradients.known, **found}
    return found | {id(end): g for end, g in zip(others, pull_each(outputs, basis, others), strict=True)}


def columns(index: Tensor, rows: Tensor) -> Product:
    """Columns [n, k, d] of a Jacobian as a product whose input is one."""
    return Product(index.unsqueeze(-1), rows.new_ones(len(rows), 1, 1), rows.unsqueeze(2))
