"""What torch's layers do with their weights: how many terms an output sums, and along which axis the inputs lie."""

from math import prod

from torch import Tensor, nn

from pyro_laplace._errors import InvalidOption
from pyro_laplace.nn.target import Target

NORMALISATION = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_PRODUCTS = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
_LAYERS = (*_CONVOLUTIONS, *_TRANSPOSED, *_TABLES, *_PRODUCTS)


def is_bias(target: Target) -> bool:
    """Whether the parameter is added to what its layer's weights make of the input."""
    return isinstance(target.module, _LAYERS) and target.attribute.startswith(("bias", "in_proj_bias"))


def fan_in(target: Target) -> int:
    """How many products of an input with a weight an output sums; of a bias, how many its layer's weight makes it.

    It is ``in`` of Linear, ``in / groups * kernel`` of Conv and ConvTranspose (its stride left aside), 1 of Embedding,
    which looks one row up.

    Args:
        target: the parameter.

    Returns:
        the number.

    Raises:
        InvalidOption: if the layer is not one of torch's, naming the parameter.
    """
    module, weight = target.module, _weight(target)
    if isinstance(module, _TABLES):
        return 1
    if weight is not None and isinstance(module, _TRANSPOSED):
        return weight.shape[0] // module.groups * prod(weight.shape[2:])  # [in, out / groups, *kernel]
    if weight is not None and isinstance(module, (*_CONVOLUTIONS, *_PRODUCTS)):
        return prod(weight.shape[1:])  # [out, in / groups, *kernel]
    raise InvalidOption(_unknown("FanIn", "fan-in", target))


def input_axis(target: Target) -> int:
    """The axis of a weight along which the layer's inputs lie: columns of Linear, rows (words) of Embedding.

    Args:
        target: a weight.

    Returns:
        the axis.

    Raises:
        InvalidOption: if the layer is not one of torch's, naming the parameter.
    """
    module = target.module
    if isinstance(module, (*_TRANSPOSED, *_TABLES)):
        return 0
    known = isinstance(module, (*_CONVOLUTIONS, *_PRODUCTS)) and not isinstance(module, nn.Bilinear)
    if known and target.parameter.dim() > 1 and _weight(target) is target.parameter:
        return 1
    raise InvalidOption(_unknown("ARD", "input axis", target))


def _weight(target: Target) -> Tensor | None:
    """The parameter itself, or of a bias its layer's weight: in_proj_bias, in_proj_weight."""
    if not is_bias(target):
        return target.parameter
    weight = getattr(target.module, target.attribute.replace("bias", "weight"), None)
    return getattr(target.module, "q_proj_weight", None) if weight is None else weight


def _unknown(prior: str, what: str, target: Target) -> str:
    return (
        f"{prior}: the {what} of parameter {target.name!r} of a {type(target.module).__name__} is not known. Give it "
        f"another prior: prior={{{target.name!r}: pl.nn.Isotropic(1.0), '*': pl.nn.{prior}(...)}}"
    )
