"""`maximize_evidence` against scikit-learn, dense marginal likelihoods maximised by scipy, and other starts."""

import functools
import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch
from checks import assert_says
from held import put, store_values
from programs.zoo import generator
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")


def positive(name: str, value: float | list[float]) -> Tensor:
    return pyro.param(name, torch.tensor(value), constraint=constraints.positive)


def linear(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), positive("std", 1.0)).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, positive("noise", 1.0)), obs=y)


def regression(num_obs: int = 40, num_weights: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    x = torch.randn(num_obs, num_weights, generator=g)
    w = 0.4 * torch.randn(num_weights, generator=g)
    return x, x @ w + 0.7 * torch.randn(num_obs, generator=g)


def log_marginal(x: Tensor, y: Tensor, prior_std: Tensor, noise: Tensor) -> Tensor:
    cov = noise**2 * torch.eye(len(x)) + x @ torch.diag(prior_std.expand(x.shape[1]) ** 2) @ x.T
    return torch.distributions.MultivariateNormal(torch.zeros(len(x)), cov).log_prob(y)


def maximised(value: Callable[[Tensor], Tensor], size: int) -> tuple[Tensor, float]:
    """The highest value of a function of logarithms, by scipy, from zero."""

    def negative(flat: np.ndarray) -> tuple[float, np.ndarray]:
        logs = torch.from_numpy(flat.copy()).requires_grad_()
        found = value(logs)
        return -found.item(), -torch.autograd.grad(found, logs)[0].numpy()

    best = scipy.optimize.minimize(negative, np.zeros(size), jac=True, method="BFGS", options={"gtol": 1e-7})
    return torch.from_numpy(best.x).exp(), -float(best.fun)


# --- scikit-learn ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [1.0, 0.05, 30.0])
def test_equals_bayesian_ridge(start):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = regression()
    flat = {"alpha_1": 0, "alpha_2": 0, "lambda_1": 0, "lambda_2": 0, "fit_intercept": False}
    ridge = linear_model.BayesianRidge(max_iter=10_000, tol=1e-13, **flat).fit(x.numpy(), y.numpy())
    linear(x, y)
    put(std=start, noise=1.0)
    guide = pl.maximize_evidence(linear, (x, y), progress=False)
    assert guide.hyperparameters["std"].item() == pytest.approx(ridge.lambda_**-0.5, rel=1e-4)
    assert guide.hyperparameters["noise"].item() == pytest.approx(ridge.alpha_**-0.5, rel=1e-4)
    assert_close(guide.median()["w"], torch.from_numpy(ridge.coef_), rtol=1e-4, atol=1e-6)
    own = log_marginal(x, y, guide.hyperparameters["std"], guide.hyperparameters["noise"])
    assert guide.log_evidence == pytest.approx(own.item(), abs=1e-8)
    assert guide.evidence_path[-1] == pytest.approx(guide.log_evidence, abs=1e-8)
    assert_close(store_values(), dict(guide.hyperparameters), rtol=1e-14, atol=0)


def relevance(x: Tensor, y: Tensor | None = None) -> None:
    """A prior std for each coefficient."""
    std = pyro.param("std", torch.ones(x.shape[1]), constraint=constraints.positive)
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), std).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, positive("noise", 1.0)), obs=y)


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_ard_regression(seed):
    linear_model = pytest.importorskip("sklearn.linear_model")
    g = generator(seed)
    x = torch.randn(40, 6, generator=g)
    y = x[:, :3] @ torch.tensor([1.0, -0.7, 0.4]) + 0.6 * torch.randn(40, generator=g)
    flat = {"alpha_1": 0, "alpha_2": 0, "lambda_1": 0, "lambda_2": 0, "fit_intercept": False}
    ard = linear_model.ARDRegression(max_iter=20_000, tol=1e-12, threshold_lambda=1e12, **flat)
    ard.fit(x.numpy(), y.numpy())
    theirs = torch.from_numpy(ard.lambda_).rsqrt(), torch.tensor(ard.alpha_).rsqrt()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        guide = pl.maximize_evidence(relevance, (x, y), {"w": torch.zeros(6)}, progress=False)
    assert guide.log_evidence > log_marginal(x, y, *theirs).item() - 1e-6
    std, noise = guide.hyperparameters["std"], guide.hyperparameters["noise"]
    assert guide.log_evidence == pytest.approx(log_marginal(x, y, std, noise).item(), abs=1e-6)
    finite = std > 1e-3
    pruned = int((~finite).sum())
    assert bool(finite[:3].all())
    assert_close(std[finite], theirs[0][finite], rtol=1e-3, atol=0)
    assert_close(noise, theirs[1], rtol=1e-3, atol=0)
    messages = [str(each.message) for each in told if issubclass(each.category, pl.LaplaceWarning)]
    assert len(messages) == len(told) == (pruned > 0)
    if pruned:
        assert all(words in messages[0] for words in (f"{pruned} entries of std", "runs to 0", "'w'"))


