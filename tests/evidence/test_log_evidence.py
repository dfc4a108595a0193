"""`log_evidence` against closed forms, dense oracles, laplace-torch and finite differences of itself."""

import copy
import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from held import along, differences, gradients, put, put_all, store_values
from oracles.naive import FlatProgram, init_to_zeros
from programs.zoo import generator
from pyro.distributions import constraints
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor, nn
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")


def positive(name: str, value: float | list[float]) -> Tensor:
    return pyro.param(name, torch.tensor(value), constraint=constraints.positive)


def make_params(model: Callable, *data: Tensor) -> list[str]:
    """One run of the program puts its params into the store."""
    with torch.no_grad():
        InitMessenger(init_to_zeros)(model)(*data)
    return list(pyro.get_param_store().keys())


# --- linear-Gaussian programs: the marginal likelihood is a Gaussian ---------------------------------

GROUP = [0, 0, 1]


def grouped(x: Tensor, y: Tensor | None = None) -> None:
    """A prior std for each of two groups of coefficients and for a second site, a prior mean, and a noise."""
    std, mean = positive("std", [0.7, 1.4]), pyro.param("mean", torch.tensor(0.3))
    w = pyro.sample("w", dist.Normal(mean, std[GROUP]).to_event(1))
    v = pyro.sample("v", dist.Normal(torch.zeros(2), positive("other", 0.5)).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x[:, :3] @ w + x[:, 3:] @ v, positive("noise", 0.6)), obs=y)


def regression(num_obs: int, num_weights: int = 5) -> tuple[Tensor, Tensor]:
    g = generator()
    x = torch.randn(num_obs, num_weights, generator=g)
    return x, x @ torch.randn(num_weights, generator=g) + 0.5 * torch.randn(num_obs, generator=g)


def marginal_likelihood(x: Tensor, y: Tensor) -> Tensor:
    """``log N(y; X m, noise^2 I + X S X')`` of `grouped`, with its graph to the store."""
    std, other, mean, noise = (pyro.param(name) for name in ("std", "other", "mean", "noise"))
    prior_std = torch.cat([std[GROUP], other.expand(2)])
    loc = x[:, :3].sum(1) * mean
    cov = noise**2 * torch.eye(len(x)) + x @ torch.diag(prior_std**2) @ x.T
    return torch.distributions.MultivariateNormal(loc, cov).log_prob(y)


STRUCTURES = {
    "full": "full", "diag": "diag", "kron": "kron", "block": "block", "low rank": pl.LowRank(3),
    "mapping": {"w": "diag", "*": "full"},
}  # fmt: skip


@pytest.mark.parametrize("num_obs", [3, 30], ids=["dual", "primal"])
def test_equals_the_marginal_likelihood(num_obs):
    data = regression(num_obs)
    names = make_params(grouped, *data)
    guide = pl.fit_laplace(grouped, data, {"w": torch.zeros(3), "v": torch.zeros(2)}, progress=False)
    found = pl.log_evidence(grouped, guide, data, progress=False)
    exact = marginal_likelihood(*data)
    assert_close(found.value, exact, rtol=1e-8, atol=1e-8)
    assert found.value.item() == pytest.approx(guide.log_evidence, rel=1e-12)
    expected = gradients(exact, names)
    assert_close(gradients(found.value, names), expected, rtol=1e-8, atol=1e-8)
    assert sorted(names) == ["mean", "noise", "other", "std"]


def test_in_batches():
    x, y = regression(30)
    names = make_params(grouped, x, y)
    batches = [(x[i : i + 7], y[i : i + 7]) for i in range(0, 30, 7)]
    guide = pl.fit_laplace(grouped, batches, {"w": torch.zeros(3), "v": torch.zeros(2)}, progress=False)
    found = pl.log_evidence(grouped, guide, batches, progress=False)
    exact = marginal_likelihood(x, y)
    assert_close(found.value, exact, rtol=1e-8, atol=1e-8)
    assert_close(gradients(found.value, names), gradients(exact, names), rtol=1e-8, atol=1e-8)


