"""Functions that Fisher informations are made of, in float64 and without cancellation."""

import torch
from torch import Tensor


def trigamma(x: Tensor) -> Tensor:
    """psi'(x), x > 0, to machine precision (`torch.polygamma` has 8 digits)."""
    return torch.special.zeta(torch.full_like(x, 2.0), x)


def trigamma_excess(x: Tensor) -> Tensor:
    """The excess x psi'(x) - 1, about 1 / 2x: by its asymptotic series where x is large (Bernoulli numbers B_2k)."""
    inverse = 1 / x.clamp(min=16.0)
    square = inverse.square()
    series = 0.0
    for bernoulli in (7 / 6, -691 / 2730, 5 / 66, -1 / 30, 1 / 42, -1 / 30, 1 / 6):
        series = (series + bernoulli) * square
    small = x.clamp(max=16.0)
    return torch.where(x > 16.0, inverse / 2 + series, small * trigamma(small) - 1)


def log_sigmoid_slope(x: Tensor) -> Tensor:
    """Logarithm of sigmoid(x) sigmoid(-x)."""
    return torch.nn.functional.logsigmoid(x) + torch.nn.functional.logsigmoid(-x)


def triangular_root(first: Tensor, cross: Tensor, rest: Tensor) -> Tensor:
    """The root [[first, 0], [cross, rest]] `[*batch, 2, 2]`."""
    return torch.stack([torch.stack([first, torch.zeros_like(first)], -1), torch.stack([cross, rest], -1)], -2)


def compressed_root(root: Tensor) -> Tensor:
    """A root with as many columns as outputs, of a root with more: R' of the QR decomposition of S'."""
    return torch.linalg.qr(root.mT, mode="r").R.mT


def symmetric_root(matrix: Tensor) -> Tensor:
    """A root of positive semi-definite matrices `[*batch, n, n]`, by the eigenvalues of their correlations."""
    scale = matrix.diagonal(dim1=-2, dim2=-1).clamp(min=torch.finfo(matrix.dtype).tiny).sqrt()
    values, vectors = torch.linalg.eigh(matrix / scale.unsqueeze(-1) / scale.unsqueeze(-2))
    return scale.unsqueeze(-1) * vectors * values.clamp(min=0.0).sqrt().unsqueeze(-2)
