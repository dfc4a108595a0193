"""Ten posteriors of stan-dev/posteriordb as a user would write them in Pyro.

Each entry names its program, turns the file's `data` into the program's arguments, and turns posterior draws into the
reference's parameters (`beta[1]`, `f[3]`, ...), transformed ones included.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

FOLDER = Path(__file__).parents[3] / "shared" / "posteriordb"

Draws = dict[str, Tensor]
REAL, POSITIVE = constraints.real, constraints.positive


@dataclass(frozen=True)
class Posterior:
    """A program, its arguments from a posteriordb file, and the reference's parameters from its draws."""

    model: Callable
    arguments: Callable[[dict], tuple]
    parameters: Callable[..., Draws] | None = None
    """`(draws, *arguments) -> {reference name without its index: [draws, ...]}`; by default the sites themselves."""

    def named_draws(self, draws: Draws, arguments: tuple) -> Draws:
        """`{reference name: [draws]}`."""
        quantities = draws if self.parameters is None else self.parameters(draws, *arguments)
        return {
            name if value.ndim == 1 else f"{name}[{i + 1}]": column
            for name, value in quantities.items()
            for i, column in enumerate(value.reshape(len(value), -1).unbind(-1))
        }


def load(name: str) -> dict:
    """The file's content: `data` and `reference`."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def tensor(values: list) -> Tensor:
    """Data as a tensor of the default dtype."""
    return torch.tensor(values, dtype=torch.get_default_dtype())


def flat(support: constraints.Constraint, *shape: int) -> TorchDistributionMixin:
    """An improper uniform prior over one value of this shape."""
    if shape and support.event_dim == 0:
        support = constraints.independent(support, len(shape))
    return dist.ImproperUniform(support, torch.Size(), torch.Size(shape))


# --- regressions: y ~ Normal(X beta, sigma), which differ in their priors only ----------------------


def regression(x: Tensor, y: Tensor, beta_prior: TorchDistributionMixin, sigma_prior: TorchDistributionMixin) -> None:
    beta = pyro.sample("beta", beta_prior)
    sigma = pyro.sample("sigma", sigma_prior)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def flat_flat(x: Tensor, y: Tensor) -> None:
    regression(x, y, flat(REAL, x.shape[1]), flat(POSITIVE))


def flat_cauchy(x: Tensor, y: Tensor) -> None:
    regression(x, y, flat(REAL, x.shape[1]), dist.HalfCauchy(2.5))


def normal_normal(x: Tensor, y: Tensor) -> None:
    regression(x, y, dist.Normal(0.0, 10.0).expand_by([x.shape[1]]).to_event(1), dist.HalfNormal(10.0))


def design(*columns: Tensor) -> Tensor:
    """Columns beside an intercept."""
    return torch.stack([torch.ones_like(columns[0]), *columns], -1)


def kidscore_momiq(data: dict) -> tuple:
    return design(tensor(data["mom_iq"])), tensor(data["kid_score"])


def kidscore_interaction(data: dict) -> tuple:
    hs, iq = tensor(data["mom_hs"]), tensor(data["mom_iq"])
    return design(hs, iq, hs * iq), tensor(data["kid_score"])


def logearn_height(data: dict) -> tuple:
    return design(tensor(data["height"])), tensor(data["earn"]).log()


def logmesquite(data: dict) -> tuple:
    logs = [tensor(data[k]).log() for k in ("diam1", "diam2", "canopy_height", "total_height", "density")]
    return design(*logs, tensor(data["group"])), tensor(data["weight"]).log()


def nes(data: dict) -> tuple:
    age = tensor(data["age_discrete"])
    columns = [tensor(data["real_ideo"]), tensor(data["race_adj"])]
    columns += [(age == level).to(age.dtype) for level in (2, 3, 4)]
    columns += [tensor(data[k]) for k in ("educ1", "gender", "income")]
    return design(*columns), tensor(data["partyid7"])


def blr(data: dict) -> tuple:
    return tensor(data["X"]), tensor(data["y"])


# --- the others ---------------------------------------------------------------------------------


def autoregression(lags: Tensor, y: Tensor) -> None:
    """`y[t]` given its K predecessors, `lags[t, k] = y[t - k]`."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand_by([lags.shape[1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def ark(data: dict) -> tuple:
    y, order = tensor(data["y"]), data["K"]
    lags = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], -1)
    return lags, y[order:]


