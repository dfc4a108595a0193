"""What to use in place of a dense matrix that is too large, and how large that is."""

import math

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
        the remedy, with the sizes.
    """
    sites = [anchor.latents[name] for name in anchor.touched]
    layers = [site for site in sites if is_weight(site)]
    groups = [site.name for site in sites if site.frames and not is_weight(site)]
    factors = sum(map(_bytes_of_factors, sites))
    found = []
    if layers and factors <= settings.block_bytes:
        found.append(f"structure='kron' ({shown_bytes(factors)}, a pair of factors for each layer)")
        found.append("subset='last_layer' of a network")
    if groups:
        found.append(f"structure='sparse' (linear in the number of groups, of {', '.join(map(repr, groups))})")
    found.append(f"structure='diag' ({shown_bytes(torch.float64.itemsize * anchor.size)})")
    found.append(f"structure=pl.LowRank(rank) ({shown_bytes(torch.float64.itemsize * anchor.size)} a rank)")
    largest = math.isqrt(settings.block_bytes // torch.float64.itemsize)
    found.append(f"a pl.Subnetwork of single coordinates or some sites by name (up to {largest} coordinates fit)")
    return "use " + ", ".join(found[:-1]) + f", or {found[-1]}"


def is_weight(site: Latent) -> bool:
    """Whether a site is a matrix or a convolution's kernel, as a layer's weight is."""
    return len(site.shape) > 1 and not site.frames


def _bytes_of_factors(site: Latent) -> int:
    """Of a Kronecker pair ``[outputs, outputs]`` and ``[inputs + 1, inputs + 1]``; a vector is in its layer's pair."""
    if not is_weight(site):
        return torch.float64.itemsize * site.size
    outputs = site.shape[0]
    return torch.float64.itemsize * (outputs**2 + (site.size // outputs + 1) ** 2)
