"""Naive references, written without `pyro_laplace`: what its numbers are held against.

Letters: n a datum, c a coordinate of its likelihood's parameters, p and q coordinates of theta.
Everything is dense, in plain `torch.func`, and slow.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoLaplaceApproximation, init_to_value
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, biject_to

# --- closed forms -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian posterior and the log evidence of the data that led to it."""

    mean: Tensor
    cov: Tensor
    prec: Tensor
    log_evidence: float


def linear_regression(x: Tensor, y: Tensor, noise: float, prior_std: float | Tensor) -> Gaussian:
    """`y ~ Normal(x w, noise)`, `w ~ Normal(0, prior_std)`: the exact posterior of `w`.

    The evidence is the density of `y ~ Normal(0, noise^2 I + x S x')` with `S = diag(prior_std^2)`, taken in data space
    where N is small and through the matrix determinant lemma and Woodbury's identity where it is not.
    """
    num_obs, num_weights = x.shape
    prior_var = torch.as_tensor(prior_std).expand(num_weights) ** 2
    prec = x.T @ x / noise**2 + torch.diag(1 / prior_var)
    root = torch.linalg.cholesky(prec)
    cov = torch.cholesky_inverse(root)
    mean = torch.cholesky_solve((x.T @ y / noise**2)[:, None], root)[:, 0]
    if num_obs <= 200:
        marginal_cov = noise**2 * torch.eye(num_obs) + x @ torch.diag(prior_var) @ x.T
        log_evidence = torch.distributions.MultivariateNormal(torch.zeros(num_obs), marginal_cov).log_prob(y)
    else:
        logdet = num_obs * math.log(noise**2) + prior_var.log().sum() + torch.logdet(prec)
        residual = y - x @ mean
        quadratic = (residual @ residual) / noise**2 + (mean**2 / prior_var).sum()
        log_evidence = -0.5 * (num_obs * math.log(2 * math.pi) + logdet + quadratic)
    return Gaussian(mean, cov, prec, float(log_evidence))


# --- a program as a function of theta ---------------------------------------------------------


@contextmanager
def unvalidated() -> Iterator[None]:
    """Distributions' value checks branch on data, which `torch.func` cannot."""
    with pyro.validation_enabled(False):
        yield


def init_to_zeros(site: dict) -> Tensor:
    """The site's value at theta = 0, which takes no sample of it: an improper prior has none to give."""
    transform = biject_to(site["fn"].support)
    return transform(torch.zeros(transform.inverse_shape(site["fn"].shape())))


def _is_latent(site: Any) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def _is_likelihood(site: Any) -> bool:
    return site["type"] == "sample" and site["is_observed"] and not site_is_subsample(site)


