"""What to use in place of a dense matrix that is too large, how large that is, and about how long it takes.

Times are counts of multiplications at `settings.products_per_second`: those of a pass over `settings.told_rows` rows of
the curvature's root (a datum has one for each of its outputs), and those made once, of the sum. Letters: o outputs and
i inputs of a layer.
"""

import math
from collections.abc import Sequence

import torch

from pyro_laplace._memory import shown_bytes
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.program.sites import Latent
from pyro_laplace.settings import settings


def smaller_than_dense(anchor: Anchor) -> str:
    """The structures and subsets that an anchor's free coordinates have room in, those that suit its sites first.

    Args:
        anchor: where a dense matrix over all free coordinates would be too large.

    Returns:
        the remedy, with sizes and rough times.
    """
    sites = [anchor.latents[name] for name in anchor.touched]
    layers = [site for site in sites if is_weight(site)]
    groups = [site.name for site in sites if site.frames and not is_weight(site)]
    factors = sum(map(_bytes_of_factors, sites))
    item, size, found = torch.float64.itemsize, anchor.size, []
    if layers and factors <= settings.block_bytes:
        said = _cost(factors, sum(map(_row_of_factors, layers)), sum(map(_roots_of_factors, layers)))
        found.append(f"structure='kron' ({said}, a pair of factors for each layer)")
    if layers:
        found.append(_last_layer(sites, layers[-1]))
    if groups:
        found.append(f"structure='sparse' (linear in the number of groups, of {', '.join(map(repr, groups))})")
    found.append(f"structure='diag' ({_cost(item * size, size)})")
    found.append(f"structure=pl.LowRank(rank) ({_cost(item * size, size)} a rank)")
    most = math.isqrt(settings.block_bytes // item)
    found.append(
        f"a pl.Subnetwork of single coordinates or some sites by name (up to {most} coordinates fit, "
        f"{_cost(item * most**2, most**2, most**3 // 3)})"
    )
    rows = f"{settings.told_rows:,} rows, data times outputs"
    return f"use {', '.join(found[:-1])}, or {found[-1]}; times are rough, of {rows}, on one thread of a CPU"


def _last_layer(sites: Sequence[Latent], weight: Latent) -> str:
    """What the last weight takes with the bias that follows it: dense, or, where that is too large, by its factors."""
    after = sites[sites.index(weight) + 1 :]
    bias = sum(site.size for site in after if site.shape == weight.shape[:1])
    size = weight.size + bias
    numbers = torch.float64.itemsize * size**2
    if numbers <= settings.block_bytes:
        return f"subset='last_layer' of a network ({weight.name!r}: {_cost(numbers, size**2, size**3 // 3)})"
    cost = _cost(_bytes_of_factors(weight), _row_of_factors(weight), _roots_of_factors(weight))
    return f"subset='last_layer' of a network with structure='kron' ({weight.name!r}: {cost})"


def _cost(size: int, a_row: int, once: int = 0) -> str:
    """A size in bytes, and the time of a pass and of what follows it."""
    return f"{shown_bytes(size)}, {_shown_seconds((settings.told_rows * a_row + once) / settings.products_per_second)}"


def _shown_seconds(seconds: float) -> str:
    """A time as roughly as it is known."""
    if seconds < 1:
        return "under 1 s"
    unit, length = ("s", 1) if seconds < 120 else ("min", 60) if seconds < 7200 else ("h", 3600)
    return f"about {seconds / length:.0f} {unit}"


def is_weight(site: Latent) -> bool:
    """Whether a site is a matrix or a convolution's kernel, as a layer's weight is."""
    return len(site.shape) > 1 and not site.frames


def _bytes_of_factors(site: Latent) -> int:
    """Of a Kronecker pair ``[outputs, outputs]`` and ``[inputs + 1, inputs + 1]``; a vector is in its layer's pair."""
    if not is_weight(site):
        return torch.float64.itemsize * site.size
    return torch.float64.itemsize * _row_of_factors(site)


def _row_of_factors(site: Latent) -> int:
    """o^2 + i^2, which a row of the root adds to both factors of a layer."""
    outputs, inputs = _outputs_and_inputs(site)
    return outputs**2 + inputs**2


def _roots_of_factors(site: Latent) -> int:
    """9 n^3 for the eigenvectors of a symmetric matrix (Golub and Van Loan 2013, "Matrix computations", 8.3)."""
    return 9 * sum(size**3 for size in _outputs_and_inputs(site))


def _outputs_and_inputs(site: Latent) -> tuple[int, int]:
    """Of a layer's weight; the inputs with the 1 for a bias."""
    outputs = site.shape[0]
    return outputs, site.size // outputs + 1
