"""Predictions that are the equal mixture of the likelihood over draws: all that is scored of them, in one pass."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import UnsupportedProgram
from pyro_laplace._typing import Values
from pyro_laplace.data import Data
from pyro_laplace.draws.draws import PosteriorDraws
from pyro_laplace.draws.monte_carlo import over_draws
from pyro_laplace.draws.over_draws import View
from pyro_laplace.likelihood.outcome import Outcome
from pyro_laplace.likelihood.registry import log_mean
from pyro_laplace.linearized.at_draws import AtDraws
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.observations import refuse_outside_support
from pyro_laplace.program.program import Program, likelihood_sites, log_lik_of
from pyro_laplace.program.run import Run, Site
from pyro_laplace.scores.given import counted, refuse_without_data
from pyro_laplace.scores.levels import Levels, Marks, Mixed
from pyro_laplace.scores.prediction import Prediction


@dataclass(frozen=True, eq=False)
class Mixture:
    """The likelihood at draws of a posterior.

    Attributes:
        view: the program on the data.
        at: the program's runs.
        draws: of the posterior.
        num_samples: draws of y at least, where a score of numbers has no closed form.
        levels: of the intervals.
    """

    view: View
    at: AtDraws
    draws: PosteriorDraws
    num_samples: int
    levels: Levels

    @staticmethod
    def of(view: View, draws: PosteriorDraws, num_samples: int, levels: Levels) -> "Mixture":
        """A program on its data, at the draws of a posterior."""
        return Mixture(view, AtDraws.of(view.plain, draws), draws, num_samples, levels)

    def passed(self, what: str = "", given: bool = True) -> Iterator[Mixed]:
        """What the draws say of each chunk of the data.

        Args:
            what: what it is for, which a progress bar says.
            given: whether the data hold what was observed.

        Yields:
            the marks and densities, in the data's order.
        """
        for chunk in self._chunks(what):
            yield self.of_chunk(chunk, given, what if self.view.progress else None)

    def log_likelihoods(self) -> Iterator[Tensor]:
        """`Mixed.log_lik` of each chunk alone, which costs less."""
        for chunk in self._chunks("log likelihood"):
            yield self.log_lik_of(chunk, "log likelihood" if self.view.progress else None)

    def at_values(self, values: Values) -> "Mixture":
        """The same program and data at other draws `[draws, *shape]` of the latent sites."""
        draws = PosteriorDraws(values)
        return replace(self, at=AtDraws.of(self.view.plain, draws), draws=draws)

    def on(self, data: Data) -> "Mixture":
        """The same draws on other data, whose observed values are not among them.

        Args:
            data: these.

        Returns:
            the mixture.

        Raises:
            UnsupportedProgram: if a plate draws its own subsample, of a size that is not that of these data.
        """
        if self.view.program.own_indices:
            raise UnsupportedProgram(
                f"the plates {sorted(self.view.program.own_indices)} draw their own subsamples, of a size that is not "
                "that of other data: leave subsample_size out of the model for this call"
            )
        return replace(self, view=View(replace(self.view.program, external={}), data, self.view.progress))

    def summed_out(self) -> dict[str, bool]:
        """The sites that have a density alone, for they depend on discrete sites that are summed out.

        Returns:
            name to whether it is a class.
        """
        program, chunk = self.at.program, Chunk(self.view.data.first())
        with undisturbed(), torch.no_grad():
            known = program.run(program.start, chunk).observed
            own = program.run(program.start, chunk, sample=True).observed  # discrete sites drawn, and not summed out
        return {name: Outcome.of(site.fn).is_class for name, site in own.items() if name not in known}

    def _chunks(self, what: str) -> Iterator[Chunk]:
        loop = self.view.loop.holding(self.bytes_of_row(self.view.run))
        return loop.chunks(what, self.view.progress)

    def bytes_of_row(self, run: Run) -> float:
        """What is held of a datum at all draws: densities, means and draws of each site, about thrice."""
        expected = [Outcome.of(site.fn).expected for site in run.observed.values()]
        numbers = sum(each.numel() for each in expected if each is not None)
        numbers += sum(2 * site.value.numel() for site in run.observed.values())
        rows = max((len(site.value) for site in run.observed.values() if site.value.dim()), default=1)
        return 3.0 * 8 * max(len(self.draws), self.num_samples) * numbers / max(1, rows)

    def log_lik_of(self, chunk: Chunk, what: str | None = None) -> Tensor:
        """`Mixed.log_lik` alone, which costs less."""
        run, predictions = self._observed(chunk)
        found = self.at.read(chunk, _likelihoods, what)
        return _by_datum(run, chunk, predictions, found)

    def of_chunk(self, chunk: Chunk, given: bool = True, what: str | None = None) -> Mixed:
        """What the draws say.

        Args:
            chunk: of the data.
            given: whether it holds what was observed; else there are no scores to be made of the marks.
            what: what it is for, which a progress bar says; None for no bar.

        Returns:
            the marks and densities.

        Raises:
            InvalidData: naming a site without observed values, or with some outside its support.
        """
        program = self.at.program
        run, predictions = self._observed(chunk, given)
        numbers = frozenset(name for name, prediction in predictions.items() if not prediction.is_class)
        apart = len(run.observed) > 1 or program.nesting is not None  # what is drawn at one site, others may depend on
        found = self.at.read(chunk, partial(_everything, program, numbers if not apart else frozenset()), what)
        log_lik = _by_datum(run, chunk, predictions, found)
        if self.draws.is_point and predictions.keys() == densities(program, run).keys():
            return Mixed({n: p.marks(self.num_samples, self.levels) for n, p in predictions.items()}, log_lik)
        replicated = self._replicated(chunk, found, numbers, apart)
        marks = {n: self._marks(n, site, chunk, predictions.get(n), found, replicated)
                 for n, site in densities(program, run).items()}  # fmt: skip
        return Mixed(marks, log_lik)

    def _observed(self, chunk: Chunk, given: bool = True) -> tuple[Run, dict[str, Prediction]]:
        """A run at the first draw, and by site what it predicts: for what y is, and which of it counts."""
        program = self.at.program
        with undisturbed(), torch.no_grad():
            run = program.run(program.start, chunk)
        if given:
            refuse_without_data([name for name, site in run.observed.items() if not site.given], chunk.batch)
            refuse_outside_support(run, program.derived)
        sites = {name: site for name, site in run.observed.items() if name not in program.derived}
        return run, {n: Prediction(site.fn, site.value, counted(site, chunk)) for n, site in sites.items()}

    def _replicated(
        self, chunk: Chunk, found: Mapping[str, Tensor], numbers: frozenset[str], apart: bool
    ) -> dict[str, Tensor]:
        """Draws of y `[draws, *shape]` of the sites that are numbers: at least so many."""
        if not numbers:
            return {}
        if apart or len(self.draws) < self.num_samples:
            enough = self.draws.at_least(self.num_samples)
            return over_draws(self.at.program, enough, chunk, _replicates, True)
        return {name: found[f"y/{name}"] for name in numbers}

    def _marks(
        self,
        name: str,
        site: Site,
        chunk: Chunk,
        prediction: Prediction | None,
        found: Mapping[str, Tensor],
        replicated: Mapping[str, Tensor],
    ) -> Marks:
        counts = counted(site, chunk) if prediction is None else prediction.data
        marks: dict[str, Tensor] = {"log_prob": log_mean(found[f"p/{name}"]).expand(counts.shape)[counts].double()}
        if prediction is None:
            return marks
        expected = found.get(f"mean/{name}")
        mean = None if expected is None else expected.double().mean(0)
        if name not in replicated:
            probs, labels = prediction.classes(mean)
            return {**marks, "probs": probs, "labels": labels}
        drawn, variance = prediction.select(replicated[name], lead=1), None
        if expected is not None and f"variance/{name}" in found:
            around = expected.double().var(0, correction=0)
            variance = prediction.select(found[f"variance/{name}"].double().mean(0) + around)
        mean = None if mean is None else prediction.select(mean)
        own = prediction.marks_by_draws(drawn, mean, variance, self.levels)
        return {**marks, **own}


def densities(program: Program, run: Run) -> dict[str, Site]:
    """The sites that data have a density by; one whose discrete sites are summed out is a factor of its name."""
    sums = {name: site for name, site in run.factors.items() if name in program.observed}
    return {name: site for name, site in {**run.observed, **sums}.items() if name not in program.derived}


def _everything(program: Program, drawn: frozenset[str], run: Run, chunk: Chunk) -> dict[str, Tensor]:
    """By site: its density "p", its part of the likelihood "lik", its "mean" and "variance", and a draw "y"."""
    found = {f"p/{name}": site.fn.log_prob(site.value) for name, site in densities(program, run).items()}
    found |= _likelihoods(run, chunk)
    for name, site in run.observed.items():
        if name in program.derived:
            continue
        outcome = Outcome.of(site.fn)
        if (expected := outcome.expected) is not None:
            found[f"mean/{name}"] = expected
        if not outcome.is_class and (variance := _variance_of_y(site.fn)) is not None:
            found[f"variance/{name}"] = variance
        if name in drawn:
            found[f"y/{name}"] = site.fn()
    return found


def _likelihoods(run: Run, chunk: Chunk) -> dict[str, Tensor]:
    return {f"lik/{name}": value for name, value in log_lik_of(run, chunk).items()}


def _variance_of_y(fn: Any) -> Tensor | None:
    """Of y, where it has a closed form."""
    try:
        return fn.variance.expand(fn.shape())
    except (NotImplementedError, AttributeError):
        return None


def _replicates(run: Run, chunk: Chunk) -> dict[str, Tensor]:
    return {name: site.value for name, site in run.observed.items()}


def _by_datum(run: Run, chunk: Chunk, predictions: Mapping[str, Prediction], found: Mapping[str, Tensor]) -> Tensor:
    """Log likelihood of each datum that counts `[draws, data]`."""
    sites = {name: site for name, site in likelihood_sites(run).items() if f"lik/{name}" in found}
    lik = {name: found[f"lik/{name}"] for name in sites}
    counts = {}
    for name, site in sites.items():
        counts[name] = predictions[name].data if name in predictions else counted(site, chunk)
        counts[name] = counts[name].expand(lik[name].shape[1:])
    axes = {tuple((frame.dim, frame.name) for frame in site.frames) for site in sites.values()}
    if len(axes) == 1 and len({value.shape for value in lik.values()}) == 1:
        kept = torch.stack(list(counts.values())).any(0)
        return torch.stack(list(lik.values())).sum(0)[:, kept]
    return torch.cat([value[:, counts[name]].flatten(1) for name, value in lik.items()], 1)
