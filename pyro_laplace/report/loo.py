"""`loo`: leave-one-out of any posterior, as ArviZ has it, and in closed form of a Laplace posterior."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyro_laplace._errors import check_option
from pyro_laplace.data import as_data
from pyro_laplace.draws.over_draws import View
from pyro_laplace.linearized.choose import predictive_model
from pyro_laplace.report.elpd import as_arviz, check_matching, densities_of, fitted
from pyro_laplace.report.matching import Unconstrained
from pyro_laplace.report.posterior import draws_with_density
from pyro_laplace.report.row import METHODS
from pyro_laplace.scores.drawn import Mixture
from pyro_laplace.scores.levels import Levels
from pyro_laplace.settings import settings

if TYPE_CHECKING:
    from arviz_stats.utils import ELPDData


def loo(
    model: Callable[..., Any],
    posterior: Any,
    data: Any,
    *,
    method: str = "auto",
    moment_matching: bool = False,
    num_samples: int = 1000,
    linearized: bool | str = "auto",
    progress: bool = True,
) -> "ELPDData":
    """Leave each datum out: the expected log predictive density of a posterior, in ArviZ's own result.

    ``arviz.compare({"laplace": pl.loo(model, guide, data), "nuts": az.loo(tree, pointwise=True)})`` takes it.

    Args:
        model: a Pyro program, or what `linearize` makes of one.
        posterior: any guide, a `pyro.infer.MCMC` that has run, or draws, as in `to_datatree`.
        data: what it was fitted to: a batch (tuple, dict or tensor), or a re-iterable of batches.
        method: how a datum is left out.

            - "psis": its likelihood is taken out of each draw by a Pareto-smoothed weight (Vehtari, Gelman and Gabry
              2017). Draws are taken for the posterior's own, whatever they are from.
            - "approximate_posterior": the same, draws of a guide weighed with ``p / q`` too (Magnusson et al. 2019):
              what comes out is of the posterior that the guide stands for.
            - "laplace": in closed form, from the posterior's mean and covariance, out of which the datum's own score
              and curvature are taken (LA-LOO of Vehtari et al. 2016). Exact for linear-Gaussian programs; no draws of
              theta, and one pass. Of a posterior of `fit_laplace`, by the linearised program.
            - "auto": of draws and an `MCMC`, "psis". Of a guide, "approximate_posterior" where the weights p / q can be
              trusted and differ; else "laplace" where it is defined, or "psis".
        moment_matching: whether to move draws where a datum's weights cannot be trusted (Paananen et al. 2021), by
            "psis" of draws from the posterior itself; refused of a guide, and beside another method.
        num_samples: draws from a guide; an `MCMC` and a mapping keep theirs.
        linearized: as in `to_datatree`.
        progress: whether a pass that lasts shows a progress bar.

    Returns:
        an ``ELPDData`` with `elpd`, `se`, `p`, and by datum `elpd_i` and `pareto_k`; of "laplace" this is None. A
        point, and what has fewer than 30 draws, has NaN for all.

    Raises:
        InvalidOption: for an option's unknown value, or a method that is not this posterior's.
        InvalidData: if data cannot be iterated anew, or hold values outside their distribution's support.
        UnsupportedProgram: if the program cannot be traced, or a datum's own curvature cannot be taken out.
    """
    check_option("method", method, METHODS)
    check_option("moment_matching", moment_matching, (True, False))
    check_matching(moment_matching, method, [posterior])
    data = as_data(data)
    draws = draws_with_density(model, posterior, data, num_samples)
    program = predictive_model(model, posterior, data, linearized)
    mixture = Mixture.of(View.of(program, data, draws, progress), draws, num_samples, Levels(()))
    return as_arviz(fitted(program, posterior, mixture, method, moment_matching).elpd(), len(draws))


def unconstrained(model: Callable[..., Any], posterior: Any, data: Any) -> Unconstrained:
    """The densities of a program as functions of unconstrained theta, for ``arviz.loo_moment_match``.

    With ``tree = to_datatree(model, posterior, data)`` and ``u = unconstrained(model, posterior, data)``::

        az.loo_moment_match(tree, az.loo(tree, pointwise=True), u.log_prob, u.log_lik)

    Args:
        model: a Pyro program, or what `linearize` makes of one: the program that `to_datatree` read off.
        posterior: of it, in whose trees theta is the group `unconstrained_posterior`.
        data: what it was fitted to.

    Returns:
        an object with the functions `log_prob` and `log_lik`.

    Raises:
        UnsupportedProgram: if the program cannot be traced.
    """
    data = as_data(data).held()
    draws = draws_with_density(model, posterior, data, settings.fewest_draws)
    return densities_of(Mixture.of(View.of(model, data, draws), draws, 1, Levels(())))
