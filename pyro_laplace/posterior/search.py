"""The posterior's precision anywhere, the way to the mode by it, and the guide that comes of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._errors import IndefiniteCurvature
from pyro_laplace._typing import Theta, Values
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.root import Curvature
from pyro_laplace.mode.descent import descend
from pyro_laplace.mode.mode import Mode
from pyro_laplace.mode.newton import minimise
from pyro_laplace.mode.objective import Objective
from pyro_laplace.mode.reached import Reached, Stopped
from pyro_laplace.mode.rising import NoMode, rising
from pyro_laplace.posterior.evidence import laplace_evidence
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.posterior.mode_check import judge
from pyro_laplace.program.program import Program
from pyro_laplace.program.sites import coordinates_of
from pyro_laplace.reading.hyperparameters import Hyperparameters, Names
from pyro_laplace.reading.prior import Prior
from pyro_laplace.settings import settings
from pyro_laplace.structure.build import Measured, sum_over_data
from pyro_laplace.structure.likelihood_sum import LikelihoodSum
from pyro_laplace.structure.options import Structure
from pyro_laplace.structure.precision import Precision
from pyro_laplace.structure.sum import NeedsDouble


@dataclass(frozen=True, eq=False)
class PosteriorAt:
    """A point with the sum over data and the prior there, and the precision that both make."""

    likelihood: LikelihoodSum
    prior: Prior
    precision: Precision
    objective: Objective | None = None
    """Minus the log joint over the random coordinates, from this point, to tell a mode from a point far out."""

    @property
    def theta(self) -> Theta:
        """The point."""
        return self.likelihood.anchor.theta

    @property
    def log_joint(self) -> float:
        """Log density there."""
        return self.likelihood.log_lik + self.prior.log_density

    @property
    def gradient(self) -> Theta:
        """Its gradient over the random coordinates."""
        return self.likelihood.gradient + self.prior.log_gradient

    @property
    def log_evidence(self) -> float:
        """Laplace's log p(y)."""
        return laplace_evidence(self.likelihood.log_lik, self.prior.log_density_of_free, self.precision)

    def judged(self, moved: bool, stopped: Stopped | None) -> Mode:
        """The point with its Newton decrement.

        Args:
            moved: whether it was moved from where the map guide left it.
            stopped: why the search that moved it ended.

        Returns:
            the mode; of one that a search led to, with a line along which the log joint never falls, if there is one.
        """
        mode = judge(self.theta, self.log_joint, self.gradient, self.precision, moved, stopped)
        if stopped is None or self.objective is None or not mode.is_mode:
            return mode
        rise = rising(self.objective, self.objective.start)
        return mode if rise is None else replace(mode, rises=rise.message)


