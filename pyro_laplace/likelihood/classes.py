"""What families of one class a datum have in common, ordered or not."""

from typing import Any

from torch import Tensor

from pyro_laplace.likelihood.registry import Family


class ClassFamily(Family):
    """Of a distribution over classes that has `probs`."""

    classes = True

    def expected(self, fn: Any) -> Tensor:
        """Class probabilities `[*batch, classes]`."""
        return fn.probs

    def hits(self, expected: Tensor, observed: Tensor) -> Tensor:
        """Whether the most probable class is the observed one."""
        return expected.argmax(-1) == observed

    def location(self, fn: Any) -> Tensor:
        """All of eta: classes have no spread beside their probabilities."""
        return self.link(fn)
