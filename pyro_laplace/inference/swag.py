"""`fit_swag`: a Gaussian posterior of the iterates of stochastic gradient descent around a mode."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pyro_laplace._compat.compiler import without_compiler
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidData, InvalidOption, NotAMode
from pyro_laplace._progress import progress_bar
from pyro_laplace._typing import Theta
from pyro_laplace.capture.loop import Loop
from pyro_laplace.capture.rows import cut_of
from pyro_laplace.data import Data, as_data
from pyro_laplace.inference.options import check_count
from pyro_laplace.inference.trajectory import Moments, block_of
from pyro_laplace.mode.fit_map import discard_params, find_mode
from pyro_laplace.mode.given import values_given
from pyro_laplace.mode.mode import Mode
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.settings import settings
from pyro_laplace.structure.options import LowRank
from pyro_laplace.structure.precision import Precision


@without_compiler()
def fit_swag(
    model: Callable[..., Any],
    data: Any,
    map_guide: Any = None,
    *,
    rank: int = 20,
    num_iterates: int = 100,
    warmup: int = 20,
    learning_rate: float | str = "auto",
    batch_size: int | None = None,
    progress: bool = True,
) -> AutoLaplace:
    """SWAG: the Gaussian with the moments of the iterates of stochastic gradient descent at a constant step size.

    ``theta <- theta - rate (K g_b + g_prior)``, with g the gradients of minus the log density of theta, over one of K
    mini-batches and of the prior; one iterate a pass is kept. The posterior is
    ``N(mean, (diag(v) + D' D / (rank - 1)) / 2)`` of their mean, variances v and last deviations D (Maddox et al. 2019,
    "A simple baseline for Bayesian uncertainty in deep learning").

    Its width is that of the gradients' noise, and depends on rate and batch size. The rate "auto" is
    ``2 P / trace(C)`` with C the covariance of ``K g_b`` over batches at the mode, and P the number of coordinates: of
    constant rates, the one whose stationary distribution is nearest the posterior where the noise is as the curvature
    (Mandt, Hoffman and Blei 2017, "Stochastic gradient descent as approximate Bayesian inference"); and at most
    the inverse of the largest curvature, beyond which the iterates run away.

    Args:
        model: a Pyro program.
        data: a batch (tuple, dict or tensor), or a re-iterable of batches. One batch is divided at random, anew in each
            pass; batches of a re-iterable are taken in its order.
        map_guide: where to start, an autoguide or a mapping of site values; None fits the mode.
        rank: number of last iterates whose covariance counts beside the variances.
        num_iterates: number of passes of which one iterate each counts.
        warmup: number of passes before these.
        learning_rate: the rate, in units of theta^2 a nat; or "auto".
        batch_size: rows of a mini-batch, of data that are one batch; None makes `settings.swag_batches` of them.
        progress: whether to show a progress bar.

    Returns:
        the posterior, an `AutoLaplace` with ``curvature="none"`` and no evidence; `linearize` is not for it, and draws
        of its weights go through the program as they are. `LaplaceMixture` makes several one (MultiSWAG), with
        ``weights="equal"``.

    Raises:
        InvalidOption: for an option out of range, or a `map_guide` that is neither guide nor mapping.
        UnsupportedProgram: if the program has no continuous unconstrained form, naming the site and what to do.
        InvalidData: if data are one batch that cannot be divided, or a single batch in a list.
        NotAMode: if the iterates run away.
    """
    start = time.perf_counter()
    check_count("rank", rank, 1)
    check_count("num_iterates", num_iterates, 2)
    check_count("warmup", warmup, 0)
    if learning_rate != "auto" and not (isinstance(learning_rate, int | float) and learning_rate > 0):
        raise InvalidOption(f'learning_rate={learning_rate!r}: give a positive number, or "auto"')
    data = as_data(data)
    if map_guide is None:
        fitted = find_mode(model, data, progress)
        values = values_given(fitted, data)
        discard_params(fitted)
    else:
        values = values_given(map_guide, data)
    with undisturbed(rng=False), torch.enable_grad():
        program = Program.trace(model, data, values)
        descent = _Descent(program, _Batches.of(program, data, batch_size))
        rate = descent.rate() if isinstance(learning_rate, str) else float(learning_rate)
        moments = Moments(rank)
        theta = program.start
        with progress_bar("SWAG", warmup + num_iterates, "pass", progress) as bar:
            for number in range(warmup + num_iterates):
                theta = descent.after_pass(theta, rate)
                if not bool(theta.isfinite().all()):
                    raise NotAMode(
                        f"fit_swag: the iterates of SGD run away at learning_rate={rate:.3g}, after {number + 1} "
                        "passes: give a smaller one, and start at a mode"
                    )
                if number >= warmup:
                    moments.add(theta)
                bar.update()
        guide = _posterior_of(program, moments, data)
    guide.fit_seconds = time.perf_counter() - start
    return guide


class _Batches:
    """Mini-batches, pass after pass.

    Args:
        draw: gives one pass of them, as often as it is called.
        count: how many a pass has.
    """

    def __init__(self, draw: Callable[[], Iterator[Chunk]], count: int) -> None:
        self.draw, self.count = draw, count

    @staticmethod
    def of(program: Program, data: Data, batch_size: int | None) -> "_Batches":
        """Those of a re-iterable; or one batch, divided at random."""
        if not data.one_batch or program.own_indices:
            if batch_size is not None:
                raise InvalidOption("batch_size is for data that are one batch: these come in batches, which are used")
            count = sum(1 for _ in program.chunks(data))
            if count < 2:
                raise InvalidData("fit_swag needs the noise of mini-batches, and data are one: give at least two")
            return _Batches(lambda: program.chunks(data), count)
        with settings.using(cut_bytes=1):
            cut = cut_of(program, data)
        batch = data.first()
        rows = cut.rows(batch, batch) if cut is not None else None
        if cut is None or rows is None:
            raise InvalidData(
                "fit_swag needs mini-batches, and the rows of this batch are not data of their own, so that it cannot "
                "be divided: give batches, as a list or a DataLoader"
            )
        if batch_size is not None and not 0 < batch_size < rows:
            raise InvalidOption(f"batch_size={batch_size!r}: give a number of rows below the {rows} that there are")
        size = batch_size or max(1, rows // settings.swag_batches)
        weights = next(iter(program.chunks(data))).weights

        def draw() -> Iterator[Chunk]:
            for part in torch.randperm(rows).split(size):
                yield Chunk(cut.chosen(batch, part), weights=weights, rows=rows)

        return _Batches(draw, -(-rows // size))


class _Descent:
    """Stochastic gradient descent of minus the log joint density of theta.

    Args:
        program: traced on the data.
        batches: its mini-batches.
    """

    def __init__(self, program: Program, batches: _Batches) -> None:
        self.program, self.batches = program, batches

    def after_pass(self, theta: Theta, rate: float) -> Theta:
        """Where a pass of steps leads."""
        for chunk in self.batches.draw():
            theta = theta - rate * self._gradient(theta, chunk)
        return theta

    def rate(self) -> float:
        """`learning_rate="auto"`."""
        theta = self.program.start
        passes = (chunk for _ in range(settings.swag_noise_passes) for chunk in self.batches.draw())
        noise = torch.stack([self._gradient(theta, chunk) for chunk in passes]).double()
        trace = float(noise.var(0).sum())
        chosen = 2 * len(theta) / trace if trace > 0 else torch.inf
        return min(chosen, 1 / self._largest_curvature(theta))

    def _gradient(self, theta: Theta, chunk: Chunk) -> Theta:
        """Its expectation over batches is the whole one."""
        leaf = theta.detach().requires_grad_()
        value = -self.batches.count * self.program.log_joint(leaf, chunk, prior=1 / self.batches.count)
        return torch.autograd.grad(value, leaf)[0]

    def _largest_curvature(self, theta: Theta) -> float:
        """The largest eigenvalue of the Hessian, by power iterations on differences of gradients."""

        def gradient(at: Theta) -> Theta:
            parts = [self._gradient(at, chunk).double() for chunk in chunks]
            return torch.stack(parts).mean(0)

        chunks = list(self.batches.draw())
        at_mode, size = gradient(theta), 0.0
        direction = torch.randn_like(theta).double()
        for _ in range(settings.swag_power_steps):
            direction = direction / direction.norm()
            step = settings.swag_difference * (1 + float(theta.abs().max()))
            moved = gradient((theta.double() + step * direction).to(theta))
            direction = (moved - at_mode) / step
            size = float(direction.norm())
        return max(size, torch.finfo(torch.float64).tiny)


def _posterior_of(program: Program, moments: Moments, data: Data) -> AutoLaplace:
    theta = moments.mean.to(program.start)
    everything = torch.arange(len(theta), device=theta.device)
    with torch.no_grad():
        chunks = list(Loop(program, data).chunks())
        log_joint = sum(float(program.log_joint(theta, c, prior=float(i == 0))) for i, c in enumerate(chunks))
    return AutoLaplace(
        program.model,
        program.latents,
        everything,
        Mode(theta, log_joint, torch.zeros_like(theta, dtype=torch.float64), decrement=0.0, moved=True),
        Precision([(everything, block_of(moments, settings.swag_floor))], theta.dtype),
        structure=LowRank(min(moments.count, len(moments.deviations))),
        curvature="none",
        observed=program.observed,
        log_evidence=torch.nan,
    )
