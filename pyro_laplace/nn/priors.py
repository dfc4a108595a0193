"""Priors of a network's parameters: each draws one parameter inside the running program."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_laplace._errors import InvalidOption
from pyro_laplace.nn.layers import fan_in, input_axis, is_bias
from pyro_laplace.nn.scale import Learned, Scale, check_scale, scale_value
from pyro_laplace.nn.target import Target


class Prior(ABC):
    """A prior of one parameter, written as a piece of a Pyro program."""

    @abstractmethod
    def sample(self, target: Target) -> Tensor:
        """Draw the parameter: `Target.sample` and `Target.sample_scaled` do it.

        Args:
            target: the parameter, with its layer.

        Returns:
            its value, of the parameter's shape.
        """


@dataclass(frozen=True, eq=False)
class Isotropic(Prior):
    """Every entry ``Normal(0, std)``.

    Attributes:
        std: a distribution gives each parameter a scale of its own, the latent site ``<name>.scale``, in the
            non-centred form.
    """

    std: Scale

    def __post_init__(self) -> None:
        """Check the scale."""
        check_scale("Isotropic: std", self.std)

    def sample(self, target: Target) -> Tensor:
        """Draw the parameter."""
        return _normal(target, self.std)


@dataclass(frozen=True, eq=False)
class FanIn(Prior):
    """``Normal(0, gain / sqrt(fan_in))``: outputs keep the size of inputs, however wide the layer is.

    `fan_in` is the number of products that an output sums: ``in`` of Linear, ``in / groups * kernel`` of Conv and
    ConvTranspose, 1 of Embedding.

    Attributes:
        gain: the factor before ``1 / sqrt(fan_in)``; 2 ** 0.5 for ReLU (He et al. 2015). A distribution gives each
            parameter a gain of its own, the latent site ``<name>.gain``, in the non-centred form.
        bias_std: of biases; None scales them by the fan-in of their layer, as torch initialises them.
    """

    gain: Scale = 1.0
    bias_std: Scale | None = None

    def __post_init__(self) -> None:
        """Check the scales."""
        check_scale("FanIn: gain", self.gain)
        if self.bias_std is not None:
            check_scale("FanIn: bias_std", self.bias_std)

    def sample(self, target: Target) -> Tensor:
        """Draw the parameter."""
        if self.bias_std is not None and is_bias(target.module, target.attribute):
            return _normal(target, self.bias_std)
        number = _known(fan_in, "FanIn", "fan-in", target)
        gain = scale_value(f"{target.name}.gain", self.gain, target.parameter)
        return _normal_of(target, gain / number**0.5, self.gain)


@dataclass(frozen=True, eq=False)
class ARD(Prior):
    """Automatic relevance determination: weights of input i are ``Normal(0, scale[i])`` (MacKay 1994; Neal 1996).

    Inputs are the columns of Linear, the input channels of Conv and ConvTranspose, the words of Embedding.

    Attributes:
        scale: one number, or a tensor with one for each input; a distribution makes the scales latent, one for each
            input, in the site ``<name>.scale`` and in the non-centred form. A learned scale is one for each input too.
        bias_std: of biases, which have no inputs.
    """

    scale: Scale
    bias_std: Scale = 1.0

    def __post_init__(self) -> None:
        """Check the scales."""
        check_scale("ARD: scale", self.scale)
        check_scale("ARD: bias_std", self.bias_std)

    def sample(self, target: Target) -> Tensor:
        """Draw the parameter."""
        if is_bias(target.module, target.attribute):
            return _normal(target, self.bias_std)
        axis = _known(input_axis, "ARD", "input axis", target)
        num_inputs = target.parameter.shape[axis]
        scale = scale_value(f"{target.name}.scale", self.scale, target.parameter, (num_inputs,))
        if scale.shape not in ((), (num_inputs,)):
            raise InvalidOption(
                f"ARD: scale has shape {list(scale.shape)}, and parameter {target.name!r} has {num_inputs} inputs"
            )
        ones = (1,) * (target.parameter.dim() - 1 - axis)
        by_input = scale.reshape((*scale.shape, *ones))  # broadcasts along every other axis
        return _normal_of(target, by_input, self.scale)


@dataclass(frozen=True, eq=False)
class StudentT(Prior):
    """Every entry ``StudentT(df, 0, scale)``: a few large weights among small ones.

    Attributes:
        df: degrees of freedom.
        scale: any scale but a distribution.
    """

    df: float
    scale: Scale = 1.0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InvalidOption: naming the option and the value.
        """
        _check_number("StudentT: df", self.df)
        check_scale("StudentT: scale", self.scale)
        if isinstance(self.scale, Distribution):
            raise InvalidOption("StudentT: a random scale= is not supported: use pl.nn.ScaleMixture")

    def sample(self, target: Target) -> Tensor:
        """Draw the parameter."""
        scale = scale_value(f"{target.name}.scale", self.scale, target.parameter)
        return target.sample(dist.StudentT(scale.new_tensor(float(self.df)), scale.new_zeros(()), scale))


