"""`compare`: posteriors of one program, however they were found, in one table."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_laplace._errors import InvalidOption, check_option
from pyro_laplace.data import Data, as_data
from pyro_laplace.diagnostics.diagnose import diagnose as judge
from pyro_laplace.draws.over_draws import View
from pyro_laplace.linearized.choose import predictive_models
from pyro_laplace.report.elpd import Fitted, as_arviz, check_matching, fitted
from pyro_laplace.report.posterior import draws_with_density
from pyro_laplace.report.row import (
    LAPLACE,
    METHODS,
    Row,
    distance,
    marks_and_density,
    no_prediction,
    of_held_out,
    of_hidden,
    of_others,
)
from pyro_laplace.scores.drawn import Mixture
from pyro_laplace.scores.levels import Levels
from pyro_laplace.settings import settings

if TYPE_CHECKING:
    import pandas

_FIRST = ("elpd_loo", "elpd_se", "elpd_method", "weight", "pareto_k_max", "pareto_k_bad", "khat", "verdict", "test_lpd")
_LAST = ("seconds", "predict_seconds")


def compare(
    model: Callable[..., Any],
    posteriors: Mapping[str, Any],
    data: Any,
    test_data: Any = None,
    *,
    ood_data: Any = None,
    reference: str | None = None,
    levels: Sequence[float] = (0.5, 0.9, 0.95),
    method: str = "auto",
    moment_matching: bool = False,
    diagnose: bool = False,
    fit_seconds: Mapping[str, float] | None = None,
    num_samples: int = 1000,
    num_bins: int = 15,
    linearized: bool | str = "auto",
    progress: bool = True,
) -> "pandas.DataFrame":
    """Put posteriors of one program side by side, by what they predict.

    An `AutoLaplace` within which the program is not linear (all weights of a network) has two rows: its own name, with
    the predictions of `linearize(model, guide)`, and ``"{name} (sampled)"``, with the same draws through the nonlinear
    program, which are seldom what you want.

    Data are passed over once for each row, in chunks of so few that what is held of them at all draws fits
    `settings.chunk_bytes`. Of several observed sites a score has one column each, `rmse (y)`.

    Args:
        model: a Pyro program, or what `linearize` makes of one.
        posteriors: name to guide, `pyro.infer.MCMC`, or draws {site: `[draws, *shape]`}, as in `to_datatree`.
        data: what they were fitted to: a batch (tuple, dict or tensor), or a re-iterable of batches.
        test_data: held-out data of the same kind, observed values included. None leaves out the columns about them.
        ood_data: inputs unlike `test_data`; observed values are not looked at. The column `ood_auroc` is about them.
        reference: name of the posterior that all others are measured against: the column `distance`.
        levels: what predictive intervals are to hold, each with its columns `coverage_90` and `width_90`.
        method: how a datum is left out, as in `loo`.
        moment_matching: as in `loo`, of the rows that are draws; the notes say of which it is not.
        diagnose: whether `diagnose` judges each posterior: the column `verdict`. It weighs thousands of draws more.
        fit_seconds: name to the time that fitting took, of posteriors that do not know it.
        num_samples: draws from each guide; an `MCMC` and a mapping keep theirs.
        num_bins: bins of `ece`.
        linearized: as in `to_datatree`; True or False give each `AutoLaplace` one row.
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        One row a posterior, in the order given. A column without meaning for some is NaN there, and
        ``table.attrs["notes"]`` says why, ``{column: {row: reason}}``. Densities in nats:

        - `elpd_loo`, `elpd_se`, `elpd_method`: expected log predictive density with each datum left out, summed over
          data, its standard error, and how it was had (see `loo`). NaN below 30 draws, a point estimate among them.
        - `weight`: of the stacked mixture of the rows whose leave-one-out density is highest (Yao et al. 2018).
        - `pareto_k_max`, `pareto_k_bad`: the largest Pareto k, and the share of data where it exceeds 0.7. A datum
          that has one likelihood under all draws has the k of minus infinity; "laplace" has no weights, and no k.
        - `khat`: Pareto k of ``p(y, theta) / q(theta)`` at the posterior's own draws: minus infinity where these are
          exact, over 0.7 where they cannot be corrected. `verdict`: what `diagnose` says.
        - `test_lpd`: log of the mean density over draws, mean over held-out data.
        - of classes `accuracy`, `brier`, `ece`, `auroc`, and of numbers `rmse`, `crps`, `coverage_90`, `width_90`: the
          scores of `scores`, and the mean width of intervals, of the mixture over draws.
        - `ood_auroc`: the share of pairs of a held-out and another input of which the latter's prediction is less
          certain: by the entropy of classes, or the variance of numbers.
        - `distance`: between what is predicted of held-out data and what `reference` predicts: total variation of
          classes; Wasserstein's distance of numbers, in their units. Two sets of 1,000 draws of one Normal are 0.04
          standard deviations apart.
        - `seconds`, `predict_seconds`: wall time that fitting took, from `fit_seconds` or the posterior itself; and the
          one that held-out data took, density, moments and draws.

    Raises:
        InvalidOption: for an option's unknown value, or a posterior that cannot be drawn from.
        InvalidData: if data cannot be iterated anew, or hold values outside their distribution's support.
        UnsupportedProgram: if the program cannot be traced, or a posterior lacks one of its sites.
    """
    if not isinstance(posteriors, Mapping) or not posteriors:
        raise InvalidOption(
            f"posteriors is {posteriors!r:.80}: give a mapping of names to posteriors, e.g. {{'laplace': guide}}"
        )
    known = _checked_seconds(fit_seconds, posteriors)
    check_option("method", method, METHODS)
    for option, value in (("moment_matching", moment_matching), ("diagnose", diagnose)):
        check_option(option, value, (True, False))
    check_matching(moment_matching, method, posteriors.values())
    _check_held_out(reference, ood_data, test_data, posteriors)
    data = as_data(data)
    others = {"test_data": test_data, "ood_data": ood_data}
    test, ood = (None if each is None else as_data(each, option) for option, each in others.items())
    asked = Levels(_checked_levels(levels), settings.distance_quantiles if reference is not None else 0)
    rows: dict[str, Row] = {}
    seconds: dict[str, float] = {}
    for name, posterior in posteriors.items():
        draws = draws_with_density(model, posterior, data, num_samples)
        for each, program in predictive_models(name, model, posterior, data, linearized).items():
            mixture = Mixture.of(View.of(program, data, draws, progress), draws, num_samples, asked)
            found = _on_fitted(fitted(program, posterior, mixture, method, moment_matching))
            if diagnose:
                found = _judged(found, program, posterior, data, progress)
            rows[each] = found if test is None else _on_held_out(found, program, mixture, test, ood, num_bins)
            seconds[each] = float(known.get(name, getattr(posterior, "fit_seconds", math.nan)))
    return _table(rows, seconds, reference)


def _on_fitted(posterior: Fitted) -> Row:
    """The columns about the data that a posterior was fitted to."""
    elpd, notes = posterior.elpd(), {}
    values: dict[str, Any] = {
        "elpd_loo": elpd.total,
        "elpd_se": elpd.error,
        "elpd_method": elpd.method or math.nan,
        "pareto_k_max": math.nan if elpd.k is None else float(np.fmax.reduce(elpd.k)),
        "pareto_k_bad": math.nan if elpd.k is None else float((~(elpd.k <= settings.bad_k)).mean()),
    }
    if elpd.note:
        notes["elpd_loo"] = elpd.note
    if elpd.method == LAPLACE:
        notes |= dict.fromkeys(("pareto_k_max", "pareto_k_bad"), "the closed form has no weights, and no k")
    weights = None if posterior.draws.is_point else posterior.weights
    values["khat"] = math.nan if weights is None else weights.khat
    if weights is None:
        kind = "draws" if isinstance(posterior.posterior, Mapping) else type(posterior.posterior).__name__
        notes["khat"] = f"{kind}: no density to weigh its draws by"
    return Row(values, elpd, notes=notes)


def _on_held_out(
    found: Row, program: Callable[..., Any], own: Mixture, test: Data, ood: Data | None, num_bins: int
) -> Row:
    """The columns about held-out data too, and how long these took."""
    start = time.perf_counter()
    view = View.of(program, test, own.draws, own.view.progress, own.view.program.observed)
    mixture = Mixture.of(view, own.draws, own.num_samples, own.levels)
    marks, density = marks_and_density(mixture.passed("held-out data"))
    seconds = time.perf_counter() - start
    hidden = mixture.summed_out() if any(marked.keys() == {"log_prob"} for marked in marks.values()) else {}
    values = {**found.values, "test_lpd": density, **of_held_out(marks, num_bins, own.levels)}
    if ood is not None:
        values |= of_others(marks, own.on(ood).passed("other data", given=False))
    notes = of_hidden(hidden, own.levels, marks, ood is not None)
    return replace(
        found,
        values=values | dict.fromkeys(notes, math.nan) | {"predict_seconds": seconds},
        notes={**found.notes, **notes},
        hidden=tuple(hidden),
        probs={name: each["probs"] for name, each in marks.items() if "probs" in each},
        quantiles={n: own.levels.of_grid(each["quantiles"]) for n, each in marks.items() if "quantiles" in each},
    )


def _judged(found: Row, program: Callable[..., Any], posterior: Any, data: Data, progress: bool) -> Row:
    """What `diagnose` says, too."""
    try:
        verdict, why = judge(program, posterior, data, progress=progress).verdict, {}
    except InvalidOption as error:
        verdict, why = math.nan, {"verdict": str(error)}
    return replace(found, values={**found.values, "verdict": verdict}, notes={**found.notes, **why})


def _table(rows: Mapping[str, Row], seconds: Mapping[str, float], reference: str | None) -> "pandas.DataFrame":
    import pandas  # takes a second to load

    values = {name: dict(each.values) | {"seconds": seconds[name]} for name, each in rows.items()}
    notes = {name: dict(each.notes) for name, each in rows.items()}
    for name, weight in _stacking(rows).items():
        values[name]["weight"] = weight
        if math.isnan(weight) and rows[name].elpd.method:
            notes[name]["weight"] = f"its elpd_loo is {rows[name].elpd.total}: no density of some datum is a number"
    if reference is not None:
        for name, each in rows.items():
            found = distance(each, rows[reference])
            columns = {n: f"distance{f' ({n})' if len(found) > 1 else ''}" for n in found}
            values[name] |= {columns[n]: value for n, value in found.items()}
            notes[name] |= {columns[n]: no_prediction(n) for n in each.hidden}
    for name in rows:
        if math.isnan(seconds[name]):
            notes[name]["seconds"] = "it does not know how long it took: give fit_seconds"
    table = pandas.DataFrame.from_dict(values, orient="index")
    first, last = ([column for column in order if column in table] for order in (_FIRST, _LAST))
    table = table.loc[:, [*first, *(column for column in table if column not in (*first, *last)), *last]]
    table.index.name = "posterior"
    columns = dict.fromkeys(column for each in notes.values() for column in each)
    table.attrs["notes"] = {c: {name: each[c] for name, each in notes.items() if c in each} for c in columns}
    return table


def _stacking(rows: Mapping[str, Row]) -> dict[str, float]:
    """Stacking weights of the rows that have a leave-one-out density, where it is a number."""
    known = {name: each for name, each in rows.items() if each.elpd.method and math.isfinite(each.elpd.total)}
    if len(known) < 2:
        return dict.fromkeys(rows, math.nan) | dict.fromkeys(known, 1.0)
    from arviz_stats.loo import compare as compared

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of how far apart they are: that is what the table says
        table: Any = compared({name: as_arviz(each.elpd, 1) for name, each in known.items()}, method="stacking")
    return dict.fromkeys(rows, math.nan) | {name: float(table.loc[name, "weight"]) for name in known}


def _checked_levels(levels: Any) -> tuple[float, ...]:
    if isinstance(levels, str) or not isinstance(levels, Sequence) or not all(
        isinstance(each, float) and 0 < each < 1 for each in levels
    ):  # fmt: skip
        raise InvalidOption(f"levels={levels!r}: give what intervals are to hold, between 0 and 1: (0.5, 0.9)")
    return tuple(dict.fromkeys(levels))


def _checked_seconds(seconds: Any, posteriors: Mapping[str, Any]) -> Mapping[str, float]:
    unknown = sorted(set(seconds or {}) - set(posteriors))
    if unknown:
        raise InvalidOption(f"fit_seconds has {unknown}, and the posteriors are {list(posteriors)}")
    return seconds or {}


def _check_held_out(reference: Any, ood_data: Any, test_data: Any, posteriors: Mapping[str, Any]) -> None:
    if reference is not None and reference not in posteriors:
        raise InvalidOption(f"reference={reference!r} is none of the posteriors {list(posteriors)}")
    for option, value in (("reference", reference), ("ood_data", ood_data)):
        if value is not None and test_data is None:
            raise InvalidOption(f"{option} is about predictions of held-out data: give test_data too")
