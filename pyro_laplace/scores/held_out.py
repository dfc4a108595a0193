"""`scores`: what predictions of held-out data are worth, by the terms that are in use for it."""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pyro.infer
import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidData, InvalidOption
from pyro_laplace.data import Batch, Data, as_data
from pyro_laplace.draws.draws import PosteriorDraws, draws_of
from pyro_laplace.draws.monte_carlo import over_draws
from pyro_laplace.draws.over_draws import View
from pyro_laplace.likelihood.outcome import Outcome
from pyro_laplace.likelihood.registry import log_mean
from pyro_laplace.linearized.predictor import LinearizedPredictive
from pyro_laplace.posterior.own import own_params
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.module_state import modules_kept
from pyro_laplace.program.observations import refuse_outside_support
from pyro_laplace.program.program import Program, datum_weight
from pyro_laplace.program.run import Recorder, Run, Site, run_model
from pyro_laplace.scores.formulas import brier_scores, calibration_error, fair_crps, roc_area, within_quantiles
from pyro_laplace.scores.objectives import common_numbers
from pyro_laplace.scores.prediction import Prediction
from pyro_laplace.settings import settings

if TYPE_CHECKING:
    import pandas

type _Marks = Mapping[str, Tensor]
"""Of the data of one site that count: "log_prob" [data]; of classes "probs" `[entries, classes]` and "labels"; of
numbers "square" (the squared error of the mean), "crps" and "inside" [entries]."""


def scores(predictive: Any, data: Any, *, num_samples: int = 1000, num_bins: int = 15) -> "pandas.Series":
    """Score predictions of held-out data.

    A datum is an element of an observed site's batch shape. What it puts into one by `to_event` has one density; the
    other scores are means over its entries. Masked and missing data do not count.

    Args:
        predictive: a `LinearizedPredictive`; or a `Predictive`, Pyro's or ours, with a guide or posterior samples: the
            equal mixture of the likelihood over its draws. Of one draw (that of an `AutoDelta`, the baseline that a
            mode alone is) it is that likelihood itself.
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
        - `coverage_90`: share within the central interval of `settings.coverage_level`, between quantiles in closed
          form, or of draws.

    Raises:
        InvalidOption: if `predictive` is something else, has no draws, or an option has a value that it cannot have.
        InvalidData: if data cannot be iterated anew, lack a site's values, or hold some outside its support.
        UnsupportedProgram: if the program cannot be traced, or the posterior lacks one of its sites.
    """
    _check_whole("num_samples", num_samples, 2)
    _check_whole("num_bins", num_bins, 1)
    data = as_data(data)
    parts: dict[str, list[_Marks]] = {}
    with common_numbers(), torch.no_grad():
        data.first()  # refuses data without a batch
        if isinstance(predictive, LinearizedPredictive):
            found = (_marks_of(predictions_of(predictive, batch), num_samples) for batch in data)
        elif isinstance(predictive, pyro.infer.Predictive):
            found = _marks_of_draws(predictive, data, num_samples)
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
        whole = {mark: torch.cat([each[mark] for each in several]) for mark in several[0]}
        row |= {f"{score}{of}": value for score, value in _row(whole, num_bins).items()}
    import pandas  # takes a second to load

    return pandas.Series(row, dtype=float)


def predictions_of(predictive: LinearizedPredictive, batch: Batch) -> dict[str, Prediction]:
    """What a linearised program predicts of a batch, beside the data that it holds.

    Args:
        predictive: called with the batch.
        batch: the model's arguments, observed values included.

    Returns:
        site name to its prediction.

    Raises:
        InvalidData: naming a site without observed values, or with some outside its support.
    """
    guide = predictive.guide
    params = own_params(predictive.model, guide)
    program = Program(predictive.model, guide.latents, guide.observed, start=guide.theta, params=params)
    chunk = Chunk(batch)
    with undisturbed(), modules_kept(predictive.model), torch.enable_grad():
        run = program.run(guide.theta.clone().requires_grad_(), chunk)
    _refuse_without_data([name for name, site in run.observed.items() if not site.given])
    derived = {name for name, site in run.observed.items() if site.value.requires_grad}  # a prior
    refuse_outside_support(run, derived)
    found = predictive(*batch.args, **batch.kwargs)
    data = {name: site for name, site in run.observed.items() if name not in derived}
    return {name: Prediction(found[name], site.value, _counted(site, chunk)) for name, site in data.items()}