def test_the_values_are_those_of_the_store():
    """The guide stays what it was; theta is held, so that elsewhere this is a lower value than the exact one."""
    data = regression(30)
    make_params(grouped, *data)
    guide = pl.fit_laplace(grouped, data, {"w": torch.zeros(3), "v": torch.zeros(2)}, progress=False)
    before = guide.log_evidence, guide.theta.clone(), {n: v.clone() for n, v in guide.hyperparameters.items()}
    put(std=[0.4, 2.0], noise=0.9, mean=-0.2)
    found = pl.log_evidence(grouped, guide, data, progress=False)
    flat = FlatProgram(grouped, *data)
    with torch.no_grad():
        dense = flat.laplace_evidence(guide.theta, flat.ggn(guide.theta))
    assert found.value.item() == pytest.approx(dense, rel=1e-10)
    assert found.value.item() < marginal_likelihood(*data).item()
    assert {n: v.tolist() for n, v in found.hyperparameters.items()} == {
        n: v.tolist() for n, v in store_values().items()
    }
    assert (guide.log_evidence, *guide.theta) == (before[0], *before[1])
    assert all(torch.equal(guide.hyperparameters[n], v) for n, v in before[2].items())


def test_the_terms_add_up():
    data = regression(30)
    make_params(grouped, *data)
    guide = pl.fit_laplace(grouped, data, {"w": torch.zeros(3), "v": torch.zeros(2)}, progress=False)
    put(std=[0.4, 2.0], noise=0.9)
    found = pl.log_evidence(grouped, guide, data, progress=False)
    flat, theta = FlatProgram(grouped, *data), guide.theta
    prec, prior = flat.ggn(theta), flat.prior_precision(theta)
    assert_close(found.value, found.log_lik + found.log_prior + found.log_volume, rtol=1e-14, atol=1e-12)
    assert_close(found.log_prior, flat.log_prior(theta), rtol=1e-10, atol=1e-10)
    assert_close(found.log_lik, flat.log_joint(theta) - flat.log_prior(theta), rtol=1e-10, atol=1e-10)
    assert_close(found.log_volume, 2.5 * torch.tensor(2 * math.pi).log() - torch.logdet(prec) / 2, rtol=1e-10, atol=0)
    assert_close(found.log_det_ratio, torch.linalg.slogdet(prec)[1] - torch.linalg.slogdet(prior)[1], rtol=1e-8, atol=0)
    deviation = theta - torch.tensor([0.3, 0.3, 0.3, 0.0, 0.0])
    scatter = deviation @ prior @ deviation
    assert_close(found.value, found.log_lik - scatter / 2 - found.log_det_ratio / 2, rtol=1e-10, atol=1e-10)
    for each in (found.value, found.log_lik, found.log_prior, found.log_volume, found.log_det_ratio):
        assert each.shape == ()


# --- how many parameters the data determine -----------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_effective_parameters(structure):
    data = regression(30)
    make_params(grouped, *data)
    point = {"w": torch.zeros(3), "v": torch.zeros(2)}
    guide = pl.fit_laplace(grouped, data, point, structure=structure, progress=False)
    put(std=[0.1, 2.0], noise=1.5)
    found = pl.log_evidence(grouped, guide, data, progress=False)
    lam = pl.fit_laplace(grouped, data, guide.median(), structure=structure, polish=False, on_not_a_mode="ignore")
    prec = lam.precision.to_dense()
    prior = torch.diag(torch.tensor([0.1, 0.1, 2.0, 0.5, 0.5]) ** -2)
    counts = torch.diagonal(torch.linalg.solve(prec, prec - prior))
    assert found.effective_dim == pytest.approx(float(counts.sum()), rel=1e-8)
    by_site = {"w": float(counts[:3].sum()), "v": float(counts[3:].sum())}
    assert found.effective_dim_by_site == pytest.approx(by_site, rel=1e-8)
    assert 0 < found.effective_dim < found.num_params == 5
    assert_close(found.log_det_ratio, torch.logdet(prec) - torch.logdet(prior), rtol=1e-8, atol=1e-8)


