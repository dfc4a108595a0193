"""`pl.AutoLaplaceApproximation` in the place of Pyro's: the same training, the same numbers, the same way to use it."""

import copy
import functools
import io
import pickle
import re
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as pyros
import pytest
import torch
from checks import assert_says
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiscreteParallel, AutoGuideList, AutoNormal, init_to_value
from pyro.nn.module import PyroModule, PyroParam, PyroSample
from pyro.optim import Adam
from torch import nn
from torch.distributions import constraints
from torch.testing import assert_close

import pyro_laplace as pl


def regression(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


def logistic(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def simplex(x, y=None):
    """A site whose unconstrained form has another shape, and a bounded one."""
    share = pyro.sample("share", dist.Dirichlet(torch.tensor([2.0, 3.0, 1.5])))
    level = pyro.sample("level", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(level + x @ share[:2], 0.5), obs=y)


def data_of(model, n=60):
    torch.manual_seed(1)
    x = torch.randn(n, 2)
    with torch.no_grad():
        y = poutine.condition(model, data={"w": torch.tensor([0.8, -0.4])})(x)
    return x, y


def trained(guide, model, *args, steps=100, rate=0.05, elbo=None, **kwargs):
    svi = SVI(model, guide, Adam({"lr": rate}), elbo or Trace_ELBO())
    for _ in range(steps):
        svi.step(*args, **kwargs)
    return guide


def settled(guide, model, *args):
    """At the mode to rounding, by the user's own LBFGS."""
    guide(*args)
    optimizer = torch.optim.LBFGS(
        guide.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = Trace_ELBO().differentiable_loss(model, guide, *args)
        loss.backward()
        return loss

    optimizer.step(closure)
    return guide


@pytest.mark.parametrize("model", [regression, logistic, simplex])
@pytest.mark.parametrize("options", [{}, {"curvature": "hessian", "polish": False}], ids=["default", "as theirs"])
def test_numbers_are_those_of_pyros(model, options, float64):
    data = data_of(model)
    theirs = settled(pyros.AutoLaplaceApproximation(model), model, *data)
    expected = theirs.laplace_approximation(*data)
    pyro.clear_param_store()
    ours = settled(pl.AutoLaplaceApproximation(model, **options), model, *data)
    assert_close(ours.loc, theirs.loc, rtol=1e-7, atol=1e-8)
    guide = ours.laplace_approximation(*data)
    assert isinstance(guide, pl.AutoLaplace)
    root = expected.scale[:, None] * expected.scale_tril
    assert_close(guide.loc, expected.loc, rtol=1e-6, atol=1e-7)
    assert_close(guide.covariance, root @ root.mT, rtol=1e-6, atol=1e-9)
    assert_close(guide.scale, expected.scale, rtol=1e-6, atol=1e-9)
    assert_close(guide.scale_tril, expected.scale_tril, rtol=1e-6, atol=1e-8)
    mine, other = guide.get_posterior(), expected.get_posterior()
    for name in ("mean", "variance", "covariance_matrix", "stddev"):
        assert_close(getattr(mine, name), getattr(other, name), rtol=1e-6, atol=1e-7)
    for name, value in expected.quantiles([0.1, 0.5, 0.9]).items():
        assert_close(guide.quantiles([0.1, 0.5, 0.9])[name], value, rtol=1e-5, atol=1e-7)


def test_it_is_trained_as_theirs_is():
    data = data_of(regression)
    guides = [make(regression) for make in (pyros.AutoLaplaceApproximation, pl.AutoLaplaceApproximation)]
    points = []
    for guide in guides:
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        points.append(trained(guide, regression, *data, steps=5).loc.detach().clone())
        assert list(pyro.get_param_store()) == ["AutoLaplaceApproximation.loc"]
    assert torch.equal(*points)
    assert isinstance(guides[1], pyros.AutoLaplaceApproximation)


@pytest.mark.parametrize("structure", ["diag", "kron", pl.LowRank(2)], ids=str)
def test_its_options_are_those_of_fit_laplace(structure, float64):
    data = data_of(logistic)
    chosen = {"structure": structure, "curvature": "ggn"}
    guide = trained(pl.AutoLaplaceApproximation(logistic, **chosen), logistic, *data).laplace_approximation(*data)
    expected = pl.fit_laplace(logistic, data, guide.median(), **chosen)
    assert guide.structure == structure
    assert guide.curvature == "ggn"
    assert_close(guide.precision.to_dense(), expected.precision.to_dense(), rtol=1e-6, atol=1e-8)


def test_a_subset(float64):
    data = data_of(regression)
    guide = trained(pl.AutoLaplaceApproximation(regression, subset=["w"]), regression, *data)
    found = guide.laplace_approximation(*data)
    assert set(found.layout) == {"w"}
    assert set(found(*data)) == {"w", "sigma"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"structure": "dense"}, ["structure", "full"]),
        ({"curvature": "exact"}, ["curvature", "ggn"]),
        ({"polish": "maybe"}, ["polish"]),
        ({"structure": "kron", "curvature": "hessian"}, ["kron", "hessian"]),
    ],
    ids=str,
)
def test_options_are_checked_before_the_training(options, words):
    with pytest.raises(pl.InvalidOption) as caught:
        pl.AutoLaplaceApproximation(logistic, **options)
    assert_says(caught, *words)