def _marks_of(predictions: Mapping[str, Prediction], num_samples: int) -> dict[str, _Marks]:
    """By site, of predictions whose distribution is known."""
    return {name: _marks(prediction, num_samples) for name, prediction in predictions.items()}


def _marks(prediction: Prediction, num_samples: int) -> _Marks:
    if prediction.is_class:
        probs, labels = prediction.classes()
        return {"log_prob": prediction.log_prob, "probs": probs, "labels": labels}
    draws = cache(partial(prediction.draws, num_samples))
    truth, mean, interval = prediction.truth, prediction.mean, prediction.interval
    mean = draws().mean(0) if mean is None else mean
    return {
        "log_prob": prediction.log_prob,
        "square": (mean - truth).square(),
        "crps": prediction.crps(draws),
        "inside": within_quantiles(draws(), truth)
        if interval is None
        else (interval[0] <= truth) & (truth <= interval[1]),
    }


def _marks_of_draws(predictive: pyro.infer.Predictive, data: Data, num_samples: int) -> Iterator[dict[str, _Marks]]:
    """By site, of the mixture over draws, chunk after chunk."""
    posterior = predictive.posterior_samples if predictive.guide is None else predictive.guide
    if predictive.guide is None and not posterior:
        raise InvalidOption(
            "predictive has neither a guide nor posterior_samples: what it draws is the prior's, and no posterior is "
            f"scored. Give {type(predictive).__name__}(model, guide=guide, num_samples=1000)"
        )
    draws = draws_of(posterior, data, predictive.num_samples)
    _refuse_unobserved(predictive.model, data.first(), draws)
    view = View.of(predictive.model, data, draws)
    program = view.plain
    for chunk in view.loop.chunks():
        run = program.run(program.start, chunk)
        _refuse_without_data([name for name, site in run.observed.items() if not site.given])
        refuse_outside_support(run, program.derived)
        sites = {name: site for name, site in run.observed.items() if name not in program.derived}
        predictions = {n: Prediction(site.fn, site.value, _counted(site, chunk)) for n, site in sites.items()}
        if draws.is_point and sites.keys() == _densities(program, run).keys():
            yield _marks_of(predictions, num_samples)
        else:
            yield _mixed_marks(program, draws, chunk, run, predictions, num_samples)


def _mixed_marks(
    program: Program,
    draws: PosteriorDraws,
    chunk: Chunk,
    run: Run,
    predictions: Mapping[str, Prediction],
    num_samples: int,
) -> dict[str, _Marks]:
    """By site, of the mixture of the likelihood over draws; `predictions` are those of one draw, for what y is."""
    log_probs = over_draws(program, draws.values, chunk, partial(_log_probs, program), False)
    expected = _mean_expected(program, draws, chunk, predictions)
    numbers = [name for name, prediction in predictions.items() if not prediction.is_class]
    enough = draws.at_least(num_samples)
    replicated = over_draws(program, enough, chunk, _replicates, True) if numbers else {}
    found = {}
    for name, site in _densities(program, run).items():
        counts = predictions[name].data if name in predictions else _counted(site, chunk)
        mixed = log_mean(log_probs[name]).expand(counts.shape)
        marks = {"log_prob": mixed[counts].double()}
        if name in numbers:
            prediction = predictions[name]
            truth, drawn = prediction.truth, prediction.select(replicated[name], lead=1)
            mean = prediction.select(expected[name]) if name in expected else drawn.mean(0)
            marks |= {
                "square": (mean - truth).square(),
                "crps": fair_crps(drawn, truth),
                "inside": within_quantiles(drawn, truth),
            }
        elif name in predictions:
            probs, labels = predictions[name].classes(expected[name])
            marks |= {"probs": probs, "labels": labels}
        found[name] = marks
    return found


