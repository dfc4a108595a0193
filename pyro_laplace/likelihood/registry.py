"""Fisher information of observed distributions, keyed by distribution type.

A family says three things about a distribution. Its *link*: the unconstrained parameters ``eta`` `[*batch, outputs]`
that the data's distribution depends on, in which predictions are linearised. The way back. And a root ``S`` of its
Fisher information in them, ``I(eta) = E[(d log p / d eta)(d log p / d eta)'] = S S'``, of shape
`[*batch, outputs, columns]`.
Curvature does not depend on which parametrisation a family chooses; the linearised predictive does.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor


class Family(ABC):
    """Link and Fisher information of one type of distribution.

    The way back and the root are also given the program's own distribution `fn`, for what eta does not hold because it
    never depends on a parameter: the number of trials, the type of what is inflated with zeros.
    """

    outputs: ClassVar[tuple[str, ...]]
    """Names of the entries of eta; one name alone stands for as many as there are classes or components."""

    shift_invariant: ClassVar[bool] = False
    """Whether eta matters only up to a constant that is added to all its entries."""

    @abstractmethod
    def link(self, fn: Any) -> Tensor:
        """Unconstrained parameters eta `[*batch, outputs]` of a distribution."""

    @abstractmethod
    def distribution(self, eta: Tensor, fn: Any) -> Any:
        """The distribution with parameters eta, and with what `fn` has fixed."""

    @abstractmethod
    def fisher_root(self, eta: Tensor, fn: Any) -> Tensor:
        """S `[*batch, outputs, columns]` with S S' the Fisher information in eta; eta is in float64, and detached."""

    def information_sum(self, eta: Tensor, fn: Any, weight: Tensor) -> Tensor:
        """The Fisher information of all data, ``sum_n w_n I(eta_n)`` [outputs, outputs], for weights `[*batch]`."""
        root = self.fisher_root(eta, fn) * weight.sqrt()[..., None, None]
        return torch.einsum("...ok,...pk->op", root, root)

    def information_diagonal(self, eta: Tensor, fn: Any) -> Tensor:
        """The diagonal of each datum's Fisher information `[*batch, outputs]`."""
        return self.fisher_root(eta, fn).square().sum(-1)

    def standardised(self, fn: Any, value: Tensor) -> Tensor | None:
        """Residuals in units of the noise, of data whose log density is ``-z^2 / 2 - log scale`` up to a constant.

        Their sum of squares is then all that another noise scale needs to know.

        Returns:
            z `[*batch]`; None for other data.
        """
        return None

    def moving(self, fn: Any) -> Tensor | None:
        """Which entries of eta require a gradient, in a run under autograd: a noise scale that is a number does not.

        Returns:
            bool `[outputs]`; None where it is not known, and any may.
        """
        return None


def requires_grad(*params: Tensor) -> Tensor:
    """Which parameters require a gradient, bool [params]."""
    return torch.tensor([param.requires_grad for param in params])


FAMILIES: dict[type, Family] = {}
"""The registered families by distribution type; `register` adds to it."""


def register(*types: type) -> Callable[[type[Family]], type[Family]]:
    """Class decorator: this family describes these distribution types, and their subclasses of the same density."""

    def decorate(family: type[Family]) -> type[Family]:
        FAMILIES.update(dict.fromkeys(types, family()))
        return family

    return decorate


def family_of(kind: type) -> Family | None:
    """The family of a distribution type; None where none is registered.

    A subclass that has a `log_prob` of its own has another density than the registered class, and is not taken for it,
    unless Pyro wrote it: its classes compute torch's densities in other ways.

    Returns:
        the family that the nearest registered base class has.
    """
    for cls in kind.__mro__:
        if cls in FAMILIES:
            return FAMILIES[cls]
        if "log_prob" in vars(cls) and not cls.__module__.startswith("pyro.distributions."):
            return None
    return None
