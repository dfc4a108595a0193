"""Moment matching: a datum that cannot be left out by weights is left out by draws that are moved to where it is not.

Paananen et al. 2021, "Implicitly adaptive importance sampling". ArviZ's `loo_moment_match` does it; here are the
functions that it asks of a program.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_laplace._errors import InvalidOption
from pyro_laplace._typing import Values
from pyro_laplace.capture.loop import Loop
from pyro_laplace.draws.density import log_joint_at
from pyro_laplace.program.sites import unpack
from pyro_laplace.settings import settings


class Unconstrained:
    """The densities of a program as functions of unconstrained theta: what ``arviz.loo_moment_match`` asks for.

    Args:
        loop: the program and its data.
        by_site: gives, for draws of the latent sites, each observed site's log likelihood `[draws, *batch]`.
        counted: gives, for the same, that of the data that count, some after the others [draws, data].
    """

    def __init__(
        self, loop: Loop, by_site: Callable[[Values], Values], counted: Callable[[Values], Iterator[Tensor]]
    ) -> None:
        self._loop, self._by_site, self._counted = loop, by_site, counted

    def log_prob(self, upars: Any) -> Any:
        """``log p(y, theta)``, log-Jacobian included, for `log_prob_upars_fn`.

        Args:
            upars: a DataArray of theta [chain, draw, params].

        Returns:
            a DataArray [chain, draw].
        """
        return self._by_draw(upars, log_joint_at(self._loop, self._theta(upars)))

    def log_lik(self, upars: Any, i: Any, site: str | None = None) -> Any:
        """``log p(y_i | theta)`` for `log_lik_i_upars_fn`.

        Args:
            upars: a DataArray of theta [chain, draw, params].
            i: which datum, in the order of the group `log_likelihood`, its axes one after the other.
            site: observed site; may be left out where there is one.

        Returns:
            a DataArray [chain, draw].

        Raises:
            InvalidOption: if there are several observed sites, and none was named.
        """
        found = self._by_site(self._values(upars))
        names = list(found)
        if site is None and len(names) > 1:
            raise InvalidOption(f"the program observes {names}: give functools.partial(u.log_lik, site={names[0]!r})")
        return self._by_draw(upars, found[site or names[0]].flatten(1)[:, int(i)])

    def of_counted(self, upars: Any, i: Any) -> Any:
        """The same of datum i of those that count, sites of one datum together."""
        return self._by_draw(upars, _column(self._counted(self._values(upars)), int(i)))

    def _values(self, upars: Any) -> Values:
        return unpack(self._loop.program.latents, self._theta(upars))

    def _theta(self, upars: Any) -> Tensor:
        values = np.ascontiguousarray(upars.values.reshape(-1, upars.shape[-1]))
        return torch.as_tensor(values).to(self._loop.program.start)

    @staticmethod
    def _by_draw(upars: Any, value: Tensor) -> Any:
        numbers = value.double().reshape(upars.shape[:-1]).cpu().numpy()
        return upars.isel({upars.dims[-1]: 0}, drop=True).copy(data=numbers)


def _column(parts: Iterator[Tensor], number: int) -> Tensor:
    """One column of parts [draws, data] beside one another."""
    for part in parts:
        if number < part.shape[1]:
            return part[:, number]
        number -= part.shape[1]
    raise InvalidOption(f"there is no datum {number} beyond the last one")


def matched(
    theta: Tensor, pointwise: Tensor, densities: Unconstrained, efficiency: float
) -> tuple[np.ndarray, np.ndarray]:
    """Log density of each datum without itself, and its Pareto k, moments matched where k is over `settings.bad_k`.

    Args:
        theta: draws of the posterior itself, unconstrained [chains, draws, params].
        pointwise: log likelihood of the data that count at these [chains, draws, data].
        densities: of the program.
        efficiency: relative, of the draws.

    Returns:
        both [data].
    """
    from arviz_base import from_dict
    from arviz_stats.loo import loo, loo_moment_match

    values = {"theta": theta.double().cpu().numpy()}
    log_lik = {"log_lik": pointwise.double().cpu().numpy()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of k: it is a column
        tree = from_dict({"posterior": values, "unconstrained_posterior": values, "log_likelihood": log_lik})
        before: Any = loo(tree, pointwise=True, reff=efficiency)
        options: dict[str, Any] = {"reff": efficiency, "k_threshold": settings.bad_k, "pointwise": True}
        found: Any = loo_moment_match(tree, before, densities.log_prob, densities.of_counted, **options)
    return found.elpd_i.values.reshape(-1), found.pareto_k.values.reshape(-1)