def _mean_expected(
    program: Program, draws: PosteriorDraws, chunk: Chunk, predictions: Mapping[str, Prediction]
) -> dict[str, Tensor]:
    """`Outcome.expected` averaged over draws, some of them at a time; of sites that have it."""
    at_one = [prediction.outcome.expected for prediction in predictions.values()]
    size = sum(each.numel() for each in at_one if each is not None)
    step = max(1, settings.density_elements // max(1, size))
    total: dict[str, Tensor] = {}
    for start in range(0, len(draws), step):
        some = {name: value[start : start + step] for name, value in draws.values.items()}
        for name, value in over_draws(program, some, chunk, partial(_expectations, program), False).items():
            total[name] = total.get(name, 0.0) + value.double().sum(0)
    return {name: value / len(draws) for name, value in total.items()}


def _densities(program: Program, run: Run) -> dict[str, Site]:
    """The sites that data have a density by; one whose discrete sites are summed out is a factor of its name."""
    sums = {name: site for name, site in run.factors.items() if name in program.observed}
    return {name: site for name, site in {**run.observed, **sums}.items() if name not in program.derived}


def _log_probs(program: Program, run: Run, chunk: Chunk) -> dict[str, Tensor]:
    return {name: site.fn.log_prob(site.value) for name, site in _densities(program, run).items()}


def _expectations(program: Program, run: Run, chunk: Chunk) -> dict[str, Tensor]:
    sites = {name: site for name, site in run.observed.items() if name not in program.derived}
    expected = {name: Outcome.of(site.fn).expected for name, site in sites.items()}
    return {name: value for name, value in expected.items() if value is not None}


def _replicates(run: Run, chunk: Chunk) -> dict[str, Tensor]:
    return {name: site.value for name, site in run.observed.items()}


def _counted(site: Site, chunk: Chunk) -> Tensor:
    """Which data of a site the program does not mask, and no other chunk has, bool `[*batch]`."""
    return datum_weight(site, chunk) != 0


def _row(marks: _Marks, num_bins: int) -> dict[str, float]:
    row = {"nll": -float(marks["log_prob"].mean())}
    if "labels" in marks:
        probs, labels = marks["probs"], marks["labels"]
        row["accuracy"] = float((probs.argmax(-1) == labels).double().mean())
        row["brier"] = float(brier_scores(probs, labels).mean())
        row["ece"] = calibration_error(probs, labels, num_bins)
        row["auroc"] = roc_area(probs, labels)
    elif "crps" in marks:
        row["rmse"] = float(marks["square"].mean().sqrt())
        row["crps"] = float(marks["crps"].mean())
        row["coverage_90"] = float(marks["inside"].double().mean())
    return row


def _refuse_unobserved(model: Any, batch: Batch, draws: PosteriorDraws) -> None:
    """Refuse data without observed values, which a trace would take for latent sites."""
    first = {name: value[0] for name, value in draws.values.items()}
    with undisturbed(rng=False), modules_kept(model):
        run = run_model(model, batch, Recorder(first, fill=lambda msg: msg["fn"].sample()))
    _refuse_without_data([name for name in run.latents if name not in first])


def _refuse_without_data(names: list[str]) -> None:
    if names:
        raise InvalidData(
            f"the data have no observed values of {', '.join(map(repr, names))} to score: give held-out data as the "
            "posterior was fitted to, observed values included: (x, y), not (x,)"
        )


def _check_whole(option: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(f"{option}={value!r}: give a whole number from {least} on")
