"""How far a point is from the mode, and what is said of one that is too far."""

import warnings

from torch import Tensor

from pyro_laplace._errors import NotAMode, NotAModeWarning
from pyro_laplace._typing import Theta
from pyro_laplace.mode.mode import Mode
from pyro_laplace.mode.reached import Stopped
from pyro_laplace.structure.precision import Precision

LONGER = "train longer, or give polish=True"
"""The remedy for a point that is no mode."""

SMOOTHER = "make the program smooth (Tanh or SiLU where it has ReLU): on a kink no Gaussian fits on both sides"
"""The same where the search crept along a kink."""


def judge(
    theta: Theta, log_joint: float, gradient: Tensor, precision: Precision, moved: bool, stopped: Stopped | None = None
) -> Mode:
    """A point with its Newton decrement ``sqrt(g' Lambda^-1 g)``.

    Args:
        theta: the point.
        log_joint: the log density there.
        gradient: g, of the log density in the random coordinates [random].
        precision: Lambda.
        moved: whether the point was moved from where the map guide left it.
        stopped: why the search that moved it ended.

    Returns:
        the point judged.
    """
    decrement = float(precision.push(gradient).norm())  # |R'^-1 g|, at half the price of a solve
    return Mode(theta, log_joint, gradient, decrement, moved, stopped)


def report(mode: Mode, on_not_a_mode: str, remedy: str, of_data: str | None = None) -> None:
    """Warn or raise where a point is no mode.

    Args:
        mode: the point judged.
        on_not_a_mode: "warn", "raise" or "ignore".
        remedy: what the user may do, where the search did not creep along a kink.
        of_data: what to do about data that are others at each pass, before all else; None where they are the same.

    Raises:
        NotAMode: if the point is no mode and that is to be raised.
    """
    if mode.is_mode or on_not_a_mode == "ignore":
        return
    remedy = of_data or (SMOOTHER if mode.stopped is Stopped.CREPT else remedy)
    message = _too_far(mode, remedy) if mode.rises is None else mode.rises
    message += ". on_not_a_mode='ignore' accepts it as it is"
    if on_not_a_mode == "raise":
        raise NotAMode(message)
    warnings.warn(message, NotAModeWarning, stacklevel=3)


def _too_far(mode: Mode, remedy: str) -> str:
    why = "" if mode.stopped is None else f"The search for it stopped because {mode.stopped}. "
    return (
        f"this point is not a mode: Newton decrement {mode.decrement:.3g} (its distance to the mode in posterior "
        f"standard deviations; {mode.allowed:.3g} is allowed for {mode.num_random} coordinates), gradient norm "
        f"{mode.gradient_norm:.3g}. {why}To mend it, {remedy}"
    )
