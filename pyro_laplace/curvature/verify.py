"""Whether a program has the structure that factored curvature takes for granted, found out on the program at hand.

Two things are assumed. A row of an operation's input reaches its own datum only. And every use of a site was seen. Both
are false for some program (a batch statistic; a function that hides what it does with a weight), and backward passes
tell. Let ``z_n`` be a random mix of the columns of datum n's root, g the gradients of ``sum_n z_n`` at the captured
outputs, h those of ``sum_n u_n z_n`` with random u. If rows are independent then ``h_n = u_n g_n``, and for random u
almost surely not otherwise. If all uses are seen then a gradient in a site's entries is ``sum h a`` of that at the
outputs; the log likelihood's is at hand, and ``sum_n u_n z_n`` serves where it is zero.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_laplace.curvature.captured_run import CapturedRun
from pyro_laplace.curvature.contraction import Output, Scale, Use
from pyro_laplace.curvature.root import Root

_INDEPENDENT = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Of ``|h - u g|`` relative to ``|h|``."""

_EXPLAINED = {torch.float64: 1e-13, torch.float32: 2e-6}
"""Of an entry of ``sum h a`` relative to the Cauchy-Schwarz bound ``|h| |a|``."""

_Gradients = Mapping[int, Tensor]


def independent(run: CapturedRun, root: Root, uses: list[Use], scales: list[Scale], names: frozenset[str]) -> bool:
    """Whether rows are independent and all uses of the sites seen.

    Args:
        run: the program's run.
        root: of the curvature on its chunk.
        uses: the products with the sites' entries.
        scales: the entries that meet an activation of their own.
        names: the sites.

    Returns:
        whether both hold.
    """
    outputs = list({id(each.output): each.output for each in (*uses, *scales)}.values())
    tolerance = _INDEPENDENT.get(run.point.theta.dtype, 1e-2)
    unsure = names
    if run.score.outputs:
        unsure = _unexplained(run, uses, scales, run.score.outputs, run.score.leaves, names)
    for number, (name, site_root) in enumerate(root.sites.items()):
        with torch.enable_grad():
            eta, vectors = site_root.by_datum(run.run.observed[name])
        if not eta.requires_grad:
            continue
        generator = torch.Generator().manual_seed(number)
        mix = torch.randn(vectors.shape[1], 1, vectors.shape[-1], 1, generator=generator).to(vectors)  # b 1 s 1
        weights = (vectors @ mix)[..., 0].to(eta)  # n b e o
        u = torch.randn(len(eta), 1, 1, 1, generator=generator).to(eta)
        plain, _ = _pull(eta, weights, outputs, {})
        mixed, leaves = _pull(eta, weights * u, outputs, {site: run.leaves[site] for site in unsure or ()})
        if unsure is None or not _rows_scale(uses, scales, plain, mixed, u, tolerance):
            return False
        if unsure and _unexplained(run, uses, scales, mixed, leaves, unsure) is None:
            return False
    return unsure is not None


def _pull(
    eta: Tensor, weights: Tensor, outputs: list[Output], leaves: Mapping[str, Tensor]
) -> tuple[_Gradients, Mapping[str, Tensor]]:
    """Gradients of ``sum weights * eta`` in the outputs and the leaves."""
    inputs = [*(output.edge for output in outputs), *leaves.values()]
    grads = torch.autograd.grad(eta, inputs, weights, retain_graph=True, allow_unused=True) if inputs else ()
    of_outputs = zip(outputs, grads, strict=False)
    of_leaves = zip(leaves, grads[len(outputs) :], strict=True)
    return (
        {id(output): output.zeros() if g is None else g for output, g in of_outputs},
        {name: g for name, g in of_leaves if g is not None},
    )


def _rows_scale(
    uses: list[Use], scales: list[Scale], plain: _Gradients, mixed: _Gradients, u: Tensor, tolerance: float
) -> bool:
    """Whether ``h_n = u_n g_n``."""
    u = u.reshape(1, -1, 1)
    for scale in scales:
        g, h = (scale.rows(each[id(scale.output)].unsqueeze(0)) for each in (plain, mixed))  # 1 n d
        if not _close(h, g * u, tolerance):
            return False
    for use in uses:
        g, h = (use.positions(each[id(use.output)].unsqueeze(0)) for each in (plain, mixed))  # 1 n t o
        if not _close(h, g * u.unsqueeze(-1), tolerance):
            return False
    return True


def _unexplained(
    run: CapturedRun,
    uses: list[Use],
    scales: list[Scale],
    outputs: _Gradients,
    leaves: Mapping[str, Tensor],
    names: frozenset[str],
) -> frozenset[str] | None:
    """The sites whose gradient is zero, so that it tells nothing; None if that of some site is not ``sum h a``."""
    found = torch.zeros_like(run.point.theta, dtype=torch.float64)
    bound = torch.zeros_like(found)
    for scale in scales:
        (h,) = scale.rows(outputs[id(scale.output)].unsqueeze(0))  # n d
        found.index_add_(0, scale.index, h.sum(0).double())
        bound[scale.index] += float(h.norm()) * len(h) ** 0.5
    for use in uses:
        h = use.positions(outputs[id(use.output)].unsqueeze(0)).flatten(0, 2)  # nt o
        a, index = use.inputs.flatten(0, 1), use.index.reshape(-1)  # nt i
        found.index_add_(0, index, (h.mT @ a).reshape(-1).double())
        bound[index] += float(h.norm() * a.norm())
    tolerance = _EXPLAINED.get(run.point.theta.dtype, 1e-2)
    zero = []
    for name in names:
        place = run.program.layout[name]
        expected = leaves[name] if name in leaves else found.new_zeros(())
        if not bool(((found[place] - expected).abs() <= tolerance * bound[place]).all()):
            return None
        if not bool(bound[place].any()):
            zero.append(name)
    return frozenset(zero)


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return bool((one - other).norm() <= tolerance * other.norm())
