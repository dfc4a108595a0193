"""A program at many draws of its latent sites, whatever it is: linearised ones by their Jacobian, others run anew.

A linearised program that is run at a draw of theta pushes it through the network again. Its predictor is a product,
``eta(theta*) + J (theta - theta*)``, whose Jacobian is the same at all draws: it is had once a chunk of the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._typing import Values
from pyro_laplace.draws.draws import PosteriorDraws
from pyro_laplace.draws.monte_carlo import Read, over_draws
from pyro_laplace.draws.vectorize import Widest, over_rows
from pyro_laplace.linearized.expansion import Expansion
from pyro_laplace.linearized.jacobian import Linearized
from pyro_laplace.linearized.program import LinearizedProgram
from pyro_laplace.linearized.routes import Route, first_route
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.module_state import in_place_refused, modules_kept
from pyro_laplace.program.program import Program, likelihood_sites
from pyro_laplace.program.run import Run
from pyro_laplace.settings import settings


@dataclass(eq=False)
class AtDraws:
    """A program's runs at draws of its latent sites.

    Attributes:
        program: traced on the data.
        values: latent site to draws `[draws, *shape]`, constrained.
        straight: the same by products, where the program is linearised.
    """

    program: Program
    values: Values
    straight: "Straight | None"

    @staticmethod
    def of(program: Program, draws: PosteriorDraws) -> "AtDraws":
        """A program at the draws of a posterior."""
        return AtDraws(program, draws.values, Straight.of(program, draws.values))

    def read(self, chunk: Chunk, read: Read, what: str | None = None) -> dict[str, Tensor]:
        """Something read off each run.

        Args:
            chunk: of the data.
            read: what is read; it may draw, but not look at the values of latent or deterministic sites.
            what: what it is for, which a progress bar says; None for no bar.

        Returns:
            name to `[draws, *shape]`.
        """
        if self.straight is not None and (found := self.straight.read(chunk, read, what)) is not None:
            return found
        return over_draws(self.program, self.values, chunk, read, False, what)


@dataclass(eq=False)
class Straight:
    """A linearised program at draws of theta, by the products of its Jacobian.

    Attributes:
        program: the linearised program, traced on the data.
        model: the same, as it was made.
        guide: the posterior at whose mode it is linearised.
        deviation: ``theta - theta*`` of the draws [draws, params], of the guide's random coordinates.
        route: how the Jacobian is had, which each chunk gives the next one.
    """

    program: Program
    model: LinearizedProgram
    guide: AutoLaplace
    deviation: Tensor
    route: Route

    @staticmethod
    def of(program: Program, values: Values) -> "Straight | None":
        """None of a program that is not linearised at one mode, and of draws that move what the guide holds there."""
        model = program.model
        if not isinstance(model, LinearizedProgram) or not isinstance(model.guide, AutoLaplace):
            return None
        if program.nesting is not None or not len(model.guide.index):
            return None
        guide, latents = model.guide, program.latents
        shaped = {name: values[name].reshape(-1, *latent.shape) for name, latent in latents.items()}
        with undisturbed(rng=False), torch.no_grad():
            theta = torch.func.vmap(program.pack)(shaped)
            deviation = theta - guide.theta
            held = torch.ones(len(guide.theta), dtype=torch.bool).index_fill(0, guide.index.cpu(), False)
            scale = guide.theta[held].abs().clamp(min=1.0)
            close = settings.rounding * torch.finfo(theta.dtype).eps
            if len(theta) < 2 or bool((deviation[:, held].abs() > close * scale).any()):
                return None
        route = first_route(Expansion.of(model.model, guide), differentiable=False)
        return Straight(program, model, guide, deviation[:, guide.index], route)

    def read(self, chunk: Chunk, read: Read, what: str | None) -> dict[str, Tensor] | None:
        """As `AtDraws.read`; None of a program with factors in its plates, which are not linear."""
        with undisturbed(rng=False), torch.no_grad():
            run = self.program.run(self.guide.theta, chunk)
            if likelihood_sites(run).keys() != run.observed.keys():
                return None
            with modules_kept(self.model.model), in_place_refused():
                step = self.route.at(chunk)
            self.route = step.route
            if any(not linear.batch for linear in step.sites.values()):
                return None
            largest = max(linear.elements_of_draw() for linear in step.sites.values())
            some = max(1, settings.pass_elements // (self.deviation.shape[1] + largest))
            parts = [self._some(run, step.sites, chunk, read, each, what) for each in self.deviation.split(some)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _some(
        self, run: Run, sites: Mapping[str, Linearized], chunk: Chunk, read: Read, deviation: Tensor, what: str | None
    ) -> dict[str, Tensor]:
        """At some of the draws."""

        def at(row: Values) -> dict[str, Tensor]:
            fns = {name: linear.likelihood.distribution(row[name]) for name, linear in sites.items()}
            observed = {name: replace(site, fn=fns.get(name, site.fn)) for name, site in run.observed.items()}
            return dict(read(replace(run, observed=observed), chunk))

        etas = {}
        for name, linear in sites.items():
            change = linear.changes(deviation)
            etas[name] = linear.eta + linear.embed(change).to(linear.eta)
        with Widest() as widest:
            at({name: eta[0] for name, eta in etas.items()})
        return over_rows(at, etas, len(deviation), widest.chunk_size, what=what)
