"""Whether Gauss-Newton's expected information is that of the data that were observed.

They part where an outcome decides what is masked, where a distribution's draws are not those of its density, and where
a model does not fit. Of few coordinates the Hessian says so along posterior directions; elsewhere the data's own
information in the likelihood's parameters does, for which no Jacobian is needed.
"""

import math
import warnings

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._compat.torch import load_forward_mode
from pyro_laplace._errors import LaplaceWarning
from pyro_laplace.curvature.root import Information, Root
from pyro_laplace.likelihood import Likelihood
from pyro_laplace.posterior.search import PosteriorAt, Search
from pyro_laplace.program.program import datum_weight
from pyro_laplace.program.run import Run, Site
from pyro_laplace.reading.rest import DenseRoot, ExactHessian
from pyro_laplace.settings import settings


def tell_of_expected(search: Search, found: PosteriorAt, asked: str, statistical: bool) -> None:
    """Warn where the Gauss-Newton curvature of a mode is not that of the data.

    Args:
        search: how the posterior was made.
        found: the posterior.
        asked: the curvature that was asked for.
        statistical: whether the program is small and no network, so that the Hessian is the measure.
    """
    if search.curvature.name != "ggn":
        return
    program, theta = search.loop.program, found.theta
    chunk = next(iter(search.loop.chunks()))
    with undisturbed():
        leaf = theta.clone().requires_grad_()
        with torch.enable_grad():
            run = program.run(leaf, chunk)
        root = search.curvature.root(program, run, chunk)
        if root is None or not root.sites:
            return
        with torch.no_grad():
            apart = _along_draws(root, found) if statistical else _of_data(root, run, leaf)
    far = {name: ratio for name, ratio in apart.items() if not abs(ratio - 1) <= settings.expected_apart}
    if not far:
        return
    said = ", ".join(f"{ratio:.2g} times as much for {name!r}" for name, ratio in far.items())
    other = (
        "'auto' takes the data's own, the exact Hessian" if asked == "ggn" and statistical else "'hessian' takes theirs"
    )
    warnings.warn(
        f"curvature='ggn' is the information that data of this model hold on average, and these hold another: {said}. "
        "Where the outcome itself decides what is masked (censoring), or a distribution's draws are not those of its "
        "density, the posterior is wrong by that; else these data are unusual for the model. "
        f"curvature={other}, and 'empirical_fisher' what their scores say",
        LaplaceWarning,
        stacklevel=3,
    )


def _along_draws(root: Root, found: PosteriorAt) -> dict[str, float]:
    """The data's information relative to what is expected, where they differ most of a few posterior draws.

    What a direction owes to the prior counts as equal.

    Returns:
        by site.
    """
    anchor, size = found.likelihood.anchor, found.precision.size
    white = torch.randn(settings.expected_draws, size, generator=torch.Generator().manual_seed(0)).to(found.theta)
    draws = found.precision.color(white)
    of_data = (draws * found.likelihood.times(draws)).sum(-1) / white.double().square().sum(-1)
    ratios = {}
    for name in root.sites:
        observed = ExactHessian(root.program, root.chunk, (name,), anchor).times(draws)
        expected = DenseRoot(root.only(name), anchor).times(draws)
        one, other = ((draws * each).sum(-1) for each in (observed, expected))
        ratio = 1 + torch.where(other > 0, one / other - 1, 0.0) * of_data.clamp(max=1.0)
        ratios[name] = float(ratio[(ratio - 1).abs().argmax()])
    return ratios


def _of_data(root: Root, run: Run, leaf: Tensor) -> dict[str, float]:
    """The information in the parameters eta that the data hold, relative to what is expected of them.

    Returns:
        by site whose parameters are known. In a parameter alone: what two have in common depends on the program.
    """
    ratios = {}
    for name, site_root in root.sites.items():
        if isinstance(site_root.given, Information):
            site = run.observed[name]
            moving = _moving(site_root.given.likelihood, leaf)
            ratios[name] = _of_parameters(site_root.given, site, datum_weight(site, root.chunk), moving)
    return ratios


def _moving(likelihood: Likelihood, leaf: Tensor) -> list[int]:
    """The parameters of a distribution that depend on theta, if they are not too many to look at one by one."""
    with torch.enable_grad():
        eta = likelihood.link()
        if eta.shape[-1] > settings.expected_outputs or not eta.requires_grad:
            return []
        sums = eta.flatten(0, -2).sum(0)
        found = [torch.autograd.grad(each, leaf, retain_graph=True, allow_unused=True)[0] for each in sums]
    return [number for number, gradient in enumerate(found) if gradient is not None and bool(gradient.any())]


def _of_parameters(information: Information, site: Site, weight: Tensor, moving: list[int]) -> float:
    """Of the parameter in which they differ most, and less what chance may have done by a few standard errors."""
    eta, likelihood = information.eta, information.likelihood
    unit = likelihood.information_diagonal(eta).clamp(min=torch.finfo(eta.dtype).tiny).rsqrt()
    value = site.value.to(eta) if site.value.is_floating_point() else site.value
    weights = information.weight.expand(eta.shape[:-1])
    total = float(weights.sum())
    if not total:
        return 1.0

    def negative(steps: Tensor) -> Tensor:
        return -(likelihood.distribution(eta + steps * unit).log_prob(value) * weight).sum()

    load_forward_mode()
    worst, zero = 1.0, torch.zeros_like(eta)
    for number in moving:
        along = zero.index_fill(-1, torch.tensor([number], device=eta.device), 1.0)
        products = torch.func.jvp(torch.func.grad(negative), (zero,), (along,))[1]
        observed = products[..., number]
        ratio = float(observed.sum()) / total
        error = float((observed - ratio * weights).square().sum().sqrt()) / total
        near = 1 + math.copysign(max(0.0, abs(ratio - 1) - settings.expected_errors * error), ratio - 1)
        worst = near if abs(near - 1) > abs(worst - 1) else worst
    return worst
