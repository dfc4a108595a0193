"""The mixture of Gaussians around several modes, as a distribution over theta.

Axis letters: k components, p coordinates of theta.
"""

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_laplace.settings import settings

POINT = "point"
"""The structure of a component without covariance."""


class MixtureDensity(TorchDistribution):
    """``sum_k w_k N(theta_k, Lambda_k^-1)`` over all of theta, event shape [params].

    The coordinates that are not random sit at theta_k. The density is with respect to Lebesgue measure on the random
    coordinates and counting measure on the others: a component counts where these are exactly its own.

    Args:
        components: `AutoLaplace` posteriors with the same random coordinates.
        weights: w_k, which sum to one [components].
        batch_shape: of the distribution.
        join: what makes the density of theta [draws, params] and ``log w_k N_k`` [components, draws]; by default the
            logarithm of their sum.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleMethodOverride]
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    has_rsample = True

    def __init__(self, components: Any, weights: Tensor, batch_shape: Any = (), join: Any = None) -> None:
        self.components: tuple[Any, ...] = tuple(components)
        self.weights, self.join = weights, join
        first = self.components[0]
        self.held = torch.ones_like(first.theta, dtype=torch.bool)
        if first.structure != POINT:
            self.held[first.index] = False
        super().__init__(torch.Size(batch_shape), first.theta.shape, validate_args=False)

    @property
    def modes(self) -> Tensor:
        """theta_k [components, params]."""
        return torch.stack([component.theta for component in self.components])

    @property
    def std(self) -> Tensor:
        """Marginal standard deviations of each component [components, params], 0 where held."""
        stds = torch.zeros_like(self.modes)
        for std, component in zip(stds, self.components, strict=True):
            std[component.index] = component.precision.variance().sqrt().to(std)
        return stds

    @property
    def mean(self) -> Tensor:
        """sum_k w_k theta_k."""
        return self._averaged(self.modes).expand(*self.batch_shape, -1)

    @property
    def variance(self) -> Tensor:
        """``sum_k w_k (s_k^2 + (theta_k - mean)^2)``."""
        deviation = self.modes - self._averaged(self.modes)
        return self._averaged(self.std.square() + deviation.square()).expand(*self.batch_shape, -1)

    @property
    def covariance_matrix(self) -> Tensor:
        """``sum_k w_k (Lambda_k^-1 + (theta_k - mean) (theta_k - mean)')`` [params, params]."""
        away = (self.modes - self._averaged(self.modes)).double()
        total = torch.einsum("k, kp, kq -> pq", self.weights, away, away)
        if not bool(self.held.all()):
            for weight, each in zip(self.weights, self.components, strict=True):
                total[each.index.unsqueeze(-1), each.index] += weight * each.covariance.double()
        return total.to(self.modes)

    def log_terms(self, theta: Tensor) -> Tensor:
        """``log w_k N_k`` of the random coordinates of theta `[*batch, params]`, `[*batch, components]`."""
        log_normal = torch.stack([_log_normal(component, theta) for component in self.components], -1)
        return log_normal + self.weights.log().to(log_normal)

    def log_prob(self, value: Tensor) -> Tensor:
        """``log sum_k w_k N_k``, -inf where the held coordinates are those of no component."""
        own = self._distance(value) == 0
        terms = torch.where(own, self.log_terms(value), -math.inf)
        if self.join is None:
            return terms.logsumexp(-1)
        flat, rows = value.reshape(-1, value.shape[-1]), terms.reshape(-1, terms.shape[-1]).mT
        return self.join(flat, rows).reshape(terms.shape[:-1])

    def component_of(self, theta: Tensor) -> Tensor:
        """The component that theta came from, most probably.

        It is the one of largest ``w_k N_k(theta)``, among those whose held coordinates are nearest to theta's.

        Args:
            theta: `[*batch, params]`.

        Returns:
            its number `[*batch]`.
        """
        distance = self._distance(theta)
        nearest = distance == distance.amin(-1, keepdim=True)
        return torch.where(nearest, self.log_terms(theta), -math.inf).argmax(-1)

    def mode_of(self, theta: Tensor) -> Tensor:
        """The mode `[*batch, params]` of `component_of`; by comparison and sum, which `torch.func.vmap` can follow."""
        numbers = torch.arange(len(self.components), device=theta.device)
        chosen = self.component_of(theta.detach()).unsqueeze(-1) == numbers
        return torch.where(chosen.unsqueeze(-1), self.modes, 0.0).sum(-2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws `[*sample_shape, *batch, params]`, which depend on no parameter."""
        shape = torch.Size(sample_shape) + self.batch_shape
        first = self.components[0]
        white = torch.randn(*shape, first.latent_dim, dtype=first.loc.dtype, device=first.loc.device)
        uniform = torch.rand((*shape, 1), dtype=torch.float64, device=white.device)
        chosen = (uniform >= self.weights.cumsum(0)[:-1]).sum(-1, keepdim=True)
        theta = torch.zeros(*shape, len(first.theta), dtype=white.dtype, device=white.device)
        for number, component in enumerate(self.components):
            random: Any = component.get_transform()(white)
            drawn = component.theta.expand(*shape, -1).index_copy(-1, component.index, random)
            theta = torch.where(chosen == number, drawn, theta)
        return theta

    def quantile(self, levels: Tensor) -> Tensor:
        """Marginal quantiles [levels, params], by bisection of the mixture's distribution function.

        Args:
            levels: probabilities [levels].

        Returns:
            the smallest values at which the distribution function reaches the levels.
        """
        modes, std, levels = self.modes.double(), self.std.double(), levels.double()
        z = torch.special.ndtri(levels)[:, None, None]  # levels k p
        ends = modes + torch.where(std > 0, std * z, 0.0)
        low, high = ends.amin(1), ends.amax(1)
        for _ in range(settings.bisections):
            middle = (low + high) / 2
            if bool(((middle == low) | (middle == high) | middle.isnan()).all()):
                break
            below = self._cdf(middle, modes, std) < levels[:, None]
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high.to(self.modes)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MixtureDensity":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Independent copies."""
        return MixtureDensity(self.components, self.weights, batch_shape, self.join)

    def _averaged(self, values: Tensor) -> Tensor:
        """Of values [components, params] by weight [params]."""
        return (self.weights.unsqueeze(-1) * values).sum(0).to(values)

    def _cdf(self, value: Tensor, modes: Tensor, std: Tensor) -> Tensor:
        """At values [levels, params]."""
        deviation = value.unsqueeze(1) - modes
        step = (deviation >= 0).double()
        each = torch.where(std > 0, torch.special.ndtr(deviation / std.clamp(min=torch.finfo(std.dtype).tiny)), step)
        return (self.weights.double()[:, None] * each).sum(1)

    def _distance(self, theta: Tensor) -> Tensor:
        """Of the held coordinates of theta `[*batch, params]` from those of each component, `[*batch, components]`."""
        deviation = theta.unsqueeze(-2) - self.modes
        return torch.where(self.held, deviation, 0.0).abs().sum(-1)


def _log_normal(component: Any, theta: Tensor) -> Tensor:
    """Log density of the random coordinates of theta `[*batch, params]`; 0 for a point, which has none."""
    if component.structure == POINT:
        return theta.new_zeros(theta.shape[:-1])
    random, transform = theta[..., component.index], component.get_transform()
    white: Any = transform.inv(random)
    log_base = -0.5 * (white.square().sum(-1) + component.latent_dim * math.log(2 * math.pi))
    return log_base - transform.log_abs_det_jacobian(white, random)
