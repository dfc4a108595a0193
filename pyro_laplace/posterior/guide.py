"""`AutoLaplace`: the Laplace posterior as a Pyro autoguide."""

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_laplace._compat.compiler import without_compiler
from pyro_laplace._compat.pyro import prototype_frames, stripped_trace
from pyro_laplace._typing import Matrix, Theta, Values
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.mode.mode import Mode
from pyro_laplace.mode.path import Path
from pyro_laplace.program.sites import Latent
from pyro_laplace.reading.prior import Prior
from pyro_laplace.settings import settings
from pyro_laplace.structure.likelihood_sum import LikelihoodSum
from pyro_laplace.structure.options import Structure
from pyro_laplace.structure.precision import Precision

if TYPE_CHECKING:
    from pyro_laplace.posterior.delta import Estimate


class LaplaceTransform(Transform):
    """White noise z to theta = loc + R^-1 z, with R'R the posterior precision."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc: Tensor, precision: Precision) -> None:
        super().__init__()
        self.loc, self.precision = loc, precision

    def __eq__(self, other: object) -> bool:
        """Transforms are equal if they are the same."""
        return self is other

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self._rows(self.precision.color, x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._rows(self.precision.whiten, y - self.loc)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """-1/2 log det Lambda, `[*batch]`."""
        return (-0.5 * self.precision.log_det()).to(x).expand(x.shape[:-1])

    @staticmethod
    def _rows(operation: Any, x: Tensor) -> Tensor:
        return operation(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class LaplaceNormal(dist.TransformedDistribution):
    """The Gaussian of a posterior over theta, with the moments that Pyro's `MultivariateNormal` has."""

    @property
    def mean(self) -> Theta:
        """The mode, [params]."""
        return self._moved.loc

    @property
    def variance(self) -> Theta:
        """Marginal variances, [params]."""
        return self._moved.precision.variance().to(self.mean)

    @property
    def covariance_matrix(self) -> Matrix:
        """Dense, [params, params]."""
        loc = self._moved.loc
        eye = torch.eye(len(loc), dtype=torch.float64, device=loc.device)
        return self._moved.precision.solve(eye).to(loc)

    @property
    def _moved(self) -> LaplaceTransform:
        (transform,) = self.transforms
        return transform