def test_a_prior_that_is_not_diagonal():
    """Effective parameters and the ratio of determinants of a Gaussian process."""
    inputs = torch.linspace(0, 1, 6)

    def model(y=None):
        cov = kernel(inputs, positive("length", 0.4), positive("height", 1.0))
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(6), cov))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(f, positive("noise", 0.5)), obs=y)

    y = torch.sin(5 * inputs)
    names = make_params(model, y)
    guide = pl.fit_laplace(model, y, {"f": torch.zeros(6)}, progress=False)
    found = pl.log_evidence(model, guide, y, progress=False)
    cov = kernel(inputs, *(pyro.param(name) for name in ("length", "height")))
    noise = pyro.param("noise")
    exact = torch.distributions.MultivariateNormal(torch.zeros(6), cov + noise**2 * torch.eye(6)).log_prob(y)
    assert_close(found.value, exact, rtol=1e-8, atol=1e-8)
    assert_close(gradients(found.value, names), gradients(exact, names), rtol=1e-7, atol=1e-7)
    prior = torch.linalg.inv(cov.detach())
    data_part = torch.eye(6) / noise.detach() ** 2
    expected = torch.linalg.solve(prior + data_part, data_part).trace()
    assert found.effective_dim == pytest.approx(float(expected), rel=1e-7)
    assert_close(found.log_det_ratio, torch.logdet(prior + data_part) - torch.logdet(prior), rtol=1e-8, atol=1e-8)


def kernel(x: Tensor, length: Tensor, height: Tensor) -> Tensor:
    return height**2 * torch.exp(-((x[:, None] - x) ** 2) / (2 * length**2)) + 1e-4 * torch.eye(len(x))


def test_a_flat_prior_has_no_volume():
    def model(x, y=None):
        b = pyro.sample("b", dist.ImproperUniform(constraints.real, (), ()))
        w = pyro.sample("w", dist.Normal(torch.zeros(2), positive("std", 0.6)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w + b, positive("noise", 0.5)), obs=y)

    data = regression(20, 2)
    names = make_params(model, *data)
    guide = pl.fit_laplace(model, data, {"b": torch.tensor(0.0), "w": torch.zeros(2)}, progress=False)
    with pytest.warns(pl.LaplaceWarning, match=r"'b'.*improper.*'std', 'noise'.*may be compared"):
        found = pl.log_evidence(model, guide, data, progress=False)
    assert found.log_det_ratio == math.inf
    assert 1 < found.effective_dim < 3
    assert found.effective_dim_by_site["b"] == pytest.approx(1.0, abs=1e-10)
    x, y = data
    std, noise = pyro.param("std"), pyro.param("noise")
    cov = noise**2 * torch.eye(20) + std**2 * x @ x.T
    # log of the integral over b of N(y; b, cov)
    ones = torch.ones(20)
    inside, pulled = ones @ torch.linalg.solve(cov, ones), ones @ torch.linalg.solve(cov, y)
    at_zero = torch.distributions.MultivariateNormal(torch.zeros(20), cov).log_prob(y)
    exact = at_zero + pulled**2 / (2 * inside) + 0.5 * torch.log(2 * math.pi / inside)
    assert_close(found.value, exact, rtol=1e-8, atol=1e-8)
    assert_close(gradients(found.value, names), gradients(exact, names), rtol=1e-8, atol=1e-8)


def test_the_table():
    data = regression(30)
    make_params(grouped, *data)
    guide = pl.fit_laplace(grouped, data, {"w": torch.zeros(3), "v": torch.zeros(2)}, progress=False)
    found = pl.log_evidence(grouped, guide, data, progress=False)
    torch.set_warn_always(True)  # torch warns once in a process of a number that is made of a graph
    try:
        text = repr(found)
    finally:
        torch.set_warn_always(False)
    lines = dict(line.strip().split("  ", 1) for line in text.splitlines())
    assert {"log evidence", "log likelihood", "log prior", "log-determinant ratio", "effective parameters"} <= set(
        lines
    )
    assert lines["effective parameters"].strip().endswith("of 5")
    assert {"w", "v", "std", "mean", "other", "noise"} <= set(lines)
    assert lines["std"].strip() == "[0.7, 1.4]"
    assert lines["other"].strip() == "0.5"


