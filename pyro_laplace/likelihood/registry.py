"""What is known of observed distributions, keyed by their type: Fisher information, link, and what is predicted of y.

A family says three things about a distribution that its curvature needs. Its *link*: the unconstrained parameters
``eta`` `[*batch, outputs]` that the data's distribution depends on, in which predictions are linearised. The way back.
And a root ``S`` of its Fisher information in them, ``I(eta) = E[(d log p / d eta)(d log p / d eta)'] = S S'``, of shape
`[*batch, outputs, columns]`.
Curvature does not depend on which parametrisation a family chooses; the linearised predictive does.

What it says beyond that has defaults. Where eta is Gaussian, y has a distribution in closed form for some families; for
the others, the mixture over draws of eta. And y may be one class, or a number.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_laplace.likelihood.gaussian import GaussianEta


class Family(ABC):
    """Link and Fisher information of one type of distribution.

    The way back and the root are also given the program's own distribution `fn`, for what eta does not hold because it
    never depends on a parameter: the number of trials, the type of what is inflated with zeros.
    """

    outputs: ClassVar[tuple[str, ...]]
    """Names of the entries of eta; one name alone stands for as many as there are classes or components."""

    shift_invariant: ClassVar[bool] = False
    """Whether eta matters only up to a constant that is added to all its entries: it is logits, which a distribution
    keeps normalised, and the program may have written others."""

    classes: ClassVar[bool] = False
    """Whether y is one class: its expectation is class probabilities, and a guess at it is right or wrong."""

    concave: ClassVar[tuple[str, ...]] = ()
    """The outputs in which log p(y | eta) is concave, together and for every y, where the others are fixed."""

    takes_floats: ClassVar[bool] = False
    """Whether data that are whole numbers have to be floating-point numbers all the same."""

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

    def location(self, fn: Any) -> Tensor:
        """Where y lies, whatever its spread `[*batch, ...]`: a parameter that moves eta and not this is noise."""
        return fn.mean

    def moved(self, fn: Any, loc: float | Tensor, scale: float | Tensor) -> Any | None:
        """The distribution of loc + scale y; None where it is none of this family."""
        return None

    # --- prediction, where eta is Gaussian ------------------------------------------------------

    def predictive(self, eta: GaussianEta, fn: Any, link: str) -> Any | None:
        """The distribution of y, each entry by itself, in closed form or well approximated.

        Args:
            eta: the parameters.
            fn: the program's own distribution, wrappers seen through.
            link: of classes and logits, one of `LINKS`.

        Returns:
            a distribution of the batch shape ``base``; None where there is none, and draws of eta are mixed.
        """
        return None

    def joint_predictive(self, eta: GaussianEta, fn: Any) -> Any | None:
        """The distribution of all entries of a datum together, where these depend on one another through eta.

        Args:
            eta: the parameters; `event` is not empty.
            fn: the program's own distribution, wrappers seen through.

        Returns:
            a distribution with the shape of `event` for its event; None where the entries are predicted one by one.
        """
        return None

    def variances(self, eta: GaussianEta, fn: Any) -> tuple[Tensor, Tensor] | None:
        """The variance of y given eta, in the mean, and that of its mean `[*base]`; None without a closed form."""
        return None

    # --- classes --------------------------------------------------------------------------------

    def log_classes(self, eta: Tensor) -> Tensor | None:
        """Log probabilities of the classes of one y `[*batch, classes]`; None of what is no class."""
        return None

    def of_log_classes(self, log_p: Tensor) -> Tensor:
        """The inverse of `log_classes`: eta `[*batch, outputs]`.

        Raises:
            NotImplementedError: of a family that has no `log_classes`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no log_classes")

    def average(self, eta: Tensor, weights: Tensor | None = None) -> Tensor | None:
        """Eta of the mean of class probabilities.

        Args:
            eta: of several distributions `[several, *batch, outputs]`.
            weights: of each, [several]; equal without.

        Returns:
            the mean's `[*batch, outputs]`; None of what is no class, whose mixture is no such distribution.
        """
        log_p = self.log_classes(eta)
        if log_p is None:
            return None
        return self.of_log_classes(log_mean(log_p, weights))

    def averaged(self, eta: GaussianEta, fn: Any) -> Any | None:
        """The distribution with class probabilities averaged over draws of eta.

        Args:
            eta: the parameters.
            fn: the program's own distribution.

        Returns:
            the distribution; None of what is no class, or depends on other entries of its datum.
        """
        if not self.classes or eta.event:
            return None
        mean, count = None, 0
        for draws in eta.draws():
            part = self.average(draws)
            if part is None:
                return None
            share = part.new_tensor([count, len(draws)]) / (count + len(draws))
            mean = part if mean is None else self.average(torch.stack([mean, part]), share)
            count += len(draws)
        return None if mean is None else self.distribution(mean, fn)

    # --- data -----------------------------------------------------------------------------------

    def expected(self, fn: Any) -> Tensor:
        """The mean of y; of classes, their probabilities `[*batch, classes]` or those of a one."""
        return fn.mean

    def hits(self, expected: Tensor, observed: Tensor) -> Tensor:
        """Whether the most probable class is the observed one.

        Args:
            expected: as `expected` gives it.
            observed: the data.

        Returns:
            bool, of the shape of the data.

        Raises:
            NotImplementedError: of what is no class.
        """
        raise NotImplementedError(f"{type(self).__name__} is of no classes")

    def as_data(self, value: Tensor, fn: Any) -> Tensor:
        """The data in a dtype that the density takes."""
        takes_other = self.takes_floats and not value.is_floating_point()
        return value.to(self.link(fn).dtype) if takes_other else value


def log_mean(log_p: Tensor, weights: Tensor | None = None) -> Tensor:
    """``log sum_k w_k exp(v_k)`` of the first axis; of equal weights without any."""
    if weights is None:
        return log_p.logsumexp(0) - math.log(len(log_p))
    return (log_p + weights.log().to(log_p).reshape(-1, *(1,) * (log_p.dim() - 1))).logsumexp(0)


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


def kin_of(kind: type) -> Family | None:
    """The family of the nearest registered base class, whatever density the type has: its y are of that kind."""
    return next((FAMILIES[cls] for cls in kind.__mro__ if cls in FAMILIES), None)
