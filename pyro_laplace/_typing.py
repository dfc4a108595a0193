"""Array types, named by what their axes mean. `beartype` checks them in the test run only."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

Theta = Float[Tensor, " params"]
"""All latent sites, unconstrained, flattened and joined in trace order."""

Matrix = Float[Tensor, "params params"]
"""A symmetric matrix over (a subset of) theta."""

Rows = Float[Tensor, "rows params"]
"""Rows A of a root of a curvature: the curvature is A'A."""

Scalar = Float[Tensor, ""]

Draws = Float[Tensor, "draws params"]
"""Draws of theta."""

Values = Mapping[str, Tensor]
"""Site name to value, in the site's own (constrained) space."""

type State = Mapping[str, Any]
"""Tensors, numbers and strings by name, in lists and mappings of these: what can be saved without running anything."""

type Terms = tuple[str, ...]
"""Names of the likelihood terms that are summed together: one that has a root, or all that have none."""
