"""`compare`: posteriors of one program, however they were found, in one table."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_laplace._errors import InvalidOption
from pyro_laplace.data import as_data
from pyro_laplace.draws.draws import PosteriorDraws, draws_of
from pyro_laplace.draws.over_draws import View
from pyro_laplace.likelihood.outcome import Outcome
from pyro_laplace.linearized.choose import predictive_models
from pyro_laplace.scores.formulas import within_quantiles
from pyro_laplace.settings import settings

if TYPE_CHECKING:
    import pandas


def compare(
    model: Callable[..., Any],
    posteriors: Mapping[str, Any],
    data: Any,
    test_data: Any = None,
    *,
    num_samples: int = 1000,
    linearized: bool | str = "auto",
    progress: bool = True,
) -> "pandas.DataFrame":
    """Put posteriors of one program side by side, by what they predict.

    An `AutoLaplace` within which the program is not linear (all weights of a network) has two rows: its own name, with
    the predictions of `linearize(model, guide)`, and ``"{name} (sampled)"``, with the same draws through the nonlinear
    program, which are seldom what you want.

    Args:
        model: a Pyro program, or what `linearize` makes of one.
        posteriors: name to guide, `pyro.infer.MCMC`, or draws {site: `[draws, *shape]`}, as in `to_datatree`.
        data: what they were fitted to: a batch (tuple, dict or tensor), or a re-iterable of batches.
        test_data: held-out data of the same kind, observed values included. None leaves out the columns about them.
        num_samples: draws from each guide; an `MCMC` and a mapping keep theirs.
        linearized: as in `to_datatree`; True or False give each `AutoLaplace` one row.
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        One row a posterior, in the order given. Columns, densities in nats:

        - `elpd_loo`, `elpd_se`: expected log predictive density by PSIS-LOO, summed over data, and its standard error;
          NaN below 30 draws, a point estimate among them: no leave-one-out posterior can be had from so few.
        - `pareto_k_max`, `pareto_k_bad`: the largest Pareto k, and the share of data where it exceeds 0.7. A datum
          that has one likelihood under all draws has the k of minus infinity.
        - `test_lpd`: log of the mean density over draws, mean over held-out data.
        - `rmse` (of the predictive mean) for numbers, `accuracy` for classes; one column a site if there are several.
        - `coverage_90`: share of held-out numbers within their central 90% predictive interval.
        - `seconds`: wall time that fitting took, from `fit_seconds` on the posterior; NaN where it has none.

    Raises:
        InvalidOption: for an option's unknown value, or a posterior that cannot be drawn from.
        InvalidData: if data cannot be iterated anew, or hold values outside their distribution's support.
        UnsupportedProgram: if the program cannot be traced, or a posterior lacks one of its sites.
    """
    if not isinstance(posteriors, Mapping) or not posteriors:
        raise InvalidOption(
            f"posteriors is {posteriors!r:.80}: give a mapping of names to posteriors, e.g. {{'laplace': guide}}"
        )
    data = as_data(data)
    test_data = None if test_data is None else as_data(test_data)
    rows = {}
    for name, posterior in posteriors.items():
        draws = draws_of(posterior, data, num_samples)
        for row, program in predictive_models(name, model, posterior, data, linearized).items():
            rows[row] = _leave_one_out(View.of(program, data, draws, progress), draws)
            if test_data is not None:
                rows[row] |= _held_out(View.of(program, test_data, draws, progress), draws, num_samples)
            rows[row]["seconds"] = float(getattr(posterior, "fit_seconds", math.nan))
    import pandas  # takes a second to load

    table = pandas.DataFrame.from_dict(rows, orient="index")
    table.index.name = "posterior"
    return table.reindex(columns=[column for column in table if column != "seconds"] + ["seconds"])


def _leave_one_out(view: View, draws: PosteriorDraws) -> dict[str, float]:
    pointwise = _pointwise(view, draws)
    telling = pointwise if bool((pointwise != pointwise[0]).any()) else _draws_as_rows(draws)
    if len(telling.unique(dim=0)) < settings.fewest_draws:  # an ensemble repeats its points
        return dict.fromkeys(("elpd_loo", "elpd_se", "pareto_k_max", "pareto_k_bad"), math.nan)
    elpd, k = _by_datum(pointwise, view, draws)
    return {
        "elpd_loo": float(elpd.sum()),
        "elpd_se": float((len(elpd) * elpd.var(ddof=1)) ** 0.5) if len(elpd) > 1 else math.nan,
        "pareto_k_max": float(np.fmax.reduce(k)),
        "pareto_k_bad": float((~(k <= settings.bad_k)).mean()),
    }


def _by_datum(pointwise: Tensor, view: View, draws: PosteriorDraws) -> tuple[np.ndarray, np.ndarray]:
    """The log density of each datum without itself, by PSIS, and its Pareto k.

    Weights whose tail is one value need no smoothing, and have no k: it is minus infinity.

    Returns:
        both [data].
    """
    from arviz_base import from_dict  # takes a second to load
    from arviz_stats.loo import loo

    posterior = {name: draws.by_chain(value).cpu().numpy() for name, value in view.latents(draws.values).items()}
    elpd = math.log(len(pointwise)) - (-pointwise.double()).logsumexp(0).cpu().numpy()
    k = np.full_like(elpd, -math.inf)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")  # it is a column
        warnings.filterwarnings("ignore", message="The point-wise LOO is the same")
        warnings.filterwarnings("ignore", message="Found chain dimension to be longer")
        reff = 1.0 if draws.independent else _relative_efficiency(from_dict({"posterior": posterior}))
        smoothed = _varies(pointwise, reff).cpu().numpy()
        if smoothed.any():
            log_lik = draws.by_chain(pointwise).double().cpu().numpy()[..., smoothed]
            tree = from_dict({"posterior": posterior, "log_likelihood": {"log_lik": log_lik}})
            result: Any = loo(tree, pointwise=True, reff=reff)
            elpd[smoothed], k[smoothed] = result.elpd_i.values.reshape(-1), result.pareto_k.values.reshape(-1)
    return elpd, k


def _varies(pointwise: Tensor, reff: float = 1.0) -> Tensor:
    """Which data [data] have a tail of importance weights 1 / p(y | theta) that is not one value but for rounding.

    It is ``min(S / 5, 3 sqrt(S / reff))`` of S draws (Vehtari et al. 2024, "Pareto smoothed importance sampling").

    Returns:
        bool [data].
    """
    count = len(pointwise)
    tail = max(1, int(min(count / 5, 3 * (count / reff) ** 0.5)))
    lowest = pointwise.topk(tail, dim=0, largest=False).values
    close = settings.rounding * torch.finfo(pointwise.dtype).eps * lowest[0].abs().clamp(min=1.0)
    return lowest[-1] - lowest[0] > close


def _draws_as_rows(draws: PosteriorDraws) -> Tensor:
    """The draws, a row each."""
    return torch.cat([value.reshape(len(draws), -1) for value in draws.values.values()], 1)


def _relative_efficiency(tree: Any) -> float:
    """Mean effective sample size of the sites per draw, as ArviZ has it; ArviZ itself takes 1 for a single chain."""
    ess = tree.posterior.azstats.ess(method="mean")
    mean = np.concatenate([variable.values.ravel() for variable in ess.data_vars.values()]).mean()
    return float(mean / (tree.posterior.sizes["chain"] * tree.posterior.sizes["draw"]))


def _held_out(view: View, draws: PosteriorDraws, num_samples: int) -> dict[str, float]:
    log_lik = _pointwise(view, draws).double()
    scores = {"test_lpd": float((log_lik.logsumexp(0) - math.log(len(log_lik))).mean())}
    replicated = view.replicated(draws.at_least(num_samples))
    expected = {name: value.mean(0) for name, value in view.expected(draws.values).items()}
    for name, observed in view.observed.items():
        of = f" ({name})" if len(view.observed) > 1 else ""
        entries, outcome = view.entries[name], Outcome.of(view.run.observed[name].fn)
        if outcome.is_class:
            hits = outcome.hits(expected[name], observed)
            kept = entries.flatten(hits.dim()).any(-1) if entries.dim() > hits.dim() else entries
            scores[f"accuracy{of}"] = float(hits.expand(kept.shape)[kept].double().mean())
            continue
        truth, drawn = observed[entries].double(), replicated[name].expand(-1, *entries.shape)[:, entries].double()
        mean = expected[name].expand(entries.shape)[entries].double() if name in expected else drawn.mean(0)
        scores[f"rmse{of}"] = float((mean - truth).square().mean().sqrt())
        scores[f"coverage_90{of}"] = _share_within(drawn, truth)
    return scores


def _pointwise(view: View, draws: PosteriorDraws) -> Tensor:
    """Log likelihood per datum [draws, data], masked data left out: sites that share their axes describe one datum."""
    known = view.counted  # first, as it refuses data that have no density
    log_lik = {name: value.flatten(1) for name, value in view.log_lik(draws.values).items()}
    everything = {name: torch.ones(value.shape[1], dtype=torch.bool) for name, value in log_lik.items()}
    counted = everything | {name: value.reshape(-1) for name, value in known.items()}
    axes = {tuple(view.batch_dims(name)) for name in log_lik}
    if len(axes) == 1 and len({value.shape for value in log_lik.values()}) == 1:
        kept = torch.stack(list(counted.values())).any(0)
        return torch.stack(list(log_lik.values())).sum(0)[:, kept]
    return torch.cat([value[:, counted[name]] for name, value in log_lik.items()], 1)


def _share_within(drawn: Tensor, truth: Tensor) -> float:
    """Share of values [data, ...] within the central interval of their draws [draws, data, ...]."""
    return float(within_quantiles(drawn, truth).double().mean())
