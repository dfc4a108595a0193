"""Whether a program is a network, whose curvature is Gauss-Newton's, and which of its weights are its last layer."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from pyro_laplace._autodiff import hessian, puller, push_forward, unit_rows
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._typing import Matrix, Theta
from pyro_laplace.likelihood import Likelihood, likelihood_of
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.program.sites import coordinates_of
from pyro_laplace.settings import settings


def is_network(program: Program, theta: Theta, chunk: Chunk, among: Collection[str] | None = None) -> bool:
    """Whether single predictors of the data multiply several weights of one site with several of another.

    That is what makes a layer upon a layer: a mixed second derivative between two sites, with several entries of
    either. A scale times a vector, or a kernel's length, is not; nor is ``a[item] * theta[person]``, where an index
    picks one entry of either for each datum. Measured in the units in which each coordinate moves the predictors by
    one, at random weights of these.

    Args:
        program: the traced program, of few coordinates.
        theta: the point.
        chunk: some data.
        among: the sites that count, the others held; None means all.

    Returns:
        whether it is one.
    """
    chosen = (latent for name, latent in program.latents.items() if among is None or name in among)
    sites = [latent.slice for latent in chosen if latent.size > 1]
    if len(sites) < 2:
        return False

    predictors = _predictors_at(program, chunk)
    with undisturbed(), torch.no_grad():
        try:
            value, pull = puller(predictors, theta)
        except RuntimeError:  # what torch.func cannot run (a packed recurrence) has no Hessian by it either
            return True
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(settings.network_probes, len(value), generator=generator, dtype=torch.float64).to(value)
        weights /= len(value) ** 0.5
        size = torch.stack([pull(row) for row in weights]).square().mean(0).sqrt()
        size = size.clamp(min=settings.network_unmoved * float(size.max()))
        mixed = hessian(lambda at: weights[0] @ predictors(at), theta).abs() / size / size.unsqueeze(-1)
        pairs = [(one, other) for k, one in enumerate(sites) for other in sites[:k]]
        pairs = [pair for pair in pairs if bool((mixed[pair] > settings.network_mixed).any())]
        return any(_multiplies(predictors, theta, size, mixed, pair) for pair in pairs)


def readout_of(program: Program, chunk: Chunk, among: Collection[str]) -> tuple[str, ...]:
    """The last sites in which the predictors of the data are linear together, at given values of all others.

    Of a network these are the weights and biases of its last layer. Measured by second derivatives at a random point.

    Args:
        program: the traced program, of few coordinates.
        chunk: some data.
        among: the sites that count, the others held.

    Returns:
        names of the sites, in trace order; none where the predictors bend in each of them.
    """
    generator = torch.Generator().manual_seed(0)
    start = program.start
    theta = start + torch.randn(start.shape, generator=generator, dtype=torch.float64).to(start)
    predictors = _predictors_at(program, chunk, centred=True)
    with undisturbed(), torch.no_grad():
        try:
            value, pull = puller(predictors, theta)
        except RuntimeError:  # what torch.func cannot run, as in `is_network`
            return ()
        weights = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        moved = pull(weights) != 0
        bends = hessian(lambda at: weights @ predictors(at), theta).abs()
    flat = float(bends.max()) * settings.rounding * torch.finfo(start.dtype).eps
    chosen: list[str] = []
    for name in reversed([name for name in program.latents if name in among]):
        index = coordinates_of(program.latents, [name, *chosen])
        if bool(moved[program.latents[name].slice].any()) and float(bends[index[:, None], index].max()) <= flat:
            chosen.append(name)
    return tuple(reversed(chosen))


def _predictors_at(program: Program, chunk: Chunk, centred: bool = False) -> Callable[[Theta], Tensor]:
    """What the links of the data are applied to, as a function of theta [predictors].

    Args:
        program: the traced program.
        chunk: some data.
        centred: whether logits that have been normalised, which is not linear, are taken from their mean.

    Returns:
        the function.
    """

    def of(each: Likelihood) -> Tensor:
        eta = each.link()
        return eta - eta.mean(-1, keepdim=True) if centred and each.family.shift_invariant else eta

    def predictors(at: Theta) -> Tensor:
        run = program.run(at, chunk)
        known = [likelihood_of(site.fn) for name, site in run.observed.items() if name not in program.derived]
        eta = [of(each).flatten() for each in known if each is not None]
        return torch.cat(eta) if eta else at.new_zeros(1)

    return predictors


def _multiplies(
    predictors: Callable[[Theta], Tensor], theta: Theta, size: Theta, mixed: Matrix, pair: tuple[slice, slice]
) -> bool:
    """Whether one predictor alone has mixed derivatives in several entries of both sites.

    It is asked of those with the largest derivative where the sum over predictors has its largest: where a datum picks
    entries by an index, most predictors have none there.

    Args:
        predictors: of theta.
        theta: the point.
        size: units of its coordinates [params].
        mixed: second derivatives of a sum over predictors, in these units.
        pair: coordinates of the two sites.

    Returns:
        whether one does.
    """
    one, other = pair
    place = int(mixed[pair].argmax())
    rows = unit_rows(0, len(theta), len(theta), theta)
    columns = mixed[pair].shape[1]
    first, second = rows[one.start + place // columns], rows[other.start + place % columns]
    along = push_forward(lambda at: push_forward(predictors, at, second)[1], theta, first)[1].abs()
    for number in along.topk(min(settings.network_probes, len(along))).indices.tolist():
        own = hessian(lambda at, number=number: predictors(at)[number], theta).abs() / size / size.unsqueeze(-1)
        entries = own[pair] > settings.network_mixed * own[pair].max()
        if int(entries.any(1).sum()) > 1 and int(entries.any(0).sum()) > 1:
            return True
    return False
