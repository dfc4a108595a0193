"""What is asked of a posterior, checked once for all who make one: coordinates, structure, curvature; and its start."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidData, check_option
from pyro_laplace._typing import Values
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.root import Curvature
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import Data
from pyro_laplace.mode.fit_map import discard_params, find_mode
from pyro_laplace.mode.given import values_given
from pyro_laplace.mode.reached import Stopped
from pyro_laplace.posterior.search import PosteriorAt, Search
from pyro_laplace.posterior.subset import Subnetwork, Subset, select
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.program import Program
from pyro_laplace.program.sites import coordinates_of
from pyro_laplace.reading.hyperparameters import Names, require
from pyro_laplace.structure.build import check_combination, check_structure
from pyro_laplace.structure.options import Structure


@dataclass(frozen=True, eq=False)
class Begun:
    """A point with its posterior.

    Attributes:
        search: how the posterior is made.
        posterior: at the point.
        moved: whether the point was moved from where it was given.
        stopped: why the search that moved it ended; None where there was none.
    """

    search: Search
    posterior: PosteriorAt
    moved: bool
    stopped: Stopped | None


@dataclass(frozen=True, eq=False)
class Request:
    """A posterior that is asked for.

    Attributes:
        model: the Pyro program.
        subset: its random sites or coordinates.
        structure: of the precision.
        curvature: of the log likelihood, its random choices made.
        jacobian: whether the mode is that of the density of theta.
        progress: whether what lasts shows a progress bar.
        generator: what a subnetwork is drawn from, if it is.
    """

    model: Callable[..., Any]
    subset: Subset
    structure: Structure
    curvature: Curvature
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
            curvature: by name.
            jacobian: as `fit_laplace` takes it.
            progress: whether what lasts shows a progress bar.

        Returns:
            the request.
        """
        check_structure(structure)
        check_option("curvature", curvature, tuple(CURVATURES))
        check_option("jacobian", jacobian, (True, False))
        check_combination(structure, CURVATURES[curvature])
        generator = subset.generator() if isinstance(subset, Subnetwork) else None
        return Request(model, subset, structure, CURVATURES[curvature].drawn(), jacobian, progress, generator)

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
            _refuse_not_finite(search.loop.program, data)
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

    def begin(self, data: Data, values: Values, polish: bool | str, given: bool) -> Begun:
        """The posterior at a point, moved to the mode as far as `polish` asks.

        Args:
            data: the data.
            values: of the latent sites.
            polish: as `fit_laplace` takes it.
            given: whether the point is the user's.

        Returns:
            the posterior, with the search that makes it.
        """
        program = Program.trace(self.model, data, values)
        search = self.search(program, data)
        theta, stopped = search.mode(polish, given)
        if isinstance(self.subset, Subnetwork) and self.generator is not None:
            index = self.subset.choose(program, theta, lambda: search.variance(theta), self.generator)
            search = replace(search, index=index)
        posterior = search.measured(theta)
        if polish is True or (polish == "auto" and not given):
            posterior = search.gauss_newton(posterior)
        return Begun(search, posterior, not torch.equal(posterior.theta, program.start), stopped)


@torch.no_grad()
def _refuse_not_finite(program: Program, data: Data) -> None:
    """Refuse observed values that are not finite, and that their distribution cannot do with, before any training."""
    chunk = Chunk(data.first())
    run = program.run(program.start, chunk)
    for name, site in run.observed.items():
        known = site.value.is_floating_point() and not bool(site.value.isfinite().all())
        if known and not bool(site.own_log_prob().isfinite().all()):
            place = (~site.value.isfinite()).nonzero()[0].tolist()
            raise InvalidData(
                f"the observed site {name!r} has the value {float(site.value[tuple(place)])} at {place}, which is not "
                "finite: leave such data out, or mask them with poutine.mask or obs_mask"
            )
