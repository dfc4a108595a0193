"""The linearised program: the likelihood's parameters linear in theta around the mode.

A Gauss-Newton posterior over all weights of a network belongs to ``eta(x) + J(x) (theta - theta*)``, not to the
network: its draws through the nonlinear network ruin the prediction (Immer et al. 2021, "Improving predictions of
Bayesian neural nets via local linearization").
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_laplace._autodiff import jvp
from pyro_laplace._compat.pyro import ParamsHeld, site_is_deterministic, site_is_factor, undisturbed
from pyro_laplace._errors import InvalidOption
from pyro_laplace.data import Batch
from pyro_laplace.likelihood import require_likelihood
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mixture import LaplaceMixture
from pyro_laplace.posterior.own import own_params
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.mismatch import signature_of
from pyro_laplace.program.module_state import ModulesKept, in_place_refused, modules_kept, refuse_changed_buffers
from pyro_laplace.program.program import Program
from pyro_laplace.program.sites import pack


def linearize(model: Callable[..., Any], guide: Any) -> Callable[..., Tensor | dict[str, Tensor]]:
    """The program with its likelihood's parameters linearised at the guide's mode, itself a Pyro program.

    Its latent sites, priors, plates, masks and scales are the model's. The distribution of an observed site has the
    parameters ``eta(theta*) + J (theta - theta*)`` in its unconstrained (link) space, by forward-mode AD. `Predictive`,
    ELBOs, NUTS, `to_datatree` and `compare` take it as they take the model. `pyro.deterministic` sites keep the values
    of the nonlinear model.

    Args:
        model: the Pyro program.
        guide: a posterior of it, from `fit_laplace`. Of a mixture, every theta is linearised at the mode of the
            component that it most probably came from.

    Returns:
        a callable with the model's arguments. It returns the value of the observed site, or a mapping of their values
        by name if there are several.

    Raises:
        InvalidOption: if the guide is not an `AutoLaplace` or `LaplaceMixture`.
    """
    if not isinstance(guide, AutoLaplace | LaplaceMixture):
        raise InvalidOption(f"linearize takes a guide from fit_laplace, not {type(guide).__name__}")
    return LinearizedProgram(model, guide)


class LinearizedProgram:
    """What `linearize` returns.

    Attributes:
        model: the nonlinear program.
        guide: the posterior at whose mode it is linearised.
    """

    def __init__(self, model: Callable[..., Any], guide: AutoLaplace | LaplaceMixture) -> None:
        self.model, self.guide = model, guide
        self._built_at = guide.components[0] if isinstance(guide, LaplaceMixture) else guide
        self._program = Program(model, guide.latents, guide.observed, start=guide.theta)
        if (signature := signature_of(model)) is not None:
            self.__signature__ = signature

    def __getstate__(self) -> dict[str, Any]:
        """The model, which a guide alone would not bring, and the guide."""
        return {"model": self.model, "guide": self.guide}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make it anew."""
        self.__init__(**state)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | dict[str, Tensor]:
        """Run the program: latent sites as the model samples them, observed sites linearised.

        Returns:
            the value of the observed site, or a mapping of their values by name if there are several.

        Raises:
            UnsupportedProgram: if the model changes buffers or other tensors of its own as it runs.
        """
        with modules_kept(self.model) as kept, in_place_refused():
            return self._run(kept, args, kwargs)

    def _run(self, kept: ModulesKept, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        prior = _PriorOnly(self.guide)
        params = own_params(self.model, self._built_at)
        with ParamsHeld(params), prior:
            self.model(*args, **kwargs)
        refuse_changed_buffers(kept.changed())
        theta = pack(self.guide.latents, {**self._program.unpack(self.guide.theta), **prior.latents})
        chunk = Chunk(Batch(args, kwargs), prior.indices)
        program = replace(self._program, params=params) if params else self._program
        distributions = self._distributions(program, theta, chunk)
        values = {name: prior.emit(name, distributions[name]) for name in prior.names}
        return next(iter(values.values())) if len(values) == 1 else values

    def _distributions(self, program: Program, theta: Tensor, chunk: Chunk) -> dict[str, Any]:
        """The observed sites' distributions with linearised parameters."""
        likelihoods = {}

        def eta(at: Tensor) -> dict[str, Tensor]:
            for name, site in program.run(at, chunk).observed.items():
                likelihoods[name] = require_likelihood(name, site.fn)
            return {name: likelihood.link() for name, likelihood in likelihoods.items()}

        guide = self.guide
        mode = guide.mode_of(theta) if isinstance(guide, LaplaceMixture) else guide.theta
        with undisturbed(rng=False):
            at_mode, change = jvp(eta, mode, theta - mode)
            eta(mode)  # leaves the likelihoods' wrappers free of dual numbers
            return {name: likelihoods[name].distribution(at_mode[name] + change[name]) for name in at_mode}


class _PriorOnly(Messenger):
    """Lets the latent sites of a program through, and keeps the observed ones for later.

    One with `obs_mask` is three statements to Pyro: what was observed, what was not, and both as one.
    """

    def __init__(self, guide: AutoLaplace | LaplaceMixture) -> None:
        super().__init__()
        self.observed = guide.observed
        self.held = {f"{name}{half}" for name in self.observed for half in ("", *_HALVES)}
        self.latents: dict[str, Tensor] = {}
        self.recorded: dict[str, Any] = {}
        self.indices: dict[str, Tensor] = {}

    @property
    def names(self) -> Iterator[str]:
        """The observed sites of this call."""
        return (name for name in self.observed if name in self.recorded)

    def emit(self, name: str, fn: Any) -> Tensor:
        """Sample an observed site as the program does, of another distribution; its value."""
        observed, unobserved = (self.recorded.get(f"{name}{half}") for half in _HALVES)
        if observed is None or unobserved is None:
            return _emit(self.recorded[name], fn)
        values, others = _emit(observed, fn), _emit(unobserved, fn)
        seen = torch.as_tensor(observed["mask"], device=values.device)
        seen = seen.reshape(seen.shape + (1,) * len(fn.event_shape))
        with _As(self.recorded[name]):
            return pyro.deterministic(name, torch.where(seen, values, others), event_dim=len(fn.event_shape))

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.held:
            self.recorded[msg["name"]] = dict(msg)
            msg["stop"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.indices[msg["name"]] = msg["value"]
        elif msg["name"] not in self.held and not (site_is_deterministic(msg) or site_is_factor(msg)):
            self.latents[msg["name"]] = msg["value"]


_HALVES = ("_observed", "_unobserved")
"""What Pyro adds to the name of a site with `obs_mask`."""


class _As(Messenger):
    """Gives a sample statement the plates, scale and mask that it had where it stood."""

    def __init__(self, recorded: Any) -> None:
        super().__init__()
        self.recorded = recorded

    def _pyro_sample(self, msg: Any) -> None:
        for key in ("cond_indep_stack", "scale", "mask"):
            msg[key] = self.recorded[key]


def _emit(recorded: Any, fn: Any) -> Tensor:
    with _As(recorded):
        return pyro.sample(recorded["name"], fn, obs=recorded["value"], infer=recorded["infer"])
