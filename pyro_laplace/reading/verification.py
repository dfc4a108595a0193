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

from pyro_laplace.capture.run import CapturedRun, Score
from pyro_laplace.capture.watch import Captured
from pyro_laplace.reading.gradients import Gradients
from pyro_laplace.settings import settings

type _ByOutput = Mapping[int, Tensor]


def independent(
    run: CapturedRun,
    sites: Mapping[str, Gradients],
    captured: Captured,
    names: frozenset[str],
    score: Score | None,
    elements: int,
) -> bool:
    """Whether rows are independent and all uses of the sites seen.

    Args:
        run: the program's run.
        sites: the columns of every observed site's root.
        captured: what was seen of the sites' entries.
        names: the latent sites.
        score: of the log likelihood, where the uses are all that it went through.
        elements: of gradients that may be held.

    Returns:
        whether both hold.
    """
    unsure: frozenset[str] | None = names
    if score is not None and score.outputs:
        unsure = unexplained(run, captured, score.outputs, score.leaves, names)
    for number, gradients in enumerate(sites.values()):
        if unsure is None:
            return False
        if not len(gradients.columns):
            continue
        generator = torch.Generator().manual_seed(number)
        u, plain, mixed = gradients.mixtures(generator, elements)
        if not _rows_scale(
            captured, plain, mixed, u, _tolerance(run.anchor.theta, settings.rows_apart, settings.rows_apart_single)
        ):
            return False
        if unsure:
            weights = gradients.mixed_weights(torch.Generator().manual_seed(number))
            leaves = {name: run.leaves[name] for name in unsure}
            grads = torch.autograd.grad(
                gradients.eta, list(leaves.values()), weights, retain_graph=True, allow_unused=True
            )
            found = {name: g for name, g in zip(leaves, grads, strict=True) if g is not None}
            if unexplained(run, captured, mixed, found, unsure) is None:
                return False
    return unsure is not None


def _rows_scale(captured: Captured, plain: _ByOutput, mixed: _ByOutput, u: Tensor, tolerance: float) -> bool:
    """Whether ``h_n = u_n g_n``."""
    for each in (*captured.scales, *captured.lookups):
        g, h = (each.rows(found[id(each.output)].unsqueeze(0)) for found in (plain, mixed))  # 1 n d
        if not _close(h, g * u.reshape(1, -1, 1), tolerance):
            return False
    for use in captured.uses:  # a bias too: its data may have been taken for another axis
        g, h = (use.positions(each[id(use.output)].unsqueeze(0)) for each in (plain, mixed))  # 1 n t o
        if not _close(h, g * u.reshape(1, -1, 1, 1), tolerance):
            return False
    return True


def unexplained(
    run: CapturedRun,
    captured: Captured,
    outputs: _ByOutput,
    leaves: Mapping[str, Tensor],
    names: frozenset[str],
) -> frozenset[str] | None:
    """The sites whose gradient is but rounding, and tells nothing; None if that of some site is not ``sum h a``."""
    theta, layout = run.anchor.theta, run.program.layout
    found = torch.zeros_like(theta, dtype=torch.float64)
    bound, error = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    alone = _large_and_alone(run, captured)
    for each in (*captured.scales, *captured.lookups):
        (h,) = each.rows(outputs[id(each.output)].unsqueeze(0))  # n d
        index = each.index.expand(h.shape).reshape(-1)
        found.index_add_(0, index, h.reshape(-1).double())
        name = run.site_of(index)
        bound[name] = max(bound.get(name, 0.0), float(h.norm()) * len(h) ** 0.5)
    for use in captured.uses:
        h = use.positions(outputs[id(use.output)].unsqueeze(0)).flatten(0, 2)  # nt o
        a, name = use.inputs.flatten(0, 1), run.site_of(use.index)  # nt i
        bound[name] = max(bound.get(name, 0.0), float(h.norm() * a.norm()))
        if name in alone:
            error[name] = _error_by_probes(h, a, leaves.get(name), use.index)
        else:
            found.index_add_(0, use.index.reshape(-1), _sum_of_products(h, a).reshape(-1))
    rows = max((use.inputs.shape[:2].numel() for use in captured.uses), default=1)
    longer = max(1.0, rows / settings.gram_rows) ** 0.5  # rounding grows with the root of a sum's length
    tolerance = longer * _tolerance(theta, settings.all_seen, settings.all_seen_single)
    rounding = torch.finfo(theta.dtype).eps * max(bound.values(), default=0.0)
    for name in names:
        if name not in alone:
            error[name] = float((found[layout[name]] - leaves.get(name, 0.0)).abs().max())
        if not error[name] <= tolerance * max(bound.get(name, 0.0), rounding):
            return None
    return frozenset(name for name in names if bound.get(name, 0.0) <= rounding)


def _tolerance(like: Tensor, double: float, single: float) -> float:
    return {torch.float64: double, torch.float32: single}.get(like.dtype, settings.half_rounding)


def _sum_of_products(h: Tensor, a: Tensor) -> Tensor:
    """``sum h a`` of some rows at a time: float32 loses digits to thousands of summands of one sign."""
    parts = zip(h.split(settings.gram_rows), a.split(settings.gram_rows), strict=True)
    return torch.stack([(some.mT @ inputs).double() for some, inputs in parts]).sum(0)


def _large_and_alone(run: CapturedRun, captured: Captured) -> set[str]:
    """The sites of many coordinates that one product alone uses, as the matrix that they are, or its transpose."""
    owners = [run.site_of(each.index) for each in (*captured.uses, *captured.scales, *captured.lookups)]
    found = set()
    for use in captured.uses:
        name = run.site_of(use.index)
        if use.index.numel() > settings.probed_coordinates and owners.count(name) == 1:
            place = run.program.layout[name]
            flat = _in_memory(use.index).reshape(-1)
            if torch.equal(flat, torch.arange(place.start, place.stop, device=flat.device)):
                found.add(name)
    return found


def _in_memory(matrix: Tensor) -> Tensor:
    """A matrix or its transpose, whichever has its rows one after the other in memory."""
    return matrix if matrix.is_contiguous() else matrix.mT


def _error_by_probes(h: Tensor, a: Tensor, leaf: Tensor | None, index: Tensor) -> float:
    """``|r' (h'a - leaf) s|`` for random r and s: almost surely not zero unless the matrix is."""
    out, fan_in = index.shape
    if leaf is None:
        matrix = h.new_zeros(()).expand(out, fan_in)
    else:
        matrix = leaf.view(out, fan_in) if index.is_contiguous() else leaf.view(fan_in, out).mT
    signs = torch.rand(2, out + fan_in, generator=torch.Generator().manual_seed(0)) - 0.5
    r, s = (signs + signs.sign()).to(h).split([out, fan_in], 1)  # none is near zero: an error of one entry shows
    expected = ((h @ r.mT) * (a @ s.mT)).sum(0, dtype=torch.float64)
    return float((expected - ((r @ matrix) * s).sum(1, dtype=torch.float64)).abs().max())


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return bool((one - other).norm() <= tolerance * other.norm())
