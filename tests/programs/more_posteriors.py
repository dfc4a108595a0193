"""Programs in the manner of further posteriordb posteriors, on simulated data, with exact moments."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from oracles.posteriors import Moments, Posterior, log_normal_density, moments_of_regression, moments_on_grid
from programs.posteriordb import POSITIVE, REAL, flat, flat_flat
from pyro.distributions import constraints
from pyro.infer import config_enumerate


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# --- regressions in the units of their data -----------------------------------------------------------


def income_in_dollars() -> tuple[np.ndarray, np.ndarray]:
    """As earn_height: incomes of tens of thousands on heights in inches."""
    random = rng()
    height = random.normal(66.6, 3.8, 600)
    return np.stack([np.ones(600), height], 1), 1300 * height - 64_000 + random.normal(0, 19_000, 600)


def cubic() -> tuple[np.ndarray, np.ndarray]:
    """A score on IQ, its square and its cube, none of them centred: columns from 1 to a million."""
    random = rng()
    iq = random.normal(100, 15, 600)
    return np.stack([iq**k for k in range(4)], 1), 26 + 0.6 * iq + random.normal(0, 18, 600)


def warming() -> tuple[np.ndarray, np.ndarray]:
    """As kilpisjarvi: summer temperatures on the year."""
    year = np.arange(1952.0, 2014.0)
    return np.stack([np.ones_like(year), year], 1), 9.3 + 0.017 * (year - 1982) + rng().normal(0, 1.1, 62)


def two_sites(year, y):
    """Intercept and slope as sites of their own, whose correlation is -0.99999."""
    alpha = pyro.sample("alpha", dist.Normal(9.3, 100.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 0.0333))
    sigma = pyro.sample("sigma", flat(POSITIVE))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(alpha + beta * year, sigma), obs=y)


def moments_of_warming() -> Moments:
    exact = moments_of_regression(*warming(), lambda sigma: 0.0, np.array([9.3, 0.0]), np.array([100.0, 0.0333]))
    (alpha, beta), (alpha_std, beta_std) = exact["beta"]
    return {"alpha": (alpha, alpha_std), "beta": (beta, beta_std), "sigma": exact["sigma"]}


def many_columns() -> tuple[np.ndarray, np.ndarray]:
    """As diamonds: 24 correlated predictors, of scales that differ by orders of magnitude."""
    random = rng()
    factors = random.normal(size=(4000, 3)) @ random.normal(size=(3, 24))
    x = (factors + 0.3 * random.normal(size=(4000, 24))) * np.exp(random.normal(size=24))
    return x - x.mean(0), x @ random.normal(0, 0.1, 24) + 8 + random.normal(0, 0.13, 4000)


def half_student(x, y):
    """Half a Student's t, which Pyro has as a folded distribution."""
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    intercept = pyro.sample("intercept", dist.Normal(8.0, 10.0))
    sigma = pyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + x @ beta, sigma), obs=y)


def moments_of_half_student() -> Moments:
    x, y = many_columns()
    mean, std = np.array([*np.zeros(24), 8.0]), np.array([*np.ones(24), 10.0])
    full = np.concatenate([x, np.ones((len(y), 1))], 1)
    exact = moments_of_regression(full, y, lambda sigma: -2 * np.log1p(sigma**2 / 300), mean, std)
    (beta, beta_std), sigma = exact["beta"], exact["sigma"]
    return {"beta": (beta[:-1], beta_std[:-1]), "intercept": (beta[-1], beta_std[-1]), "sigma": sigma}


# --- learning dogs, and animals caught and caught again -----------------------------------------------


def learning() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As dogs_hierarchical: shocked or not, and how often each dog was shocked and avoided it before, [30, 24]."""
    random, shocked = rng(), np.zeros((30, 25))
    for t in range(25):
        shocks = shocked[:, :t].sum(1)
        shocked[:, t] = random.random(30) < 0.92**shocks * 0.79 ** (t - shocks)
    shocks = np.cumsum(shocked, 1)[:, :-1]
    return shocked[:, 1:], shocks, np.arange(1, 25) - shocks


def power_law(shocked, shocks, avoided):
    """Probabilities that are products of powers, in no generalised linear model's link."""
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(0.0, 1.0))
    with pyro.plate("dogs", 30, dim=-2), pyro.plate("trials", 24, dim=-1):
        pyro.sample("y", dist.Bernoulli(a**shocks * b**avoided), obs=shocked)