def test_options_leave_the_random_state_as_it_is():
    pyro.set_rng_seed(0)
    expected = torch.rand(3)
    pyro.set_rng_seed(0)
    pl.AutoLaplaceApproximation(logistic, structure="diag", curvature="mc_fisher")
    assert torch.equal(torch.rand(3), expected)


def test_where_it_starts():
    start = {"w": torch.tensor([0.3, -2.0]), "sigma": torch.tensor(1.7)}
    guide = pl.AutoLaplaceApproximation(regression, init_loc_fn=init_to_value(values=start))
    guide(*data_of(regression))
    for name, value in start.items():
        assert_close(guide.median()[name], value)


def test_a_point_that_is_no_mode_is_told_of(float64):
    data = data_of(logistic)
    guide = pl.AutoLaplaceApproximation(logistic, init_to_value(values={"w": torch.tensor([3.0, 3.0])}), polish=False)
    with pytest.warns(pl.NotAModeWarning, match="not a mode"):
        guide.laplace_approximation(*data)
    guide = pl.AutoLaplaceApproximation(logistic, init_to_value(values={"w": torch.tensor([3.0, 3.0])}))
    assert guide.laplace_approximation(*data).mode.is_mode


# --- Pyro's own tests of its class, by which it is used -------------------------------------------


def three_priors():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.LogNormal(0.0, 1.0))
    pyro.sample("z", dist.Beta(2.0, 2.0))


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO])
def test_median_and_quantiles_of_a_prior(elbo):
    """A program that observes nothing: the posterior is the prior."""
    guide = pl.AutoLaplaceApproximation(three_priors)
    loss = elbo(strict_enumeration_warning=False, num_particles=10, vectorize_particles=True)
    guide = trained(guide, three_priors, elbo=loss, steps=60).laplace_approximation()
    assert_close(guide.median(), {name: torch.tensor(v) for name, v in zip("xyz", (0.0, 1.0, 0.5), strict=True)})
    quantiles = guide.quantiles([0.1, 0.5, 0.9])
    expected = dist.Normal(0.0, 1.0).icdf(torch.tensor([0.1, 0.5, 0.9]))
    assert_close(quantiles["x"], expected, rtol=1e-4, atol=1e-5)
    assert_close(quantiles["y"], expected.exp(), rtol=1e-4, atol=1e-5)
    assert_close(quantiles["z"], expected.sigmoid(), rtol=1e-4, atol=1e-5)  # z (1 - z)^2 z has curvature 1 there