@dataclass(frozen=True, eq=False)
class ScaleMixture(Prior):
    """``raw * local * shared`` with ``raw ~ Normal(0, 1)``: a Normal whose scale is random, entry by entry.

    The form is non-centred. Its latent sites are ``<name>.raw`` and ``<name>.local``, of the parameter's shape, and
    ``<name>.shared``, one for each parameter, where it is a distribution; the parameter itself is the deterministic
    site ``<name>``.

    A learned scale is shared as ``raw * local`` with ``raw ~ Normal(0, shared)``: a hyperparameter is one of a prior.

    Attributes:
        local: the distribution of the scale of each entry.
        shared: the scale that all entries share.
    """

    local: Any
    shared: Scale = 1.0

    def __post_init__(self) -> None:
        """Check the scales.

        Raises:
            InvalidOption: naming the option and the value.
        """
        check_scale("ScaleMixture: shared", self.shared)
        if not isinstance(self.local, Distribution):
            raise InvalidOption(f"ScaleMixture: local={self.local!r} is not a distribution of positive numbers")
        check_scale("ScaleMixture: local", self.local)

    def sample(self, target: Target) -> Tensor:
        """Draw the parameter."""
        shared = scale_value(f"{target.name}.shared", self.shared, target.parameter)
        local = scale_value(f"{target.name}.local", self.local, target.parameter, tuple(target.parameter.shape))
        if isinstance(self.shared, Learned):
            return target.sample_scaled(local, shared)
        return target.sample_scaled(local * shared)


@dataclass(frozen=True, eq=False)
class Horseshoe(Prior):
    """The horseshoe: `ScaleMixture` with half-Cauchy scales, local and shared (Carvalho et al. 2010).

    Attributes:
        scale: of the shared half-Cauchy, any scale but a distribution; small where few weights are thought to matter.
    """

    scale: Scale = 1.0

    def __post_init__(self) -> None:
        """Check the scale.

        Raises:
            InvalidOption: naming the option and the value.
        """
        check_scale("Horseshoe: scale", self.scale)
        if isinstance(self.scale, Distribution):
            raise InvalidOption(
                "Horseshoe: a random scale= is not supported: use pl.nn.ScaleMixture(dist.HalfCauchy(1.0), "
                "shared=...), whose shared scale has a distribution of your own"
            )

    def sample(self, target: Target) -> Tensor:
        """Draw the parameter."""
        scale = scale_value(f"{target.name}.scale", self.scale, target.parameter)
        return ScaleMixture(dist.HalfCauchy(1.0), dist.HalfCauchy(scale)).sample(target)


@dataclass(frozen=True, eq=False)
class FromFunction(Prior):
    """A prior given as a function of name and parameter that returns a distribution.

    Attributes:
        function: the function.
    """

    function: Callable[[str, Tensor], Any]

    def sample(self, target: Target) -> Tensor:
        """Draw the parameter.

        Args:
            target: the parameter.

        Returns:
            its value.

        Raises:
            InvalidOption: if the function returns no distribution.
        """
        fn = self.function(target.name, target.parameter.detach())
        if not isinstance(fn, Distribution):
            raise InvalidOption(
                f"the prior of parameter {target.name!r} is a function that returned a {type(fn).__name__}: let it "
                "return a Pyro distribution, such as dist.Normal(0.0, 1.0)"
            )
        return target.sample(fn)


def _normal(target: Target, std: Scale) -> Tensor:
    """Normal(0, std)."""
    return _normal_of(target, scale_value(f"{target.name}.scale", std, target.parameter), std)


def _normal_of(target: Target, std: Tensor, given: Scale) -> Tensor:
    """Normal(0, std), non-centred where the scale that was given is random."""
    if isinstance(given, Distribution):
        return target.sample_scaled(std)
    return target.sample(dist.Normal(std.new_zeros(()), std))


def _known(read: Callable[[nn.Module, str], int | None], prior: str, what: str, target: Target) -> int:
    """What a prior must know of a parameter's layer; refused of a layer that is not one of torch's."""
    found = read(target.module, target.attribute)
    if found is None:
        raise InvalidOption(
            f"{prior}: the {what} of parameter {target.name!r} of a {type(target.module).__name__} is not known. Give "
            f"it another prior: prior={{{target.name!r}: pl.nn.Isotropic(1.0), '*': pl.nn.{prior}(...)}}"
        )
    return found


def _check_number(option: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidOption(f"{option}={value!r} is not a number")
    check_scale(option, value)
