"""Labels drawn from the likelihood, keyed by datum: no way of dividing the data into chunks changes what is drawn.

(Beside that stand draws by rejection, which go on until the last datum of a chunk has one: those of a von Mises.)

A generator gives its numbers in the order in which they are asked for, so that a datum's would depend on those before
it in its chunk. Here every random operation that a distribution's `sample` consists of is made datum by datum, the
generator seeded anew for each by the seed of the pass, the number of the datum in it and that of the operation.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import gamma_drawn_by
from pyro_laplace.curvature.root import Draw
from pyro_laplace.likelihood import can_be_drawn, marginalises_nan
from pyro_laplace.program.run import Site

_OF_PARAMETERS = {"normal", "bernoulli", "poisson", "binomial", "_standard_gamma", "_sample_dirichlet"}
"""Random operations whose result has the (broadcast) shape of their parameters."""

_IN_PLACE = {"normal_", "uniform_", "exponential_", "cauchy_", "geometric_", "log_normal_", "bernoulli_", "random_"}

_OF_SHAPE: dict[str, Callable[[Tensor], Tensor]] = {
    "rand": Tensor.uniform_,
    "randn": Tensor.normal_,
    "rand_like": Tensor.uniform_,
    "randn_like": Tensor.normal_,
}
"""Random operations that are given a shape, and what fills a tensor alike."""


def draw_labels(site: Site, count: int, draw: Draw) -> Tensor:
    """Draws from the likelihood, missing where the data are. Torch's generators stay as they are.

    Args:
        site: an observed site.
        count: how many for each datum.
        draw: the seed, and the number of the site's first datum in the pass.

    Returns:
        the labels `[count, *batch, *event]`.

    Raises:
        NotImplementedError: if the distribution cannot be sampled.
    """
    if not can_be_drawn(site.fn):
        raise NotImplementedError(f"draws of {site.fn}")
    batch = site.fn.batch_shape
    with torch.no_grad(), undisturbed():
        pyro.set_rng_seed(_key(draw.seed, draw.first, 0) % 2**32)
        with _ByDatum(count, batch[0] if batch else 1, draw) as by_datum, gamma_drawn_by(by_datum.of_parameters):
            labels = site.fn.sample(torch.Size((count,)))
    return torch.where(site.value.isnan(), site.value, labels) if marginalises_nan(site.fn) else labels


class _ByDatum(TorchFunctionMode):
    """Makes random operations datum by datum.

    Args:
        count: labels, an axis of what is drawn.
        size: data, the axis after it.
        draw: the seed, and the number of the first datum.
    """

    def __init__(self, count: int, size: int, draw: Draw) -> None:
        super().__init__()
        self.count, self.size, self.draw = count, size, draw
        self._calls = 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, if it is random for each datum by itself."""
        kwargs, kind = kwargs or {}, getattr(func, "__name__", "")
        if kind == "multinomial" and args[0].dim() == 2 and len(args[0]) % self.size == 0:
            parts = args[0].split(len(args[0]) // self.size)  # as many rows a datum for one as for another
            return torch.cat([func(parts[datum], *args[1:], **kwargs) for datum in self._each(args[0].device)])
        if kind in _IN_PLACE and (axis := self._axis(args[0].shape)) is not None:
            for datum in self._each(args[0].device):
                func(args[0].select(axis, datum), *args[1:], **kwargs)
            return args[0]
        if kind in _OF_SHAPE:
            result = func(*args, **kwargs)
            if (axis := self._axis(result.shape)) is not None:
                for datum in self._each(result.device):
                    _OF_SHAPE[kind](result.select(axis, datum))
            return result
        return self.of_parameters(func, *args, **kwargs) if kind in _OF_PARAMETERS else func(*args, **kwargs)

    def of_parameters(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """A random operation whose result has the shape of its parameters."""
        given = [each for each in args if isinstance(each, Tensor)]
        shape = torch.broadcast_shapes(*(each.shape for each in given))
        if not given or (axis := self._axis(shape)) is None:
            return func(*args, **kwargs)
        rows = [each.expand(shape) if isinstance(each, Tensor) else each for each in args]
        return torch.stack([func(*_at(rows, axis, d), **kwargs) for d in self._each(given[0].device)], axis)

    def _axis(self, shape: torch.Size) -> int | None:
        """The axis of the data, which comes after that of the labels; None if they are not there."""
        pairs = enumerate(pairwise(shape), start=1)
        return next((axis for axis, pair in pairs if pair == (self.count, self.size)), None)

    def _each(self, device: torch.device) -> Iterator[int]:
        """The data by number, the generator seeded for each."""
        self._calls += 1
        generator = _generator(device)
        for datum in range(self.size):
            generator.manual_seed(_key(self.draw.seed, self.draw.first + datum, self._calls))
            yield datum


def _at(args: list[Any], axis: int, datum: int) -> list[Any]:
    return [each.select(axis, datum) if isinstance(each, Tensor) else each for each in args]


def _generator(device: torch.device) -> torch.Generator:
    """The one that operations draw from which are given none."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator


def _key(seed: int, datum: int, call: int) -> int:
    """A well mixed 63 bit number of three (the finaliser of SplitMix64; Steele et al. 2014)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + datum * 0xBF58476D1CE4E5B9 + call * 0x94D049BB133111EB) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    return (mixed ^ (mixed >> 31)) >> 1
