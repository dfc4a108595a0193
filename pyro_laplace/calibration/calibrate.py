"""`calibrate`: a temperature for classes and a scale for numbers, found on held-out data."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyro_laplace._errors import InvalidData, UnsupportedProgram
from pyro_laplace.calibration.adjusted import logits_of, tempered, widened
from pyro_laplace.calibration.forecast import forecast_of
from pyro_laplace.calibration.temperature import best_scale, best_temperature, normal_scale
from pyro_laplace.data import Batch, as_data
from pyro_laplace.likelihood.mixture import DistributionMixture, FunctionMixture
from pyro_laplace.scores.objectives import common_numbers
from pyro_laplace.scores.prediction import Prediction, component_of_mixture
from pyro_laplace.unwrap import innermost, peel


class CalibratedPredictive:
    """A predictive with a temperature on its classes and a scale on its numbers; made by `calibrate`.

    Called with the model's arguments it gives the distribution of y at each observed site. `scores` takes it, and so do
    the figures of `plots` that take predictives.

    Attributes:
        temperatures: site of classes to T, the divisor of the logits: above 1 the predictive was too sure.
        scales: site of numbers to s, the factor of deviations from the mean: above 1 intervals were too narrow.
    """

    def __init__(self, forecast: Any, temperatures: Mapping[str, float], scales: Mapping[str, float]) -> None:
        self.temperatures, self.scales = dict(temperatures), dict(scales)
        self._forecast = forecast

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The calibrated distribution of y at each observed site.

        Args:
            *args: the model's.
            **kwargs: the model's.

        Returns:
            site name to distribution.
        """
        return dict(self.distributions(Batch(args, kwargs)))

    def distributions(self, batch: Batch) -> Mapping[str, Any]:
        """The same of a batch."""
        found = self._forecast.distributions(batch)
        return {name: self._adjusted(name, fn) for name, fn in found.items()}

    def predictions(self, batch: Batch) -> Mapping[str, Prediction]:
        """The same beside the data that a batch holds, as `scores` takes them."""
        found = self._forecast.predictions(batch)
        return {n: replace(each, distribution=self._adjusted(n, each.distribution)) for n, each in found.items()}

    def __repr__(self) -> str:
        found = [f"{name}: temperature {value:.4g}" for name, value in self.temperatures.items()]
        found += [f"{name}: scale {value:.4g}" for name, value in self.scales.items()]
        return f"CalibratedPredictive({', '.join(found)})"

    def _adjusted(self, name: str, fn: Any) -> Any:
        return tempered(fn, self.temperatures[name]) if name in self.temperatures else widened(fn, self.scales[name])


def calibrate(predictive: Any, data: Any) -> CalibratedPredictive:
    """Put on a predictive what makes held-out data most likely: a temperature, or a scale.

    Of classes, probabilities become ``softmax(log p / T)`` (Guo et al. 2017, "On calibration of modern neural
    networks"), of the averaged p where the predictive averages (Rahaman and Thiery 2021, "Uncertainty quantification
    and deep ensembles"). Of numbers, deviations from the predictive mean become s times as large (Laves et al. 2020,
    "Well-calibrated regression uncertainty in medical imaging with deep learning"). T and s minimise the negative log
    density of the data, one for each observed site. Neither changes what is predicted to be most probable, or the mean.

    Data that the posterior was fitted to are predicted too well, and give a T that is too small. The data that
    calibrate are no longer held out: score on others.

    Args:
        predictive: a `LinearizedPredictive`, or a `Predictive`, Pyro's or ours, with a guide or posterior samples. Its
            draws are made once, and kept.
        data: held-out data, observed values included: a batch (tuple, dict or tensor), or a re-iterable of batches.

    Returns:
        the calibrated predictive.

    Raises:
        InvalidOption: if `predictive` is something else, or is calibrated already.
        InvalidData: if data cannot be iterated anew, hold nothing that counts, or lack a site's values.
        UnsupportedProgram: if a site's data are neither classes nor real numbers, or are masked within an event of a
            mixture.
    """
    data = as_data(data)
    with common_numbers(), torch.no_grad():
        data.first()
        forecast = forecast_of(predictive, data)
        parts: dict[str, list[Prediction]] = {}
        for batch in data:
            for name, prediction in forecast.predictions(batch).items():
                parts.setdefault(name, []).append(prediction)
        temperatures, scales = {}, {}
        for name, predictions in parts.items():
            if not any(bool(each.data.any()) for each in predictions):
                raise InvalidData(f"the data have no observed value of {name!r} that counts: calibrate needs some")
            if predictions[0].is_class:
                temperatures[name] = _temperature(predictions)
            else:
                _refuse_numbers(name, predictions[0].distribution)
                scales[name] = _scale(predictions)
    return CalibratedPredictive(forecast, temperatures, scales)


def _temperature(predictions: Sequence[Prediction]) -> float:
    parts = []
    for each in predictions:
        logits, (_, labels) = logits_of(each.distribution), each.classes()
        if logits.dim() > each.entries.dim():
            parts.append((each.classes(logits)[0], labels))
        else:
            ones = each.select(logits)
            parts.append((torch.stack([torch.zeros_like(ones), ones], -1), labels))
    return best_temperature(torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts]))


def _scale(predictions: Sequence[Prediction]) -> float:
    if all(isinstance(innermost(each.distribution), dist.Normal) for each in predictions):
        moments = [(each.truth, *each.normal) for each in predictions if each.normal is not None]
        return normal_scale(torch.cat([(truth - mean) / std for truth, mean, std in moments]))

    def nll(scale: float) -> float:
        moved = (replace(each, distribution=widened(each.distribution, scale)) for each in predictions)
        return -sum(float(each.log_prob.sum()) for each in moved)

    return best_scale(nll)


def _refuse_numbers(name: str, fn: Any) -> None:
    """Refuse numbers that a scale around their mean would take out of their support, or that have no mean."""
    component = component_of_mixture(fn)
    support = component.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    kind = type(innermost(component)).__name__
    if support not in (constraints.real, constraints.real_vector):
        raise UnsupportedProgram(
            f"calibrate: the data of {name!r} are of a {kind}, neither classes nor real numbers, whose deviations from "
            "a mean can be scaled: calibrate the logarithm of positive numbers, or give the likelihood a dispersion"
        )
    mixed = isinstance(fn, FunctionMixture | DistributionMixture)
    if mixed and fn.event_shape and any(isinstance(each, dist.MaskedDistribution) for each in peel(component)):
        raise UnsupportedProgram(
            f"calibrate: some entries of an event of {name!r} are masked, and its density is a mixture's: make the "
            "entries data of their own, without to_event"
        )