# --- programs of every kind, each with its hyperparameters --------------------------------------------


@dataclass(frozen=True)
class Learning:
    """A program with hyperparameters.

    Attributes:
        model: the program.
        data: its data.
        names: what "auto" finds.
        by_passes: whether a gradient is made of differences of passes over the data.
        trained: other params, which "auto" does not find.
    """

    model: Callable
    data: tuple[Tensor, ...]
    names: list[str]
    by_passes: bool = False
    trained: list[str] = field(default_factory=list)


def normals(num: int, std: Tensor | float = 1.0) -> Any:
    return dist.Normal(torch.zeros(num), std).to_event(1)


def student_t_prior() -> Learning:
    def model(x, y=None):
        scale = positive("scale", 0.6)
        w = pyro.sample("w", dist.StudentT(3.0, torch.zeros(3), scale).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, positive("noise", 0.5)), obs=y)

    return Learning(model, regression(25, 3), ["scale", "noise"])


def half_normal_prior() -> Learning:
    """A positive latent: its log-Jacobian is in the prior, whose Hessian the scale enters."""

    def model(x, y=None):
        sigma = pyro.sample("sigma", dist.HalfNormal(positive("scale", 0.8)))
        w = pyro.sample("w", normals(3, positive("std", 1.5)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)

    return Learning(model, regression(25, 3), ["scale", "std"])


def hierarchy() -> Learning:
    """A param is the scale of a Normal whose location is latent."""

    def model(group, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, positive("wide", 2.0)))
        with pyro.plate("groups", 4):
            a = pyro.sample("a", dist.Normal(mu, positive("tau", 0.7)))
        with pyro.plate("data", len(group)):
            pyro.sample("y", dist.Normal(a[group], positive("noise", 0.5)), obs=y)

    group = torch.arange(20) % 4
    return Learning(model, (group, torch.randn(20, generator=generator()) + group), ["wide", "tau", "noise"])


def counts(family: Callable) -> Learning:
    def model(x, y=None):
        w = pyro.sample("w", normals(2, positive("std", 0.8)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", family((x @ w).exp(), positive("size", 2.5)), obs=y)

    g = generator()
    x = torch.randn(30, 2, generator=g)
    return Learning(model, (x, torch.poisson((x[:, 0]).exp() + 0.5, generator=g)), ["std", "size"], True)


def negative_binomial() -> Learning:
    return counts(lambda mean, size: dist.NegativeBinomial(size, logits=mean.log() - size.log()))


def gamma_poisson() -> Learning:
    return counts(lambda mean, size: dist.GammaPoisson(size, size / mean))


def student_t_data() -> Learning:
    def model(x, y=None):
        w = pyro.sample("w", normals(3, positive("std", 0.9)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.StudentT(4.0, x @ w, positive("noise", 0.5)), obs=y)

    return Learning(model, regression(25, 3), ["std", "noise"], True)


def noise_of_each_output() -> Learning:
    def model(x, y=None):
        w = pyro.sample("w", normals(6, positive("std", 0.9))).reshape(3, 2)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, positive("noise", [0.4, 0.9])).to_event(1), obs=y)

    g = generator()
    return Learning(model, (torch.randn(15, 3, generator=g), torch.randn(15, 2, generator=g)), ["std", "noise"], True)


def noise_of_groups() -> Learning:
    def model(x, group, y=None):
        w = pyro.sample("w", normals(3, positive("std", 0.9)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, positive("noise", [0.3, 0.7, 1.2])[group]), obs=y)

    x, y = regression(24, 3)
    return Learning(model, (x, torch.arange(24) % 3, y), ["std", "noise"], True)


def scaled_noise() -> Learning:
    """One factor on known standard errors: the statistics tell it."""

    def model(x, error, y=None):
        w = pyro.sample("w", normals(3, positive("std", 0.9)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, error * positive("noise", 0.8)), obs=y)

    x, y = regression(24, 3)
    return Learning(model, (x, torch.rand(24, generator=generator()) + 0.5, y), ["std", "noise"])


def two_sites() -> Learning:
    def model(x, y=None, z=None):
        w = pyro.sample("w", normals(3, positive("std", 0.9)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, positive("noise_y", 0.4)), obs=y)
            pyro.sample("z", dist.Normal(x @ w + 0.1 * (x @ w) ** 2, positive("noise_z", 1.1)), obs=z)

    x, y = regression(24, 3)
    z = y + torch.randn(24, generator=generator(1))
    return Learning(model, (x, y, z), ["std", "noise_y", "noise_z"])


def one_noise_of_two_sites() -> Learning:
    def model(x, y=None, z=None):
        w = pyro.sample("w", normals(3, positive("std", 0.9)))
        noise = positive("noise", 0.6)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, noise), obs=y)
            pyro.sample("z", dist.Normal(-x @ w, 2 * noise), obs=z)

    x, y = regression(24, 3)
    return Learning(model, (x, y, -y + torch.randn(24, generator=generator(1))), ["std", "noise"])


