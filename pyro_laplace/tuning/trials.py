"""A trial: the score of the linearised predictive under other hyperparameters, without a pass over the training data.

The sum over the training data and the held-out rows' products with it are had once. Another prior takes the posterior
of that sum; another noise takes a run of the program on the held-out data.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import IndefiniteCurvature, InvalidData
from pyro_laplace._typing import Values
from pyro_laplace.data import Batch, Data
from pyro_laplace.evidence.surface import Surface
from pyro_laplace.likelihood import require_likelihood
from pyro_laplace.linearized.expansion import Expansion
from pyro_laplace.linearized.jacobian import Linearized, shift
from pyro_laplace.linearized.logits import predictor
from pyro_laplace.linearized.routes import first_route
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.module_state import in_place_refused, modules_kept
from pyro_laplace.program.program import Program, datum_weight
from pyro_laplace.scores import OBJECTIVES, Prediction, common_numbers, score_of
from pyro_laplace.structure.precision import Precision
from pyro_laplace.tuning.kept import KeptRows
from pyro_laplace.tuning.search import TrialScore

type Objective = str | Callable[[Mapping[str, Sequence[Prediction]]], float]
"""What `objective=` may be: a name, or a function of each site's predictions, of which more is better."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A batch of held-out data, linearised at the mode.

    Attributes:
        chunk: the batch.
        sites: by observed site, the predictor and its Jacobian.
        observed: the data.
        counted: which are not masked.
    """

    chunk: Chunk
    sites: Mapping[str, KeptRows]
    observed: Mapping[str, Tensor]
    counted: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Trials:
    """What scores hyperparameters.

    Attributes:
        surface: knows the prior and the sum over the training data.
        program: at the mode.
        batches: the held-out data.
        objective: the score.
        link: of classes, as `LinearizedPredictive` takes it.
    """

    surface: Surface
    program: Program
    batches: Sequence[HeldOut]
    objective: Objective
    link: str

    @staticmethod
    def of(guide: AutoLaplace, surface: Surface, data: Data, objective: Objective, link: str) -> "Trials":
        """Linearise the program at the held-out data.

        Args:
            guide: the posterior at the hyperparameters that the sum was made at.
            surface: around it.
            data: the held-out data.
            objective: the score.
            link: of classes.

        Returns:
            the trials.
        """
        program = surface.loop.program
        route = first_route(Expansion.of(program.model, guide), False)
        batches = []
        with undisturbed(rng=False), torch.no_grad(), modules_kept(program.model), in_place_refused():
            for batch in data:
                step = route.at(Chunk(batch))
                route = step.route
                batches.append(_batch(program, batch, step.sites))
        if not batches:
            data.first()  # says what is wrong
        return Trials(surface, program, batches, objective, link)

    def score(self, values: Values) -> TrialScore:
        """The score of hyperparameters, of which more is better; minus infinity where there is no posterior."""
        with undisturbed(rng=False), torch.no_grad():
            try:
                precision, step = self.surface.posterior_at(values)
            except IndefiniteCurvature:
                return TrialScore(-torch.inf)
            with common_numbers():
                predictions: dict[str, list[Prediction]] = {}
                for held in self.batches:
                    for name, prediction in self._predictions(held, precision, step, values).items():
                        predictions.setdefault(name, []).append(prediction)
            if callable(self.objective):
                return TrialScore(float(self.objective(predictions)))
            value = OBJECTIVES[self.objective].sign * score_of(self.objective, predictions)
            single = self.objective == "log_lik" and len(predictions) == 1
            parts = [each.log_prob for each in next(iter(predictions.values()))] if single else []
            return TrialScore(value, torch.cat(parts) if single else None)

    def _predictions(
        self, held: HeldOut, precision: Precision, step: Tensor | None, values: Values
    ) -> dict[str, Prediction]:
        found = {}
        for name, kept in held.sites.items():
            linear = self._site(held, name, values)
            if step is not None:  # the mode follows the prior
                change = shift(kept.products, step.to(linear.eta).unsqueeze(0))[0]
                linear = replace(linear, eta=linear.eta + linear.embed(change))
            pieces = partial(iter, [kept.products])
            moved = replace(linear, pieces=pieces, spread=kept.spread(precision))
            num_samples = 1000  # as many as LinearizedPredictive makes unasked
            eta = moved.gaussian(name, num_samples, partial(_changes, moved, precision, num_samples))
            fn = moved.likelihood.predictive(eta, self.link)
            found[name] = Prediction(fn, held.observed[name], held.counted[name])
        return found

    def _site(self, held: HeldOut, name: str, values: Values) -> Linearized:
        """A site with the distribution that it has at these hyperparameters."""
        found, linear = self.surface.found, held.sites[name].linear
        if not any(found.terms[each] for each in found.names):
            return linear
        site = self.program.run_at(self.program.unpack(self.program.start), held.chunk, params=values).observed[name]
        likelihood = require_likelihood(name, site.fn)
        return replace(linear, fn=site.fn, likelihood=likelihood, eta=predictor(site).detach())


def _batch(program: Program, batch: Batch, sites: Mapping[str, Linearized]) -> HeldOut:
    chunk = Chunk(batch)
    run = program.run(program.start, chunk)
    missing = [name for name in sites if not run.observed[name].given]
    if missing:
        raise InvalidData(f"the validation data hold no values of the observed sites {missing}: give them with inputs")
    observed = {name: run.observed[name].value for name in sites}
    counted = {name: datum_weight(run.observed[name], chunk) != 0 for name in sites}
    bad = [
        n for n, kept in counted.items() if not bool(run.observed[n].fn.log_prob(observed[n])[kept].isfinite().all())
    ]
    if bad:
        raise InvalidData(
            f"the validation data have values of the observed sites {bad} that are not finite, or outside the support: "
            "leave them out, or mask them"
        )
    return HeldOut(chunk, {name: KeptRows.of(site) for name, site in sites.items()}, observed, counted)


def _changes(linear: Linearized, precision: Precision, num_samples: int) -> Iterator[Tensor]:
    """Draws of the change of the predictor [draws, n, k], one theta for all data."""
    like = linear.eta
    white = torch.randn(num_samples, precision.size, dtype=like.dtype, device=like.device)
    deviation = precision.color(white)
    yield torch.cat([shift(products, deviation) for products in linear.pieces()], 1)
