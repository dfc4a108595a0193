"""One pass over the data at a point: every chunk is run once, and everything is read off that run."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._typing import Theta
from pyro_laplace.capture.anchor import Point
from pyro_laplace.capture.first_run import FirstRun
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.data import Data
from pyro_laplace.program.program import Program
from pyro_laplace.reading.prior import Prior, prior_of


@dataclass
class Tally:
    """What a pass adds up by the way.

    Attributes:
        gradient: of the log joint over the free coordinates [params], in float64, in nats per unit of theta.
        log_lik: log p(y | theta), in nats.
        log_prior: log p(theta), the log-Jacobian counted if the density is that of theta.
        log_prior_of_free: log p of the free sites' theta, its log-Jacobian included.
    """

    gradient: Theta
    log_lik: float = 0.0
    log_prior: float = 0.0
    log_prior_of_free: float = 0.0


class Pass:
    """A point, the data, and the runs of one pass; that of a single chunk is kept for whoever asks again.

    Attributes:
        program: the traced program.
        point: theta and its free coordinates.
        data: the data.
        jacobian: whether the density is that of theta, or of the constrained values.
        with_prior: whether the prior counts, or the likelihood alone.
        first: the run by which the program was traced, if it was captured.
    """

    def __init__(
        self,
        program: Program,
        point: Point,
        data: Data,
        jacobian: bool = True,
        prior: bool = True,
        first: FirstRun | None = None,
    ) -> None:
        self.with_prior, self.first = prior, first
        self.program, self.point, self.data, self.jacobian = program, point, data, jacobian
        self._only: CapturedRun | None = None
        self._tally: Tally | None = None
        self._prior: Prior | None = None
        self._verdicts: dict[tuple[str, frozenset[str]], bool] = {}

    def runs(self, captured: bool = True) -> Iterator[CapturedRun]:
        """The run of every chunk; it is of use until the next one is asked for.

        Args:
            captured: whether the operations that consume the free sites are wanted.

        Yields:
            the runs.
        """
        if self._only is not None and (self._only.capture is not None or not captured):
            yield self._only
            return
        tally = Tally(torch.zeros(len(self.point.index), dtype=torch.float64, device=self.point.theta.device))
        chunks = self.program.chunks(self.data)
        chunk = next(chunks)
        for number in count():
            with undisturbed(rng=False):
                run = self.first.at(self.program, self.point, chunk) if self.first is not None and not number else None
                run = CapturedRun.make(self.program, self.point, chunk, captured) if run is None else run
                run.verdicts = self._verdicts
                if self._tally is None:
                    self._add(tally, run, prior=self.with_prior and number == 0)
            following = next(chunks, None)
            if following is None and self._tally is None:
                self._tally = tally
            if following is None and number == 0:
                self._only = run
            yield run
            if run is not self._only:
                run.release()
            if following is None:
                return
            chunk = following

    @property
    def tally(self) -> Tally:
        """The sums, from a pass that was made for something else if there was one."""
        if self._tally is None:
            for _ in self.runs(captured=False):
                pass
        assert self._tally is not None
        return self._tally

    @property
    def prior(self) -> Prior:
        """The prior's curvature over the free coordinates."""
        if self._prior is None:
            next(self.runs())
        assert self._prior is not None
        return self._prior

    def _add(self, tally: Tally, run: CapturedRun, prior: bool) -> None:
        tally.log_lik += float(run.score.log_lik)
        run.add_over_free(tally.gradient, run.score.leaves)
        if prior:
            self._prior = prior_of(run, self.jacobian)
            tally.gradient += self._prior.log_gradient
            tally.log_prior = self._prior.log_density
            tally.log_prior_of_free = self._prior.log_density_of_free
