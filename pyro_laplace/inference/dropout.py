"""`mc_dropout`: the posterior that a network trained with dropout has when its dropout layers stay on."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDelta
from torch import Tensor

from pyro_laplace._compat.compiler import without_compiler
from pyro_laplace._compat.pyro import forget_gradients, name_apart, undisturbed
from pyro_laplace._errors import InvalidOption, UnsupportedProgram
from pyro_laplace._typing import Values
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import Data, as_data
from pyro_laplace.inference.dropped import DropoutOn, DropoutSeen, Dropped, UnitsMasked, spread
from pyro_laplace.mode.fit_map import discard_params, params_of
from pyro_laplace.mode.given import values_given
from pyro_laplace.mode.training import train
from pyro_laplace.program.program import Program, log_lik_of
from pyro_laplace.program.start import init_to_start
from pyro_laplace.settings import settings


@dataclass(eq=False)
class DropoutPosterior:
    """A point whose weights lose their units at random: ``q(W) = W* diag(z)``, ``z ~ Bernoulli(1 - p) / (1 - p)``.

    It is a Pyro guide. As an `AutoDelta` it has no density.

    Attributes:
        values: latent site to its value at the point.
        calls: the dropout layers, with the axes of sites that lie along their units.
        fit_seconds: wall time of `mc_dropout`.
    """

    values: Mapping[str, Tensor]
    calls: Sequence[Dropped]
    fit_seconds: float = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every latent site of the program; the arguments are ignored."""
        drawn = self._draws(())
        return {n: pyro.sample(n, dist.Delta(value, event_dim=value.dim())) for n, value in drawn.items()}

    @torch.no_grad()
    def sample_posterior(self, num_samples: int = 1) -> dict[str, Tensor]:
        """Independent draws.

        Args:
            num_samples: number of draws.

        Returns:
            site name to draws `[num_samples, *shape]`.
        """
        drawn = self._draws((num_samples,))
        return {name: value.expand(num_samples, *self.values[name].shape) for name, value in drawn.items()}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The point, without dropout: by it the network predicts in eval mode."""
        return dict(self.values)

    def __repr__(self) -> str:
        rates = ", ".join(f"{call.rate:g} of {call.size}" for call in self.calls)
        return f"DropoutPosterior({', '.join(self.values)}; dropping {rates})"

    def _draws(self, sample_shape: tuple[int, ...]) -> dict[str, Tensor]:
        like = next(iter(self.values.values()))
        masks = []
        for call in self.calls:
            kept = torch.rand(*sample_shape, call.size, device=like.device) >= call.rate
            masks.append(kept.to(like) / (1 - call.rate))
        return masked_values(self.values, self.calls, masks)


def masked_values(values: Values, calls: Sequence[Dropped], masks: Sequence[Tensor]) -> dict[str, Tensor]:
    """The point with masks `[*draws, units]` of each call of dropout on its weights.

    Args:
        values: site name to value.
        calls: the calls of dropout.
        masks: of each call.

    Returns:
        site name to values `[*draws, *shape]`; of sites along no units, the value itself.
    """
    found = dict(values)
    for call, mask in zip(calls, masks, strict=True):
        for each in call.targets:
            found[each.site] = found[each.site] * spread(mask, values[each.site].dim(), each.axis)
    return found


@without_compiler()
def mc_dropout(
    model: Callable[..., Any],
    data: Any,
    map_guide: Any = None,
    *,
    rate: float | None = None,
    optim: Any = None,
    num_steps: int = 5000,
    learning_rate: float = 0.01,
    tolerance: float = 0.1,
    progress: bool = True,
) -> DropoutPosterior:
    """Monte Carlo dropout as a posterior: the trained weights, units dropped at random at each draw.

    A mask on the units of a dropout layer is a mask on the weights next to it, and the posterior is over these (Gal and
    Ghahramani 2016, "Dropout as a Bayesian approximation: representing model uncertainty in deep learning"). One draw
    is one network, with the same units missing at all data. Layers are `nn.Dropout` beside a linear layer and
    `nn.Dropout1d`, `Dropout2d` and `Dropout3d` beside a convolution, or calls of the functions of these names; the
    model stays in eval mode.

    Args:
        model: a Pyro program with dropout in it, such as a network by `bayesianize`.
        data: what it is fitted to: a batch (tuple, dict or tensor), or a re-iterable of batches.
        map_guide: the trained point, an autoguide or a mapping of site values, from a training with dropout on. None
            trains an `AutoDelta` so, from the program's start.
        rate: share of the units that are dropped, in place of each layer's own.
        optim: of the training, as in `fit_map`.
        num_steps: as in `fit_map`. Dropout makes the loss noisy, and the training stops when it settles.
        learning_rate: as in `fit_map`.
        tolerance: as in `fit_map`.
        progress: whether training shows a progress bar.

    Returns:
        the posterior.

    Raises:
        InvalidOption: if `rate` is not between 0 and 1, or `map_guide` is neither guide nor mapping.
        UnsupportedProgram: if the program has no dropout that drops anything, or has it where no weight can hold its
            mask; or if it has no Laplace approximation, naming the site and what to do.
        InvalidData: if `data` cannot be iterated anew.
    """
    start = time.perf_counter()
    if rate is not None and not 0 < rate < 1:
        raise InvalidOption(f"rate={rate!r}: give the share of units that are dropped, between 0 and 1")
    data = as_data(data)
    given = None if map_guide is None else values_given(map_guide, data)
    program = Program.trace(model, data, given)
    loop = Loop(program, data)
    calls = _calls(loop)
    if rate is not None:
        for call in calls:
            call.rate = rate
    if given is None:
        options = {"optim": optim, "num_steps": num_steps, "learning_rate": learning_rate, "tolerance": tolerance}
        given = _trained(program, data, {**options, "progress": progress}, rate)
    values = {name: given[name].detach().reshape(latent.shape) for name, latent in program.latents.items()}
    return DropoutPosterior(values, calls, time.perf_counter() - start)


def _calls(loop: Loop) -> list[Dropped]:
    """The program's calls of dropout; refuse those that no weight can stand for."""
    program, chunk = loop.program, loop.few_rows()
    values = program.unpack(program.start)
    with undisturbed(), torch.no_grad():
        with DropoutSeen(values) as seen:
            program.run_at(values, chunk)
        calls = seen.calls
        if not calls:
            raise UnsupportedProgram(
                "mc_dropout: the program calls no dropout of a rate above 0: give its network nn.Dropout layers"
            )
        lost = [number for number, call in enumerate(calls) if not call.targets]
        masks = [_alternating(call.size, program.start) for call in calls]
        if not lost:
            with UnitsMasked(calls, masks):
                wanted = log_lik_of(program.run_at(values, chunk), chunk)
            found = log_lik_of(program.run_at(masked_values(values, calls, masks), chunk), chunk)
            lost = [] if all(_says_the_same(found[name], wanted[name]) for name in wanted) else list(range(len(calls)))
    if lost:
        raise UnsupportedProgram(
            f"mc_dropout: of the program's {len(calls)} calls of dropout, number {', '.join(str(n + 1) for n in lost)} "
            "cannot be written as masks on the weights of latent sites: put nn.Dropout directly before or after a "
            "linear layer, nn.Dropout2d beside a convolution (nn.Dropout there drops pixels, not channels), weights in "
            "sites of their own (no learned scale times raw weights), and nothing that goes around it"
        )
    return calls


def _alternating(size: int, like: Tensor) -> Tensor:
    """A mask that treats no two neighbours alike, and is nowhere 0."""
    return 0.5 + (torch.arange(size, device=like.device) % 3).to(like) / 2


def _says_the_same(one: Tensor, other: Tensor) -> bool:
    error = settings.rounding * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=error**0.5, atol=error**0.5)


def _trained(program: Program, data: Data, options: Mapping[str, Any], rate: float | None) -> Values:
    """The point that training with dropout on comes to."""
    held, _ = params_of(program, data)
    noisy = replace(program, model=_with_dropout(program.model, rate))
    guide = AutoDelta(program.model, init_loc_fn=init_to_start)
    name_apart(guide)
    try:
        train(noisy, guide, data, hide=held, description="MAP with dropout", **options)
        return values_given(guide, data)
    finally:
        forget_gradients(held)
        discard_params(guide)


def _with_dropout(model: Callable[..., Any], rate: float | None) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with DropoutOn(rate):
            return model(*args, **kwargs)

    return run
