"""The groups of a tree: their dims and coords, those of the prior, and the same ones from data in batches."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from oracles.datatrees import NOISE, PRIOR_STD, fit, shapes
from programs import zoo as programs
from pyro.nn import PyroModule
from torch import Tensor

import pyro_laplace as pl


@pytest.fixture(autouse=True)
def double(float64):
    """Everything here is compared with closed forms."""


# --- groups, dims and coords --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
def test_dims_are_plates_and_numbered_axes():
    case = programs.hierarchical()
    tree = pl.to_datatree(case.model, fit(case), case.data, num_samples=3, coords={"groups": list("abcde")})
    draws = {"chain": 1, "draw": 3}
    assert shapes(tree, "posterior") == {"mu": draws, "tau": draws, "z": draws | {"groups": 5}}
    assert shapes(tree, "log_likelihood") == {"y": draws | {"data": 40}}
    assert shapes(tree, "posterior_predictive") == {"y": draws | {"data": 40}}
    assert shapes(tree, "observed_data") == {"y": {"data": 40}}
    assert shapes(tree, "constant_data") == {"group": {"data": 40}}
    assert list(tree.posterior["groups"].values) == list("abcde")
    np.testing.assert_array_equal(tree.constant_data["group"], case.data[0])
    np.testing.assert_array_equal(tree.observed_data["y"], case.data[1])


def test_event_dims_follow_batch_dims():
    case = programs.multi_output()
    tree = pl.to_datatree(case.model, fit(case), case.data, num_samples=3)
    draws = {"chain": 1, "draw": 3}
    assert shapes(tree, "posterior")["w"] == draws | {"w_dim_0": 2, "w_dim_1": 3}
    assert shapes(tree, "log_likelihood") == {"y": draws | {"data": 25}}
    assert shapes(tree, "posterior_predictive") == {"y": draws | {"data": 25, "y_dim_0": 3}}
    assert shapes(tree, "constant_data") == {"x": {"data": 25, "x_dim_0": 2}}


def test_two_plates_drop_the_axes_that_only_align():
    def model(y=None):
        with pyro.plate("rows", 3, dim=-2):
            a = pyro.sample("a", dist.Normal(0, 1))
        with pyro.plate("columns", 4, dim=-1):
            b = pyro.sample("b", dist.Normal(0, 1))
        with pyro.plate("rows_", 3, dim=-2), pyro.plate("columns_", 4, dim=-1):
            pyro.sample("y", dist.Normal(a + b, 0.5), obs=y)

    y = torch.randn(3, 4)
    guide = pl.fit_laplace(model, (y,), progress=False)
    tree = pl.to_datatree(model, guide, (y,), num_samples=2)
    assert shapes(tree, "posterior") == {
        "a": {"chain": 1, "draw": 2, "rows": 3},
        "b": {"chain": 1, "draw": 2, "columns": 4},
    }
    assert shapes(tree, "log_likelihood") == {"y": {"chain": 1, "draw": 2, "rows_": 3, "columns_": 4}}
    a, b = tree.posterior["a"].values[0, 1], tree.posterior["b"].values[0, 1]
    expected = dist.Normal(torch.tensor(a)[:, None] + torch.tensor(b), 0.5).log_prob(y)
    np.testing.assert_allclose(tree.log_likelihood["y"].values[0, 1], expected)


def test_no_plate_at_all():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0, 1))
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    data = (torch.linspace(0, 1, 6), torch.ones(6))
    tree = pl.to_datatree(model, {"w": torch.randn(2)}, data)
    assert shapes(tree, "log_likelihood") == {"y": {"chain": 1, "draw": 2, "y_dim_0": 6}}
    assert shapes(tree, "constant_data") == {"x": {"x_dim_0": 6}}


def test_deterministic_sites_join_the_posterior():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0, 1))
        twice = pyro.deterministic("twice", 2 * w)
        f = pyro.deterministic("f", twice * x)
        with pyro.plate("data", len(x)):
            pyro.deterministic("g", f + 1)
            pyro.sample("y", dist.Normal(f, 1.0), obs=y)

    x, y = torch.linspace(0, 1, 6), torch.ones(6)
    guide = pl.fit_laplace(model, (x, y), progress=False)
    for data in ((x, y), [(x[:4], y[:4]), (x[4:], y[4:])]):
        tree = pl.to_datatree(model, guide, data, num_samples=3)
        assert shapes(tree, "posterior") == {
            "w": {"chain": 1, "draw": 3},
            "twice": {"chain": 1, "draw": 3},
            "f": {"chain": 1, "draw": 3, "f_dim_0": 6},
            "g": {"chain": 1, "draw": 3, "data": 6},
        }
        twice = 2 * tree.posterior["w"].values[0]
        np.testing.assert_allclose(tree.posterior["twice"].values[0], twice)
        np.testing.assert_allclose(tree.posterior["f"].values[0], twice[:, None] * x.numpy())


def test_arguments_are_named_by_the_signature():
    class Net(PyroModule):
        def forward(self, x, offset=None, y=None, *, weight=None):
            w = pyro.sample("w", dist.Normal(0, 1))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(w * x + offset, weight), obs=y)

    net = Net()
    data = {"x": torch.linspace(0, 1, 5), "y": torch.ones(5), "weight": torch.tensor(2.0), "offset": torch.zeros(5)}
    tree = pl.to_datatree(net, pl.fit_laplace(net, data, progress=False), data, num_samples=2)
    assert shapes(tree, "constant_data") == {"x": {"data": 5}, "offset": {"data": 5}, "weight": {}}


def test_an_argument_called_like_a_plate():
    def model(data, y=None):
        w = pyro.sample("w", dist.Normal(0, 1))
        with pyro.plate("data", len(data)):
            pyro.sample("y", dist.Normal(w * data, 1.0), obs=y)

    batch = (torch.linspace(0, 1, 5), torch.ones(5))
    tree = pl.to_datatree(model, pl.fit_laplace(model, batch, progress=False), batch, num_samples=2)
    assert shapes(tree, "constant_data") == {"data_data": {"data": 5}}


# --- prior --------------------------------------------------------------------------------------


@pytest.mark.statistical
def test_the_prior_is_drawn():
    case = programs.linear()
    tree = pl.to_datatree(case.model, fit(case), case.data, num_samples=2, num_prior_samples=4000)
    w = tree.prior["w"].values[0]
    np.testing.assert_allclose(np.cov(w, rowvar=False), PRIOR_STD**2 * np.eye(3), atol=0.15)
    variance = PRIOR_STD**2 * (case.data[0] ** 2).sum(-1) + NOISE**2
    np.testing.assert_allclose(tree.prior_predictive["y"].values[0].var(0), variance, rtol=0.12)


def test_an_improper_prior_is_left_out():
    def model(x, y=None):
        w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real, torch.Size(), torch.Size()))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    data = (torch.linspace(0, 1, 6), torch.ones(6))
    tree = pl.to_datatree(model, pl.fit_laplace(model, data, progress=False), data, num_samples=2)
    assert {"prior", "prior_predictive"}.isdisjoint(tree.children)


def test_no_prior_samples_no_prior():
    case = programs.linear()
    tree = pl.to_datatree(case.model, fit(case), case.data, num_samples=2, num_prior_samples=0)
    assert {"prior", "prior_predictive"}.isdisjoint(tree.children)


# --- data ---------------------------------------------------------------------------------------


def draws_for(case: programs.Case, num_draws: int = 5) -> dict[str, Tensor]:
    theta = 0.3 * torch.randn(num_draws, case.flat.size)
    rows = [case.flat.constrain(row)[0] for row in theta]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


SAME_IN_BATCHES = ["posterior", "log_likelihood", "observed_data", "constant_data", "sample_stats"]


@pytest.mark.parametrize(
    "make",
    [programs.linear, programs.multi_output, programs.softmax, programs.two_likelihoods, programs.masked_fn],
)
@pytest.mark.parametrize("size", [1, 7, 100])
def test_batches_give_what_one_batch_gives(make, size):
    case = make()
    draws = draws_for(case)
    whole = pl.to_datatree(case.model, draws, case.data, num_prior_samples=0)
    parts = pl.to_datatree(case.model, draws, case.batches(size), num_prior_samples=0)
    for group in SAME_IN_BATCHES:
        xr.testing.assert_allclose(parts[group].to_dataset(), whole[group].to_dataset())
    assert shapes(parts, "posterior_predictive") == shapes(whole, "posterior_predictive")


def test_a_data_loader_and_a_dict_are_data():
    case = programs.linear()
    x, y = case.data
    draws = draws_for(case)
    whole = pl.to_datatree(case.model, draws, case.data, num_prior_samples=0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
    for data in (loader, {"x": x, "y": y}, [{"x": x[:9], "y": y[:9]}, {"x": x[9:], "y": y[9:]}]):
        tree = pl.to_datatree(case.model, draws, data, num_prior_samples=0)
        for group in SAME_IN_BATCHES:
            xr.testing.assert_allclose(tree[group].to_dataset(), whole[group].to_dataset())


@pytest.mark.parametrize("subsample_size", [5, 7, 40])
def test_a_plate_that_subsamples_itself_is_visited_once(subsample_size):
    def model(x, y=None):
        w = pyro.sample("w", programs.normal(PRIOR_STD, 3))
        with pyro.plate("data", len(x), subsample_size=subsample_size) as index:
            pyro.sample("y", dist.Normal(x[index] @ w, NOISE), obs=None if y is None else y[index])

    case = programs.linear()
    draws = draws_for(case)
    whole = pl.to_datatree(case.model, draws, case.data, num_prior_samples=20)
    tree = pl.to_datatree(model, draws, case.data, num_prior_samples=20)
    for group in SAME_IN_BATCHES:
        xr.testing.assert_allclose(tree[group].to_dataset(), whole[group].to_dataset())
    for group in ("posterior_predictive", "prior_predictive"):
        assert shapes(tree, group) == shapes(whole, group)


def test_a_part_of_the_data_is_not_extrapolated_datum_by_datum():
    """A plate that says 400 and is given 40: each datum's log likelihood is its own, the joint counts it ten times."""

    def model(x, y=None):
        w = pyro.sample("w", programs.normal(PRIOR_STD, 3))
        with pyro.plate("data", 400, subsample=torch.arange(len(x))):
            pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    case = programs.linear()
    draws = draws_for(case)
    whole = pl.to_datatree(case.model, draws, case.data, num_prior_samples=0)
    tree = pl.to_datatree(model, draws, case.data, num_prior_samples=0)
    np.testing.assert_allclose(tree.log_likelihood["y"], whole.log_likelihood["y"])
    prior = whole.sample_stats["lp"].values - whole.log_likelihood["y"].values.sum(-1)
    expected = 10 * whole.log_likelihood["y"].values.sum(-1) + prior
    np.testing.assert_allclose(tree.sample_stats["lp"], expected)


def test_a_batch_that_is_one_event_is_one_datum():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0, 1))
        pyro.sample("y", dist.Normal(w * x, 1.0).to_event(1), obs=y)

    x, y = torch.linspace(0, 1, 6), torch.ones(6)
    draws = {"w": torch.randn(4)}
    tree = pl.to_datatree(model, draws, [(x[:2], y[:2]), (x[2:], y[2:])])
    terms = dist.Normal(draws["w"][:, None] * x, 1.0).log_prob(y)
    expected = torch.stack([terms[:, :2].sum(-1), terms[:, 2:].sum(-1)], -1)
    np.testing.assert_allclose(tree.log_likelihood["y"].values[0], expected)
    assert shapes(tree, "posterior_predictive") == {"y": {"chain": 1, "draw": 4, "y_dim_0": 6}}


def test_masked_data_have_no_log_likelihood():
    case = programs.masked()
    tree = pl.to_datatree(case.model, fit(case), case.data, num_samples=3)
    masked = ~case.data[1].numpy()
    assert (tree.log_likelihood["y"].values[..., masked] == 0).all()
    assert (tree.log_likelihood["y"].values[..., ~masked] < 0).all()