class FlatProgram:
    """A Pyro program and one batch as functions of flat unconstrained theta, its sites in trace order."""

    def __init__(self, model: Callable, *args, **kwargs):
        self.model, self.args, self.kwargs = model, args, kwargs
        start: Any = poutine.trace(InitMessenger(init_to_zeros)(model)).get_trace(*args, **kwargs)
        self.sites = {name: site for name, site in start.nodes.items() if _is_latent(site)}
        self.shapes = {
            name: biject_to(site["fn"].support).inv(site["value"]).shape for name, site in self.sites.items()
        }

    @property
    def size(self) -> int:
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def layout(self) -> dict[str, slice]:
        stops = torch.tensor([shape.numel() for shape in self.shapes.values()]).cumsum(0).tolist()
        return {name: slice(a, b) for name, a, b in zip(self.shapes, [0, *stops], stops, strict=False)}

    def indices(self, *names: str) -> Tensor:
        """Coordinates of theta that belong to the named sites."""
        layout = self.layout
        return torch.cat([torch.arange(layout[name].start, layout[name].stop) for name in names])

    def constrain(self, theta: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Site values at theta, and the log-Jacobian of the map to them."""
        values, log_det = {}, torch.zeros((), dtype=theta.dtype)
        for name, where in self.layout.items():
            unconstrained = theta[where].reshape(self.shapes[name])
            transform = biject_to(self.sites[name]["fn"].support)
            values[name] = transform(unconstrained)
            log_det = log_det + transform.log_abs_det_jacobian(unconstrained, values[name]).sum()
        return values, log_det

    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """Theta at the site values."""
        parts = [biject_to(site["fn"].support).inv(values[name]) for name, site in self.sites.items()]
        return torch.cat([part.detach().reshape(-1) for part in parts])

    def trace(self, theta: Tensor) -> tuple[poutine.Trace, Tensor]:
        values, log_det = self.constrain(theta)
        conditioned = poutine.condition(self.model, data=values)
        return poutine.trace(conditioned).get_trace(*self.args, **self.kwargs), log_det

    def site(self, theta: Tensor, name: str) -> Any:
        """The named sample statement, with the latent sites at theta."""
        return self.trace(theta)[0].nodes[name]

    def log_joint(self, theta: Tensor, jacobian: bool = True) -> Tensor:
        """Log density of data and theta; without `jacobian`, of data and constrained values, as a function of theta."""
        with unvalidated():
            trace, log_det = self.trace(theta)
            return trace.log_prob_sum() + log_det * jacobian

    def log_prior(self, theta: Tensor, jacobian: bool = True) -> Tensor:
        with unvalidated():
            trace, log_det = self.trace(theta)
            return trace.log_prob_sum(lambda name, site: name in self.shapes) + log_det * jacobian

    def hessian(self, theta: Tensor, jacobian: bool = True) -> Tensor:
        """`-d2 log_joint / dtheta2`."""
        return -torch.func.hessian(lambda t: self.log_joint(t, jacobian))(theta.detach())

    def gradient(self, theta: Tensor, jacobian: bool = True) -> Tensor:
        return torch.func.grad(lambda t: self.log_joint(t, jacobian))(theta.detach())

    def prior_precision(self, theta: Tensor, jacobian: bool = True) -> Tensor:
        return -torch.func.hessian(lambda t: self.log_prior(t, jacobian))(theta.detach())

    def ggn(self, theta: Tensor, jacobian: bool = True) -> Tensor:
        """`sum_n J_n' I_n J_n + H_prior`, one dense Jacobian and one explicit Fisher matrix per observed site."""
        theta = theta.detach()
        with unvalidated():
            nodes = self.trace(theta)[0].nodes.items()
        observed = [name for name, site in nodes if _is_likelihood(site) and name not in self.shapes]
        total = self.prior_precision(theta, jacobian)
        for name in observed:
            total = total + self.likelihood_ggn(theta, name)
        return total

    def likelihood_ggn(self, theta: Tensor, name: str) -> Tensor:
        def parameters(t: Tensor) -> Tensor:
            with unvalidated():
                return likelihood_parameters(self.site(t, name)["fn"])

        with unvalidated():
            site = self.site(theta, name)
        fisher_ncd = fisher_information(site["fn"])
        jac_ncp = torch.func.jacrev(parameters)(theta)
        weight_n = datum_weights(site, len(fisher_ncd))
        return torch.einsum("n,ncp,ncd,ndq->pq", weight_n, jac_ncp, fisher_ncd, jac_ncp)

    def laplace_evidence(self, theta: Tensor, prec: Tensor) -> float:
        """`log p(y, theta) + P/2 log 2 pi - 1/2 logdet prec`."""
        log_joint = self.log_joint(theta)
        return float(log_joint + 0.5 * self.size * math.log(2 * math.pi) - 0.5 * torch.logdet(prec))

    def mode(self, theta: Tensor | None = None, jacobian: bool = True, max_iter: int = 200) -> Tensor:
        """Mode of the density of theta by a Newton method in a trust region: small steps where it is not concave."""
        point = torch.zeros(self.size) if theta is None else theta.detach().clone()
        damping, value = 1e-3, self.log_joint(point, jacobian)
        for _ in range(max_iter):
            eigenvalues, basis = torch.linalg.eigh(self.hessian(point, jacobian))
            gradient = basis.T @ self.gradient(point, jacobian)
            if eigenvalues.min() > 0 and (gradient**2 / eigenvalues).sum() < 1e-20:
                break
            step = basis @ (gradient / (eigenvalues.abs() + damping))
            proposal = self.log_joint(point + step, jacobian)
            if proposal >= value - 1e-9 * value.abs():
                point, value, damping = point + step, proposal, damping / 10
            else:
                damping = max(damping, 1e-6) * 10
        return point


# --- Fisher information, spelled out ----------------------------------------------------------


def _base(fn: Distribution) -> Distribution:
    """The distribution of a single coordinate, wrappers removed."""
    while isinstance(fn, dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def _coordinates(fn: Distribution, *parameters: Tensor) -> list[Tensor]:
    """Parameters as matrices [n, k]: a row a datum (an element of the batch shape), a column an entry of its event."""
    shape = fn.batch_shape + fn.event_shape
    num_obs = fn.batch_shape.numel()
    return [parameter.expand(shape).reshape(num_obs, -1) for parameter in parameters]


def likelihood_parameters(fn: Distribution) -> Tensor:
    """Parameters [n, c]: loc and scale of (Log)Normal; logits of Bernoulli and Categorical; rate of Poisson."""
    base = _base(fn)
    match base:
        case dist.Normal() | dist.LogNormal():
            return torch.cat(_coordinates(fn, base.loc, base.scale), -1)
        case dist.Bernoulli():
            return torch.cat(_coordinates(fn, base.logits), -1)
        case dist.Poisson():
            return torch.cat(_coordinates(fn, base.rate), -1)
        case dist.Categorical():
            return base.logits.reshape(-1, base.logits.shape[-1])
    raise NotImplementedError(type(base).__name__)


def fisher_information(fn: Distribution) -> Tensor:
    """Fisher information [n, c, c] in `likelihood_parameters`."""
    base = _base(fn)
    match base:
        case dist.Normal() | dist.LogNormal():
            (scale,) = _coordinates(fn, base.scale)
            return torch.diag_embed(torch.cat([scale**-2, 2 * scale**-2], -1))
        case dist.Bernoulli():
            (probs,) = _coordinates(fn, base.probs)
            return torch.diag_embed(probs * (1 - probs))
        case dist.Poisson():
            (rate,) = _coordinates(fn, base.rate)
            return torch.diag_embed(1 / rate)
        case dist.Categorical():
            probs = base.probs.reshape(-1, base.probs.shape[-1])
            return torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    raise NotImplementedError(type(base).__name__)


def datum_weights(site: dict, num_obs: int) -> Tensor:
    """What scale and mask multiply each datum's log density by."""
    shape = site["fn"].batch_shape
    weights = torch.as_tensor(site["scale"], dtype=torch.get_default_dtype()).expand(shape)
    masks = [site["mask"]]
    fn = site["fn"]
    while isinstance(fn, dist.Independent | dist.MaskedDistribution):
        masks += [fn._mask] if isinstance(fn, dist.MaskedDistribution) else []
        fn = fn.base_dist
    for mask in masks:
        weights = weights if mask is None else weights * torch.as_tensor(mask).expand(shape)
    return weights.reshape(num_obs)


# --- Pyro's own -------------------------------------------------------------------------------


def pyro_laplace_at(model: Callable, values: dict[str, Tensor], *args, **kwargs) -> tuple[Tensor, Tensor]:
    """Mean and covariance of Pyro's `AutoLaplaceApproximation`, put at `values`."""
    with pyro.settings.context(module_local_params=True):
        guide = AutoLaplaceApproximation(model, init_loc_fn=init_to_value(values=values))
        guide(*args, **kwargs)
        gaussian: Any = guide.laplace_approximation(*args, **kwargs)
    scale_tril = gaussian.scale[:, None] * gaussian.scale_tril
    return gaussian.loc, scale_tril @ scale_tril.T
