"""What is summed over data beside the curvature: of each likelihood term, all that another noise scale must know."""

import math
from dataclasses import dataclass

import torch

from pyro_laplace._typing import State
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.likelihood import likelihood_of
from pyro_laplace.program.program import datum_weight


@dataclass(frozen=True)
class TermStatistics:
    """Sums over the data of one likelihood term.

    Attributes:
        log_lik: log likelihood at the anchor, in nats.
        count: number of data, each entry of an event one, as often as the program scales it.
        squares: sum of squared residuals in units of the noise, for Normal data; None for others. Under a noise c times
            as large the log likelihood is ``log_lik + squares (1 - c^-2) / 2 - count log c``, and the curvature in the
            location is multiplied by ``c^-2``.
    """

    log_lik: float
    count: float
    squares: float | None

    def __add__(self, other: "TermStatistics") -> "TermStatistics":
        """Those of both data."""
        known = self.squares is not None and other.squares is not None
        squares = (self.squares or 0.0) + (other.squares or 0.0) if known else None
        return TermStatistics(self.log_lik + other.log_lik, self.count + other.count, squares)

    def under_noise(self, ratio: float) -> "TermStatistics":
        """Those under a noise so many times as large; Normal data have `squares`."""
        assert self.squares is not None
        log_lik = self.log_lik + self.squares * (1 - ratio**-2) / 2 - self.count * math.log(ratio)
        return TermStatistics(log_lik, self.count, self.squares / ratio**2)

    def state(self) -> State:
        """As numbers."""
        return dict(vars(self))


def statistics_of(run: CapturedRun) -> dict[str, TermStatistics]:
    """Those of one chunk, by term."""
    return {name: _of_term(run, name, float(log_lik)) for name, log_lik in run.score.by_term.items()}


@torch.no_grad()
def _of_term(run: CapturedRun, name: str, log_lik: float) -> TermStatistics:
    site = run.run.observed.get(name)
    if site is None:
        return TermStatistics(log_lik, float(run.run.factors[name].fn.batch_shape.numel()), None)
    weight, likelihood = datum_weight(site, run.chunk), likelihood_of(site.fn)
    if likelihood is None:
        return TermStatistics(log_lik, float(weight.sum()) * site.fn.event_shape.numel(), None)
    weight = likelihood.weight(weight.to(site.value.device), site.value).expand(likelihood.shape)
    count = float(weight.sum()) * likelihood.base.event_shape.numel()
    residuals = likelihood.standardised(site.value)
    if residuals is None:
        return TermStatistics(log_lik, count, None)
    squares = torch.where(weight > 0, residuals.double().square() * weight, 0.0)
    return TermStatistics(log_lik, count, float(squares.sum()))
