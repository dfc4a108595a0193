"""Which sites are hyper sites: the few that decide what Gaussian the many others have.

Given them, what is left is as nearly Gaussian as the likelihood lets it be. They are found by autograd: on these sites
depends the curvature of the prior of others (a scale, a kernel's length), or how much others move the predictor (the
scale of a non-centred site), or the dispersion of the data (noise) and not its location.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace.inner.conditional import parents_of, run_of_leaves, tamed
from pyro_laplace.likelihood import Likelihood, likelihood_of
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program, add_up
from pyro_laplace.program.run import Run
from pyro_laplace.settings import settings

PRIOR = "sets the curvature of the prior of"
PREDICTOR = "multiplies"
DISPERSION = "sets the dispersion of"
PARENT = "the prior depends on it of"


@dataclass(frozen=True)
class Reason:
    """Why a site is a hyper site.

    Attributes:
        kind: what it does, in words.
        sites: to which sites.
    """

    kind: str
    sites: tuple[str, ...]

    def __str__(self) -> str:
        """In words."""
        some = list(self.sites[: settings.shown_names])
        return f"{self.kind} {', '.join(map(repr, some))}{', ...' if len(self.sites) > len(some) else ''}"


def find_hyper(program: Program, chunk: Chunk) -> dict[str, Reason]:
    """The hyper sites of a program, and why each is one.

    Args:
        program: the traced program.
        chunk: some data.

    Returns:
        site name to reason, in trace order.
    """
    few = {name for name, latent in program.latents.items() if latent.size <= settings.hyper_coordinates}
    found: dict[str, Reason] = {}
    with undisturbed(), torch.enable_grad():
        run, leaves = run_of_leaves(program, _aside(program), chunk)
        for name, terms in _noises(run, leaves, program).items():
            found.setdefault(name, Reason(DISPERSION, terms))
        for name, others in _multiplying(run, leaves, program).items():
            larger = [o for o in others if _scales(program, name, o)]
            if name in few and larger:
                found.setdefault(name, Reason(PREDICTOR, tuple(larger)))
        for name, others in _shaping(run, leaves, program).items():
            if name in few:
                found.setdefault(name, Reason(PRIOR, others))
    found = {name: reason for name, reason in found.items() if name in few}
    pending = list(found)
    while pending:
        child = pending.pop()
        for parent in parents_of(program, [child], chunk)[child]:
            if parent not in found:
                found[parent] = Reason(PARENT, (child,))
                pending.append(parent)
    return {name: found[name] for name in program.latents if name in found}


def _aside(program: Program) -> Tensor:
    """A point beside the program's start, where nothing vanishes by chance as a product with zero does.

    Nor by rounding: under a wide prior the start may lie where a logistic curve is flat.

    Returns:
        theta.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(program.start.shape, generator=generator, dtype=torch.float64).to(program.start)
    return tamed(program.start) + settings.row_check_step * noise


def _random(tensor: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)


def _scales(program: Program, name: str, other: str) -> bool:
    """Whether a site that multiplies another is the scale of the two, and the other what it scales."""
    one, two = program.latents[name], program.latents[other]
    if one.constrained and not two.constrained:
        return True
    return one.size == 1 < two.size  # two sites of several weights each are a network's layers


def _dependence(value: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, float]:
    """Sizes of the gradients of a scalar, by leaf that it depends on."""
    if not value.requires_grad:
        return {}
    grads = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True)
    pairs = zip(leaves, grads, strict=True)
    return {name: float(grad.norm()) for name, grad in pairs if grad is not None and bool(grad.any())}


def _shaping(run: Run, leaves: Mapping[str, Tensor], program: Program) -> dict[str, tuple[str, ...]]:
    """Sites on which the curvature of the log prior of other sites depends, with these."""
    found: dict[str, list[str]] = {}
    priors = [(name, _log_prior(run, leaves, program, name)) for name in run.latents] + _by_factors(
        run, leaves, program
    )
    parents = [[n for n in _dependence(log_p, leaves) if n != name] for name, log_p in priors]
    for together in (False, True):  # of x_t ~ Normal(phi x_{t-1}, s) the curvature in both x together depends on phi
        known = frozenset(found)
        for (name, log_p), of_this in zip(priors, parents, strict=True):
            for parent in (each for each in of_this if each not in known):
                beside = [each for each in of_this if together and each not in known and each != parent]
                if together and not beside:
                    continue
                if together and not any(_scales(program, parent, each) for each in beside):
                    continue
                curved = _along(log_p, [leaves[each] for each in (name, *beside)])
                if curved is not None and _dependence(curved, leaves).get(parent, 0.0) > _rounding(curved):
                    found.setdefault(parent, []).append(name)
    return {name: tuple(dict.fromkeys(others)) for name, others in found.items()}


