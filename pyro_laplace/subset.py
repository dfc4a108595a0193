"""Which sites are random; the others stay at the mode."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat import undisturbed
from pyro_laplace._errors import InvalidOption
from pyro_laplace.data import Data
from pyro_laplace.program import Program
from pyro_laplace.program.graph import last_layer

Subset = str | Iterable[str] | Callable[[str], bool]


def select(subset: Subset, program: Program, data: Data) -> tuple[str, ...]:
    """The random sites, in trace order.

    Args:
        subset: "all"; "last_layer", the sites of the last operation with parameters before the observed sites; a site
            name or glob or several; or a callable of the site name.
        program: the traced program.
        data: the data.

    Returns:
        their names, at least one.

    Raises:
        InvalidOption: if nothing matches, listing the sites there are.
    """
    names = tuple(program.latents)
    if isinstance(subset, str) and subset == "all":
        return names
    if isinstance(subset, str) and subset == "last_layer":
        return _last_layer(program, data)
    if callable(subset):
        chosen = tuple(name for name in names if subset(name))
        if not chosen:
            raise InvalidOption(f"subset: the callable chose none of the latent sites {list(names)}")
        return chosen
    patterns = [subset] if isinstance(subset, str) else list(subset)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidOption(f"subset: {pattern!r} is not a site name; the latent sites are {list(names)}")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InvalidOption(
                f"subset: {pattern!r} matches none of the latent sites {list(names)}; it may also be 'all', "
                "'last_layer', or a callable of the site name"
            )
    if not patterns:
        raise InvalidOption(f"subset is empty; the latent sites are {list(names)}")
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def free_index(program: Program, names: Iterable[str]) -> Tensor:
    """The coordinates of some sites in theta, ascending."""
    chosen = set(names)
    parts = [torch.arange(s.start, s.stop) for name, s in program.layout.items() if name in chosen]
    return torch.cat(parts).to(program.start.device)


def _last_layer(program: Program, data: Data) -> tuple[str, ...]:
    chunk = next(program.chunks(data))

    def outputs(values: Mapping[str, Tensor]) -> list[Tensor]:
        return [param for site in program.run_at(values, chunk).observed.values() for param in _parameters(site.fn)]

    with undisturbed():
        found = last_layer(outputs, program.unpack(program.start))
    if not found:
        raise InvalidOption(
            "subset='last_layer': no product of an activation with a latent site was found before the observed sites; "
            f"name the sites of the last layer instead, among {list(program.latents)}"
        )
    return tuple(name for name in program.latents if name in found)


def _parameters(fn: Any) -> list[Tensor]:
    """The tensors that a distribution was made of, wrappers seen through."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return [value for value in vars(fn).values() if isinstance(value, Tensor)]