def counts_beside_numbers() -> Learning:
    """A noise of one of two terms, which are summed apart."""

    def model(x, y=None, z=None):
        w = pyro.sample("w", normals(3, positive("std", 0.9)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, positive("noise", 0.4)), obs=y)
            pyro.sample("z", dist.Poisson((0.3 * x @ w).exp()), obs=z)

    x, y = regression(24, 3)
    return Learning(model, (x, y, torch.poisson((0.3 * y).exp(), generator=generator())), ["std", "noise"])


def log_normal_data() -> Learning:
    def model(x, y=None):
        w = pyro.sample("w", normals(3, positive("std", 0.9)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.LogNormal(x @ w, positive("noise", 0.5)), obs=y)

    x, y = regression(25, 3)
    return Learning(model, (x, y.exp()), ["std", "noise"])


def gamma_data() -> Learning:
    def model(x, y=None):
        w = pyro.sample("w", normals(2, positive("std", 0.9)))
        shape = positive("shape", 2.0)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Gamma(shape, shape / (x @ w).exp()), obs=y)

    x, y = regression(25, 2)
    return Learning(model, (x, y.exp()), ["std", "shape"], True)


def hyperprior() -> Learning:
    """A prior scale that is latent, with a param in its own prior, in the non-centred form."""

    def model(x, y=None):
        tau = pyro.sample("tau", dist.HalfCauchy(positive("size", 1.0)))
        raw = pyro.sample("raw", normals(3))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ (raw * tau), positive("noise", 0.5)), obs=y)

    return Learning(model, regression(25, 3), ["size", "noise"])


def dirichlet() -> Learning:
    def model(y=None):
        p = pyro.sample("p", dist.Dirichlet(positive("concentration", [1.5, 2.0, 2.5])))
        with pyro.plate("data", 20):
            pyro.sample("y", dist.Categorical(p), obs=y)

    return Learning(model, (torch.arange(20) % 3,), ["concentration"])


def correlated() -> Learning:
    """A prior covariance that a param makes."""

    def model(x, y=None):
        std, lean = positive("std", [0.8, 1.3]), pyro.param("lean", torch.tensor(0.4))
        root = torch.stack([torch.stack([std[0], torch.zeros(())]), torch.stack([lean, std[1]])])
        w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(2), scale_tril=root))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    x, y = regression(25, 2)
    return Learning(model, (x, (y > 0).double()), ["std", "lean"])


def interval() -> Learning:
    """A constraint that is not positivity: an autoregression's coefficient in the prior."""

    def model(y=None):
        phi = pyro.param("phi", torch.tensor(0.6), constraint=constraints.interval(-1.0, 1.0))
        steps = torch.arange(6.0)
        cov = phi ** (steps[:, None] - steps).abs()
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(6), cov))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Poisson(f.exp()), obs=y)

    return Learning(model, (torch.tensor([0.0, 1.0, 3.0, 2.0, 1.0, 0.0]),), ["phi"])


