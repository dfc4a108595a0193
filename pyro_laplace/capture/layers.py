"""Layers: a product with the bias that is added to it, which share their output's gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace.capture.contraction import Use


@dataclass(frozen=True, eq=False)
class Layer:
    """A product before its gradients are known."""

    index: Tensor
    inputs: Tensor
    use: Use
    has_bias: bool


def layers_of(uses: list[Use]) -> list[Layer]:
    """A product and the bias that is added to it share their output's gradient: one product, with a 1 appended to a."""
    joined: dict[int, list[Use]] = {}
    for use in uses:
        joined.setdefault(id(use.output), []).append(use)
    return [layer for group in joined.values() for layer in _join(group)]


def _join(group: list[Use]) -> list[Layer]:
    weights, biases = [use for use in group if not use.bias], [use for use in group if use.bias]
    if len(weights) == len(biases) == 1:
        (weight,), (bias,) = weights, biases
        if len(weight.index) == len(bias.index) and weight.inputs.shape[1] == bias.inputs.shape[1]:
            index = torch.cat([weight.index, bias.index], 1)
            return [Layer(index, _beside(weight.inputs, bias.inputs), weight, has_bias=True)]
    return [Layer(use.index, use.inputs, use, has_bias=False) for use in group]


def _beside(left: Tensor, last: Tensor) -> Tensor:
    """[left, last] along the last axis: a view where `last`, a single column, follows `left` in memory as it is."""
    follows = last.storage_offset() == left.storage_offset() + left.shape[-1] and left.stride(-1) == 1
    shared = last.untyped_storage().data_ptr() == left.untyped_storage().data_ptr()
    if shared and follows and left.stride()[:-1] == last.stride()[:-1]:
        return left.as_strided((*left.shape[:-1], left.shape[-1] + 1), left.stride(), left.storage_offset())
    return torch.cat([left, last], -1)