@dataclass(frozen=True)
class Search:
    """The posterior's precision anywhere, and the way to the mode by it."""

    loop: Loop
    index: Tensor
    structure: Structure
    curvature: Curvature
    jacobian: bool
    progress: bool
    double: bool = False
    """Whether sums are made in float64 throughout, and not only where a prior turns out to need it."""

    def measured(self, theta: Theta) -> PosteriorAt:
        """The sum over data at a point, and Lambda; in float64 throughout if asked to, or where that is needed."""
        objective = self.objective(theta, self.index)
        try:
            found, precision = self._with_precision(theta)
        except IndefiniteCurvature as error:
            if (rise := rising(objective, objective.start)) is not None:
                raise NoMode(rise.message) from error
            raise
        return PosteriorAt(found.likelihood, found.prior, precision, objective)

    def _with_precision(self, theta: Theta) -> tuple[Measured, Precision]:
        found = self._pass(theta, double=self.double)
        try:
            return found, found.likelihood.posterior(found.prior)
        except NeedsDouble:
            found = self._pass(theta, double=True)
        return found, found.likelihood.posterior(found.prior)

    def summed(self, theta: Theta, prior: Prior, double: bool = False) -> LikelihoodSum:
        """The sum over data alone, where the prior is known."""
        return self._pass(theta, prior=prior, double=double).likelihood

    def _pass(self, theta: Theta, **options: Any) -> Measured:
        anchor = Anchor(theta, self.index, self.loop.program.latents, self.curvature.name)
        options |= {"jacobian": self.jacobian, "progress": self.progress}
        return sum_over_data(self.loop, anchor, self.curvature, self.structure, **options)

    def at(self, theta: Theta, params: Values) -> "Search":
        """The same of the program at another start and other values of pyro.params."""
        return replace(self, loop=self.loop.at(theta, params))

    def under(self, theta: Theta, likelihood: LikelihoodSum, prior: Prior) -> PosteriorAt:
        """The posterior of a sum over data and another prior; by a pass in float64 where these need one."""
        try:
            objective = self.objective(theta, self.index)
            return PosteriorAt(likelihood, prior, likelihood.posterior(prior), objective)
        except NeedsDouble:
            return self.measured(theta)

    def guide(self, found: PosteriorAt, mode: Mode, hyperparameters: Values) -> AutoLaplace:
        """The posterior as a guide.

        Args:
            found: the posterior.
            mode: the same point, judged.
            hyperparameters: values of the pyro.params that it was built at.

        Returns:
            the guide.
        """
        program = self.loop.program
        return AutoLaplace(
            program.model,
            program.latents,
            self.index,
            mode,
            found.precision,
            structure=self.structure,
            curvature=self.curvature.name,
            observed=program.observed,
            log_evidence=found.log_evidence,
            likelihood_sum=found.likelihood,
            prior=found.prior,
            hyperparameters=hyperparameters,
            jacobian=self.jacobian,
        )

    def hyperparameters(self, names: Names = "auto") -> Hyperparameters:
        """Those of the program, at its own values: what the priors of the random sites depend on, and noise.

        Args:
            names: "auto", or names and globs.

        Returns:
            the hyperparameters.
        """
        program = self.loop.program
        anchor = Anchor(program.start, self.index, program.latents, self.curvature.name)
        return Hyperparameters.find(program, anchor, self.loop.few_rows(), names)

    def variance(self, theta: Theta) -> Theta:
        """Marginal variances under the diagonal approximation."""
        return replace(self, structure="diag").measured(theta).precision.variance()

    def objective(self, theta: Theta, index: Tensor) -> Objective:
        """Minus the log joint over some coordinates."""
        return Objective(self.loop, self.jacobian, theta, index)

    def mode(self, polish: bool | str, given: bool) -> tuple[Theta, Stopped | None]:
        """The mode of the log joint, searched for as far as `polish` asks, and why the search ended."""
        program, theta = self.loop.program, self.loop.program.start
        everything = torch.arange(len(theta), device=theta.device)
        constrained = [name for name, latent in program.latents.items() if latent.constrained]
        must = self.jacobian and bool(constrained)
        if polish is False:
            return theta, None
        if len(theta) <= settings.small:
            found = self._minimised(theta, everything)
            lost = not given and must and found[1] in (Stopped.STUCK, Stopped.OUTSIDE)
            return self._from_the_prior(found) if lost else found
        if polish is True or not given:
            return self._searched(descend, theta, everything)
        where = coordinates_of(program.latents, constrained).to(theta.device)
        return self._minimised(theta, where) if must else (theta, None)

    def mode_again(self) -> tuple[Theta, Stopped]:
        """The mode of the random coordinates, from the program's start; the others stay."""
        return self._minimised(self.loop.program.start, self.index)

    def unlike_passes(self, found: PosteriorAt, beside: float = 0.0) -> str | None:
        """What to do about data that are others at each pass, which have no mode; None where they are the same.

        Args:
            found: the posterior, of one pass, with whose log joint that of another is compared.
            beside: log likelihood of what else it is of, which no pass visits.

        Returns:
            the remedy, with what was seen.
        """
        if self.loop.data.one_batch:
            return None
        objective = self.objective(found.theta, self.index)
        one, other = found.log_joint, beside - float(objective.value_and_gradient(objective.start)[0])
        if abs(one - other) <= settings.same_data * max(1.0, abs(one)):
            return None
        return (
            f"give the same data at each pass: two of them had log joints of {one:.6g} and {other:.6g} at this point, "
            "as with a DataLoader whose sampler draws at random, that drops its last batch after shuffling "
            "(drop_last=True), or that augments. DataLoader(dataset, batch_size) has neither"
        )

    def gauss_newton(self, found: PosteriorAt) -> PosteriorAt:
        """Steps Lambda^-1 g with backtracking, until the decrement says that this is a mode."""
        for _ in range(settings.gauss_newton_steps):
            objective = self.objective(found.theta, self.index)
            here, value = objective.start, -found.log_joint
            step = found.precision.solve(found.gradient)
            slope = float(step @ found.gradient)
            if slope <= (settings.fine_decrement * len(here) ** 0.5) ** 2:
                break
            for halving in range(12):
                trial, _ = objective.value_and_gradient(here + 0.5**halving * step)
                if value - float(trial) > settings.sufficient_decrease * 0.5**halving * slope:
                    break
            else:
                break
            found = self.measured(objective.embed(here + 0.5**halving * step))
        return found

    def _from_the_prior(self, lost: tuple[Theta, Stopped]) -> tuple[Theta, Stopped]:
        """The mode from the program's own start, where the density of the constrained values has none to start from.

        That of a Gamma or Beta site may be infinite at the border, where the density of theta is flat.

        Args:
            lost: what the search from there ended with.

        Returns:
            what the other one ends with; what is lost, if that one is lost too.
        """
        start = Program.trace(self.loop.program.model, self.loop.data, params=self.loop.program.params).start
        found = self._minimised(start, torch.arange(len(start), device=start.device))
        return lost if found[1] in (Stopped.STUCK, Stopped.OUTSIDE) else found

    def _minimised(self, theta: Theta, index: Tensor) -> tuple[Theta, Stopped]:
        return self._searched(minimise if len(index) <= settings.small else descend, theta, index)

    def _searched(self, method: Callable[[Objective], Reached], theta: Theta, index: Tensor) -> tuple[Theta, Stopped]:
        objective = self.objective(theta, index)
        reached = method(objective)
        return objective.embed(reached.part), reached.stopped
