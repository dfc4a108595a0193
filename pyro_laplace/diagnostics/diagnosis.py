"""`Diagnosis`: what `diagnose` found, as a record that prints as a short report."""

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_laplace.diagnostics.determined import AtMode, Determined
from pyro_laplace.diagnostics.moves import Moved
from pyro_laplace.diagnostics.weights import Shift
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Whether a posterior is right, why, and what to do next.

    Attributes:
        verdict: "trusted", "unsure" or "wrong".
        subject: what it is the verdict of: the program, or the linearised program; with sites held, if there are any.
        reason: what the verdict rests on.
        next_step: what to type next.
        advice: what that does.
        khat: Pareto k of the importance weights ``p(y, theta) / q(theta)`` of the posterior's own draws.
        ess: how many of these draws the weights leave.
        num_draws: how many draws were taken.
        log_ratios: log p(y, theta) - log q(theta) of each, in nats [num_draws].
        corrected_khat: Pareto k of draws with heavier tails and matched moments, by which means are corrected where the
            posterior's own weights cannot be trusted; None where they can.
        moved: the corrected moves that the verdict rests on, with the weights that they are by.
        shapes: of the sites.
        at_mode: the gradient there and the Newton decrement; None for a guide that is not Laplace's.
        determined: eigenvalues, flat directions, the prior's share; None likewise.
        predictive: log predictive density of the data, mean in nats over data, of the draws through the program
            ("sampled") and through the linearised one ("linearized"); empty where the program is linear.
        posterior: what was diagnosed, in words.
        seconds: wall time.
    """

    verdict: str
    subject: str
    reason: str
    next_step: str
    advice: str
    khat: float
    ess: float
    num_draws: int
    log_ratios: Tensor
    corrected_khat: float | None
    moved: Moved = field(repr=False)
    shapes: Mapping[str, torch.Size]
    at_mode: AtMode | None
    determined: Determined | None
    predictive: Mapping[str, float]
    posterior: str
    seconds: float

    @property
    def shifts(self) -> dict[str, Tensor]:
        """By site, the corrected move of the mean of each entry, in corrected standard deviations `[*shape]`."""
        return {name: each.mean.reshape(self.shapes[name]) for name, each in self.moved.by_site.items()}

    @property
    def shift_errors(self) -> dict[str, Tensor]:
        """Monte Carlo standard errors of these."""
        return {name: each.mean_error.reshape(self.shapes[name]) for name, each in self.moved.by_site.items()}

    @property
    def log_scales(self) -> dict[str, Tensor]:
        """By site, log of the corrected standard deviation over the posterior's own `[*shape]`."""
        return {name: each.log_std.reshape(self.shapes[name]) for name, each in self.moved.by_site.items()}

    @property
    def gradient_norm(self) -> float | None:
        """Of the log joint at the mode, in the random coordinates."""
        return None if self.at_mode is None else self.at_mode.gradient_norm

    @property
    def newton_decrement(self) -> float | None:
        """Distance of the point to the mode, in posterior standard deviations."""
        return None if self.at_mode is None else self.at_mode.newton_decrement

    @property
    def smallest_eigenvalue(self) -> float | None:
        """Of the precision."""
        return None if self.determined is None else self.determined.smallest_eigenvalue

    @property
    def condition_number(self) -> float | None:
        """Of the precision."""
        return None if self.determined is None else self.determined.condition_number

    @property
    def flat_directions(self) -> Mapping[str, int]:
        """By site, how many flat directions it has a part in."""
        return {} if self.determined is None else self.determined.flat_directions

    @property
    def prior_share(self) -> Mapping[str, Tensor]:
        """By site, the prior's share in each unconstrained coordinate [size]."""
        return {} if self.determined is None else self.determined.prior_share

    @property
    def weights_trusted(self) -> bool:
        """Whether the moves rest on weights with a k-hat of at most 0.7."""
        return self.moved.weights.trusted

    @property
    def max_shift(self) -> float:
        """The largest corrected move of a mean, in standard deviations."""
        return max((float(each.mean.abs().max()) for each in self.moved.by_site.values()), default=0.0)

    def __str__(self) -> str:
        """The report: the verdict first."""
        step = f"next: {self.next_step}{f'  # {self.advice}' if self.advice else ''}"
        head = [f"{self.verdict.upper()} for {self.subject}: {self.reason}", step, ""]
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join([*head, *(f"{name:<{width}}  {text}" for name, text in rows)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same as a table, for notebooks."""
        rows = "".join(
            f"<tr><th style='text-align: left; vertical-align: top'>{html.escape(name)}</th>"
            f"<td style='text-align: left'>{html.escape(text)}</td></tr>"
            for name, text in self._rows()
        )
        return (
            f"<p><b>{html.escape(self.verdict.upper())}</b> for {html.escape(self.subject)}: "
            f"{html.escape(self.reason)}<br>next: <code>{html.escape(self.next_step)}</code> "
            f"{html.escape(self.advice)}</p>"
            f"<table>{rows}</table>"
        )

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("posterior", self.posterior)]
        if self.at_mode is not None:
            at = self.at_mode
            rows.append(
                (
                    "mode",
                    f"Newton decrement {at.newton_decrement:.2g} (up to {at.allowed:.2g} is a mode), gradient norm "
                    f"{at.gradient_norm:.2g}",
                )
            )
        rows += self._of_precision()
        counts = f"{self.ess:,.0f} of {self.num_draws:,} draws count"
        corrected = "" if self.corrected_khat is None else f"; {self.corrected_khat:.2f} with matched moments"
        rows.append(("Pareto k-hat", f"{self.khat:.2f} (up to {settings.bad_k} can be trusted), {counts}{corrected}"))
        rows += self._of_moves()
        if self.prior_share:
            rows.append(("prior's share", ", ".join(f"{n} {_from_to(s)}" for n, s in _few(self.prior_share))))
        if self.predictive:
            pair = ", ".join(f"{name} {value:.3f}" for name, value in self.predictive.items())
            rows.append(("log density a datum", pair))
        rows.append(("cost", f"{self.num_draws:,} log joints and more, {self.seconds:.1f} s"))
        return rows

    def _of_moves(self) -> list[tuple[str, str]]:
        if not self.weights_trusted and self.moved.weights.ess < settings.fewest_draws:
            return [("means move by", "not known: too few draws count")]
        doubt = "" if self.weights_trusted else " (by weights that cannot be trusted)"
        own, free = self.moved.by_site, self.moved.unconstrained
        rows = [
            ("means move by", f"{_as_moves(own)} posterior sd{doubt}"),
            ("sds scale by", f"{_as_factors(own)}{doubt}"),
        ]
        if free:
            rows.append(("unconstrained", f"means by {_as_moves(free)}, sds by {_as_factors(free)}{doubt}"))
        return rows

    def _of_precision(self) -> list[tuple[str, str]]:
        if self.determined is None or self.determined.smallest_eigenvalue is None:
            return []
        found = self.determined
        flat = ", ".join(f"{count} with {name!r}" for name, count in found.flat_directions.items()) or "none"
        text = f"smallest eigenvalue {found.smallest_eigenvalue:.2g}, condition number {found.condition_number:.2g}"
        rows = [("precision", f"{text}, flat directions: {flat}")]
        if found.hessian_apart:
            factor = math.exp(found.hessian_apart) if found.hessian_apart < math.inf else 0.0
            text = (
                f"gives {found.farthest!r} an sd {factor:.2f} times as large" if factor else "is not positive definite"
            )
            rows.append(("exact Hessian", text))
        return rows


def _few[T](by_site: Mapping[str, T]) -> list[tuple[str, T]]:
    return list(by_site.items())[: 2 * settings.shown_names]


def _as_moves(shifts: Mapping[str, Shift]) -> str:
    order = sorted(shifts, key=lambda name: -float(shifts[name].mean.abs().max()))[: settings.shown_names]
    texts = []
    for name in order:
        place = int(shifts[name].mean.abs().argmax())
        texts.append(f"{name} {float(shifts[name].mean[place]):+.2f} ({float(shifts[name].mean_error[place]):.2f})")
    return ", ".join(texts)


def _as_factors(shifts: Mapping[str, Shift]) -> str:
    order = sorted(shifts, key=lambda name: -float(shifts[name].log_std.abs().max()))[: settings.shown_names]
    largest = {name: shifts[name].log_std[int(shifts[name].log_std.abs().argmax())] for name in order}
    return ", ".join(f"{name} {math.exp(min(float(value), 300.0)):.2f}" for name, value in largest.items())


def _from_to(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
