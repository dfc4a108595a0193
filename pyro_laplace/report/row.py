"""One posterior in the table of `compare`: its columns, from what one pass over each of its data showed."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_laplace.scores.formulas import roc_area
from pyro_laplace.scores.levels import Levels, Marks, Mixed
from pyro_laplace.scores.marks import joined_marks, names_of_scores, row_of

AUTO, PSIS, APPROXIMATE, LAPLACE = METHODS = ("auto", "psis", "approximate_posterior", "laplace")
"""How data may be left out; the first chooses one of the others."""


@dataclass(frozen=True, eq=False)
class Elpd:
    """Expected log predictive density of a posterior, datum by datum, in nats and float64.

    Attributes:
        method: how it was had; "" where it could not be.
        log_density: of each datum given the others [data].
        log_fit: of each given all data [data].
        k: Pareto k of the weights that take a datum out [data]; None where there are no weights.
        note: why it was not had, or not as it was asked for; "" of what needs no word.
    """

    method: str
    log_density: np.ndarray
    log_fit: np.ndarray
    k: np.ndarray | None
    note: str = ""

    @property
    def total(self) -> float:
        """Summed over data."""
        return float(self.log_density.sum()) if self.method else math.nan

    @property
    def error(self) -> float:
        """Standard error of the sum; NaN of one datum."""
        count = len(self.log_density)
        return float((count * self.log_density.var(ddof=1)) ** 0.5) if self.method and count > 1 else math.nan


@dataclass(frozen=True, eq=False)
class Row:
    """What there is to tell of one posterior.

    Attributes:
        values: column to number, or to a word.
        elpd: datum by datum.
        probs: site name to the class probabilities of each held-out entry `[entries, classes]`.
        quantiles: site name to the quantiles of each held-out entry `[entries, grid]`, of numbers.
        notes: column to why it has no number.
        hidden: names of sites that have a density alone: they depend on discrete sites that are summed out.
    """

    values: Mapping[str, Any]
    elpd: Elpd
    probs: Mapping[str, Tensor] = field(default_factory=dict)
    quantiles: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()


def marks_and_density(parts: Iterable[Mixed]) -> tuple[dict[str, Marks], float]:
    """The marks of all chunks by site, and the log of the mean density over draws, mean over data."""
    found: dict[str, list[Marks]] = {}
    densities = []
    for mixed in parts:
        densities.append(mixed.log_lik.double().logsumexp(0) - math.log(len(mixed.log_lik)))
        for name, marks in mixed.marks.items():
            found.setdefault(name, []).append(marks)
    return {name: joined_marks(several) for name, several in found.items()}, float(torch.cat(densities).mean())


def of_held_out(marks: Mapping[str, Marks], num_bins: int, levels: Levels) -> dict[str, float]:
    """The scores of held-out data, of each site."""
    values = {}
    for name, each in marks.items():
        scored = row_of(each, num_bins, levels, widths=True)
        values |= {f"{score}{_of(name, marks)}": value for score, value in scored.items() if score != "nll"}
    return values


def of_hidden(hidden: Mapping[str, bool], levels: Levels, marks: Mapping[str, Marks], others: bool) -> dict[str, str]:
    """The columns that sites with a density alone do not have.

    Args:
        hidden: name to whether it is a class.
        levels: of the intervals.
        marks: of all sites.
        others: whether there are data unlike the held-out ones.

    Returns:
        column to why it is without a number.
    """
    found = {}
    for name, is_class in hidden.items():
        columns = [*names_of_scores(is_class, levels), *(["ood_auroc"] if others else [])]
        found |= {f"{column}{_of(name, marks)}": no_prediction(name) for column in columns}
    return found


def no_prediction(name: str) -> str:
    """Why a site has a density alone."""
    return (
        f"{name!r} depends on discrete sites that are summed out: it has a density, and what is predicted of it is to "
        "be had by draws alone, pl.Predictive(model, guide=guide, num_samples=1000)"
    )


def of_others(marks: Mapping[str, Marks], others: Iterable[Mixed]) -> dict[str, float]:
    """How well the uncertainty about y tells other data from held-out ones, of each site."""
    parts: dict[str, list[Tensor]] = {}
    for mixed in others:
        for name, each in mixed.marks.items():
            if _is_uncertain(each):
                parts.setdefault(name, []).append(_uncertainty(each))
    values = {}
    for name in parts:
        inside, outside = _uncertainty(marks[name]), torch.cat(parts[name])
        both = torch.cat([inside, outside])
        labels = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).long()
        values[f"ood_auroc{_of(name, marks)}"] = roc_area(torch.stack([-both, both], -1), labels)
    return values


def _of(name: str, sites: Mapping[str, Any]) -> str:
    return f" ({name})" if len(sites) > 1 else ""


def _is_uncertain(marks: Marks) -> bool:
    return "probs" in marks or "variance" in marks


def _uncertainty(marks: Marks) -> Tensor:
    """Of each entry: the entropy of its classes, or its variance."""
    return torch.special.entr(marks["probs"]).sum(-1) if "probs" in marks else marks["variance"]


def distance(one: Row, other: Row) -> dict[str, float]:
    """Between what two posteriors predict, mean over held-out entries: total variation, or Wasserstein's distance.

    ``sum_k |p_k - q_k| / 2`` of classes, between 0 and 1; of numbers ``integral |F^-1(u) - G^-1(u)| du``, in the units
    of y, by quantiles.

    Args:
        one: of the posteriors.
        other: of the same data.

    Returns:
        site name to number, NaN of a hidden one.
    """
    found = dict.fromkeys(one.hidden, math.nan)
    found |= {n: float((p - other.probs[n]).abs().sum(-1).mean() / 2) for n, p in one.probs.items()}
    return found | {n: float((q - other.quantiles[n]).abs().mean()) for n, q in one.quantiles.items()}
