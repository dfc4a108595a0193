"""What a linearised program predicts of data that can be scored."""

from typing import Any

import torch

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace.data import Batch
from pyro_laplace.posterior.own import own_params
from pyro_laplace.program.arguments import refuse_spoilt
from pyro_laplace.program.chunks import Chunk
from pyro_laplace.program.module_state import modules_kept
from pyro_laplace.program.observations import refuse_outside_support
from pyro_laplace.program.program import Program
from pyro_laplace.scores.given import counted, refuse_without_data
from pyro_laplace.scores.prediction import Prediction


def predictions_of(predictive: Any, batch: Batch) -> dict[str, Prediction]:
    """What a linearised program predicts of a batch, beside the data that it holds.

    Args:
        predictive: a `LinearizedPredictive`, called with the batch.
        batch: the model's arguments, observed values included.

    Returns:
        site name to its prediction.

    Raises:
        InvalidData: naming a site without observed values, or with some outside its support; or an argument that is not
            finite.
    """
    guide = predictive.guide
    params = own_params(predictive.model, guide)
    program = Program(predictive.model, guide.latents, guide.observed, start=guide.theta, params=params)
    chunk = Chunk(batch)
    with undisturbed(), modules_kept(predictive.model), torch.enable_grad():
        run = program.run(guide.theta.clone().requires_grad_(), chunk)
    refuse_without_data([name for name, site in run.observed.items() if not site.given], batch)
    derived = {name for name, site in run.observed.items() if site.value.requires_grad}  # a prior
    refuse_outside_support(run, derived)
    refuse_spoilt(run, batch)
    found = predictive(*batch.args, **batch.kwargs)
    data = {name: site for name, site in run.observed.items() if name not in derived}
    return {name: Prediction(found[name], site.value, counted(site, chunk)) for name, site in data.items()}