def factor_in_the_prior() -> Learning:
    def model(x, y=None):
        w = pyro.sample("w", normals(3, positive("std", 0.9)))
        pyro.factor("sum to zero", -positive("pull", 1.2) * w.sum() ** 2 - w[0].pow(4))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, positive("noise", 0.5)), obs=y)

    return Learning(model, regression(25, 3), ["std", "pull", "noise"])


PROGRAMS = [
    student_t_prior, half_normal_prior, hierarchy, negative_binomial, gamma_poisson, student_t_data,
    noise_of_each_output, noise_of_groups, scaled_noise, two_sites, one_noise_of_two_sites, counts_beside_numbers,
    log_normal_data, gamma_data, hyperprior, dirichlet, correlated, interval, factor_in_the_prior,
]  # fmt: skip


def fitted(case: Learning, **options: Any) -> Any:
    """The posterior at the mode of the program with its params where they start."""
    make_params(case.model, *case.data)
    flat = FlatProgram(case.model, *case.data)
    with torch.no_grad():
        point = flat.constrain(torch.zeros(flat.size))[0]
    return pl.fit_laplace(case.model, case.data, point, progress=False, **options)


def assert_gradients(case: Learning, guide: Any, tolerance: float | None = None) -> None:
    """Of "auto", against differences of the evidence at other values of the store: along a direction of all numbers."""
    held = store_values()
    found = evidence(case, guide)
    assert list(found.hyperparameters) == case.names
    assert all(torch.equal(value, found.hyperparameters[name]) for name, value in held.items() if name in case.names)
    own = gradients(found.value, case.names)
    g = generator(3)
    directions = {name: torch.rand(each.shape, generator=g) + 0.5 for name, each in own.items()}
    tolerance = tolerance or (1e-5 if case.by_passes else 1e-6)
    slope = along(lambda: evidence(case, guide).value.item(), directions)
    expected = sum(float((own[name] * directions[name]).sum()) for name in case.names)
    if slope != pytest.approx(expected, rel=tolerance, abs=tolerance):  # says which one is wrong
        each = differences(lambda: evidence(case, guide).value.item(), case.names)
        assert_close(own, each, rtol=tolerance, atol=tolerance)
        pytest.fail(f"along {directions} the slope is {slope}, and not {expected}")
    assert all(torch.equal(value, held[name]) for name, value in store_values().items())


def evidence(case: Learning, guide: Any) -> pl.Evidence:
    pyro.set_rng_seed(0)  # of the labels of "mc_fisher"
    return pl.log_evidence(case.model, guide, case.data, progress=False)


def dense(case: Learning, theta: Tensor, curvature: str = "ggn") -> float:
    """The evidence of `FlatProgram`, at the values that the store holds now."""
    flat = FlatProgram(case.model, *case.data)
    with torch.no_grad():
        return flat.laplace_evidence(theta, flat.hessian(theta) if curvature == "hessian" else flat.ggn(theta))


BY_HESSIAN = [student_t_prior, hierarchy, student_t_data, two_sites, one_noise_of_two_sites, counts_beside_numbers]


@pytest.mark.parametrize(
    ("make", "curvature"),
    [*((make, "ggn") for make in PROGRAMS), *((make, "hessian") for make in BY_HESSIAN)],
    ids=lambda given: getattr(given, "__name__", given),
)
@pytest.mark.filterwarnings("ignore:curvature='ggn' is the information that data of this model hold on average")
@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
def test_gradients_of_programs(make, curvature):
    case = make()
    guide = fitted(case, curvature=curvature)
    for name in case.names:  # elsewhere than where it was fitted
        put_all({name: store_values()[name] * 0.9})
    assert_gradients(case, guide)
    found = pl.log_evidence(case.model, guide, case.data, progress=False)
    with warnings.catch_warnings():
        try:
            expected = dense(case, guide.theta, curvature)
        except NotImplementedError:  # the oracle knows no Fisher information of this family
            return
    assert found.value.item() == pytest.approx(expected, rel=1e-9)


