"""A layer whose outputs are the likelihood's own parameters: no backward pass, and no root of the Fisher information.

With ``eta_n = W a_n`` (a softmax does not see the constant that normalising takes away) the curvature in W is
``sum_n w_n I_n (x) a_n a_n'``, for as many classes as there are.
"""

import torch
from torch import Tensor

from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.contraction import Output
from pyro_laplace.capture.layers import layers_of
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.curvature.root import Information, Root
from pyro_laplace.reading.records import Direct
from pyro_laplace.reading.verification import unexplained


def direct_of(run: CapturedRun, root: Root | None, anchor: Anchor) -> Direct | None:
    """The curvature, where the free sites are the weight and bias of such a layer; None elsewhere.

    Args:
        run: the program's run, captured.
        root: of the curvature on its chunk.
        anchor: theta and its free coordinates.

    Returns:
        the layer's inputs and the site's information, or None.
    """
    if root is None or run.capture is None or len(root.sites) != 1 or run.program.terms != root.sites.keys():
        return None
    ((name, site_root),) = root.sites.items()
    information = site_root.given
    if not isinstance(information, Information) or information.weight.dim() != 1:
        return None
    outputs = run.capture.outputs()
    with torch.enable_grad():
        eta = site_root.outputs(run.run.observed[name])
    if not outputs or not _feeds(outputs[0], eta, information.likelihood.family.shift_invariant):
        return None
    captured = run.capture.captured(len(information.weight), lambda: eta[0].sum())
    layers = layers_of(captured.uses)
    if (
        len(layers) != 1
        or captured.scales
        or captured.lookups
        or captured.opaque
        or not _covers(layers[0].index, anchor)
    ):
        return None
    names = anchor.whole_sites
    if not run.score.outputs:
        return None
    if ("uses", names) not in run.verdicts:
        unsure = unexplained(run, captured, run.score.outputs, run.score.leaves, names)
        run.verdicts["uses", names] = unsure == set()  # neither None, of uses not seen, nor sites that tell nothing
    if not run.verdicts["uses", names]:
        return None
    (layer,) = layers
    live = information.weight != 0
    inputs = layer.inputs[:, 0]
    return Direct(
        anchor.positions[layer.index], inputs if bool(live.all()) else inputs[live], information, live, layer.has_bias
    )


def _covers(index: Tensor, anchor: Anchor) -> bool:
    """Whether some coordinates of theta are the free ones, each once."""
    return index.numel() == anchor.size and torch.equal(index.reshape(-1).sort().values, anchor.index)


def _feeds(output: Output, eta: Tensor, shift_invariant: bool) -> bool:
    """Whether eta is an operation's output, or differs from it by what is subtracted from all entries alike."""
    if eta.shape != output.zeros().shape:
        return False
    node = eta.grad_fn
    while node is not None and node.name() == "ExpandBackward0":  # to the same shape
        node = node.next_functions[0][0]
    if node is output.edge.node:
        return True
    if node is None or not shift_invariant or node.name() != "SubBackward0":
        return False
    (first, _), (second, _) = node.next_functions
    return first is output.edge.node and second is not None and second.name() == "LogsumexpBackward0"
