"""The program split in two: the log density of the inner sites given the hyper sites, and that of the hyper sites.

Letters: h, the hyper sites' coordinates of theta; x, those of all other sites, the inner ones.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, UnsupportedProgram
from pyro_laplace._typing import Scalar, Theta
from pyro_laplace.capture.loop import Loop
from pyro_laplace.draws.vectorize import Widest
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program, add_up, sum_log_lik
from pyro_laplace.program.run import Run
from pyro_laplace.program.sites import coordinates_of
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Conditional:
    """``log p(y, x | h)`` and ``log p(h)``, as functions of unconstrained coordinates in float64.

    Attributes:
        loop: the traced program and its data.
        hyper: names of the hyper sites, in trace order.
        inner: names of the sites that are integrated out, in trace order.
        hyper_index: coordinates of theta that are h.
        inner_index: coordinates of theta that are x.
        order: where the coordinates of theta lie in h and x joined.
        chunks: one pass over the data.
        data_size: entries of the largest tensor that one run makes.
    """

    loop: Loop
    hyper: tuple[str, ...]
    inner: tuple[str, ...]
    hyper_index: Tensor
    inner_index: Tensor
    order: Tensor
    chunks: tuple[Chunk, ...]
    data_size: int

    @staticmethod
    def of(loop: Loop, hyper: tuple[str, ...]) -> "Conditional":
        """Split a program.

        Args:
            loop: the traced program and its data.
            hyper: names of the hyper sites, in trace order.

        Returns:
            the two densities.
        """
        program, device = loop.program, loop.program.start.device
        inner = tuple(name for name in program.latents if name not in hyper)
        index = [coordinates_of(program.latents, names).to(device) for names in (hyper, inner)]
        with undisturbed(), torch.no_grad():
            chunks = tuple(loop.chunks())
            with Widest() as widest:
                for chunk in chunks:
                    program.run(program.start, chunk)
        order = torch.cat(index).argsort()
        return Conditional(
            loop, hyper, inner, index[0], index[1], order, chunks, max(widest.elements, program.num_params)
        )

    @property
    def program(self) -> Program:
        """The traced program."""
        return self.loop.program

    @property
    def start(self) -> tuple[Tensor, Tensor]:
        """x and h where the program was traced, float64."""
        theta = self.program.start.double()
        return theta[self.inner_index], theta[self.hyper_index]

    @property
    def eps(self) -> float:
        """Rounding of the program's dtype."""
        return torch.finfo(self.program.start.dtype).eps

    def theta(self, x: Tensor, h: Tensor) -> Tensor:
        """All of theta `[*batch, params]`, in the program's dtype."""
        return torch.cat([h, x], -1)[..., self.order].to(self.program.start)

    def log_joint(self, x: Tensor, h: Tensor) -> Scalar:
        """``log p(y | x, h) + log p(x | h)``, the log-Jacobian of x included, summed over the data.

        Args:
            x: inner coordinates [inner].
            h: hyper coordinates [hyper].

        Returns:
            nats, in float64.
        """
        latents, like = self.program.latents, self.program.start
        by_site = self._by_site(x, h)
        values = {name: latents[name].constrain(part) for name, part in by_site.items()}
        parts = []
        for number, chunk in enumerate(self.chunks):
            run = self.program.run_at(values, chunk)
            parts.append(sum_log_lik(run, chunk))
            if number == 0:
                parts.append(self.program.log_prior_at(run, by_site, True, frozenset(self.inner)))
                parts.append(add_up((site.log_prob() for site in run.other_priors), like))
        return torch.stack(parts).sum()

    def _by_site(self, x: Tensor, h: Tensor) -> dict[str, Tensor]:
        """Each site's coordinates; theta, in between, would take further operations for each of its derivatives."""
        latents, found = self.program.latents, {}
        for names, joined in ((self.hyper, h), (self.inner, x)):
            parts = joined.to(self.program.start).split([latents[name].size for name in names])
            found.update(zip(names, parts, strict=True))
        return found

    def log_prior(self, h: Tensor) -> Scalar:
        """Log density of the hyper sites' coordinates h [hyper] under their own priors, log-Jacobian included."""
        theta = self.theta(self.start[0].to(h), h)
        return self.program.log_prior(theta, self.chunks[0], True, frozenset(self.hyper))