# --- a Gaussian process ----------------------------------------------------------------------------------

INPUTS = 14


def kernel(x: Tensor, length: Tensor, height: Tensor) -> Tensor:
    return height**2 * torch.exp(-((x[:, None] - x) ** 2) / (2 * length**2)) + 1e-6 * torch.eye(len(x))


def process(x: Tensor, y: Tensor | None = None) -> None:
    cov = kernel(x, positive("length", 1.0), positive("height", 1.0))
    f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(x)), cov))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, positive("noise", 1.0)), obs=y)


def marginal_of_process(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    def value(logs: Tensor) -> Tensor:
        length, height, noise = logs.exp()
        cov = kernel(x, length, height) + noise**2 * torch.eye(INPUTS)
        return torch.distributions.MultivariateNormal(torch.zeros(INPUTS), cov).log_prob(y)

    return value


def test_equals_a_gaussian_processes_marginal_likelihood():
    x = torch.linspace(0, 4, INPUTS)
    y = torch.sin(2 * x) + 0.3 * torch.randn(INPUTS, generator=generator())

    value = marginal_of_process(x, y)
    best, top = maximised(value, 3)
    guide = pl.maximize_evidence(process, (x, y), {"f": torch.zeros(INPUTS)}, progress=False)
    found = torch.stack([guide.hyperparameters[name] for name in ("length", "height", "noise")])
    assert guide.log_evidence == pytest.approx(value(found.log()).item(), abs=1e-6)
    assert guide.log_evidence == pytest.approx(top, abs=1e-6)
    assert_close(found, best, rtol=1e-4, atol=0)


@pytest.mark.parametrize("length", [0.02])
def test_a_process_from_elsewhere(length):
    """At a short length the covariance is numerically diagonal, and is not at another."""
    x = torch.linspace(0, 4, INPUTS)
    y = torch.sin(2 * x) + 0.3 * torch.randn(INPUTS, generator=generator())
    process(x, y)
    put(length=length)
    found = pl.maximize_evidence(process, (x, y), {"f": torch.zeros(INPUTS)}, progress=False)
    _, top = maximised(marginal_of_process(x, y), 3)
    assert found.log_evidence == pytest.approx(top, abs=1e-4)


# --- several kinds of hyperparameters, by a dense oracle ---------------------------------------------------


def grouped(x: Tensor, group: Tensor, y: Tensor | None = None) -> None:
    """Two prior scales, a prior mean, and noise of two groups, which takes passes."""
    w = pyro.sample(
        "w", dist.Normal(pyro.param("mean", torch.tensor(0.0)), positive("std", 1.0)).expand([4]).to_event(1)
    )
    v = pyro.sample("v", dist.Normal(torch.zeros(3), positive("other", 1.0)).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x[:, :4] @ w + x[:, 4:] @ v, positive("noise", [1.0, 1.0])[group]), obs=y)