def moments_of_power_law() -> Moments:
    shocked, shocks, avoided = (item.ravel() for item in learning())

    def log_density(a, b):
        log_p = np.outer(np.log(a), shocks) + np.outer(np.log(b), avoided)
        return (shocked * log_p + (1 - shocked) * np.log1p(-np.exp(np.minimum(log_p, -1e-12)))).sum(1)

    return moments_on_grid(log_density, {"a": (0.75, 0.999, 60), "b": (0.65, 0.9, 60)})


def captures() -> tuple[np.ndarray]:
    """As M0: how often each of 240 possible animals was caught on three occasions; most do not exist."""
    random = rng()
    return (random.binomial(3, 0.5, 240) * (random.random(240) < 0.42),)


@config_enumerate
def capture_recapture(caught):
    omega = pyro.sample("omega", dist.Uniform(0.0, 1.0))
    p = pyro.sample("p", dist.Uniform(0.0, 1.0))
    with pyro.plate("animals", len(caught)):
        exists = pyro.sample("exists", dist.Bernoulli(omega))
        pyro.sample("caught", dist.Binomial(3, p * exists), obs=caught)


def moments_of_capture_recapture() -> Moments:
    counts = np.bincount(captures()[0], minlength=4)

    def log_density(omega, p):
        seen = sum(counts[k] * np.log(omega * p**k * (1 - p) ** (3 - k)) for k in (1, 2, 3))
        return seen + counts[0] * np.log(omega * (1 - p) ** 3 + 1 - omega)

    return moments_on_grid(log_density, {"omega": (0.2, 0.7, 80), "p": (0.3, 0.7, 80)})


# --- time series --------------------------------------------------------------------------------------


def arma_series() -> tuple[np.ndarray]:
    random, y, error = rng(), [0.0], 0.0
    for _ in range(120):
        new = random.normal(0, 0.2)
        y.append(0.1 + 0.8 * y[-1] + 0.3 * error + new)
        error = new
    return (np.array(y[1:]),)


def arma(y):
    """The mean of each datum is a polynomial of phi and theta of high degree."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    means = [mu + phi * mu]
    for t in range(1, len(y)):
        means.append(mu + phi * y[t - 1] + theta * (y[t - 1] - means[-1]))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(torch.stack(means), sigma), obs=y)


def arma_by_errors(y):
    """The same density as Stan's program has it: `err ~ normal(0, sigma)` of errors that depend on the latent sites."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    errors = [y[0] - mu - phi * mu]
    for t in range(1, len(y)):
        errors.append(y[t] - mu - phi * y[t - 1] - theta * errors[-1])
    pyro.sample("errors", dist.Normal(0.0, sigma).expand([len(y)]).to_event(1), obs=torch.stack(errors))


def moments_of_arma() -> Moments:
    (y,) = arma_series()

    def log_density(mu, phi, theta, sigma):
        error = y[0] - mu - phi * mu
        squares = error**2
        for t in range(1, len(y)):
            error = y[t] - mu - phi * y[t - 1] - theta * error
            squares += error**2
        log_prior = log_normal_density(mu, 10.0) + log_normal_density(phi, 2.0) + log_normal_density(theta, 2.0)
        return log_prior - np.log1p((sigma / 2.5) ** 2) - len(y) * np.log(sigma) - 0.5 * squares / sigma**2

    axes = {"mu": (-0.05, 0.25, 20), "phi": (0.45, 1.1, 20), "theta": (-0.3, 0.9, 20), "sigma": (0.14, 0.29, 20)}
    return moments_on_grid(log_density, axes)


def garch_series() -> tuple[np.ndarray]:
    random, y, variance = rng(), [5.0], 1.0
    for _ in range(200):
        variance = 1.5 + 0.55 * (y[-1] - 5) ** 2 + 0.2 * variance
        y.append(5 + random.normal(0, math.sqrt(variance)))
    return (np.array(y[1:]),)


def garch(y):
    """``beta1 ~ Uniform(0, 1 - alpha1)``, as the package asks for a support that moves: a fraction of it."""
    mu = pyro.sample("mu", flat(REAL))
    alpha0 = pyro.sample("alpha0", flat(POSITIVE))
    alpha1 = pyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    fraction = pyro.sample("fraction", dist.Uniform(0.0, 1.0))
    beta1 = pyro.deterministic("beta1", fraction * (1 - alpha1))
    variances = [torch.ones_like(y[0])]
    for t in range(1, len(y)):
        variances.append(alpha0 + alpha1 * (y[t - 1] - mu) ** 2 + beta1 * variances[-1])
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.stack(variances).sqrt()), obs=y)


