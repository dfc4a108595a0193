"""The verdict on a posterior: what is known of it, weighed; and the next step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pyro_laplace.diagnostics.diagnosis import AtMode
from pyro_laplace.diagnostics.moves import Moved
from pyro_laplace.settings import settings

TRUSTED, UNSURE, WRONG = "trusted", "unsure", "wrong"


@dataclass(frozen=True, eq=False)
class Findings:
    """What a verdict rests on.

    Attributes:
        own: the moves by the posterior's own weights.
        corrected: the moves by draws with heavier tails and matched moments; None where the own ones can be trusted.
        far: sites whose mass lies elsewhere than the mode, by their gradients.
        at_mode: the point; None for a guide that is not Laplace's.
        bends: whether the draws go through a program that is not linear within them, as a network's.
        linearized: whether the program that is judged is the linearised one.
        preconditions: whether the posterior can be NUTS's metric.
        dense: whether its precision is dense, so that no structure is to blame.
    """

    own: Moved
    corrected: Moved | None
    far: Mapping[str, float]
    at_mode: AtMode | None
    bends: bool
    linearized: bool
    preconditions: bool
    dense: bool

    @property
    def trusted(self) -> Moved | None:
        """The moves that can be trusted, if any can."""
        return next((each for each in (self.own, self.corrected) if each and each.weights.trusted), None)


def verdict_of(found: Findings) -> tuple[str, str]:
    """The verdict and its reason.

    Args:
        found: what is known.

    Returns:
        "trusted", "unsure" or "wrong", and what that rests on.
    """
    k = found.own.weights.khat
    trusted = found.trusted
    if trusted is None:
        if found.far:
            names = ", ".join(map(repr, list(found.far)[: settings.shown_names]))
            return WRONG, f"the log joint slopes away from the mode in {names}, and k-hat is {k:.2f}"
        return UNSURE, (
            f"k-hat is {k:.2f}: a few draws outweigh all others, and what they say of means cannot be trusted"
        )
    by = f"k-hat {k:.2f}" if trusted is found.own else f"k-hat {k:.2f}, and {trusted.weights.khat:.2f} once corrected"
    name, shift, place = trusted.farthest()
    moved = f"{name!r} by {float(shift.mean[place].abs()):.2f} +- {float(shift.mean_error[place]):.2f} posterior sd"
    if float(shift.mean[place].abs()) > settings.wrong_shift:
        clear = trusted.bounds(settings.verdict_errors)[0] > settings.wrong_shift
        return (WRONG if clear else UNSURE), f"importance weights ({by}) move the mean of {moved}"
    site, scale, entry = trusted.most_scaled()
    if float(scale.log_std[entry].abs()) > math.log(settings.wrong_scale):
        clear = trusted.scale_bounds(settings.verdict_errors)[0] > math.log(settings.wrong_scale)
        factor = math.exp(min(float(scale.log_std[entry]), 300.0))
        return (WRONG if clear else UNSURE), f"the sd of {site!r} should be {factor:.2f} times as large ({by})"
    if trusted is not found.own:
        return UNSURE, f"{by}: the draws miss the posterior's tails, though no mean moves far ({moved})"
    if found.at_mode is not None and found.at_mode.newton_decrement > found.at_mode.allowed:
        return UNSURE, f"the point is no mode, though no mean moves far ({moved})"
    return TRUSTED, f"no mean moves by more than {float(shift.mean[place].abs()):.2f} posterior sd ({by})"


def next_step(verdict: str, found: Findings, hyper: tuple[str, ...] = ()) -> str:
    """What to type next.

    Args:
        verdict: the verdict.
        found: what it rests on.
        hyper: scales and the like that nested Laplace would integrate over, if there are any.

    Returns:
        a line of code, and what it does.
    """
    if verdict == TRUSTED:
        use = (
            "LinearizedPredictive(model, guide)"
            if found.linearized
            else "Predictive(model, guide=guide, num_samples=1000)"
        )
        return f"pl.{use}, or whatever takes a guide: use it"
    if found.at_mode is not None and found.at_mode.newton_decrement > found.at_mode.allowed:
        return "pl.fit_laplace(model, data, guide, polish=True): find the mode first"
    if found.bends:
        return (
            "pl.LinearizedPredictive(model, guide): a network's posterior belongs to its linearised program, which "
            "pl.diagnose(pl.linearize(model, guide), guide, data) judges"
        )
    if found.linearized and not found.dense:
        return "pl.fit_laplace(model, data, guide, structure='kron' or 'full'): a structure that drops less"
    if found.trusted is not None:
        return "pl.importance_resample(model, guide, data): draws that are corrected"
    if hyper:
        return f"pl.fit_nested_laplace(model, data, hyper={list(hyper)}): integrates the other sites out"
    return f"pl.fit_nuts(model, data{', precondition=guide' if found.preconditions else ''}): draws of the posterior"