def chosen_sites(option: str, patterns: str | Iterable[str], there: tuple[str, ...]) -> tuple[str, ...]:
    """The sites that globs name.

    Args:
        option: the option's name as the caller writes it.
        patterns: a name or glob, or several.
        there: the latent sites, in trace order.

    Returns:
        the sites chosen, in trace order.

    Raises:
        InvalidOption: for a pattern that matches nothing, or patterns that match every site.
    """
    if not isinstance(patterns, Iterable):
        raise InvalidOption(f"{option}={patterns!r}: give names or globs of the latent sites {list(there)}")
    globs = [patterns] if isinstance(patterns, str) else list(patterns)
    if not globs:
        raise InvalidOption(f"{option} is empty: give 'auto', or names of latent sites among {list(there)}")
    for glob in globs:
        if not isinstance(glob, str) or not any(fnmatchcase(name, glob) for name in there):
            raise InvalidOption(f"{option}: {glob!r} matches none of the latent sites {list(there)}")
    found = tuple(name for name in there if any(fnmatchcase(name, glob) for glob in globs))
    if len(found) == len(there):
        raise InvalidOption(
            f"{option}={patterns!r} matches every latent site {list(there)}, and none is left to be integrated out: "
            "name the few that the others depend on (scales, noise, length-scales), or draw from the program itself "
            "with pl.fit_nuts(model, data)"
        )
    return found


def refuse_inner_parents(program: Program, hyper: tuple[str, ...], chunk: Chunk) -> None:
    """Refuse hyper sites whose own prior depends on an inner site.

    Args:
        program: the traced program.
        hyper: names of the hyper sites.
        chunk: some data.

    Raises:
        UnsupportedProgram: naming both, and the remedy.
    """
    for name, parents in parents_of(program, hyper, chunk).items():
        inner = [each for each in parents if each not in hyper]
        if inner:
            raise UnsupportedProgram(
                f"the prior of the hyper site {name!r} depends on {inner}, which would be integrated out before it: "
                f"give hyper={[*hyper, *inner]}"
            )


def tamed(theta: Theta) -> Theta:
    """The nearest point whose coordinates are near the origin of unconstrained space, however wide the priors are."""
    return theta.clamp(-settings.tame, settings.tame)


def parents_of(program: Program, names: Iterable[str], chunk: Chunk) -> dict[str, list[str]]:
    """The latent sites that the priors of some sites depend on, by autograd.

    Args:
        program: the traced program.
        names: the sites.
        chunk: some data.

    Returns:
        site name to the other sites that its distribution depends on.
    """
    with undisturbed(), torch.enable_grad():
        run, leaves = run_of_leaves(program, program.start, chunk)
        return {name: _dependencies(add_up([run.latents[name].log_prob()]), leaves, name) for name in names}


def run_of_leaves(program: Program, theta: Theta, chunk: Chunk) -> tuple[Run, dict[str, Tensor]]:
    """A run whose latent sites' values each come from a leaf of their own.

    Args:
        program: the traced program.
        theta: the point.
        chunk: some data.

    Returns:
        the run, with all values of its discrete sites, and site name to its coordinates, the leaf.
    """
    leaves = {n: theta[latent.slice].detach().clone().requires_grad_() for n, latent in program.latents.items()}
    values = {name: latent.constrain(leaves[name]) for name, latent in program.latents.items()}
    return program.run_of_discrete(values, chunk), leaves


def _dependencies(log_p: Tensor, leaves: dict[str, Tensor], own: str) -> list[str]:
    if not log_p.requires_grad:
        return []
    grads = torch.autograd.grad(log_p, list(leaves.values()), retain_graph=True, allow_unused=True)
    return [name for name, grad in zip(leaves, grads, strict=True) if grad is not None and name != own]