def moments_of_garch() -> Moments:
    (y,) = garch_series()

    def log_density(mu, alpha0, alpha1, fraction):
        variance = np.ones_like(mu)
        total = log_normal_density(y[0] - mu, 1.0)
        for t in range(1, len(y)):
            variance = alpha0 + alpha1 * (y[t - 1] - mu) ** 2 + fraction * (1 - alpha1) * variance
            total += log_normal_density(y[t] - mu, np.sqrt(variance))
        return total

    axes = {"mu": (4.4, 5.8, 16), "alpha0": (0.0, 8.0, 24), "alpha1": (0.0, 1.0, 22), "fraction": (0.0, 1.0, 22)}
    return moments_on_grid(log_density, axes, bounded=("alpha1", "fraction"))


def states() -> tuple[np.ndarray]:
    """As hmm_example: two states, seen with noise."""
    random, state, y = rng(), 0, []
    for _ in range(60):
        y.append(random.normal((3.0, 9.0)[state], 1.0))
        state = int(random.random() < (0.3, 0.8)[state])
    return (np.array(y),)


def hidden_markov(y):
    """The forward algorithm by hand, means in order above zero. Of the rows of the transition matrix, P(stay)."""
    stay = pyro.sample("stay", dist.Beta(1.0, 1.0).expand([2]).to_event(1))
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,)))
    pyro.factor("prior of mu", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum())
    first, second = stay.unbind()
    log_transition = torch.stack([first, 1 - first, 1 - second, second]).reshape(2, 2).log()
    log_lik = dist.Normal(mu, 1.0).log_prob(y.unsqueeze(-1))
    log_joint = log_lik[0]
    for t in range(1, len(y)):
        log_joint = torch.logsumexp(log_joint.unsqueeze(-1) + log_transition, 0) + log_lik[t]
    pyro.factor("forward", torch.logsumexp(log_joint, 0))


def moments_of_hidden_markov() -> Moments:
    (y,) = states()

    def log_density(stay1, stay2, mu1, mu2):
        low, high = (np.exp(log_normal_density(y[:, None] - mu, 1.0)) for mu in (mu1, mu2))
        one, two, total = low[0], high[0], 0.0
        for t in range(1, len(y)):
            one, two = (one * stay1 + two * (1 - stay2)) * low[t], (one * (1 - stay1) + two * stay2) * high[t]
            size = one + two
            one, two, total = one / size, two / size, total + np.log(size)
        return total + np.log(one + two) + log_normal_density(mu1 - 3, 1.0) + log_normal_density(mu2 - 10, 1.0)

    axes = {"stay1": (0.3, 1.0, 14), "stay2": (0.3, 1.0, 14), "mu1": (2.1, 3.9, 12), "mu2": (8.1, 9.9, 12)}
    exact = moments_on_grid(log_density, axes)
    pairs = {"stay": ("stay1", "stay2"), "mu": ("mu1", "mu2")}
    return {name: tuple(np.array([exact[k][i] for k in keys]) for i in (0, 1)) for name, keys in pairs.items()}


# --- predators and prey -------------------------------------------------------------------------------


def lynxes_and_hares() -> tuple[np.ndarray]:
    """Pelts in thousands, hares and lynxes, 1900 to 1920 (hudson_lynx_hare), [21, 2]."""
    hares = [30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1]
    hares += [40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7]
    lynxes = [4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4]
    lynxes += [8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6]
    return (np.stack([hares, lynxes], 1),)


def lotka_volterra(y):
    """A differential equation by Runge-Kutta, two steps a year; it has modes that miss the period."""
    loc, scale = torch.tensor([1.0, 0.05, 1.0, 0.05]), torch.tensor([0.5, 0.05, 0.5, 0.05])
    theta = pyro.sample("theta", dist.FoldedDistribution(dist.Normal(loc, scale)).to_event(1))
    z = pyro.sample("z_init", dist.LogNormal(math.log(10.0), 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))

    def slope(z):
        return torch.stack([(theta[0] - theta[1] * z[1]) * z[0], (theta[3] * z[0] - theta[2]) * z[1]])

    years, step = [z], 0.5
    for _ in range(len(y) - 1):
        for _ in range(2):
            k1 = slope(z)
            k2 = slope(z + step / 2 * k1)
            k3 = slope(z + step / 2 * k2)
            z = z + step / 6 * (k1 + 2 * k2 + 2 * k3 + slope(z + step * k3))
        years.append(z)
    with pyro.plate("years", len(y)):
        pyro.sample("y", dist.LogNormal(torch.stack(years).log(), sigma).to_event(1), obs=y)


def moments_of_lotka_volterra() -> Moments:
    """Stan's (Carpenter 2018, "Predator-prey population dynamics: the Lotka-Volterra model in Stan")."""
    return {
        "theta": (np.array([0.55, 0.028, 0.80, 0.024]), np.array([0.064, 0.0043, 0.092, 0.0036])),
        "z_init": (np.array([33.96, 5.95]), np.array([2.9, 0.53])),
        "sigma": (np.array([0.25, 0.25]), np.array([0.044, 0.044])),
    }


