"""What torch's layers do with their weights: how many terms an output sums, and along which axis the inputs lie."""

from math import prod

from torch import Tensor, nn

NORMALISATION = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_PRODUCTS = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
_LAYERS = (*_CONVOLUTIONS, *_TRANSPOSED, *_TABLES, *_PRODUCTS)


def is_bias(module: nn.Module, attribute: str) -> bool:
    """Whether a parameter is added to what its layer's weights make of the input.

    Args:
        module: the layer.
        attribute: the parameter's name in it.

    Returns:
        the answer.
    """
    return isinstance(module, _LAYERS) and attribute.startswith(("bias", "in_proj_bias"))


def fan_in(module: nn.Module, attribute: str) -> int | None:
    """How many products of an input with a weight an output sums; of a bias, how many its layer's weight makes it.

    It is ``in`` of Linear, ``in / groups * kernel`` of Conv and ConvTranspose (its stride left aside), 1 of Embedding,
    which looks one row up.

    Args:
        module: the layer.
        attribute: the parameter's name in it.

    Returns:
        the number; None of a layer that is not one of torch's.
    """
    weight = _weight(module, attribute)
    if isinstance(module, _TABLES):
        return 1
    if weight is not None and isinstance(module, _TRANSPOSED):
        return weight.shape[0] // module.groups * prod(weight.shape[2:])  # [in, out / groups, *kernel]
    if weight is not None and isinstance(module, (*_CONVOLUTIONS, *_PRODUCTS)):
        return prod(weight.shape[1:])  # [out, in / groups, *kernel]
    return None


def input_axis(module: nn.Module, attribute: str) -> int | None:
    """The axis of a weight along which the layer's inputs lie: columns of Linear, rows (words) of Embedding.

    Args:
        module: the layer.
        attribute: the weight's name in it.

    Returns:
        the axis; None of a layer that is not one of torch's.
    """
    if isinstance(module, (*_TRANSPOSED, *_TABLES)):
        return 0
    known = isinstance(module, (*_CONVOLUTIONS, *_PRODUCTS)) and not isinstance(module, nn.Bilinear)
    matrix = not is_bias(module, attribute) and getattr(module, attribute).dim() > 1
    return 1 if known and matrix else None


def _weight(module: nn.Module, attribute: str) -> Tensor | None:
    """The parameter itself, or of a bias its layer's weight: in_proj_bias, in_proj_weight."""
    if not is_bias(module, attribute):
        return getattr(module, attribute)
    weight = getattr(module, attribute.replace("bias", "weight"), None)
    return getattr(module, "q_proj_weight", None) if weight is None else weight
