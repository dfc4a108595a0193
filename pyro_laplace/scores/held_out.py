"""`scores`: what predictions of held-out data are worth, by the terms that are in use for it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyro.infer
import torch

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption
from pyro_laplace.data import Batch, Data, as_data
from pyro_laplace.draws.draws import PosteriorDraws, draws_of
from pyro_laplace.draws.over_draws import View
from pyro_laplace.linearized.predictor import LinearizedPredictive
from pyro_laplace.program.module_state import modules_kept
from pyro_laplace.program.run import Recorder, run_model
from pyro_laplace.scores.drawn import Mixture
from pyro_laplace.scores.given import posterior_of, refuse_without_data
from pyro_laplace.scores.levels import Levels, Marks
from pyro_laplace.scores.marks import joined_marks, row_of
from pyro_laplace.scores.objectives import common_numbers
from pyro_laplace.scores.observed import predictions_of
from pyro_laplace.scores.prediction import Forecaster, Prediction

if TYPE_CHECKING:
    import pandas


def scores(predictive: Any, data: Any, *, num_samples: int = 1000, num_bins: int = 15) -> "pandas.Series":
    """Score predictions of held-out data.

    A datum is an element of an observed site's batch shape. What it puts into one by `to_event` has one density; the
    other scores are means over its entries. Masked and missing data do not count.

    Args:
        predictive: a `LinearizedPredictive`; or a `Predictive`, Pyro's or ours, with a guide or posterior samples: the
            equal mixture of the likelihood over its draws. Of one draw (that of an `AutoDelta`, the baseline that a
            mode alone is) it is that likelihood itself. Or what `calibrate` returns.
        data: held-out data, observed values included: a batch (tuple, dict or tensor), or a re-iterable of batches.
            Predictions are made batch by batch. Of a plate that draws its own subsample, a `LinearizedPredictive`
            predicts the first one alone.
        num_samples: draws of y, where a score of numbers has no closed form. They are the same on every call.
        num_bins: bins of `ece`.

    Returns:
        name to number, NaN where no datum counts. Of several observed sites, each has its own, and " (site)" ends
        their names.

        - `nll`: ``-log p(y)``, the mean over data, in nats: the log score, which is proper (Good 1952). Of draws,
          ``-log mean_s p(y | theta_s)``. `poutine.scale` is no part of a prediction. Data that depend on a discrete
          site which is summed out have this score alone.

        Of classes:

        - `accuracy`: share of data whose most probable class was observed.
        - `brier`: ``sum_k (p_k - [y = k])^2``, proper, between 0 and 2; of two classes the sum is over both (Brier
          1950).
        - `ece`: expected calibration error of the most probable class, in bins of equal width (Guo et al. 2017).
        - `auroc`: the probability that a datum of a class is given more of it than one of another, ties half (Hanley
          and McNeil 1982): of two classes, of 1 against 0; of more, the mean over those that occur of one against the
          rest. NaN where only one occurs.

        Of numbers:

        - `rmse`: root mean squared error of the predictive mean.
        - `crps`: continuous ranked probability score ``E|X - y| - E|X - X'| / 2``, proper, in the units of y (Gneiting
          and Raftery 2007): in closed form where the prediction is Normal, else the fair estimate by draws (Ferro
          2014).
        - `coverage_90`: share within the central interval of `settings.coverage_level`, which names it; between
          quantiles in closed form, or of draws.

    Raises:
        InvalidOption: if `predictive` is something else, has no draws, or an option has a value that it cannot have.
        InvalidData: if data cannot be iterated anew, lack a site's values, or hold some outside its support.
        UnsupportedProgram: if the program cannot be traced, or the posterior lacks one of its sites.
    """
    _check_whole("num_samples", num_samples, 2)
    _check_whole("num_bins", num_bins, 1)
    data = as_data(data)
    parts: dict[str, list[Marks]] = {}
    levels = Levels.usual()
    with common_numbers(), torch.no_grad():
        data.first()  # refuses data without a batch
        if isinstance(predictive, LinearizedPredictive):
            found = (_marks_of(predictions_of(predictive, batch), num_samples, levels) for batch in data)
        elif isinstance(predictive, Forecaster):
            found = (_marks_of(predictive.predictions(batch), num_samples, levels) for batch in data)
        elif isinstance(predictive, pyro.infer.Predictive):
            found = _marks_of_draws(predictive, data, num_samples, levels)
        else:
            raise InvalidOption(
                f"predictive is a {type(predictive).__name__}: give pl.LinearizedPredictive(model, guide), "
                "pl.Predictive(model, guide=guide, num_samples=1000), or pl.Predictive(model, posterior_samples=draws)"
            )
        for marks in found:
            for name, each in marks.items():
                parts.setdefault(name, []).append(each)
    row = {}
    for name, several in parts.items():
        of = f" ({name})" if len(parts) > 1 else ""
        scored = row_of(joined_marks(several), num_bins, levels)
        row |= {f"{score}{of}": value for score, value in scored.items()}
    import pandas  # takes a second to load

    return pandas.Series(row, dtype=float)


def _marks_of(predictions: Mapping[str, Prediction], num_samples: int, levels: Levels) -> dict[str, Marks]:
    return {name: prediction.marks(num_samples, levels) for name, prediction in predictions.items()}


def _marks_of_draws(
    predictive: pyro.infer.Predictive, data: Data, num_samples: int, levels: Levels
) -> Iterator[Mapping[str, Marks]]:
    """By site, of the mixture over draws, chunk after chunk."""
    posterior = posterior_of(predictive)
    draws = draws_of(posterior, data, predictive.num_samples)
    _refuse_unobserved(predictive.model, data.first(), draws)
    view = View.of(predictive.model, data, draws)
    for mixed in Mixture.of(view, draws, num_samples, levels).passed():
        yield mixed.marks


def _refuse_unobserved(model: Any, batch: Batch, draws: PosteriorDraws) -> None:
    """Refuse data without observed values, which a trace would take for latent sites."""
    first = {name: value[0] for name, value in draws.values.items()}
    with undisturbed(rng=False), modules_kept(model):
        run = run_model(model, batch, Recorder(first, fill=lambda msg: msg["fn"].sample()))
    refuse_without_data([name for name in run.latents if name not in first], batch)


def _check_whole(option: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(f"{option}={value!r}: give a whole number from {least} on")