def _by_factors(run: Run, leaves: Mapping[str, Tensor], program: Program) -> list[tuple[str, Tensor]]:
    """Factors outside all plates, which are priors, each of the sites in it that others scale: an intrinsic field's."""
    found = []
    for site in (each for each in run.factors.values() if not each.frames):
        log_p = add_up([site.log_prob()])
        inside = _dependence(log_p, leaves)
        found += [(name, log_p) for name in inside if any(_scales(program, other, name) for other in inside)]
    return found


def _rounding(value: Tensor) -> float:
    """What of a derivative of a value is none."""
    return settings.rounding * torch.finfo(value.dtype).eps * (1.0 + abs(float(value.detach())))


def _log_prior(run: Run, leaves: Mapping[str, Tensor], program: Program, name: str) -> Tensor:
    """Of one site, in unconstrained space."""
    latent, terms = program.latents[name], [run.latents[name].log_prob()]
    return add_up([*terms, latent.log_abs_det_jacobian(leaves[name])] if latent.constrained else terms)


def _along(value: Tensor, places: list[Tensor]) -> Tensor | None:
    """``v' H v`` for a random v, H the Hessian in some leaves; None where the value is linear in them."""
    vectors = [_random(place, number) for number, place in enumerate(places)]
    grads = torch.autograd.grad(value, places, create_graph=True, allow_unused=True)
    total = [(grad * v).sum() for grad, v in zip(grads, vectors, strict=True) if grad is not None]
    along = torch.stack(total).sum() if total else value.new_zeros(())
    if not along.requires_grad:
        return None
    grads = torch.autograd.grad(along, places, create_graph=True, allow_unused=True)
    total = [(grad * v).sum() for grad, v in zip(grads, vectors, strict=True) if grad is not None]
    return torch.stack(total).sum() if total else None


def _predictors(run: Run, program: Program) -> dict[str, Likelihood]:
    known = {name: likelihood_of(site.fn) for name, site in run.observed.items() if name not in program.derived}
    return {name: each for name, each in known.items() if each is not None}


def _multiplying(run: Run, leaves: Mapping[str, Tensor], program: Program) -> dict[str, list[str]]:
    """Pairs of sites with a mixed second derivative of a predictor's location, each with the others."""
    found: dict[str, list[str]] = {}
    for each in _predictors(run, program).values():
        eta = each.link()
        if not eta.requires_grad:
            continue
        total = (eta * _random(eta, 0)).sum()
        moving = [name for name in leaves if name in _dependence(total, leaves)]
        for name in moving:
            (grad,) = torch.autograd.grad(total, leaves[name], create_graph=True)
            if not grad.requires_grad:
                continue
            for other, size in _dependence((grad * _random(grad, 1)).sum(), leaves).items():
                if other != name and size > settings.network_mixed * float(grad.detach().norm()):
                    found.setdefault(other, []).append(name)
    return found


def _noises(run: Run, leaves: Mapping[str, Tensor], program: Program) -> dict[str, tuple[str, ...]]:
    """Sites that enter the dispersion of data and not their location, with the observed sites."""
    found: dict[str, list[str]] = {}
    for name, each in _predictors(run, program).items():
        eta, location = each.link(), each.family.location(each.base)
        if eta.numel() <= location.numel():  # a family of one parameter, which is the location
            continue
        of_location = _dependence((location * _random(location, 0)).sum(), leaves)
        for site, size in _dependence((eta * _random(eta, 0)).sum(), leaves).items():
            if of_location.get(site, 0.0) <= settings.same_location * size:
                found.setdefault(site, []).append(name)
    return {name: tuple(terms) for name, terms in found.items()}
