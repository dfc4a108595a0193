"""Which of a program's `pyro.param`s are hyperparameters: what the priors depend on, and noise."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint

from pyro_laplace._compat.pyro import live_param, undisturbed
from pyro_laplace._errors import InvalidOption
from pyro_laplace._typing import Scalar
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.likelihood import Likelihood, likelihood_of
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program, add_up
from pyro_laplace.program.run import Run
from pyro_laplace.settings import settings

type Names = str | Iterable[str]
"""What `hyperparameters=` may be: "auto", or names and globs."""


@dataclass(frozen=True, eq=False)
class Hyperparameters:
    """Some `pyro.param`s, with where they enter.

    Attributes:
        values: constrained, by name.
        constraints: by name.
        sites: the free sites whose prior depends on each; empty of one that is noise alone.
        terms: the likelihood terms that each enters.
        located: those that enter a location, and not noise alone.
        held: the program's other `pyro.param`s, by name.
    """

    values: Mapping[str, Tensor]
    constraints: Mapping[str, Constraint]
    sites: Mapping[str, tuple[str, ...]]
    terms: Mapping[str, tuple[str, ...]]
    located: frozenset[str] = frozenset()
    held: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in the order in which the program asks for them."""
        return tuple(self.values)

    @property
    def scales(self) -> tuple[str, ...]:
        """Those that are positive, and that a prior depends on and no likelihood term."""
        return tuple(name for name in self.values if not self.terms[name] and self._is_positive(name))

    @property
    def noises(self) -> tuple[str, ...]:
        """Those that are positive, and that a likelihood term depends on."""
        return tuple(name for name in self.values if self.terms[name] and self._is_positive(name))

    def reach(self, factor: float) -> Tensor:
        """How far each number may move if a positive one may by a factor; others, as far as they like."""
        parts = [
            torch.full_like(self.flat({name: value}, [name]), math.log(factor) if self._is_positive(name) else math.inf)
            for name, value in self.values.items()
        ]
        return torch.cat(parts)

    def flat(self, values: Mapping[str, Tensor], names: Iterable[str] | None = None) -> Tensor:
        """Values as one vector of unconstrained numbers, in float64: of a positive one the logarithm."""
        chosen = self.values if names is None else names
        parts = [transform_to(self.constraints[name]).inv(values[name].detach().double()) for name in chosen]
        return torch.cat([part.reshape(-1).cpu() for part in parts])

    def _is_positive(self, name: str) -> bool:
        constraint = self.constraints[name]
        return getattr(constraint, "lower_bound", None) == 0 and not hasattr(constraint, "upper_bound")

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """The inverse of `flat`, with its graph, each in its own dtype and on its device."""
        found, start = {}, 0
        for name, value in self.values.items():
            transform = transform_to(self.constraints[name])
            shape = transform.inverse_shape(value.shape)
            part = flat[start : start + shape.numel()].reshape(shape)
            found[name], start = transform(part).to(value), start + shape.numel()
        return found

    def numbers_of(self, name: str) -> slice:
        """Where the numbers of one of them lie in the vector."""
        start = 0
        for each, value in self.values.items():
            size = transform_to(self.constraints[each]).inverse_shape(value.shape).numel()
            if each == name:
                return slice(start, start + size)
            start += size
        raise KeyError(name)

    @staticmethod
    def find(program: Program, anchor: Anchor, chunk: Chunk, names: Names = "auto") -> "Hyperparameters":
        """Read them off one run of the program.

        Args:
            program: the traced program.
            anchor: theta and its free coordinates.
            chunk: some data.
            names: "auto" for those that the prior of a free site depends on, and those that enter the dispersion of
                the data's distribution and not its location; or names and globs of `pyro.param`s.

        Returns:
            the hyperparameters; none where "auto" finds none.

        Raises:
            InvalidOption: for a name that matches nothing, or a network's weights, listing what there is.
        """
        with undisturbed(), torch.enable_grad():
            plain = program.run(anchor.theta, chunk)
            if not plain.params and names == "auto":
                return Hyperparameters({}, {}, {}, {})
            leaves = {name: value.detach().clone().requires_grad_() for name, value in plain.params.items()}
            run = CapturedRun.make(program, anchor, chunk, captured=False, params=leaves)
            of_sites = _of_sites(run, leaves)
            of_terms = _of_terms(run.run, leaves)
            weights = frozenset(
                name for name in leaves if _is_weight(live_param(program.model, name), name, plain.constraints[name])
            )
        sites = {name: tuple(site for site, found in of_sites.items() if name in found) for name in leaves}
        terms = {name: tuple(term for term, (moves, _) in of_terms.items() if name in moves) for name in leaves}
        located = {name for _, (_, moved) in of_terms.items() for name in moved}
        noise = {name for name in leaves if terms[name] and name not in located and name not in weights}
        found = {name for name in leaves if sites[name] or name in noise}
        chosen = found if names == "auto" else _matched(names, tuple(leaves), weights - found)
        ordered = [name for name in leaves if name in chosen]
        return Hyperparameters(
            {name: leaves[name].detach() for name in ordered},
            {name: plain.constraints[name] for name in ordered},
            {name: sites[name] for name in ordered},
            {name: terms[name] for name in ordered},
            frozenset(located),
            {name: value.detach() for name, value in leaves.items() if name not in chosen},
        )


