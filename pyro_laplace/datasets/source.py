"""Seeded randomness that leaves the global generator alone."""

import torch
from torch import Tensor

from pyro_laplace._errors import InvalidOption


class Source:
    """Uniform and normal numbers from a seed, made in double precision and handed out in the default dtype.

    So a set is the same data in either precision, rounded.

    Args:
        num_data: how many data are asked for.
        seed: of the generator.
        parts: how many groups of one size the data form.

    Raises:
        InvalidOption: if `num_data` is no positive multiple of `parts`.
    """

    def __init__(self, num_data: int, seed: int, parts: int = 1) -> None:
        if num_data < 1 or num_data % parts:
            what = "a positive number" if parts == 1 else f"a positive multiple of {parts}: there are {parts} groups"
            raise InvalidOption(f"num_data={num_data}: give {what}")
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Independent numbers between two bounds."""
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (low + (high - low) * drawn).to(torch.get_default_dtype())

    def normal(self, *shape: int) -> Tensor:
        """Independent standard normal numbers."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(torch.get_default_dtype())

    def poisson(self, rate: Tensor) -> Tensor:
        """Counts of these rates, as floating-point numbers."""
        return torch.poisson(rate.double(), generator=self.generator).to(rate.dtype)
