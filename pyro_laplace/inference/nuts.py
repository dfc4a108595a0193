"""`fit_nuts`: draws from the posterior by Pyro's No-U-Turn Sampler."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor
from torch.distributions import Transform, biject_to

from pyro_laplace._compat.compiler import without_compiler
from pyro_laplace._compat.pyro import chains_in_turn, undisturbed
from pyro_laplace._errors import InvalidOption
from pyro_laplace._typing import Theta
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import Data, as_data
from pyro_laplace.draws.warm_up import WarmUp
from pyro_laplace.inference.mass import LaplaceMass
from pyro_laplace.inference.potential import Potential
from pyro_laplace.mode.descent import descend
from pyro_laplace.mode.given import values_given
from pyro_laplace.mode.objective import Objective
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.program.program import Program
from pyro_laplace.program.sites import Latent
from pyro_laplace.settings import settings


@without_compiler()
def fit_nuts(
    model: Callable[..., Any],
    data: Any,
    *,
    num_samples: int = 1000,
    warmup_steps: int = 500,
    num_chains: int = 1,
    precondition: AutoLaplace | None = None,
    initial: AutoGuide | Mapping[str, Tensor] | None = None,
    max_tree_depth: int = 8,
    target_accept_prob: float = 0.8,
    progress: bool = True,
) -> MCMC:
    """Draw from the posterior with Pyro's `NUTS` (Hoffman and Gelman 2014, "The No-U-Turn Sampler").

    The potential is ``U(theta) = -log p(y, theta)`` over unconstrained theta, log-Jacobian included, summed over all
    data in float64. Params of the model (a network's weights without a prior, hyperparameters) stay at their values.
    Chains run one after the other in this process: the model may be a closure, and the seed determines every draw.

    Args:
        model: a Pyro program.
        data: a batch (tuple, dict or tensor), or a re-iterable of batches, which is read once and kept. All of it
            enters every leapfrog step.
        num_samples: number of draws of each chain that are kept.
        warmup_steps: draws before these, which adapt the step size and the mass matrix.
        num_chains: number of chains.
        precondition: a Laplace posterior of this program. Its covariance (its marginal variances, where its structure
            is "diag") is the inverse mass matrix over its random sites, as it is; other sites have variances that are
            adapted. A posterior that is Gaussian is round in this metric, however badly it is scaled.
        initial: where all chains start, a guide (its median) or a mapping of site values. None: at the mode of
            `precondition`, further chains at draws from it; without one, on the way to the mode from the centre of
            the prior, further chains from around it.
        max_tree_depth: at most ``2 ** max_tree_depth - 1`` leapfrog steps a draw.
        target_accept_prob: acceptance probability that the step size is adapted to.
        progress: whether to show a progress bar.

    Returns:
        the `MCMC`, run: `get_samples()` is {site: draws `[num_samples, *shape]`} in the sites' own spaces. On it,
        `fit_seconds` is the wall time, and `kernel.potential_fn.evaluations` how often the potential was evaluated.

    Raises:
        InvalidOption: for an option out of range, a guide of another program, or a start without density.
        UnsupportedProgram: if the program has no continuous unconstrained form, naming the site and what to do.
        InvalidData: if `data` cannot be iterated anew.
        TooLarge: if the covariance of `precondition` is.
    """
    begin = time.perf_counter()
    _check_range("num_samples", num_samples, 1)
    _check_range("warmup_steps", warmup_steps, 0)
    _check_range("num_chains", num_chains, 1)
    _check_range("max_tree_depth", max_tree_depth, 1)
    if not 0 < target_accept_prob < 1:
        raise InvalidOption(f"target_accept_prob={target_accept_prob!r} is not between 0 and 1")
    if precondition is not None and not isinstance(precondition, AutoLaplace):
        raise InvalidOption(
            f"precondition is a {type(precondition).__name__}: give the AutoLaplace that fit_laplace returns"
        )
    data = as_data(data)
    with undisturbed(rng=False), torch.enable_grad():
        program = Program.trace(model, data, _values(initial, precondition, data))
        if precondition is not None:
            _check_sites(precondition, program)
        mass = None if precondition is None else LaplaceMass(precondition, program)
        potential = Potential(program, tuple(Loop(program, data).chunks()))
        starts = _starts(program, data, potential, num_chains, precondition, initial is not None)
        potential.record(starts[0])
        kernel = NUTS(
            potential_fn=potential,
            full_mass=mass.dense_sites if mass else False,  # type: ignore[arg-type] (Pyro takes a list of blocks)
            adapt_mass_matrix=mass is None or mass.adapts,
            target_accept_prob=target_accept_prob,
            max_tree_depth=max_tree_depth,
        )
        if mass:
            kernel.mass_matrix_adapter = mass
        dtype = program.start.dtype
        mcmc = chains_in_turn(
            kernel,
            {name: _of_site(latent, starts) for name, latent in program.latents.items()},
            num_samples=num_samples,
            warmup_steps=warmup_steps,
            transforms={name: Unconstrain(latent, dtype) for name, latent in program.latents.items()},
            disable_progbar=not progress,
            hook_fn=(warm_up := WarmUp()),
        )
        mcmc.run()
    setattr(mcmc, "warm_up", warm_up)  # noqa: B010 (MCMC does not declare it)
    setattr(mcmc, "fit_seconds", time.perf_counter() - begin)  # noqa: B010
    return mcmc


def _check_range(option: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidOption(f"{option}={value!r} is too small: give at least {least}")


def _check_sites(guide: AutoLaplace, program: Program) -> None:
    sizes = {name: latent.size for name, latent in program.latents.items()}
    theirs = {name: latent.size for name, latent in guide.latents.items()}
    if sizes != theirs:
        raise InvalidOption(
            f"precondition is a posterior over {theirs} (site: coordinates), but this model has {sizes}"
        )


class Unconstrain(Transform):
    """A site's value to its unconstrained coordinates; its inverse gives values in the program's own dtype.

    Args:
        latent: the site.
        dtype: of the program's values.
    """

    bijective = True

    def __init__(self, latent: Latent, dtype: torch.dtype) -> None:
        super().__init__()
        self.transform, self.dtype = biject_to(latent.support), dtype
        self.domain, self.codomain = self.transform.codomain, self.transform.domain

    def __eq__(self, other: object) -> bool:
        """Transforms are equal if they are the same."""
        return self is other

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return self.transform.inv(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.transform(y.to(self.dtype))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |d coordinates / d value|."""
        return -self.transform.log_abs_det_jacobian(y, x)


def _values(
    initial: AutoGuide | Mapping[str, Tensor] | None, precondition: AutoLaplace | None, data: Data
) -> dict[str, Tensor] | None:
    """Site values to start from, if any are given."""
    given = precondition if initial is None else initial
    return None if given is None else values_given(given, data, "initial")


def _starts(
    program: Program, data: Data, potential: Potential, num_chains: int, guide: AutoLaplace | None, given: bool
) -> Tensor:
    """theta at the start of every chain, float64 [chains, params]."""
    first = program.start
    usable = potential.has_density(first)  # also puts the model's params in the store, which torch.func could not
    if given:
        starts = [first] * num_chains
    elif guide is not None:
        draws = (guide.sample_posterior() for _ in range(num_chains - 1))
        starts = [first, *(program.pack({name: value[0] for name, value in draw.items()}) for draw in draws)]
    else:
        spread = 4 * torch.rand(num_chains - 1, len(first)).to(first) - 2  # as Stan
        starts = [_approach(program, data, theta) for theta in (first, *(first + spread))]
    starts = [theta if potential.has_density(theta) else first for theta in starts]
    if any(theta is first for theta in starts) and not usable:
        values = {name: value.tolist() for name, value in program.unpack(first).items() if value.numel() < 10}
        raise InvalidOption(
            f"the log joint or its gradient is not finite where the chains start, at {values}: give "
            "initial={site: value} with a point that has density"
        )
    return torch.stack(starts).detach().double()


def _approach(program: Program, data: Data, theta: Theta) -> Theta:
    """A point of higher density."""
    objective = Objective(Loop(program, data), True, theta, torch.arange(len(theta), device=theta.device))
    return objective.embed(descend(objective, settings.approach_steps).part)


def _of_site(latent: Latent, starts: Tensor) -> Tensor:
    """A site's unconstrained values `[chains, *unconstrained_shape]`."""
    return starts[:, latent.slice].reshape(-1, *latent.unconstrained_shape)
