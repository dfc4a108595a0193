"""One number by which predictions are chosen, and the random numbers that all of them are judged with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pyro
import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption, check_option
from pyro_laplace.scores.formulas import brier_scores, calibration_error
from pyro_laplace.scores.prediction import Prediction


@dataclass(frozen=True)
class Criterion:
    """A number by which predictions are judged.

    Attributes:
        of: gives it, by the predictions of one site, batch after batch.
        larger_is_better: whether more is better.
        adds_up: whether that of several sites is their sum; else it is their mean.
        classes: whether it is of classes (True), of numbers (False), or of both (None).
    """

    of: Callable[[Sequence[Prediction]], float]
    larger_is_better: bool = False
    adds_up: bool = False
    classes: bool | None = None

    @property
    def sign(self) -> int:
        """1 where larger is better, else -1: times it, more is always better."""
        return 1 if self.larger_is_better else -1

    def is_of(self, prediction: Prediction) -> bool:
        """Whether a site of this kind has it."""
        return self.classes in (None, prediction.is_class)


def _log_lik(predictions: Sequence[Prediction]) -> float:
    return _mean(each.log_prob for each in predictions)


def _crps(predictions: Sequence[Prediction], num_samples: int = 1000) -> float:
    return _mean(each.crps(partial(each.draws, num_samples)) for each in predictions)


def _brier(predictions: Sequence[Prediction]) -> float:
    return _mean(brier_scores(*each.classes()) for each in predictions)


def _ece(predictions: Sequence[Prediction], num_bins: int = 15) -> float:
    probs, labels = zip(*(each.classes() for each in predictions), strict=True)
    return calibration_error(torch.cat(probs), torch.cat(labels), num_bins)


def _mean(parts: Iterator[Tensor]) -> float:
    return float(torch.cat([*parts]).mean())


OBJECTIVES: Mapping[str, Criterion] = {
    "log_lik": Criterion(_log_lik, larger_is_better=True, adds_up=True),
    "crps": Criterion(_crps, adds_up=True, classes=False),
    "brier": Criterion(_brier, classes=True),
    "ece": Criterion(_ece, classes=True),
}
"""What predictions may be chosen by: the mean log density of a datum, and what `scores` calls by these names."""


def score_of(name: str, predictions: Mapping[str, Sequence[Prediction]]) -> float:
    """An objective of predictions, the mean over data.

    Of several sites, "log_lik" and "crps" add up, and the others are averaged. Where draws of y are needed they are the
    same on every call, so that differences are those of the predictions; the user's random numbers are left alone.

    Args:
        name: one of `OBJECTIVES`.
        predictions: site name to its predictions, batch after batch.

    Returns:
        the number.

    Raises:
        InvalidOption: if there is no such objective, or not of a site's data.
    """
    check_option("objective", name, tuple(OBJECTIVES))
    criterion = OBJECTIVES[name]
    for site, parts in predictions.items():
        if not criterion.is_of(parts[0]):
            kind, wanted = type(parts[0].outcome.base).__name__, "classes" if criterion.classes else "numbers"
            has = [other for other, each in OBJECTIVES.items() if each.is_of(parts[0])]
            raise InvalidOption(
                f"objective={name!r} is of {wanted}, and the observed site {site!r} has a {kind} distribution: use "
                f"{' or '.join(map(repr, has))}"
            )
    with common_numbers(), torch.no_grad():
        values = [criterion.of(parts) for parts in predictions.values()]
    return sum(values) / (1 if criterion.adds_up else len(values))


@contextmanager
def common_numbers() -> Iterator[None]:
    """The same random numbers each time; on leaving, the generators are what they were."""
    with undisturbed():
        pyro.set_rng_seed(0)
        yield
