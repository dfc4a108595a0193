"""Gamma variates, which torch draws by a function that no mode sees."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.distributions import gamma


@contextmanager
def gamma_drawn_by(draw: Callable[..., Tensor]) -> Iterator[None]:
    """Have standard Gamma variates drawn by a function of torch's own and of their concentrations."""
    own = gamma._standard_gamma
    try:
        gamma._standard_gamma = lambda concentration, **options: draw(own, concentration, **options)
        yield
    finally:
        gamma._standard_gamma = own