# --- networks: every structure and curvature ----------------------------------------------------------


def net(outputs: int, inputs: int = 2, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 3, bias=bias), nn.Tanh(), nn.Linear(3, outputs, bias=bias))


LEARNED = pl.nn.learned(0.8)
PRIORS: dict[str, Any] = {
    "isotropic": pl.nn.Isotropic(LEARNED),
    "apart": {
        "*.weight": pl.nn.Isotropic(pl.nn.learned(0.7, name="weights")),
        "*.bias": pl.nn.Isotropic(pl.nn.learned(1.6, name="biases")),
    },
    "shared": pl.nn.Isotropic(pl.nn.learned(0.8, name="std")),
    "fan_in": pl.nn.FanIn(pl.nn.learned(1.2), bias_std=pl.nn.learned(0.5)),
    "ard": pl.nn.ARD(pl.nn.learned(0.9), bias_std=LEARNED),
    "student": pl.nn.StudentT(4.0, LEARNED),
    "fixed": pl.nn.Isotropic(0.8),
    "beside fixed": {"0.*": pl.nn.Isotropic(0.7), "2.weight": pl.nn.FanIn(LEARNED), "2.bias": pl.nn.Isotropic(1.3)},
}  # fmt: skip


@dataclass(frozen=True)
class Network(Learning):
    """A network's program."""

    def weights(self) -> dict[str, Tensor]:
        own = dict(net(1 if self.data[1].is_floating_point() else 3).named_parameters())
        return {name: own[name].detach() for name in self.model.priors}


def network(prior: str, task: str, num_obs: int = 12) -> Network:
    g = generator()
    x = torch.randn(num_obs, 2, generator=g)
    if task == "classes":
        likelihood, y = pl.nn.Classification(), torch.arange(num_obs) % 3
    else:
        likelihood, y = pl.nn.Regression(pl.nn.learned(0.4)), torch.sin(2 * x[:, 0])
    model = pl.bayesianize(net(3 if task == "classes" else 1), PRIORS[prior], likelihood)
    return Network(model, (x, y), make_params(model, x, y))


@functools.cache
def mode_of(task: str) -> dict[str, Tensor]:
    """A mode under a prior of its own: near one under each other."""
    case = network("fixed", task)
    return pl.fit_laplace(case.model, case.data, case.weights(), progress=False).median()


def at_the_mode(prior: str, task: str, **options: Any) -> tuple[Learning, Any]:
    """A network with learned scales, and its posterior at that point."""
    case, point = network(prior, task), mode_of(task)
    options |= {"polish": False, "on_not_a_mode": "ignore", "progress": False}
    return case, pl.fit_laplace(case.model, case.data, point, **options)


NETWORK_STRUCTURES = {
    "full": "full", "diag": "diag", "kron": "kron", "block": "block", "low rank": pl.LowRank(40),
    "rank 4": pl.LowRank(4), "mapping": {"0.*": "diag", "2.weight": "kron", "*": "full"},
}  # fmt: skip


@pytest.mark.parametrize("curvature", ["ggn", "hessian", "empirical_fisher", "mc_fisher"])
@pytest.mark.parametrize("structure", NETWORK_STRUCTURES)
def test_gradients_by_structure_and_curvature(structure, curvature):
    """Of a regression with scales of weights and biases apart, and a noise."""
    if curvature == "hessian" and structure in ("kron", "mapping"):
        pytest.skip("a Kronecker product has no exact Hessian")
    options = {"structure": NETWORK_STRUCTURES[structure], "curvature": curvature}
    assert_gradients(*at_the_mode("apart", "numbers", **options))


@pytest.mark.parametrize("structure", ["full", "kron", "diag", "block", "low rank", "mapping"])
def test_gradients_of_classification(structure):
    assert_gradients(*at_the_mode("isotropic", "classes", structure=NETWORK_STRUCTURES[structure]))