# --- a Gaussian process, whose data are one draw ------------------------------------------------------


def curve() -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(-10.0, 10.0, 11)
    return x, 3 * np.sin(x / 4) + rng().normal(0, 1.2, 11)


def gaussian_process(x, y):
    """The noise enters the covariance as a variance, as in gp_regr."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    kernel = alpha**2 * torch.exp(-0.5 * ((x[:, None] - x) / rho) ** 2) + sigma * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), kernel), obs=y)


def moments_of_gaussian_process() -> Moments:
    x, y = curve()
    squares = (x[:, None] - x) ** 2

    def log_density(rho, alpha, sigma):
        kernel = alpha[:, None, None] ** 2 * np.exp(-0.5 * squares / rho[:, None, None] ** 2)
        kernel += sigma[:, None, None] * np.eye(len(x))
        weighted = np.linalg.solve(kernel, np.broadcast_to(y[:, None], (len(rho), len(y), 1)))[..., 0]
        log_lik = -0.5 * (np.linalg.slogdet(kernel)[1] + weighted @ y)
        return log_lik + 24 * np.log(rho) - 4 * rho - alpha**2 / 8 - sigma**2 / 2

    axes = {"rho": (1.5, 13.0, 24), "alpha": (0.0, 8.5, 24), "sigma": (0.0, 4.5, 24)}
    return moments_on_grid(log_density, axes, bounded=("alpha", "sigma"))


# --- modes on the border of the support ----------------------------------------------------------------


def rate(successes, num_trials):
    theta = pyro.sample("theta", dist.Beta(1.0, 1.0))
    pyro.sample("successes", dist.Binomial(num_trials, theta), obs=successes)


def moments_of_rate() -> Moments:
    """Beta(1, 11)."""
    return {"theta": (np.array(1 / 12), np.array(math.sqrt(11 / 13) / 12))}


def precision_of_bugs(y):
    """The vague Gamma of BUGS: its draws are zero to floating point."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1000.0))
    tau = pyro.sample("tau", dist.Gamma(1e-3, 1e-3))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, tau**-0.5), obs=y)


def measurements() -> tuple[np.ndarray]:
    return (rng().normal(7.0, 3.0, 40),)


def moments_of_precision() -> Moments:
    (y,) = measurements()

    def log_density(mu, tau):
        squares = ((y[:, None] - mu) ** 2).sum(0)
        return (len(y) / 2 + 1e-3 - 1) * np.log(tau) - tau * (0.5 * squares + 1e-3) - 0.5 * (mu / 1000) ** 2

    return moments_on_grid(log_density, {"mu": (3.5, 11.0, 60), "tau": (0.01, 0.4, 60)})


POSTERIORS = {
    "income in dollars": Posterior(
        flat_flat, income_in_dollars(), lambda: moments_of_regression(*income_in_dollars(), lambda _: 0.0), 0.22, 0.035
    ),
    "cubic": Posterior(flat_flat, cubic(), lambda: moments_of_regression(*cubic(), lambda _: 0.0), 0.22, 0.035),
    "warming": Posterior(two_sites, (warming()[0][:, 1], warming()[1]), moments_of_warming, 0.43, 0.085),
    "half Student": Posterior(half_student, many_columns(), moments_of_half_student, 0.43, 0.035),
    "power law": Posterior(power_law, learning(), moments_of_power_law, 0.22, 0.06),
    "capture-recapture": Posterior(capture_recapture, captures(), moments_of_capture_recapture, 0.22, 0.06),
    "ARMA": Posterior(arma, arma_series(), moments_of_arma, 0.43, 0.055),
    "ARMA by errors": Posterior(arma_by_errors, arma_series(), moments_of_arma, 0.43, 0.055),
    "GARCH": Posterior(garch, garch_series(), moments_of_garch, 0.5, 0.3),
    "hidden Markov": Posterior(hidden_markov, states(), moments_of_hidden_markov, 0.43, 0.12),
    "Lotka-Volterra": Posterior(
        lotka_volterra, lynxes_and_hares(), moments_of_lotka_volterra, 0.7, 0.3, curvature="hessian"
    ),
    "Gaussian process": Posterior(gaussian_process, curve(), moments_of_gaussian_process, 0.43, 0.2),
    "no success": Posterior(rate, (np.array(0.0), 10), moments_of_rate, 0.5, 0.36),
    "precision of BUGS": Posterior(precision_of_bugs, measurements(), moments_of_precision, 0.3, 0.07),
}
