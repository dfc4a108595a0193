"""Newton's method for small, badly scaled problems: exact Hessian, unit-free coordinates, Levenberg damping."""

import torch

from pyro_laplace._typing import Theta
from pyro_laplace.mode.collapse import refuse_collapse
from pyro_laplace.mode.objective import Objective
from pyro_laplace.mode.quadratic import NewtonModel, quadratic
from pyro_laplace.mode.reached import Reached, Stopped
from pyro_laplace.settings import settings


def minimise(objective: Objective, steps: int | None = None) -> Reached:
    """The minimum of minus the log joint over the objective's free coordinates, float64.

    Steps are damped until the objective falls. Where it cannot resolve the fall any more (rounding), undamped steps go
    on as long as the Newton decrement shrinks, so that the result is as exact as the gradient. Where damped steps bring
    next to nothing (a kink), the search ends.

    Args:
        objective: what to minimise, from its own `theta`.
        steps: at most so many; None means `settings.newton_steps`.

    Returns:
        the best point found, and why the search ended there.

    Raises:
        NotAMode: if a scale collapsed to zero on the way, naming its site.
    """
    reached = _search(objective, settings.newton_steps if steps is None else steps)
    refuse_collapse(objective, reached.part)
    return reached


def _search(objective: Objective, most: int) -> Reached:
    part = objective.start
    value, gradient = objective.value_and_gradient(part)
    if not bool(torch.isfinite(value)):
        return Reached(part, Stopped.OUTSIDE)
    damping, model = 1e-3, quadratic(objective, part, gradient)
    glanced = float(value)
    for steps in range(most):
        noise = 4 * objective.resolution * abs(float(value))
        if model.step(0.0)[1] <= noise:
            return Reached(_finish(objective, part, model), Stopped.RESOLVED)
        if steps and steps % settings.glance_steps == 0:
            refuse_collapse(objective, part, on_the_way=True)
            if damping >= settings.crept_damping and glanced - float(value) <= settings.crept_nats:
                return Reached(part, Stopped.CREPT)
            glanced = float(value)
        if steps >= settings.rough_steps and model.decrement <= settings.fine_decrement * len(part) ** 0.5:
            return Reached(part, Stopped.CLOSE)
        while True:
            step, gain = model.step(damping)
            trial, trial_gradient = objective.value_and_gradient(part + step)
            if bool(torch.isfinite(trial)) and float(value - trial) >= 1e-4 * gain - noise:
                break
            damping *= 10
            if damping > settings.newton_damping:
                return Reached(part, Stopped.STUCK)
        part, value = part + step, trial
        model, damping = quadratic(objective, part, trial_gradient), max(damping / 10, 1e-12)
    return Reached(part, Stopped.STEPS)


def _finish(objective: Objective, part: Theta, model: NewtonModel) -> Theta:
    """Undamped steps while the decrement shrinks."""
    for _ in range(10):
        trial = part + model.step(0.0)[0]
        value, gradient = objective.value_and_gradient(trial)
        if not bool(torch.isfinite(value)):
            return part
        moved = quadratic(objective, trial, gradient)
        if not moved.decrement < 0.5 * model.decrement:
            return trial if moved.decrement < model.decrement else part
        part, model = trial, moved
    return part
