"""`laplace_marginal`: the program over the hyper sites alone, all other sites integrated out by Laplace."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace._errors import InvalidOption
from pyro_laplace.data import Batch, Data, as_data
from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.inner.problem import Inner
from pyro_laplace.inner.single import for_single_points
from pyro_laplace.nested.begin import begin
from pyro_laplace.nested.derivative import Evaluator
from pyro_laplace.nested.hyper_only import sample_hyper
from pyro_laplace.structure.options import Structure

FACTOR = "log_marginal"
"""The site of the marginal program that is log p(y | hyper)."""


def laplace_marginal(
    model: Callable[..., Any],
    data: Any,
    hyper: str | Iterable[str] = "auto",
    *,
    structure: Structure = "auto",
    curvature: str = "auto",
) -> "LaplaceMarginal":
    """Integrate all but the hyper sites out of a Pyro program, by Laplace's approximation at each of their values.

    What comes back is itself a Pyro program: the hyper sites with their own priors, and a factor `log_marginal`,
    ``log p(y | h) ~ log p(y, x* | h) + P/2 log 2 pi - 1/2 log det H(x*, h)`` with x*(h) the mode of the other sites in
    unconstrained space and H minus the Hessian of ``log p(y, x | h)`` there (Tierney and Kadane 1986, "Accurate
    approximations for posterior moments and marginal densities"; Kristensen et al. 2016, "TMB: Automatic
    differentiation and Laplace approximation"). Where the other sites given h are Gaussian it is exact.

    It is called with nothing, for the data are in it: ``pl.fit_nuts(marginal, ())``, ``pl.fit_map(marginal, ())``,
    ``pl.fit_svi(marginal, (), guide)``, or Pyro's own. `torch.func.vmap` over hyper values solves the inner problems
    together, and so does `log_marginal` of `LaplaceMarginal`.

    Args:
        model: a Pyro program.
        data: a batch (tuple, dict or tensor), or a re-iterable of batches, which is read once and kept.
        hyper: the sites that stay: names or globs; or "auto", those that `fit_nested_laplace` would take.
        structure: of H: "full", "sparse", or "auto", sparse beyond `settings.small` coordinates; with Gauss-Newton, any
            of `fit_laplace`'s.
        curvature: of the log likelihood: "hessian", or as in `fit_laplace` "ggn", "empirical_fisher", "mc_fisher",
            which have no gradients in h; "auto" is "ggn" of a network, else "hessian".

    Returns:
        the program.

    Raises:
        InvalidOption: for a pattern that matches no latent site, or patterns that match all; for an unknown option.
        UnsupportedProgram: if the program has no Laplace approximation, or a hyper site's prior depends on a site that
            is integrated out, naming both.
        NotAMode: if the inner problem has no mode where the search begins, naming the sites.
    """
    data = as_data(data).held()
    with undisturbed(), torch.no_grad():
        begun = begin(model, data, hyper, structure, curvature, everything=False)
    return LaplaceMarginal(model, data, begun.of, for_single_points(begun.inner))


class LaplaceMarginal:
    """A Pyro program over hyper sites, made by `laplace_marginal`.

    Attributes:
        hyper: names of its latent sites, in trace order.
        integrated: names of the sites that are integrated out.
    """

    def __init__(self, model: Callable[..., Any], data: Data, of: Conditional, inner: Inner) -> None:
        self.model, self.data = model, data
        self.hyper, self.integrated = of.hyper, of.inner
        self._of, self._evaluator = of, Evaluator(inner)

    @property
    def curvature(self) -> str:
        """Of the log likelihood given the hyper sites."""
        return self._evaluator.inner.curvature

    @property
    def failures(self) -> int:
        """Points, so far, at which the search found no inner mode: their log density is minus infinity."""
        return self._evaluator.failures

    def __repr__(self) -> str:
        """The sites that stay, and those that are integrated out."""
        return f"LaplaceMarginal(hyper={list(self.hyper)}, integrated={list(self.integrated)})"

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample the hyper sites and weigh them by the data.

        Args:
            *args: nothing, or the one batch that the marginal was made of.
            **kwargs: likewise.

        Returns:
            the hyper sites' values.

        Raises:
            InvalidOption: if it is called with other data.
        """
        own = self.data.first()
        if (args or kwargs) and not (self.data.one_batch and _same_batch(Batch(args, kwargs), own)):
            raise InvalidOption(
                "this marginal is of the data that it was made of, and is called with nothing: marginal(), "
                "pl.fit_nuts(marginal, ()). Of other data it is another one: pl.laplace_marginal(model, data, hyper)"
            )
        values = sample_hyper(self._of.program, self.hyper, own)
        pyro.factor(FACTOR, self.log_marginal(values))
        return values

    def log_marginal(self, values: Mapping[str, Any]) -> Tensor:
        """``log p(y | hyper)`` at one value of each hyper site, or at many at once.

        Args:
            values: hyper site to value `[*batch, *shape]`, in the site's own space; their batches are broadcast.

        Returns:
            nats `[*batch]`, with gradients; minus infinity where there is no inner mode.

        Raises:
            InvalidOption: if a hyper site has no value, or another site has one.
        """
        latents = self._of.program.latents
        if set(values) != set(self.hyper):
            raise InvalidOption(
                f"values: give one of each hyper site {list(self.hyper)} and of no other; these are of {sorted(values)}"
            )
        like = self._of.program.start
        given = {name: torch.as_tensor(values[name], dtype=like.dtype, device=like.device) for name in self.hyper}
        leading = [given[name].shape[: given[name].dim() - len(latents[name].shape)] for name in self.hyper]
        batch = torch.broadcast_shapes(*leading)
        wide = {name: given[name].expand((*batch, *latents[name].shape)) for name in self.hyper}
        flat = {name: value.reshape(-1, *latents[name].shape) for name, value in wide.items()}
        rows = [torch.stack([latents[n].unconstrain(v) for v in value]) for n, value in flat.items()]
        return self._evaluator(torch.cat(rows, -1)).reshape(batch)


def _same_batch(one: Batch, other: Batch) -> bool:
    """Whether two batches hold the same tensors."""
    parts: list[tuple[Mapping[Any, Any], Mapping[Any, Any]]] = [
        (dict(enumerate(one.args)), dict(enumerate(other.args))),
        (one.kwargs, other.kwargs),
    ]
    return all(
        a.keys() == b.keys() and all(_equal_argument(value, b[key]) for key, value in a.items()) for a, b in parts
    )


def _equal_argument(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and bool((one == other).all()))
    return one is other or bool(one == other)
