"""Whether a program has the structure that factored curvature takes for granted, found out on the program at hand.

Two things are assumed: a row of an operation's input reaches its own datum only, and every use of a site was seen. Both
are false for some program (a batch statistic; a function that hides what it does with a weight), and one backward pass
tells. Let ``z_n`` be a random mix of the columns of datum n's root, and g its gradients at the captured outputs. If
both hold, then the gradient of ``sum_n u_n z_n`` in a site's entries is ``sum_n u_n g_n a_n``; for random u almost
surely not otherwise: they are one random combination of the rows of the root's Jacobian, true ones and captured ones.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_laplace.curvature.captured_run import CapturedRun
from pyro_laplace.curvature.contraction import Scale, Use
from pyro_laplace.curvature.gradients import Gradients

_EXPLAINED = {torch.float64: 1e-11, torch.float32: 2e-5}
"""Of an entry of ``sum h a``, relative to the Cauchy-Schwarz bound ``|h| |a|``."""


def independent(
    run: CapturedRun,
    sites: Mapping[str, Gradients],
    uses: list[Use],
    scales: list[Scale],
    names: frozenset[str],
    elements: int,
) -> bool:
    """Whether rows are independent and all uses of the sites seen.

    Args:
        run: the program's run.
        sites: the columns of every observed site's root.
        uses: the products with the sites' entries.
        scales: the entries that meet an activation of their own.
        names: the latent sites.
        elements: of gradients that may be held.

    Returns:
        whether both hold.
    """
    for number, gradients in enumerate(sites.values()):
        if not gradients.eta.requires_grad:
            continue
        mixture = gradients.mixture(torch.Generator().manual_seed(number), elements)
        true = run.gradient(gradients.eta, mixture.weights)
        if not explained(run, uses, scales, mixture.outputs, true, names, mixture.by_datum):
            return False
    return True


def explained(
    run: CapturedRun,
    uses: list[Use],
    scales: list[Scale],
    outputs: Mapping[int, Tensor],
    leaves: Mapping[str, Tensor],
    names: frozenset[str],
    by_datum: Tensor | None = None,
) -> bool:
    """Whether gradients in the sites' entries are those that the captured operations give, ``sum_n u_n g_n a_n``.

    Args:
        run: the program's run.
        uses: the products with the sites' entries.
        scales: the entries that meet an activation of their own.
        outputs: g, by the output's id.
        leaves: the gradients in the sites' entries, by site; zero for one that is not there.
        names: the latent sites.
        by_datum: u [n], ones if it is None.

    Returns:
        whether they agree, up to rounding.
    """
    theta, layout = run.point.theta, run.program.layout
    found = torch.zeros_like(theta, dtype=torch.float64)
    bound = dict.fromkeys(names, 0.0)
    for scale in scales:
        (h,) = scale.rows(outputs[id(scale.output)].unsqueeze(0))  # n d
        h = h if by_datum is None else h * by_datum.unsqueeze(-1)
        found.index_add_(0, scale.index, h.sum(0).double())
        name = run.site_of(scale.index)
        bound[name] = max(bound.get(name, 0.0), float(h.norm()) * len(h) ** 0.5)
    for use in uses:
        (h,) = use.positions(outputs[id(use.output)].unsqueeze(0))  # n t o
        h = (h if by_datum is None else h * by_datum.reshape(-1, 1, 1)).flatten(0, 1)
        a, name = use.inputs.flatten(0, 1), run.site_of(use.index)  # nt i
        found.index_add_(0, use.index.reshape(-1), (h.mT @ a).reshape(-1).double())
        bound[name] = max(bound.get(name, 0.0), float(h.norm() * a.norm()))
    tolerance = _EXPLAINED.get(theta.dtype, 1e-2)
    rounding = torch.finfo(theta.dtype).eps * max(bound.values(), default=0.0)
    return all(
        float((found[layout[name]] - leaves.get(name, 0.0)).abs().max()) <= tolerance * max(bound[name], rounding)
        for name in names
    )
