"""Classes of points in the plane."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_laplace._errors import InvalidOption
from pyro_laplace.datasets.source import Source


def linear(num_data: int = 100, *, seed: int = 0) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Two classes that a line divides: the first figure of LaplaceRedux.jl.

    Class 1 is uniform on the square ``[0.5, 5] x [0.5, 5]``, class 0 on ``[-5, -0.5] x [-5, -0.5]``. A gap parts
    them, so the likelihood alone has no maximum: it is the prior that holds the weights.

    Args:
        num_data: how many points; half are of either class.
        seed: of the points.

    Returns:
        points, and 0.0 or 1.0, for a Bernoulli site.
    """
    source = Source(num_data, seed, parts=2)
    side = torch.tensor([1.0, -1.0]).repeat_interleave(num_data // 2)
    x = side[:, None] * source.uniform(0.5, 5.0, num_data, 2)
    return x, (side > 0).to(x.dtype)


def nonlinear(num_data: int = 200, *, seed: int = 0) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Two classes in opposite quadrants, which no line divides: the later figures of LaplaceRedux.jl.

    Each quadrant has a quarter of the points, uniform on a square whose sides go from 0.5 to 5 in ``|x_1|`` and
    ``|x_2|``. Class 1 is where ``x_1`` and ``x_2`` have the same sign.

    Args:
        num_data: how many points, a multiple of 4.
        seed: of the points.

    Returns:
        points, and 0.0 or 1.0, for a Bernoulli site.
    """
    source = Source(num_data, seed, parts=4)
    corners = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    corner = corners.repeat_interleave(num_data // 4, 0)
    x = corner * source.uniform(0.5, 5.0, num_data, 2)
    return x, (corner.prod(-1) > 0).to(x.dtype)


def multiclass(
    num_data: int = 150, *, num_classes: int = 3, seed: int = 0
) -> tuple[Float[Tensor, "n 2"], Int[Tensor, " n"]]:
    """Clouds around the corners of a regular polygon, one a class.

    Points of class ``k`` of ``K`` are ``3 (cos a_k, sin a_k) + N(0, I)``, with ``a_k = 2 pi k / K``: the clouds
    touch, and more of them overlap.

    Args:
        num_data: how many points, a multiple of `num_classes`.
        num_classes: how many classes, at least two.
        seed: of the points.

    Returns:
        points, and the number of each one's class, for a Categorical site.

    Raises:
        InvalidOption: for fewer than two classes.
    """
    if num_classes < 2:
        raise InvalidOption(f"num_classes={num_classes}: give at least 2")
    source = Source(num_data, seed, parts=num_classes)
    y = torch.arange(num_classes).repeat_interleave(num_data // num_classes)
    angle = 2 * math.pi * y / num_classes
    return 3.0 * torch.stack([angle.cos(), angle.sin()], -1) + source.normal(num_data, 2), y
