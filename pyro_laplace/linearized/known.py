"""What was found out of a program's structures while rows of its Jacobian were had: it holds on later runs too."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_laplace.linearized.covariance import Spread

type LayerKey = tuple[str, tuple[str, str | None, bool, int], int, torch.dtype]
"""A site, the layout of the layer that gives its logits, their number and dtype."""

type CaptureKey = tuple[str, int, tuple[Any, ...]]
"""A site, its number of outputs, and the operations that they come from."""


@dataclass(frozen=True, eq=False)
class LayerColumns:
    """Where the Jacobian of logits that are a layer's output has its columns.

    Attributes:
        kept: the logits that depend on random sites.
        basis: these among all [k, o].
        one: the input of a bias [1, 1].
        spread: gives the covariance.
    """

    kept: Tensor
    basis: Tensor
    one: Tensor
    spread: Spread


@dataclass(frozen=True, eq=False)
class CapturedColumns:
    """What is known of a site whose rows were verified to be its data's own.

    Attributes:
        kept: the outputs that depend on random sites.
        spread: gives the covariance of products as the first run had them; None of another posterior's run.
    """

    kept: Tensor
    spread: Spread | None


@dataclass(frozen=True, eq=False)
class Known:
    """What was found out of a program's structures on the runs so far, for the routes to come.

    Attributes:
        layers: by layer.
        captured: by structure.
    """

    layers: Mapping[LayerKey, LayerColumns] = field(default_factory=dict)
    captured: Mapping[CaptureKey, CapturedColumns] = field(default_factory=dict)

    def beside(self, other: "Known") -> "Known":
        """With what was found out of the same program around another posterior, but for the covariance."""
        others = {key: replace(columns, spread=None) for key, columns in other.captured.items()}
        return replace(self, captured={**others, **self.captured})