def test_median_of_a_module():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.x_loc = nn.Parameter(torch.tensor(1.0))
            self.x_scale = PyroParam(torch.tensor(0.1), constraints.positive)

        def forward(self):
            pyro.sample("x", dist.Normal(self.x_loc, self.x_scale))
            pyro.sample("y", dist.Normal(2.0, 0.1))

    model = Model()
    guide = trained(pl.AutoLaplaceApproximation(model), model, steps=20, rate=0.005)
    assert {name for name, _ in guide.named_parameters()} == {"loc"}
    median = guide.laplace_approximation().median()
    assert_close(median["x"], model.x_loc.detach(), rtol=1e-4, atol=1e-4)
    assert_close(median["y"], torch.tensor(2.0), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_serialised_by_jit():
    guide = pl.AutoLaplaceApproximation(three_priors)
    guide()
    guide = guide.laplace_approximation()
    pyro.set_rng_seed(0)
    expected = guide.call()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        traced = torch.jit.trace_module(guide, {"call": ()}, check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    pyro.set_rng_seed(0)
    assert_close(loaded.call(), expected)
    assert not list(guide.named_parameters())


class RandomLinear(nn.Linear, PyroModule):
    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([out_features, in_features]).to_event(2))
        self.bias = PyroSample(dist.Normal(0.0, 10.0).expand([out_features]).to_event(1))


class LinearRegression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = RandomLinear(2, 1)

    def forward(self, x, y=None):
        mean = self.linear(x).squeeze(-1)
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("plate", len(x)):
            return pyro.sample("obs", dist.Normal(mean, sigma), obs=y)


def test_the_regression_of_pyros_tutorial():
    """Bayesian Regression II: train, `laplace_approximation`, `Predictive`, quantiles."""
    x, y = data_of(regression)
    model = LinearRegression()
    guide = trained(pl.AutoLaplaceApproximation(model), model, x, y, steps=50)
    posterior = guide.laplace_approximation(x, y)
    theirs = settled(pyros.AutoLaplaceApproximation(model), model, x, y).laplace_approximation(x, y)
    for name, value in theirs.quantiles([0.025, 0.5, 0.975]).items():
        assert_close(posterior.quantiles([0.025, 0.5, 0.975])[name], value, rtol=0.02, atol=0.02)
    draws = Predictive(model, guide=posterior, num_samples=20, return_sites=("linear.weight", "obs", "_RETURN"))(x)
    assert draws["obs"].shape == (20, len(x))
    assert draws["linear.weight"].numel() == 40


def test_predictive_of_the_point():
    x, y = data_of(regression)
    model = LinearRegression()
    guide = pl.AutoLaplaceApproximation(model)
    guide(x, y=y)
    assert set(Predictive(model, guide=guide, num_samples=4)(x)) >= {"obs", "sigma", "linear.weight", "linear.bias"}
    posterior = guide.laplace_approximation(x, y=y)
    assert set(posterior.layout) == {"linear.weight", "linear.bias", "sigma"}


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO])
def test_factors(elbo):
    def model(log_factor):
        pyro.sample("z1", dist.Normal(0.0, 1.0))
        pyro.factor("f1", log_factor)
        pyro.sample("z2", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
        with pyro.plate("plate", 3):
            pyro.factor("f2", log_factor)
            pyro.sample("z3", dist.Normal(torch.zeros(3), torch.ones(3)))

    guide, elbo = pl.AutoLaplaceApproximation(model), elbo(strict_enumeration_warning=False)
    elbo.loss(model, guide, torch.tensor(0.0))
    losses = [elbo.loss(model, guide, torch.tensor(value)) for value in (5.0, 4.0)]
    assert losses[0] - losses[1] == pytest.approx(-1 - 3)
    posterior = guide.laplace_approximation(torch.tensor(5.0))
    assert_close(posterior.covariance, torch.eye(6))


def test_a_plate_that_subsamples(float64):
    """Trained on halves, measured on all."""
    x, y = data_of(logistic)

    def model(x, y, size=None):
        w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            pyro.sample("y", dist.Bernoulli(logits=x[index] @ w), obs=y[index])

    guide = trained(pl.AutoLaplaceApproximation(model), model, x, y, size=30)
    found = guide.laplace_approximation(x, y, size=30)
    expected = pl.fit_laplace(logistic, (x, y), progress=False)
    assert_close(found.covariance, expected.covariance, rtol=1e-5, atol=1e-8)


# --- parts of a program ---------------------------------------------------------------------------


def with_noise(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, noise), obs=y)


@pytest.mark.parametrize("hold", [AutoDelta, AutoNormal])
def test_a_part_of_a_list(hold, float64):
    """Over the weights at the noise that the other part says, in closed form."""
    x, y = data_of(with_noise)
    guide = AutoGuideList(with_noise)
    guide.append(pl.AutoLaplaceApproximation(poutine.block(with_noise, expose=["w"]), polish=False))
    guide.append(hold(poutine.block(with_noise, hide=["w"])))
    trained(guide, with_noise, x, y, steps=150, rate=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.NotAModeWarning)  # of a short training
        posterior = guide[0].laplace_approximation(x, y)
    noise = guide.median()["noise"]
    assert set(posterior.layout) == {"w"}
    assert_close(posterior.precision.to_dense(), x.mT @ x / noise**2 + torch.eye(2), rtol=1e-8, atol=1e-8)
    assert_close(posterior.median()["noise"], noise)