def require(found: Hyperparameters, program: Program) -> None:
    """Refuse a program without any.

    Args:
        found: what `find` gave.
        program: the traced program.

    Raises:
        InvalidOption: saying how a program gets one.
    """
    if not found.names:
        raise InvalidOption(
            "hyperparameters='auto' found none: no pyro.param enters the prior of a random site "
            f"({', '.join(program.latents)}) or the noise alone. Write a prior scale as "
            "pyro.param('std', torch.tensor(1.0), constraint=constraints.positive), or in a network as "
            "pl.nn.Isotropic(pl.nn.learned(1.0)); a parameter that enters in another way can be named"
        )


def _matched(names: Names, there: tuple[str, ...], weights: frozenset[str]) -> set[str]:
    patterns = [names] if isinstance(names, str) else list(names)
    if not patterns:
        raise InvalidOption("hyperparameters is empty: give 'auto', or names of pyro.params")
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in there if isinstance(pattern, str) and fnmatchcase(name, pattern)}
        if not found:
            raise InvalidOption(
                f"hyperparameters: {pattern!r} matches none of the program's pyro.params {list(there)}; 'auto' finds "
                "those of priors and noise"
            )
        if found <= weights:
            raise InvalidOption(
                f"hyperparameters: {pattern!r} matches {sorted(found)}, which are weights of a network and are trained "
                "by fit_map: give them a prior, or leave them out"
            )
        chosen |= found - weights
    return chosen


def _is_weight(value: Tensor | None, name: str, constraint: Constraint) -> bool:
    """Whether a param is one of a module's weights: unconstrained, and a module's parameter or a matrix."""
    free = constraint is constraints.real or "$$$" in name
    module = "$$$" in name or isinstance(value, nn.Parameter)
    return free and value is not None and (value.dim() >= 2 or (module and value.dim() >= 1))


def _of_sites(run: CapturedRun, leaves: Mapping[str, Tensor]) -> dict[str, frozenset[str]]:
    """By free site (or factor outside plates), the params that its prior depends on."""
    priors: dict[str, Scalar] = {name: add_up([run.run.latents[name].log_prob()]) for name in run.anchor.touched}
    if len(priors) == len(run.program.latents):
        priors |= {site.name: add_up([site.log_prob()]) for site in run.run.other_priors}
    return {name: _entering(log_p, leaves) for name, log_p in priors.items()}


def _of_terms(run: Run, leaves: Mapping[str, Tensor]) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """By likelihood term, the params that it depends on, and those of them that its location depends on."""
    found = {}
    for name, site in run.observed.items():
        likelihood = likelihood_of(site.fn)
        log_p = add_up([site.log_prob()])
        entering = _entering(log_p, leaves)
        moved = entering if likelihood is None else _moving_location(likelihood, leaves)
        found[name] = entering, moved
    for name, site in run.factors.items():
        if site.frames:
            entering = _entering(add_up([site.log_prob()]), leaves)
            found[name] = entering, entering
    return found


def _moving_location(likelihood: Likelihood, leaves: Mapping[str, Tensor]) -> frozenset[str]:
    """Params whose effect on the location is more than rounding beside that on the distribution as a whole."""
    of_location = _gradients(likelihood.family.location(likelihood.base), leaves)
    of_eta = _gradients(likelihood.link(), leaves)
    return frozenset(
        name for name, size in of_location.items() if size > settings.same_location * of_eta.get(name, 0.0)
    )


def _gradients(tensor: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, float]:
    """Sizes of the gradients of a tensor, its entries weighted at random, by param that it depends on."""
    if not tensor.requires_grad:
        return {}
    weights = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor)
    grads = torch.autograd.grad((tensor * weights).sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
    return {name: float(grad.norm()) for name, grad in zip(leaves, grads, strict=True) if grad is not None}


def _entering(log_p: Tensor, leaves: Mapping[str, Tensor]) -> frozenset[str]:
    return frozenset(_gradients(log_p, leaves))