def test_equals_the_dense_optimum():
    g = generator()
    x, group = torch.randn(40, 7, generator=g), torch.arange(40) % 2
    noise = torch.tensor([0.3, 1.2])[group]
    y = x[:, :4] @ (1.0 + 0.5 * torch.randn(4, generator=g)) + x[:, 4:] @ torch.tensor([0.3, -0.4, 0.2])
    y = y + noise * torch.randn(40, generator=g)

    def value(flat: Tensor) -> Tensor:
        mean, (std, other, *noises) = flat[0], flat[1:].exp()
        prior = torch.cat([std.expand(4), other.expand(3)])
        cov = torch.diag(torch.stack(noises)[group] ** 2) + x @ torch.diag(prior**2) @ x.T
        return torch.distributions.MultivariateNormal(x[:, :4].sum(1) * mean, cov).log_prob(y)

    best, top = maximised(value, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guide = pl.maximize_evidence(grouped, (x, group, y), progress=False)
    held = guide.hyperparameters
    found = torch.stack([held["mean"].exp(), held["std"], held["other"], *held["noise"]])
    assert guide.log_evidence == pytest.approx(top, abs=1e-5)
    assert_close(found, best, rtol=1e-3, atol=0)


def test_a_location_that_is_named():
    """A shift of all data beside the noise of the same data."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), positive("std", 1.0)).to_event(1))
        with pyro.plate("data", len(x)):
            loc = x @ w + pyro.param("shift", torch.tensor(0.0))
            pyro.sample("y", dist.Normal(loc, positive("noise", 1.0)), obs=y)

    x, y = regression(num_weights=2)
    y = y + 2.0
    best, top = maximised(lambda flat: log_marginal(x, y - flat[2], *flat[:2].exp()), 3)
    point = {"w": torch.zeros(2)}
    guide = pl.maximize_evidence(model, (x, y), point, hyperparameters="*", progress=False)
    assert guide.log_evidence == pytest.approx(top, abs=1e-5)
    assert guide.hyperparameters["shift"].item() == pytest.approx(best[2].log().item(), rel=1e-3)


def test_a_prior_mean_far_away():
    """Numbers without a constraint are not logarithms, and may go far."""
    group = torch.arange(12) // 2

    def model(y=None):
        with pyro.plate("groups", 6):
            a = pyro.sample("a", dist.Normal(pyro.param("mean", torch.tensor(0.0)), positive("tau", 1.0)))
        with pyro.plate("data", 12):
            pyro.sample("y", dist.Normal(a[group], 1.0), obs=y)

    g = generator()
    y = 100 + 2 * torch.randn(6, generator=g)[group] + torch.randn(12, generator=g)
    guide = pl.maximize_evidence(model, y, {"a": torch.zeros(6)}, progress=False)
    mean, tau = guide.hyperparameters["mean"], guide.hyperparameters["tau"]
    cov = torch.eye(12) + tau**2 * (group[:, None] == group).double()
    exact = torch.distributions.MultivariateNormal(mean.expand(12), cov).log_prob(y)
    assert guide.log_evidence == pytest.approx(exact.item(), abs=1e-6)
    assert mean.item() == pytest.approx(y.mean().item(), rel=1e-4)  # of groups of one size


def test_some_of_them():
    x, y = regression()
    linear(x, y)
    put(std=1.0, noise=0.5)
    guide = pl.maximize_evidence(linear, (x, y), hyperparameters="st?", progress=False)
    assert guide.hyperparameters["noise"].item() == store_values()["noise"].item()
    noise = guide.hyperparameters["noise"]
    best, top = maximised(lambda logs: log_marginal(x, y, logs[0].exp(), noise), 1)
    assert guide.log_evidence == pytest.approx(top, abs=1e-8)
    assert_close(guide.hyperparameters["std"], best[0], rtol=1e-4, atol=0)
    assert list(guide.path.values) == ["std"]


# --- the path and the store ---------------------------------------------------------------------------------


def test_the_path():
    x, y = regression()
    guide = pl.maximize_evidence(linear, (x, y), {"w": torch.zeros(6)}, progress=False)
    path = guide.path
    assert path.log_evidence == guide.evidence_path
    assert list(path.values) == ["std", "noise"]
    assert all(len(steps) == len(path.log_evidence) for steps in path.values.values())
    assert path.kept
    assert path.rounds[0] == 0
    assert all(0 <= place < len(path.log_evidence) for place in path.rounds)
    assert all(later > earlier - 1e-9 for earlier, later in pairwise(path.log_evidence))
    for std, noise, value in zip(path.values["std"], path.values["noise"], path.log_evidence, strict=True):
        assert value == pytest.approx(log_marginal(x, y, std, noise).item(), abs=1e-6)
    for name, steps in path.values.items():
        assert_close(steps[-1], guide.hyperparameters[name], rtol=1e-12, atol=0)
    assert pl.fit_laplace(linear, (x, y), guide, progress=False).evidence_path == ()


def test_keep():
    """The store holds the values, in place; without it, it is bitwise what it was."""
    x, y = regression()
    linear(x, y)
    put(std=2.0, noise=3.0)
    before, free = store_values(), pyro.param("noise").unconstrained()
    lost = pl.maximize_evidence(linear, (x, y), keep=False, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in store_values().items())
    assert not lost.path.kept
    kept = pl.maximize_evidence(linear, (x, y), progress=False)
    assert pyro.param("noise").unconstrained() is free
    assert {name: value.item() for name, value in store_values().items()} == {
        name: pytest.approx(value.item(), rel=1e-14) for name, value in kept.hyperparameters.items()
    }
    assert kept.log_evidence == pytest.approx(lost.log_evidence, abs=1e-8)


def test_without_keep_a_store_that_was_empty_is_empty():
    x, y = regression()
    lost = pl.maximize_evidence(linear, (x, y), keep=False, progress=False)
    assert not list(pyro.get_param_store().keys())
    kept = pl.maximize_evidence(linear, (x, y), progress=False)
    assert set(pyro.get_param_store().keys()) == {"std", "noise"}
    assert kept.log_evidence == pytest.approx(lost.log_evidence, abs=1e-8)


def test_the_random_state_is_left():
    x, y = regression()
    state = torch.get_rng_state()
    pl.maximize_evidence(linear, (x, y), {"w": torch.zeros(6)}, progress=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_store_keeps_its_dtype():
    x, y = (each.float() for each in regression())

    def model(x, y=None):
        std = pyro.param("std", torch.tensor(1.0, dtype=torch.float32), constraint=constraints.positive)
        w = pyro.sample("w", dist.Normal(torch.zeros(6, dtype=torch.float32), std).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, torch.tensor(0.7, dtype=torch.float32)), obs=y)

    guide = pl.maximize_evidence(model, (x, y), progress=False)
    assert guide.hyperparameters["std"].dtype == pyro.param("std").dtype == torch.float32
    best, top = maximised(lambda logs: log_marginal(x.double(), y.double(), logs.exp(), torch.tensor(0.7)), 1)
    assert guide.log_evidence == pytest.approx(top, rel=1e-5)
    assert guide.hyperparameters["std"].item() == pytest.approx(best.item(), rel=1e-2)


# --- the mode under the new prior ---------------------------------------------------------------------------


def data_of_a_curve(num_obs: int = 10) -> tuple[Tensor, Tensor]:
    g = generator()
    x = torch.randn(num_obs, 1, generator=g)
    return x, torch.sin(2 * x[:, 0]) + 0.1 * torch.randn(num_obs, generator=g)


def small_net(std: float = 1.0) -> tuple[Any, dict[str, Tensor]]:
    """A network with one learned scale, and its weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    weights = {name: value.detach().clone() for name, value in net.named_parameters()}
    return pl.bayesianize(net, pl.nn.Isotropic(pl.nn.learned(std, name="std")), pl.nn.Regression(0.2)), weights


def test_the_mode_is_found_again():
    """From two priors. The gradient leaves out that log det Lambda moves with the mode: the search must see to it."""
    data, found = data_of_a_curve(), []
    for std in (1.0, 4.0):
        pyro.clear_param_store()
        model, weights = small_net(std)
        start = pl.fit_laplace(model, data, weights, progress=False)
        guide = pl.maximize_evidence(model, data, start, refit=True, progress=False)
        assert guide.mode.is_mode
        assert not torch.equal(guide.theta, start.theta)
        assert guide.log_evidence > start.log_evidence
        own = pl.log_evidence(model, guide, data, progress=False)
        assert own.value.item() == pytest.approx(guide.log_evidence, rel=1e-10)
        found.append(guide)
    assert found[0].log_evidence == pytest.approx(found[1].log_evidence, abs=0.05)


def test_the_mode_is_left():
    """Of a network that stands at no mode under the new prior."""
    data, (model, weights) = data_of_a_curve(), small_net()
    options = {"refit": False, "progress": False}
    with pytest.warns(pl.NotAModeWarning, match="refit=True"):
        guide = pl.maximize_evidence(model, data, weights, **options)
    point = guide.median()
    assert all(torch.equal(point[name], weights[name]) for name in weights)
    assert not guide.mode.moved
    own = pl.log_evidence(model, guide, data, progress=False)
    assert own.value.item() == pytest.approx(guide.log_evidence, rel=1e-12)
    own.value.backward()
    assert abs(pyro.param("std").unconstrained().grad.item()) < 1e-3
    with pytest.raises(pl.NotAMode):
        pl.maximize_evidence(model, data, weights, **options, on_not_a_mode="raise")


@pytest.mark.parametrize("subset", ["all", "last_layer"])
def test_auto_leaves_a_trained_last_layer(subset):
    """Five weights are quick to refit; not so beside the features that they were trained with."""
    x, y = regression(num_weights=2)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    point = {name: value.detach() for name, value in net.named_parameters()}
    model = pl.bayesianize(net, pl.nn.Isotropic(pl.nn.learned(1.0, name="std")), pl.nn.Regression(pl.nn.learned(1.0)))
    options = {"subset": subset, "on_not_a_mode": "ignore", "progress": False}
    tune = functools.partial(pl.tune, validation_data=regression(20, 2, 1))
    for fit in (pl.maximize_evidence, tune) if subset == "last_layer" else (pl.maximize_evidence,):
        pyro.clear_param_store()
        median = fit(model, (x, y), map_guide=point, **options).median()
        stayed = all(torch.equal(median[name], value) for name, value in point.items())
        assert stayed == (subset == "last_layer")


def test_the_mode_of_the_first_prior_is_left():
    """Without a map guide, refit=False leaves theta at the mode that is fitted first."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(6), positive("std", 3.0)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    x, y = regression()
    y = (y > 0).double()
    first = pl.fit_laplace(model, (x, y), progress=False)
    guide = pl.maximize_evidence(model, (x, y), refit=False, on_not_a_mode="ignore", progress=False)
    assert_close(guide.theta, first.theta, rtol=1e-8, atol=1e-8)
    again = pl.maximize_evidence(model, (x, y), first, refit=True, progress=False)
    assert again.mode.is_mode
    assert again.log_evidence > guide.log_evidence


def test_linearized_is_exact_for_linear_gaussian_programs():
    """From a point that is far from the mode: theta is left, and the evidence is that of the mode."""
    x, y = regression()
    point = {"w": torch.randn(6, generator=generator(4))}
    guide = pl.maximize_evidence(linear, (x, y), point, refit="linearized", progress=False)
    best, top = maximised(lambda logs: log_marginal(x, y, *logs.exp()), 2)
    assert guide.log_evidence == pytest.approx(top, abs=1e-6)
    found = torch.stack([guide.hyperparameters[name] for name in ("std", "noise")])
    assert_close(found, best, rtol=1e-4, atol=0)
    assert torch.equal(guide.median()["w"], point["w"])


# --- bad input: said clearly, and the store is as it was ------------------------------------------------------


def with_location(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), positive("std", 1.0)).to_event(1))
    loc = x @ w + x @ pyro.param("weights", torch.ones(x.shape[1])) + pyro.param("shift", torch.tensor(0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(loc, positive("noise", 1.0)), obs=y)


def fixed(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


BAD: dict[str, tuple[Callable, dict[str, Any], tuple[str, ...]]] = {
    "none": (fixed, {}, ("found none", "pyro.param", "learned")),
    "no match": (linear, {"hyperparameters": "sdt"}, ("'sdt'", "matches none", "'std', 'noise'")),
    "no match in a list": (linear, {"hyperparameters": ["std", "x*"]}, (r"'x\*'", "matches none")),
    "an empty list": (linear, {"hyperparameters": []}, ("empty",)),
    "method": (linear, {"method": "online"}, ("method", "online", "posthoc")),
    "refit": (linear, {"refit": "yes"}, ("refit", "yes", "linearized")),
    "structure": (linear, {"structure": "krno"}, ("structure", "krno")),
    "curvature": (linear, {"curvature": "gnn"}, ("curvature", "gnn")),
    "combination": (linear, {"structure": "kron", "curvature": "hessian"}, ("kron", "hessian")),
    "subset": (linear, {"subset": "v"}, ("'v'", "matches none")),
    "on_not_a_mode": (linear, {"on_not_a_mode": "print"}, ("on_not_a_mode", "print")),
    "map_guide": (linear, {"map_guide": 3}, ("map_guide", "int")),
}  # fmt: skip


@pytest.mark.parametrize("given", [True, False], ids=["given", "fitted"])
@pytest.mark.parametrize("name", BAD)
def test_bad_options(name, given):
    model, options, words = BAD[name]
    x, y = regression()
    model(x, y)
    if "std" in pyro.get_param_store():
        put(std=1.3, noise=0.4)
    pyro.param("unrelated", torch.tensor(3.0))
    before = store_values()
    options = ({"map_guide": {"w": torch.zeros(6)}} if given else {}) | options
    with pytest.raises(pl.InvalidOption) as error:
        pl.maximize_evidence(model, (x, y), **options, progress=False)
    assert_says(error, *words)
    after = store_values()
    assert list(after) == list(before)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("given", [True, False], ids=["given", "fitted"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_data_that_are_not_finite(bad, given):
    x, y = regression()
    linear(x, y)
    y[3] = bad
    before = store_values()
    options = {"map_guide": {"w": torch.zeros(6)}} if given else {}
    with pytest.raises((pl.LaplaceError, ValueError)) as error:  # Pyro's own is as clear
        pl.maximize_evidence(linear, (x, y), **options, progress=False)
    assert_says(error, "'y'", "nan|inf|not finite")
    assert all(torch.equal(value, before[name]) for name, value in store_values().items())


class Broken(Exception):
    """What a program raises."""


def raising_after(calls: int, error: type[BaseException]) -> Callable:
    """`linear`, which raises in a later call."""
    left = [calls]

    def model(x, y=None):
        left[0] -= 1
        if left[0] < 0:
            raise error("halfway")
        return linear(x, y)

    return model


@pytest.mark.parametrize("calls", [0, 1, 3, 10, 40, 100])
@pytest.mark.parametrize("keep", [True, False])
def test_an_exception_halfway(calls, keep):
    x, y = regression()
    linear(x, y)
    put(std=1.3, noise=0.4)
    pyro.param("unrelated", torch.tensor(3.0))
    before = store_values()
    with pytest.raises(Broken):
        pl.maximize_evidence(raising_after(calls, Broken), (x, y), keep=keep, progress=False)
    assert list(store_values()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in store_values().items())


def test_an_interrupt_leaves_the_best_so_far(monkeypatch):
    """Of the search; before it has seen a value there is none, and the store is as it was."""
    x, y = regression()
    from pyro_laplace.evidence.surface import Surface

    linear(x, y)
    at, calls = Surface.at, [0]

    def interrupted(self: Any, flat: Tensor) -> Any:
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        return at(self, flat)

    monkeypatch.setattr(Surface, "at", interrupted)
    with pytest.warns(pl.LaplaceWarning, match="interrupted.*best so far"):
        guide = pl.maximize_evidence(linear, (x, y), progress=False)
    first = log_marginal(x, y, torch.tensor(1.0), torch.tensor(1.0)).item()
    assert guide.log_evidence > first
    assert guide.log_evidence == pytest.approx(log_marginal(x, y, *guide.hyperparameters.values()).item(), abs=1e-6)
    assert all(torch.equal(value, guide.hyperparameters[name]) for name, value in store_values().items())


@pytest.mark.parametrize("calls", [0, 5])
def test_an_interrupt_before_the_search(calls):
    x, y = regression()
    linear(x, y)
    before = store_values()
    with pytest.raises(KeyboardInterrupt):
        pl.maximize_evidence(raising_after(calls, KeyboardInterrupt), (x, y), progress=False)
    assert all(torch.equal(value, before[name]) for name, value in store_values().items())


def test_weights_are_not_chosen():
    x, y = regression()
    net = nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 1))
    model = pl.bayesianize(
        net, pl.nn.Isotropic(pl.nn.learned(1.0)), pl.nn.Regression(0.5), parameters="2.*", rest="trained"
    )
    model(x, y)
    before = store_values()
    for names in ("0.weight", "0.bias", "0.*", ["2.weight.scale", "0.weight"]):
        with pytest.raises(pl.InvalidOption) as error:
            pl.maximize_evidence(model, (x, y), hyperparameters=names, progress=False)
        assert_says(error, "weights of a network", "fit_map")
    assert all(torch.equal(value, before[name]) for name, value in store_values().items())


def test_an_improper_prior():
    def model(x, y=None):
        b = pyro.sample("b", dist.ImproperUniform(constraints.real, (), ()))
        w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), positive("std", 1.0)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w + b, positive("noise", 1.0)), obs=y)

    x, y = regression()
    with pytest.warns(pl.LaplaceWarning, match=r"'b'.*improper.*'std', 'noise'.*may be compared") as told:
        guide = pl.maximize_evidence(model, (x, y), progress=False)
    assert len(told) == 1
    ones = torch.ones(len(x))

    def value(logs: Tensor) -> Tensor:
        std, noise = logs.exp()
        cov = noise**2 * torch.eye(len(x)) + std**2 * x @ x.T
        inside, pulled = ones @ torch.linalg.solve(cov, ones), ones @ torch.linalg.solve(cov, y)
        at_zero = torch.distributions.MultivariateNormal(torch.zeros(len(x)), cov).log_prob(y)
        return at_zero + pulled**2 / (2 * inside) + 0.5 * torch.log(2 * math.pi / inside)

    best, top = maximised(value, 2)
    assert guide.log_evidence == pytest.approx(top, abs=1e-6)
    assert_close(torch.stack(list(guide.hyperparameters.values())), best, rtol=1e-3, atol=0)


# --- fit_map, and modules that keep their own params ------------------------------------------------------------


def test_fit_map_leaves_prior_scales():
    x, y = regression()
    linear(x, y)
    put(std=1.3, noise=3.0)
    with pytest.warns(pl.LaplaceWarning, match=r"leaves.*'std'.*maximize_evidence") as told:
        pl.fit_map(linear, (x, y), progress=False)
    assert len(told) == 1
    assert pyro.param("std").item() == pytest.approx(1.3, rel=1e-15)
    assert pyro.param("noise").item() < 1.0


def seen(model: Callable, *data: Tensor) -> dict[str, Tensor]:
    """The params as the program reads them."""
    nodes = pyro.poutine.trace(model).get_trace(*data).nodes
    return {name: node["value"].detach().clone() for name, node in nodes.items() if node["type"] == "param"}


def assert_written_where_it_is_read(model: Callable, data: tuple[Tensor, Tensor], point: Any = None) -> float:
    guide = pl.maximize_evidence(model, data, point, progress=False)
    own = pl.log_evidence(model, guide, data, progress=False)
    assert own.value.item() == pytest.approx(guide.log_evidence, rel=1e-10)
    before = seen(model, *data)
    assert before.keys() == guide.hyperparameters.keys()
    for name, value in guide.hyperparameters.items():
        assert_close(before[name], value, rtol=1e-14, atol=0)
    lost = pl.maximize_evidence(model, data, point, keep=False, progress=False)
    assert lost.log_evidence == pytest.approx(guide.log_evidence, abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in seen(model, *data).items())
    return guide.log_evidence


@pytest.mark.parametrize("given", [True, False], ids=["given", "fitted"])
def test_params_of_a_function(param_mode, given):
    if pyro.settings.get("module_local_params") and not given:
        pytest.skip("Pyro refuses to train a guide of a program with plain pyro.param statements in this mode")
    x, y = regression()
    _, top = maximised(lambda logs: log_marginal(x, y, *logs.exp()), 2)
    point = {"w": torch.zeros(6)} if given else None
    assert assert_written_where_it_is_read(linear, (x, y), point) == pytest.approx(top, abs=1e-6)


def test_learned_scales(param_mode):
    x, y = regression(num_weights=2)
    torch.manual_seed(0)
    net = pl.bayesianize(nn.Linear(2, 1), pl.nn.Isotropic(pl.nn.learned(0.7)), pl.nn.Regression(pl.nn.learned()))
    wide = torch.cat([x, torch.ones(len(x), 1)], 1)
    y = y + 1.0

    def value(logs: Tensor) -> Tensor:
        return log_marginal(wide, y, logs.exp()[[0, 0, 1]], logs[2].exp())

    _, top = maximised(value, 3)
    point = {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}
    assert assert_written_where_it_is_read(net, (x, y), point) == pytest.approx(top, abs=1e-6)


def test_pyro_params_of_a_module(param_mode):
    class Program(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.std = pyro.nn.PyroParam(torch.tensor(0.5), constraints.positive)
            self.noise = pyro.nn.PyroParam(torch.tensor(2.0), constraints.positive)

        def forward(self, x, y=None):
            w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), self.std).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(x @ w, self.noise), obs=y)

    x, y = regression()
    best, top = maximised(lambda logs: log_marginal(x, y, *logs.exp()), 2)
    model = Program()
    lost = pl.maximize_evidence(model, (x, y), keep=False, progress=False)
    assert (model.std.item(), model.noise.item()) == (pytest.approx(0.5), pytest.approx(2.0))
    guide = pl.maximize_evidence(model, (x, y), progress=False)
    assert guide.log_evidence == pytest.approx(top, abs=1e-6)
    assert lost.log_evidence == pytest.approx(top, abs=1e-6)
    assert_close(torch.stack([model.std, model.noise]).detach(), best, rtol=1e-4, atol=0)
