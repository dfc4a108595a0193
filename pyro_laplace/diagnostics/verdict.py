"""The verdict on a posterior: what is known of it, weighed; and the next step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pyro_laplace.diagnostics.determined import AtMode
from pyro_laplace.diagnostics.fit_again import fit_again
from pyro_laplace.diagnostics.moves import Moved, is_clear
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.settings import settings

TRUSTED, UNSURE, WRONG = "trusted", "unsure", "wrong"


@dataclass(frozen=True, eq=False)
class Findings:
    """What a verdict rests on.

    Attributes:
        own: the moves by the posterior's own weights.
        corrected: the moves by draws with heavier tails and matched moments; None where the own ones will do.
        far: sites whose mass lies elsewhere than the mode, by their gradients.
        at_mode: the point; None for a guide that is not Laplace's.
        bends: whether the draws go through a program that is not linear within them, as a network's.
        linearized: whether the program that is judged is the linearised one.
        preconditions: whether the posterior can be NUTS's metric.
        laplace: the Laplace posterior that is judged, or that it is mostly made of; None of another guide.
        more_draws: as how many could be weighed, were it asked for; None where there are no more.
    """

    own: Moved
    corrected: Moved | None
    far: Mapping[str, float]
    at_mode: AtMode | None
    bends: bool
    linearized: bool
    preconditions: bool
    laplace: AutoLaplace | None
    more_draws: int | None

    @property
    def dense(self) -> bool:
        """Whether the precision is dense, so that no structure is to blame."""
        return self.laplace is None or self.laplace.structure == "full"

    @property
    def is_tuned(self) -> bool:
        """Whether hyperparameters were chosen around a point that was left where it is, beside the mode."""
        return self.laplace is not None and bool(self.laplace.hyperparameters) and not self.laplace.mode.is_mode

    @property
    def trusted(self) -> Moved | None:
        """The moves that can be trusted, if any can: by whichever weights have more effective draws."""
        own, other = self.own, self.corrected
        best = other if other is not None and other.weights.better_than(own.weights) else own
        return best if best.weights.trusted else None


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
    size = float(shift.mean[place].abs())
    moved = f"{name} by {size:.2f} +- {float(shift.mean_error[place]):.2f} posterior sd"
    if not size <= settings.wrong_shift:
        if trusted.bounds(settings.verdict_errors)[0] > settings.wrong_shift:
            return WRONG, f"importance weights ({by}) move the mean of {moved}"
        return (
            UNSURE,
            f"importance weights ({by}) move the mean of {moved}, too near the bound of {settings.wrong_shift}",
        )
    site, scale, entry = trusted.most_scaled()
    log_std = float(scale.log_std[entry])
    scaled = f"the sd of {site} should be {math.exp(min(log_std, 300.0)):.2f} times as large ({by})"
    if not abs(log_std) <= math.log(settings.wrong_scale):
        if trusted.scale_bounds(settings.verdict_errors)[0] > math.log(settings.wrong_scale):
            return WRONG, scaled
        return UNSURE, f"{scaled}, too near the bound of {settings.wrong_scale}"
    if not found.own.weights.trusted:
        return UNSURE, f"{by}: the draws miss the posterior's tails, though no mean moves far ({moved})"
    if found.at_mode is not None and not found.at_mode.is_mode:
        return UNSURE, f"the point is no mode on these data, though no mean moves far ({moved})"
    around = "" if found.at_mode is None else "around its mode, "
    sizes = f"no mean moves by more than {size:.2f} posterior sd, and no sd by more than {math.expm1(abs(log_std)):.0%}"
    return TRUSTED, f"{around}{sizes} ({by})"


def next_step(verdict: str, found: Findings, hyper: tuple[str, ...] = ()) -> tuple[str, str]:
    """What to type next.

    Args:
        verdict: the verdict.
        found: what it rests on.
        hyper: scales and the like that nested Laplace would integrate over, if there are any.

    Returns:
        a line of code, and what it does.
    """
    if verdict == TRUSTED and found.linearized:
        return "pl.LinearizedPredictive(model, guide)", "use it: a guide of its linearised program"
    if verdict == TRUSTED:
        return "pl.Predictive(model, guide=guide, num_samples=1000)", "use it, or whatever else takes a guide"
    if found.at_mode is not None and not found.at_mode.is_mode:
        if found.is_tuned:
            return (
                "pl.scores(pl.LinearizedPredictive(model, guide), held_out_data)",
                "judge it by data that it has not seen: its hyperparameters were chosen around values that were given, "
                "which are no mode of this prior, and a search for the mode would leave them",
            )
        return fit_again(found.laplace, "polish=True"), "find the mode first, on these data"
    if found.bends:
        return (
            "pl.LinearizedPredictive(model, guide)",
            "a network's posterior is of the linearised program: pl.diagnose(pl.linearize(model, guide), guide, data)",
        )
    if found.linearized and not found.dense:
        return fit_again(found.laplace, structure="full"), "a structure that drops nothing"
    if verdict == UNSURE and found.more_draws and found.trusted is not None and not is_clear(found.trusted):
        return f"pl.diagnose(model, guide, data, max_draws={found.more_draws})", "more draws, one after the other"
    if hyper:
        return f"pl.fit_nested_laplace(model, data, hyper={list(hyper)})", "integrates the other sites out"
    if found.trusted is not None:
        return "pl.importance_resample(model, guide, data)", "draws that are corrected"
    return (
        f"pl.fit_nuts(model, data{', precondition=guide' if found.preconditions else ''})",
        "draws of the posterior; a gradient of all data for each step",
    )
