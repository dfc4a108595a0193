"""Curves along one input, with three kinds of noise."""

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_laplace.datasets.source import Source


def gap(num_data: int = 80, *, noise: float = 0.15, seed: int = 0) -> tuple[Float[Tensor, "n 1"], Float[Tensor, " n"]]:
    """A wave that was not observed in the middle: ``y = sin(2 x) + noise N(0, 1)``.

    Half of the inputs are uniform on ``[-2.5, -0.9]``, half on ``[0.9, 2.5]``, in ascending order. What is said of the
    gap between them, and of what lies beyond, is the prior's and not the data's.

    Args:
        num_data: how many data, an even number.
        noise: standard deviation of the noise, in the unit of y.
        seed: of inputs and noise.

    Returns:
        inputs in one column, and observations.
    """
    source = Source(num_data, seed, parts=2)
    side = torch.tensor([-1.0, 1.0]).repeat_interleave(num_data // 2)
    x = (side * source.uniform(0.9, 2.5, num_data)).sort().values
    return x[:, None], (2 * x).sin() + noise * source.normal(num_data)


def counts(num_data: int = 100, *, seed: int = 0) -> tuple[Float[Tensor, "n 1"], Float[Tensor, " n"]]:
    """Counts whose rate rises and falls twentyfold: ``y ~ Poisson(exp(1.5 + 1.5 sin(x)))``.

    Inputs are uniform on ``[-4, 4]``, in ascending order; rates go from 1 to 20 there.

    Args:
        num_data: how many data.
        seed: of inputs and counts.

    Returns:
        inputs in one column, and counts as floating-point numbers, for a Poisson site.
    """
    source = Source(num_data, seed)
    x = source.uniform(-4.0, 4.0, num_data).sort().values
    return x[:, None], source.poisson((1.5 + 1.5 * x.sin()).exp())


def heteroscedastic(num_data: int = 150, *, seed: int = 0) -> tuple[Float[Tensor, "n 1"], Float[Tensor, " n"]]:
    """A line whose noise depends on the input: ``y = 0.5 x + s(x) N(0, 1)``, with ``log s(x) = sin(x) - 1``.

    Inputs are uniform on ``[-4, 4]``, in ascending order; the standard deviation of the noise goes from 0.14 to 1.

    Args:
        num_data: how many data.
        seed: of inputs and noise.

    Returns:
        inputs in one column, and observations.
    """
    source = Source(num_data, seed)
    x = source.uniform(-4.0, 4.0, num_data).sort().values
    return x[:, None], 0.5 * x + (x.sin() - 1).exp() * source.normal(num_data)