def eight_schools(sigma: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * theta_trans, sigma), obs=y)


def eight_schools_data(data: dict) -> tuple:
    return tensor(data["sigma"]), tensor(data["y"])


def eight_schools_parameters(draws: Draws, *_: Tensor) -> Draws:
    mu, tau = draws["mu"], draws["tau"]
    return {"theta": mu[:, None] + tau[:, None] * draws["theta_trans"], "mu": mu, "tau": tau}


def gp_cholesky(rho: Tensor, alpha: Tensor, x: Tensor) -> Tensor:
    """`chol(alpha^2 exp(-(x - x')^2 / 2 rho^2) + 1e-10 I)`, batched over draws of rho and alpha.

    The kernel is singular to single precision, which needs a larger jitter, and one that grows with the kernel.
    """
    rho, alpha = rho[..., None, None], alpha[..., None, None]
    kernel = alpha**2 * torch.exp(-0.5 * ((x[:, None] - x[None, :]) / rho) ** 2)
    jitter = 1e-10 if x.dtype == torch.float64 else 1e-5 * alpha**2
    return torch.linalg.cholesky(kernel + jitter * torch.eye(len(x), dtype=x.dtype))


def gp_poisson(x: Tensor, k: Tensor) -> None:
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    f_tilde = pyro.sample("f_tilde", dist.Normal(0.0, 1.0).expand_by([len(x)]).to_event(1))
    f = gp_cholesky(rho, alpha, x) @ f_tilde
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Poisson(f.exp()), obs=k)


def gp_data(data: dict) -> tuple:
    return tensor(data["x"]), tensor(data["k"])


def gp_parameters(draws: Draws, x: Tensor, _: Tensor) -> Draws:
    rho, alpha, f_tilde = draws["rho"], draws["alpha"], draws["f_tilde"]
    return {"rho": rho, "alpha": alpha, "f": (gp_cholesky(rho, alpha, x) @ f_tilde[..., None])[..., 0]}


def gaussian_mixture(y: Tensor) -> None:
    """Normal priors on means that are ordered: a flat prior over the ordered pairs times their Normal density."""
    mu = pyro.sample("mu", flat(constraints.ordered_vector, 2))
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = torch.stack([theta, 1 - theta], -1)
    with pyro.plate("data", len(y)):
        mixture = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(mu, sigma))
        pyro.sample("y", mixture, obs=y)


def mixture_data(data: dict) -> tuple:
    return (tensor(data["y"]),)


POSTERIORS = {
    "kidiq-kidscore_momiq": Posterior(flat_cauchy, kidscore_momiq),
    "kidiq-kidscore_interaction": Posterior(flat_cauchy, kidscore_interaction),
    "earnings-logearn_height": Posterior(flat_flat, logearn_height),
    "mesquite-logmesquite": Posterior(flat_flat, logmesquite),
    "nes1972-nes": Posterior(flat_flat, nes),
    "sblri-blr": Posterior(normal_normal, blr),
    "arK-arK": Posterior(autoregression, ark),
    "eight_schools-eight_schools_noncentered": Posterior(eight_schools, eight_schools_data, eight_schools_parameters),
    "gp_pois_regr-gp_pois_regr": Posterior(gp_poisson, gp_data, gp_parameters),
    "low_dim_gauss_mix-low_dim_gauss_mix": Posterior(gaussian_mixture, mixture_data),
}