def test_two_parts(float64):
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(5), 2 * torch.eye(5)))

    guide = AutoGuideList(model)
    guide.append(pl.AutoLaplaceApproximation(poutine.block(model, expose=["x"])))
    guide.append(pl.AutoLaplaceApproximation(poutine.block(model, expose=["y"])))
    assert set(guide()) == {"x", "y"}
    found = guide[1].laplace_approximation()
    assert set(found.layout) == {"y"}
    assert_close(found.covariance, 2 * torch.eye(5))


def test_beside_enumerated_sites():
    """Pyro's own two clusters: the assignments are summed out, and none is drawn."""
    data = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])

    def model(data):
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0).expand_by([2]).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            label = pyro.sample("label", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("obs", dist.Normal(locs[label], scale), obs=data)

    starts = {"weights": torch.tensor([0.4, 0.6]), "locs": torch.tensor([0.5, 11.0]), "scale": torch.tensor(0.8)}
    guide = AutoGuideList(model)
    block = poutine.block(model, hide=["label"])
    guide.append(pl.AutoLaplaceApproximation(block, init_loc_fn=init_to_value(values=starts)))
    guide.append(AutoDiscreteParallel(poutine.block(model, expose=["label"])))
    TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(model, guide, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.LaplaceWarning)  # of what five data say of a mixture
        found = guide[0].laplace_approximation(data)
    expected = pl.fit_laplace(model, (data,), guide[0].median(), progress=False, on_not_a_mode="ignore")
    assert set(found.layout) == {"weights", "locs", "scale"}
    assert_close(found.covariance, expected.covariance, rtol=1e-3, atol=1e-4)


def test_a_block_that_hides_the_data_is_not_taken_for_a_prior():
    x, y = data_of(with_noise)
    guide = pl.AutoLaplaceApproximation(poutine.block(with_noise, expose=["w"]))
    with pytest.raises(pl.UnsupportedProgram) as caught:
        guide.laplace_approximation(x, y)
    assert_says(caught, "no observed site", "w")


# --- copies ---------------------------------------------------------------------------------------


def test_a_copy_leaves_the_original_whole(param_mode):
    data = data_of(logistic)
    guide = settled(pl.AutoLaplaceApproximation(logistic), logistic, *data)
    copied = pickle.loads(pickle.dumps(guide))
    assert guide.laplace_approximation(*data).mode.is_mode
    assert_close(copied.median()["w"], guide.median()["w"])
    with pytest.raises(pl.InvalidOption) as caught:
        copied.laplace_approximation(*data)
    assert_says(caught, "pickled", "load_state_dict")
    posterior = copy.deepcopy(guide.laplace_approximation(*data))
    assert set(posterior(*data)) == {"w"}


def test_what_is_missing_is_named():
    x, y = data_of(logistic)
    guide = trained(pl.AutoLaplaceApproximation(logistic), logistic, x, y, steps=5)
    with pytest.raises(pl.UnsupportedProgram) as caught:
        guide.laplace_approximation(x)
    assert_says(caught, "'y'")


def test_a_point_has_no_quantiles():
    guide = pl.AutoLaplaceApproximation(logistic)
    guide(*data_of(logistic))
    with pytest.raises(pl.InvalidOption, match="laplace_approximation"):
        guide.quantiles([0.5])


def test_partial_options():
    """As Pyro's tests make guides."""
    make = functools.partial(pl.AutoLaplaceApproximation, init_loc_fn=pyros.init_to_feasible)
    x, y = data_of(logistic)
    assert make(logistic).laplace_approximation(x, y).mode.is_mode


def test_the_page_on_programs_before_and_after():
    page = (Path(__file__).parents[2] / "docs" / "programs.md").read_text()
    page = page[page.index("## From Pyro's") : page.index("## When a number")]
    names: dict = {"torch": torch, "pyro": pyro, "dist": dist}
    found = []
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "docs/programs.md", "exec"), names)
        found.append(names["posterior"])
        assert names["draws"]["y"].shape == (100, 200)
    theirs, ours = found
    assert_close(ours.loc, theirs.loc, rtol=0.01, atol=0.01)
    assert_close(ours.scale, theirs.scale, rtol=0.01, atol=0.0)


def test_pyros_own_guide_is_a_start(float64):
    x, y = data_of(regression)
    theirs = trained(pyros.AutoLaplaceApproximation(regression), regression, x, y)
    options: dict = {"curvature": "hessian", "polish": False, "jacobian": False, "on_not_a_mode": "ignore"}
    ours = pl.fit_laplace(regression, (x, y), theirs, **options)
    assert_close(ours.loc, theirs.loc.detach(), rtol=1e-8, atol=1e-8)
