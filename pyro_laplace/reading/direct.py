"""A layer whose outputs are the likelihood's own parameters: no backward pass, and no root of the Fisher information.

With ``eta_n = W a_n`` (a softmax does not see the constant that normalising takes away) the curvature in W is
``sum_n w_n I_n (x) a_n a_n'``, for as many classes as there are. Where a datum has several positions, each with its
own inputs and parameters (tokens, pixels), n is a position of a datum.
"""

from typing import Any

import torch
from torch import Tensor

from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.contraction import Output
from pyro_laplace.capture.layers import Layer, layers_of
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.curvature.root import Information, Root
from pyro_laplace.reading.records import Direct
from pyro_laplace.reading.verification import unexplained
from pyro_laplace.settings import settings


def direct_of(run: CapturedRun, root: Root | None, anchor: Anchor, single: bool = True) -> Direct | None:
    """The curvature, where the free sites are the weight and bias of such a layer; None elsewhere.

    Args:
        run: the program's run, captured.
        root: of the curvature on its chunk.
        anchor: theta and its free coordinates.
        single: whether also where a datum has one position.

    Returns:
        the layer's inputs and the site's information, or None.
    """
    if root is None or len(root.sites) != 1 or run.program.terms != root.sites.keys():
        return None
    ((name, site_root),) = root.sites.items()
    information = site_root.given
    if not isinstance(information, Information) or not (single or information.weight.dim() > 1):
        return None
    with torch.enable_grad():
        eta = site_root.outputs(run.run.observed[name])
    layer = own_layer(run, name, eta, information.likelihood.family.shift_invariant, anchor)
    if layer is None:
        return None
    live = information.weight != 0
    inputs = layer.inputs.reshape(*live.shape, layer.inputs.shape[-1])
    return Direct(anchor.positions[layer.index], inputs[live], information, live, layer.has_bias)


def own_layer(run: CapturedRun, name: str, eta: Tensor, shift_invariant: bool, anchor: Anchor) -> Layer | None:
    """The layer whose outputs are a site's parameters, a position of the layer for each of these.

    Args:
        run: the program's run, captured.
        name: of the observed site, which must be the only one.
        eta: its parameters `[n, *positions, outputs]`, with their graph.
        shift_invariant: whether these may differ from the layer's outputs by what all of one position share.
        anchor: theta and its free coordinates, which must be the layer's weight and bias.

    Returns:
        the layer, or None.
    """
    if run.capture is None or run.run.observed.keys() != {name} or eta.dim() < 2:
        return None
    outputs = run.capture.outputs()
    if not outputs or not _feeds(outputs[0], eta, shift_invariant):
        return None
    captured = run.capture.captured(len(eta), lambda: eta[0].sum())
    layers = layers_of(captured.uses)
    if (
        len(layers) != 1
        or captured.scales
        or captured.lookups
        or captured.opaque
        or not _covers(layers[0].index, anchor)
        or not _gives(layers[0], eta, run.anchor.theta)
    ):
        return None
    names = anchor.whole_sites
    if not run.score.outputs:
        return None
    if ("uses", names) not in run.verdicts:
        unsure = unexplained(run, captured, run.score.outputs, run.score.leaves, names)
        run.verdicts["uses", names] = unsure == set()  # neither None, of uses not seen, nor sites that tell nothing
    return layers[0] if run.verdicts["uses", names] else None


def _covers(index: Tensor, anchor: Anchor) -> bool:
    """Whether some coordinates of theta are the free ones, each once."""
    return index.numel() == anchor.size and torch.equal(index.reshape(-1).sort().values, anchor.index)


def _feeds(output: Output, eta: Tensor, shift_invariant: bool) -> bool:
    """Whether eta is an operation's output, or differs from it by what is subtracted from all entries alike."""
    if eta.numel() != output.zeros().numel():
        return False
    node = _before_views(eta.grad_fn, output)
    if node is output.edge.node:
        return True
    if node is None or not shift_invariant or node.name() != "SubBackward0":
        return False
    (first, _), (second, _) = node.next_functions
    feeds = _before_views(first, output) is output.edge.node
    return feeds and second is not None and second.name() == "LogsumexpBackward0"


def _before_views(node: Any, output: Output) -> Any:
    """The node that views alone stand after, or the output's own."""
    while node is not None and node is not output.edge.node and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    return node


_VIEWS = frozenset(
    {
        f"{each}Backward0"
        for each in ("Expand", "Permute", "Transpose", "T", "View", "UnsafeView", "Squeeze", "Unsqueeze")
    }
) | {"SqueezeBackward1"}
"""Of as many entries in as out; in which order they come, `_gives` finds out."""


def _gives(layer: Layer, eta: Tensor, theta: Tensor) -> bool:
    """Whether position t of the layer is the t-th of eta, and output o its o-th entry, up to what all share."""
    same_outputs = len(layer.index) == eta.shape[-1]
    if not same_outputs or layer.inputs.shape[:2].numel() * len(layer.index) != eta.numel():
        return False
    if eta.dim() == 2:
        return True
    weight = theta[layer.index]  # o i
    found, wanted = (layer.inputs @ weight.mT).reshape(eta.shape), eta.detach()
    found, wanted = (each - each.mean(-1, keepdim=True) for each in (found, wanted))
    close = settings.rounding * torch.finfo(eta.dtype).eps
    return torch.allclose(found, wanted, rtol=close, atol=close * float(wanted.abs().max()))
