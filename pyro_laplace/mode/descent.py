"""L-BFGS for programs too large for a dense Hessian."""

import numpy as np
import torch

from pyro_laplace.mode.collapse import refuse_collapse
from pyro_laplace.mode.objective import Objective
from pyro_laplace.mode.reached import Reached, Stopped
from pyro_laplace.settings import settings


def descend(objective: Objective, steps: int | None = None) -> Reached:
    """A lower point of minus the log joint over the objective's free coordinates, float64, by scipy's L-BFGS-B.

    Args:
        objective: what to minimise, from its own `theta`.
        steps: at most so many iterations; None means `settings.descent_steps`.

    Returns:
        a point never worse than where the search began, and why the search ended there.

    Raises:
        NotAMode: if a scale collapsed to zero on the way, naming its site.
    """
    import scipy.optimize  # takes half a second to load

    start, most = objective.start, settings.descent_steps if steps is None else steps

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective.value_and_gradient(torch.from_numpy(x).to(start.device))
        if not bool(torch.isfinite(value) and gradient.isfinite().all()):
            return float("inf"), np.zeros_like(x)
        return float(value), gradient.cpu().numpy()

    found = scipy.optimize.minimize(
        value_and_gradient,
        start.cpu().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": most,
            "maxcor": 20,
            "ftol": objective.resolution,
            "gtol": 0.0,
        },
    )
    part = torch.from_numpy(found.x).to(start.device)
    refuse_collapse(objective, part)
    return Reached(part, _STOPPED.get(found.status, Stopped.STUCK))


_STOPPED = {0: Stopped.RESOLVED, 1: Stopped.STEPS}
"""By scipy's status; any other is a line search that failed."""
