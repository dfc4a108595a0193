"""Outputs at many positions (tokens, pixels): those of a last layer, and those that are too many to hold together."""

import torch
from torch import Tensor

from pyro_laplace._memory import refuse_too_large
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.likelihood import require_likelihood
from pyro_laplace.linearized.logits import predictor
from pyro_laplace.program.run import Site
from pyro_laplace.reading.direct import own_layer
from pyro_laplace.reading.records import Product
from pyro_laplace.settings import settings


def rows_of_positions(
    run: CapturedRun, site: Site, whole: Anchor | None, places: Tensor
) -> tuple[Tensor, Product] | None:
    """A site whose outputs at each of several positions are those of a layer, the only random one.

    Args:
        run: of the program at the inputs, captured.
        site: of the run.
        whole: theta and the coordinates of the random sites; None where one is random in part only.
        places: of these among the random coordinates.

    Returns:
        its parameters `[n, *positions, outputs]`, and the Jacobian's rows, a position of a datum for each n of the
        product. None if it is none of that.
    """
    likelihood = require_likelihood(site.name, site.fn)
    if not likelihood.event.numel() > 1 or len(site.fn.batch_shape) != 1:
        return None
    with torch.enable_grad():
        eta = predictor(site)
    invariant = likelihood.family.shift_invariant
    layer = None if whole is None else own_layer(run, site.name, eta, invariant, whole)
    if whole is None or layer is None:
        return None
    outputs, inputs = eta.shape[-1], layer.inputs.detach().reshape(-1, 1, layer.inputs.shape[-1])
    gradients = torch.eye(outputs).to(inputs).reshape(1, outputs, 1, outputs).expand(len(inputs), -1, -1, -1)
    return eta.detach(), Product(places[whole.positions[layer.index]], inputs, gradients, layer.has_bias)


def are_many(site: Site, eta: Tensor) -> bool:
    """Whether a site has so many outputs at its positions that their gradients are not to be had together."""
    several = len(site.fn.event_shape) > 0 and len(site.fn.batch_shape) == 1
    return several and len(eta) * eta[0].numel() ** 2 > settings.pass_elements


def refuse_all_outputs(site: Site, eta: Tensor) -> None:
    """Refuse what holds the gradients of all outputs at all positions, where that is too much.

    Args:
        site: the observed site.
        eta: its parameters `[n, *positions, outputs]`.

    Raises:
        TooLarge: with what does without.
    """
    if len(site.fn.event_shape) and len(site.fn.batch_shape) == 1:
        n, size = len(eta), eta[0].numel()
        refuse_too_large(
            n * size**2,
            eta.element_size(),
            f"the gradients [{size}, {n}, {size}] of all outputs at all positions of {site.name!r}",
            "predict fewer inputs at a time, fit subset='last_layer', or draw: .sample(...), or through the program by "
            "pl.Predictive",
        )
