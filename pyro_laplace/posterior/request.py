"""What is asked of a posterior, checked once for all who make one: coordinates, structure, curvature; and its start."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import IndefiniteCurvature, check_option
from pyro_laplace._typing import Theta, Values
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.network import is_network
from pyro_laplace.curvature.root import Curvature
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import Data
from pyro_laplace.mode.collapse import Collapse
from pyro_laplace.mode.fit_map import discard_params, find_mode
from pyro_laplace.mode.given import values_given
from pyro_laplace.mode.reached import Stopped
from pyro_laplace.posterior.search import PosteriorAt, Search
from pyro_laplace.posterior.subset import Subnetwork, Subset, select
from pyro_laplace.program.program import Program
from pyro_laplace.program.sites import coordinates_of
from pyro_laplace.reading.hyperparameters import Names, require
from pyro_laplace.settings import settings
from pyro_laplace.structure.build import check_combination, check_structure, holds
from pyro_laplace.structure.options import Structure


@dataclass(frozen=True, eq=False)
class Begun:
    """A point with its posterior.

    Attributes:
        search: how the posterior is made.
        posterior: at the point.
        moved: whether the point was moved from where it was given.
        stopped: why the search that moved it ended; None where there was none.
        statistical: whether the program is small and no network.
    """

    search: Search
    posterior: PosteriorAt
    moved: bool
    stopped: Stopped | None
    statistical: bool


@dataclass(frozen=True, eq=False)
class Request:
    """A posterior that is asked for.

    Attributes:
        model: the Pyro program.
        subset: its random sites or coordinates.
        structure: of the precision.
        curvature: of the log likelihood, its random choices made; of "auto", what it is where it is not the Hessian.
        asked: the curvature as it was given.
        jacobian: whether the mode is that of the density of theta.
        progress: whether what lasts shows a progress bar.
        generator: what a subnetwork is drawn from, if it is.
    """

    model: Callable[..., Any]
    subset: Subset
    structure: Structure
    curvature: Curvature
    asked: str
    jacobian: bool
    progress: bool
    generator: torch.Generator | None

    @staticmethod
    def of(
        model: Callable[..., Any], subset: Subset, structure: Structure, curvature: str, jacobian: bool, progress: bool
    ) -> "Request":
        """Check the options; what is random of them advances the user's random state here, and nowhere else.

        Args:
            model: the Pyro program.
            subset: as `fit_laplace` takes it.
            structure: as `fit_laplace` takes it.
            curvature: by name, or "auto".
            jacobian: as `fit_laplace` takes it.
            progress: whether what lasts shows a progress bar.

        Returns:
            the request.
        """
        check_structure(structure)
        check_option("curvature", curvature, ("auto", *CURVATURES))
        check_option("jacobian", jacobian, (True, False))
        measure = CURVATURES["ggn" if curvature == "auto" else curvature]
        check_combination(structure, measure)
        generator = subset.generator() if isinstance(subset, Subnetwork) else None
        return Request(model, subset, structure, measure.drawn(), curvature, jacobian, progress, generator)

    def point(self, data: Data, map_guide: Any, hyperparameters: Names | None = None) -> Values:
        """The mode that was given, or one that is fitted first.

        Args:
            data: the data.
            map_guide: an autoguide or a mapping; None fits one.
            hyperparameters: those that are to be chosen afterwards, if any; there must be some.

        Returns:
            site name to value.
        """
        if map_guide is not None:
            return values_given(map_guide, data)
        with undisturbed():  # a typo need not wait for the training
            search = self.search(Program.trace(self.model, data), data)
            hold: tuple[str, ...] = ()
            if hyperparameters is not None:
                found = search.hyperparameters(hyperparameters)
                require(found, search.loop.program)
                hold = found.names
        fitted = find_mode(self.model, data, self.progress, hold)
        values = values_given(fitted, data)
        discard_params(fitted)
        return values

    def refit(self, refit: bool | str) -> bool | str:
        """Whether the mode follows a new prior; never unasked beside held sites, which were trained with it."""
        return False if refit == "auto" and self.subset != "all" else refit

    def search(self, program: Program, data: Data) -> Search:
        """How the posterior is made; of a subnetwork, over all coordinates that it may lie in."""
        index = coordinates_of(program.latents, select(self.subset, program, data)).to(program.start.device)
        return Search(Loop(program, data), index, self.structure, self.curvature, self.jacobian, self.progress)

    def begin(self, data: Data, values: Values, polish: bool | str, given: bool, ignore: bool = False) -> Begun:
        """The posterior at a point, moved to the mode as far as `polish` asks.

        Args:
            data: the data.
            values: of the latent sites.
            polish: as `fit_laplace` takes it.
            given: whether the point is the user's.
            ignore: whether a given point is taken as it is where no mode can be reached from it.

        Returns:
            the posterior, with the search that makes it.

        Raises:
            Collapse: if a scale collapses to zero on the way from the point.
        """
        program = Program.trace(self.model, data, values)
        search = self.search(program, data)
        try:
            theta, stopped = search.mode(polish, given)
        except Collapse as collapse:
            if not given or polish is True:
                raise
            if not ignore:
                remedy = "polish=False leaves the point that was given where it is"
                raise Collapse(f"{collapse}. {remedy}", collapse.latents) from None
            theta, stopped = program.start, None
        if isinstance(self.subset, Subnetwork) and self.generator is not None:
            index = self.subset.choose(program, theta, lambda: search.variance(theta), self.generator)
            search = replace(search, index=index)
        small = len(theta) <= settings.small
        statistical = small and not is_network(program, theta, search.loop.few_rows())
        if self.asked == "auto" and small and holds(self.structure, CURVATURES["hessian"]):
            search, posterior = _measured(search, theta, statistical)
        else:
            posterior = search.measured(theta)
        if polish is True or (polish == "auto" and not given):
            posterior = search.gauss_newton(posterior)
        return Begun(search, posterior, not torch.equal(posterior.theta, program.start), stopped, statistical)


def _measured(search: Search, theta: Theta, statistical: bool) -> tuple[Search, PosteriorAt]:
    """The posterior of a small program by its exact Hessian, which statisticians expect; of a network, by Gauss-Newton.

    Where that curvature is not positive definite (of Gauss-Newton, a `pyro.factor`'s may not be), the other one is
    taken; where neither is, Gauss-Newton says why.

    Returns:
        the search by the curvature chosen, and the posterior.
    """
    by_hessian = replace(search, curvature=CURVATURES["hessian"])
    first, other = (by_hessian, search) if statistical else (search, by_hessian)
    for each in (first, other):
        try:
            return each, each.measured(theta)
        except IndefiniteCurvature:
            continue
    return search, search.measured(theta)