class AutoLaplace(AutoContinuous):
    """A Gaussian posterior in unconstrained space around a mode, made by `fit_laplace`.

    It is fitted from the start, holds its state in buffers, and needs neither data nor param store. Sites outside its
    subset are part of it as Delta sites at the mode, and so are the other coordinates of a site that is random in part.

    Attributes:
        precision: the posterior precision of the random sites, in trace order; `.to_dense()` is the matrix.
        index: the random coordinates of theta, ascending.
        random: names of the sites that they belong to.
        layout: random site name to its slice of the precision.
        mode: the point with its gradient and Newton decrement.
        structure: the structure of the precision.
        curvature: the curvature it was built from.
        observed: names of the observed sites that the posterior is conditioned on.
        fit_seconds: wall time of `fit_laplace`.
        likelihood_sum: the likelihood's curvature summed over data, of which `precision` was made; None where it was
            larger than `settings.keep_sum_bytes`.
        prior: the prior's curvature; None where there is no posterior density, but a point.
        hyperparameters: the pyro.params of priors and noise, at the values that it was built at and is used at.
        jacobian: whether the mode is that of the density of theta, or of the constrained values.
        path: the steps of the search for these; empty where `fit_laplace` took them as they were.
    """

    loc: Tensor
    _log_evidence: Tensor
    index: Tensor
    theta: Tensor

    def __init__(
        self,
        model: Any,
        latents: Mapping[str, Latent],
        index: Tensor,
        mode: Mode,
        precision: Precision,
        *,
        structure: Structure,
        curvature: str,
        observed: tuple[str, ...],
        log_evidence: float,
        likelihood_sum: LikelihoodSum | None = None,
        prior: Prior | None = None,
        hyperparameters: Values | None = None,
        jacobian: bool = True,
    ) -> None:
        super().__init__(model)
        self._model = (model,)  # without AutoContinuous's messenger: nothing is initialised here
        self.latents = dict(latents)
        self.layout = _layout(latents, index)
        self.random = random = tuple(self.layout)
        self.latent_dim = len(index)
        self.prototype_trace = stripped_trace([latents[name] for name in random], mode.theta)
        self._prototype_frames = prototype_frames(latents.values())
        self._unconstrained_shapes = {name: latents[name].unconstrained_shape for name in random}
        self._cond_indep_stacks = {name: latents[name].frames for name in latents}
        self._create_plates()
        self.register_buffer("theta", mode.theta)
        self.register_buffer("index", index)
        self.register_buffer("loc", mode.theta[index])
        self.precision = precision
        self.mode = mode
        self.structure, self.curvature, self.observed = structure, curvature, observed
        self.register_buffer("_log_evidence", torch.tensor(log_evidence, dtype=torch.float64))
        small = likelihood_sum is not None and likelihood_sum.num_bytes <= settings.keep_sum_bytes
        self.likelihood_sum = likelihood_sum if small else None
        self.prior = None if prior is None else prior.detached()
        self.hyperparameters = {name: value.detach().clone() for name, value in (hyperparameters or {}).items()}
        self.path, self.jacobian = Path(), jacobian

    @property
    def log_evidence(self) -> float:
        """Laplace's log p(y)."""
        return float(self._log_evidence)

    @property
    def evidence_path(self) -> tuple[float, ...]:
        """The log evidence at each step of the search for the hyperparameters, in nats."""
        return self.path.log_evidence

    def get_base_dist(self) -> Any:
        """Standard normal white noise, event shape [params]."""
        return dist.Normal(torch.zeros_like(self.loc), torch.ones_like(self.loc)).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> LaplaceTransform:
        """The map from white noise to the random coordinates of theta."""
        return LaplaceTransform(self.loc, self.precision)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """A `LaplaceNormal`, the distribution of the random coordinates of theta; the arguments are ignored."""
        return LaplaceNormal(self.get_base_dist(), self.get_transform())

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Theta, Theta]:
        return self.loc, self.precision.variance().sqrt().to(self.loc)

    @without_compiler()
    def _unpack_latent(self, latent: Tensor) -> Any:
        """Pyro's, for whole sites: the coordinates that are not random are put in at the mode."""
        whole = self.theta.expand(*latent.shape[:-1], -1).index_copy(-1, self.index, latent)
        random = torch.cat([whole[..., self.latents[name].slice] for name in self.random], -1)
        return list(super()._unpack_latent(random))

    @property
    def partial(self) -> tuple[str, ...]:
        """Names of the sites of which some coordinates are random and some are not."""
        sizes = {name: place.stop - place.start for name, place in self.layout.items()}
        return tuple(name for name, size in sizes.items() if size < self.latents[name].size)

    @property
    def covariance(self) -> Matrix:
        """Posterior covariance of the random coordinates of theta, dense [params, params]."""
        return self.get_posterior().covariance_matrix

    @property
    def scale(self) -> Theta:
        """Marginal standard deviations of the random coordinates of theta [params], as Pyro's guides have them."""
        return self._loc_scale()[1]

    @property
    def scale_tril(self) -> Matrix:
        """Cholesky factor of their correlation matrix, dense [params, params], as Pyro's guides have it."""
        scale = self.scale
        return torch.linalg.cholesky(self.covariance / scale / scale.unsqueeze(-1))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every latent site of the program; the arguments are ignored."""
        result = super().forward(*args, **kwargs)
        for name, value in self._held().items():
            latent = self.latents[name]
            with ExitStack() as stack:
                for frame in latent.frames:
                    stack.enter_context(self.plates[frame.name])
                result[name] = pyro.sample(name, dist.Delta(value, event_dim=len(latent.event_shape)))
        return result

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Posterior median of every latent site; sites outside the subset are at the mode."""
        return self._ordered(super().median() | self._held())

    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Marginal posterior quantiles.

        Args:
            quantiles: probabilities, a list or a tensor [quantiles].
            *args: ignored.
            **kwargs: ignored.

        Returns:
            site name to values `[quantiles, *shape]`.
        """
        levels = torch.as_tensor(quantiles, dtype=self.loc.dtype, device=self.loc.device)
        moved = super().quantiles(levels.tolist())
        held = {name: value.expand(len(levels), *value.shape) for name, value in self._held().items()}
        return self._ordered(moved | held)

    @torch.no_grad()
    def sample_theta(self, num_samples: int) -> Tensor:
        """Draws of all of theta [num_samples, params], sites outside the subset at the mode."""
        white = torch.randn(num_samples, self.latent_dim, dtype=self.loc.dtype, device=self.loc.device)
        draws = self.theta.repeat(num_samples, 1)
        draws[:, self.index] = self.loc + self.precision.color(white)
        return draws

    def sample_posterior(self, num_samples: int = 1) -> dict[str, Tensor]:
        """Independent posterior draws.

        Args:
            num_samples: number of draws.

        Returns:
            site name to draws `[num_samples, *shape]`, in the sites' own (constrained) spaces.
        """
        theta = self.sample_theta(num_samples)
        return {name: latent.constrain(theta[:, latent.slice]) for name, latent in self.latents.items()}

    def of(self, name: str, data: Any = None, robust: bool = False) -> "Estimate":
        """Mean and standard deviation of a value that the program computes, by the delta method.

        ``g(theta) ~ Normal(g(theta*), J Sigma J')``, with J the Jacobian of g at the mode: exact where g is linear in
        theta. Sigma is the posterior covariance, or the sandwich ``Lambda^-1 (sum_n s_n s_n') Lambda^-1`` (White 1982,
        "Maximum likelihood estimation of misspecified models"), with s_n the score of datum n, each element of an
        observed site one: right for the mean of misspecified data too, where the posterior is not.

        Args:
            name: of a deterministic site (``pyro.deterministic``), or of a latent one, in its own space.
            data: what the program is called with; of several batches the value is that of the first one. May be left
                out where the program needs no arguments.
            robust: whether to take the sandwich, of all data, which must have their observed values.

        Returns:
            ``mean`` and ``std``, of the site's shape.
        """
        from pyro_laplace.posterior.delta import estimate_of

        at = Anchor(self.theta, self.index, self.latents, hyperparameters=self.hyperparameters)
        (model,) = self._model
        return estimate_of(model, at, self.observed, self.precision, name, data, robust)

    def _held(self) -> dict[str, Tensor]:
        """Values of the sites outside the subset."""
        held = (latent for name, latent in self.latents.items() if name not in self.layout)
        return {latent.name: latent.constrain(self.theta[latent.slice]) for latent in held}

    def _ordered(self, values: Mapping[Any, Tensor]) -> dict[str, Tensor]:
        return {name: values[name] for name in self.latents}

    def __repr__(self) -> str:
        """What it is of."""
        sites = ", ".join(f"{name}: {place.stop - place.start}" for name, place in self.layout.items())
        return (
            f"AutoLaplace({sites}; structure={self.structure!r}, curvature={self.curvature!r}, "
            f"log_evidence={self.log_evidence:.6g})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """The state without the model, which stays with the live guide."""
        return {**self.__dict__, "_model": (None,), "master": None, "plates": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state; plates are made anew."""
        super().__setstate__(state)
        self._create_plates()

    def __deepcopy__(self, memo: dict[int, Any]) -> "AutoLaplace":
        """A copy that shares the model."""
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new._model = self._model
        return new


def _layout(latents: Mapping[str, Latent], index: Tensor) -> dict[str, slice]:
    """Site name to its slice of the ascending coordinates `index`, for the sites that have any."""
    bounds = [latent.slice.start for latent in latents.values()]
    starts = torch.searchsorted(index, torch.tensor([*bounds, torch.iinfo(index.dtype).max], device=index.device))
    slices = dict(zip(latents, map(slice, starts[:-1].tolist(), starts[1:].tolist()), strict=True))
    return {name: place for name, place in slices.items() if place.stop > place.start}