@pytest.mark.parametrize("structure", ["full", "kron"])
@pytest.mark.parametrize("prior", [name for name in PRIORS if name not in ("apart", "fixed")])
def test_gradients_by_prior(prior, structure):
    if (prior, structure) == ("student", "kron"):
        pytest.skip("its prior precision is no outer product")
    assert_gradients(*at_the_mode(prior, "numbers", structure=structure))


# --- laplace-torch, at hyperparameters that are held ---------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A network with laplace-torch's posterior and ours, at one point that is no mode.

    Attributes:
        theirs: laplace-torch's.
        ours: the guide.
        case: the program.
    """

    theirs: Any
    ours: Any
    case: Learning


def peer(task: str, structure: str, subset: str = "all") -> Peer:
    laplace = pytest.importorskip("laplace")
    curvature = pytest.importorskip("laplace.curvature")
    bias = structure != "kron"  # it drops the block between a weight and its bias
    own, g = net(3, inputs=4, bias=bias), generator()
    x = torch.randn(20, 4, generator=g)
    y = torch.arange(20) % 3 if task == "classes" else torch.randn(20, 3, generator=g)
    likelihood = pl.nn.Classification() if task == "classes" else pl.nn.Regression(pl.nn.learned(0.7))
    model = pl.bayesianize(own, pl.nn.Isotropic(LEARNED), likelihood)
    case = Learning(model, (x, y), make_params(model, x, y))
    theirs = laplace.Laplace(
        copy.deepcopy(own),
        "classification" if task == "classes" else "regression",
        subset_of_weights=subset,
        hessian_structure=structure,
        backend=curvature.CurvlinopsGGN,
    )
    theirs.fit(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=20))
    point = {name: value.detach() for name, value in own.named_parameters()}
    options = {"structure": structure, "subset": subset, "polish": False, "on_not_a_mode": "ignore", "progress": False}
    return Peer(theirs, pl.fit_laplace(model, (x, y), point, **options), case)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # in laplace-torch
@pytest.mark.parametrize("subset", ["all", "last_layer"])
@pytest.mark.parametrize("task", ["classes", "numbers"])
@pytest.mark.parametrize("structure", ["full", "diag", "kron"])
def test_equals_laplace_torch(structure, task, subset):
    """Value, and gradient in log std and log noise, at several hyperparameters of one posterior."""
    found = peer(task, structure, subset)
    random = list(found.ours.random)
    for std, noise in [(0.8, 0.7), (0.3, 1.5), (4.0, 0.2)]:
        stds = torch.tensor([std * (1 + 0.3 * number) for number in range(len(random))]).log().requires_grad_()
        log_noise = torch.tensor(noise).log().requires_grad_()
        put_all({f"{name}.scale": stds[number].exp().item() for number, name in enumerate(random)})
        if task == "numbers":
            put(noise=noise)
        prior_prec = (-2 * stds).exp()
        if structure != "kron" and len(random) > 1 and subset == "last_layer":  # it wants one number or all of them
            sizes = torch.tensor([found.ours.layout[name].stop - found.ours.layout[name].start for name in random])
            prior_prec = prior_prec.repeat_interleave(sizes)
        elif subset == "last_layer":
            prior_prec = prior_prec[0]
        expected = found.theirs.log_marginal_likelihood(
            prior_precision=prior_prec, **({"sigma_noise": log_noise.exp()} if task == "numbers" else {})
        )
        own = evidence(found.case, found.ours).value
        assert own.detach().item() == pytest.approx(expected.item(), rel=1e-6)
        noisy = task == "numbers" and structure != "kron"  # its gradient of kron in the noise is not its own slope
        theirs = torch.autograd.grad(expected, [stds, log_noise] if noisy else [stds])
        names = [f"{name}.scale" for name in random] + ["noise"] * noisy
        mine = torch.stack(list(gradients(own, names).values()))
        assert_close(mine, torch.cat([each.reshape(-1) for each in theirs]), rtol=1e-6, atol=1e-6)
