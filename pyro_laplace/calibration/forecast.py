"""What any predictive says of a batch as distributions of y, whether it has them or draws."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro.infer
import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption
from pyro_laplace.data import Batch, Data
from pyro_laplace.draws.draws import PosteriorDraws, draws_of
from pyro_laplace.draws.monte_carlo import over_draws
from pyro_laplace.draws.over_draws import View
from pyro_laplace.likelihood.mixture import FunctionMixture
from pyro_laplace.likelihood.wrappers import require_likelihood
from pyro_laplace.linearized.predictor import LinearizedPredictive
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.observations import refuse_outside_support
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Run
from pyro_laplace.scores.given import counted, posterior_of, refuse_without_data
from pyro_laplace.scores.objectives import common_numbers
from pyro_laplace.scores.observed import predictions_of
from pyro_laplace.scores.prediction import Forecaster, Prediction
from pyro_laplace.settings import settings


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """A `LinearizedPredictive`.

    Attributes:
        predictive: itself.
    """

    predictive: LinearizedPredictive

    def distributions(self, batch: Batch) -> Mapping[str, Any]:
        """Site name to the distribution of y."""
        return self.predictive(*batch.args, **batch.kwargs)

    def predictions(self, batch: Batch) -> Mapping[str, Prediction]:
        """The same beside the data that the batch holds."""
        return predictions_of(self.predictive, batch)


@dataclass(frozen=True, eq=False)
class AtSomeDraws:
    """The equal mixture of the likelihood over draws of a posterior, the same ones at every call.

    Attributes:
        program: traced on the data that it was made for.
        draws: of its latent sites.
    """

    program: Program
    draws: PosteriorDraws

    @staticmethod
    def of(predictive: pyro.infer.Predictive, data: Data) -> "AtSomeDraws":
        """The mixture that a `Predictive` draws from.

        Args:
            predictive: Pyro's or ours.
            data: with observed values.

        Returns:
            the mixture.

        Raises:
            InvalidOption: if it has no posterior.
        """
        posterior = posterior_of(predictive)
        draws = draws_of(posterior, data, predictive.num_samples)
        program = View.of(predictive.model, data, draws).program
        return AtSomeDraws(replace(program, own_indices={}, external={}), draws)

    def distributions(self, batch: Batch) -> Mapping[str, Any]:
        """Site name to the distribution of y."""
        return self._mixtures(Chunk(batch))[1]

    def predictions(self, batch: Batch) -> Mapping[str, Prediction]:
        """The same beside the data that the batch holds."""
        chunk = Chunk(batch)
        run, found = self._mixtures(chunk)
        refuse_without_data([name for name, site in run.observed.items() if not site.given], batch)
        refuse_outside_support(run, self.program.derived)
        return {name: Prediction(fn, run.observed[name].value, counted(run.observed[name], chunk))
                for name, fn in found.items()}  # fmt: skip

    def _mixtures(self, chunk: Chunk) -> tuple[Run, dict[str, Any]]:
        program = self.program
        with undisturbed(), torch.no_grad():
            run = program.run(program.start, chunk)
        names = [name for name in run.observed if name not in program.derived]
        likelihoods = {name: require_likelihood(name, run.observed[name].fn) for name in names}
        etas = over_draws(program, self.draws.values, chunk, partial(_links, names), False)
        return run, {name: FunctionMixture(etas[name], likelihoods[name].distribution) for name in names}


def _links(names: list[str], run: Run, chunk: Chunk) -> dict[str, Tensor]:
    return {name: require_likelihood(name, run.observed[name].fn).link() for name in names}


def forecast_of(predictive: Any, data: Data) -> Any:
    """A predictive as something that gives distributions.

    Args:
        predictive: a `LinearizedPredictive`, a `Predictive` of Pyro's or ours, or something that forecasts already.
        data: with observed values, on which a program of draws is traced.

    Returns:
        it, with `distributions(batch)` and `predictions(batch)`.

    Raises:
        InvalidOption: for anything else.
    """
    if isinstance(predictive, LinearizedPredictive):
        return ClosedForm(predictive)
    if isinstance(predictive, pyro.infer.Predictive):
        return AtSomeDraws.of(predictive, data)
    if isinstance(predictive, Forecaster):
        return predictive
    raise InvalidOption(
        f"predictive is a {type(predictive).__name__}: give pl.LinearizedPredictive(model, guide), "
        "pl.Predictive(model, guide=guide, num_samples=1000), or what pl.calibrate returns"
    )


def predictions_at(predictive: Any, data: Data, var_name: str | None) -> list[Prediction]:
    """What a predictive says of an observed site, batch by batch.

    Args:
        predictive: as `calibrate` takes it, or what that returns.
        data: with observed values.
        var_name: the site; may be left out if there is one.

    Returns:
        the predictions.

    Raises:
        InvalidOption: if there is no such site, or no name and several sites.
    """
    with common_numbers(), torch.no_grad():
        forecast = forecast_of(predictive, data)
        found = [forecast.predictions(batch) for batch in data]
    names = list(found[0])
    if var_name is None and len(names) == 1:
        return [each[names[0]] for each in found]
    if var_name not in names:
        raise InvalidOption(f"var_name={var_name!r}: the observed sites are {names}")
    return [each[var_name] for each in found]


def uncertainty_of(predictive: Any, data: Data, like: Data, var_name: str | None) -> tuple[Tensor, str]:
    """How unsure a predictive is of each datum, whose observed values need not be among the data.

    Args:
        predictive: as `calibrate` takes it, or what that returns.
        data: to be predicted.
        like: data with observed values, on which a program of draws is traced.
        var_name: the observed site; may be left out if there is one.

    Returns:
        entropy of the classes in nats, or the standard deviation of y, of each entry [entries]; and which it is.

    Raises:
        InvalidOption: if there is no such site, or no name and several sites.
    """
    found = []
    kind = ""
    with common_numbers(), torch.no_grad():
        forecast = forecast_of(predictive, like)
        for batch in data:
            distributions = forecast.distributions(batch)
            name = next(iter(distributions)) if var_name is None and len(distributions) == 1 else var_name
            if name not in distributions:
                raise InvalidOption(f"var_name={var_name!r}: the observed sites are {list(distributions)}")
            fn = distributions[name]
            shape = fn.batch_shape + fn.event_shape
            prediction = Prediction(fn, torch.zeros(shape), torch.ones(fn.batch_shape, dtype=torch.bool))
            if prediction.is_class:
                probs, _ = prediction.classes()
                found.append(torch.special.entr(probs).sum(-1))
                kind = "predictive entropy (nats)"
            else:
                variance = prediction.variance
                drawn = prediction.draws(settings.predictive_draws).var(0) if variance is None else variance
                found.append(drawn.sqrt())
                kind = "predictive standard deviation"
    return torch.cat(found), kind
