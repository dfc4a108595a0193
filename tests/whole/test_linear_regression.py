"""Bayesian linear regression with known noise, where a Laplace approximation is exact.

However the data come (whole, in batches, through a plate that subsamples), mean, covariance and log evidence are those
of the closed form.
"""

from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.naive import Gaussian, linear_regression
from programs.zoo import Case, linear_data, linear_model, map_guide_at, normal, split
from pyro import poutine
from pyro.distributions import constraints
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

NOISE, PRIOR_STD, NUM_OBS = 0.7, 1.3, 40
assert_same = partial(assert_close, rtol=1e-8, atol=1e-8)


def assert_equals(guide, exact: Gaussian) -> None:
    """The guide's mean, precision, covariance and evidence against the closed form."""
    posterior = guide.get_posterior()
    prec = guide.precision.to_dense()
    assert_same(guide.median()["w"].reshape(-1), exact.mean)
    assert_same(prec, exact.prec)
    assert_same(torch.linalg.inv(prec), exact.cov)
    assert_same(posterior_covariance(guide), exact.cov)
    assert_same(posterior.log_prob(exact.mean), gaussian(exact).log_prob(exact.mean))
    assert guide.log_evidence == pytest.approx(exact.log_evidence, rel=1e-8, abs=1e-8)


def posterior_covariance(guide) -> torch.Tensor:
    """`S S'` for the affine map `white -> theta = m + S white` that the guide samples with."""
    transform = guide.get_transform()
    white = torch.eye(len(guide.get_base_dist().sample()))
    root = (transform(white) - transform(torch.zeros_like(white))).T
    return root @ root.T


def gaussian(exact: Gaussian) -> torch.distributions.Distribution:
    return torch.distributions.MultivariateNormal(exact.mean, precision_matrix=exact.prec)


def exact_posterior(x: torch.Tensor, y: torch.Tensor, noise: float = NOISE) -> Gaussian:
    return linear_regression(x, y, noise, PRIOR_STD)


def laplace(model, data, *first_batch: torch.Tensor):
    """`fit_laplace` from an AutoDelta that is nowhere near the mode: the move to it is the package's."""
    num_weights = 3 if not first_batch else first_batch[0].shape[-1]
    start = map_guide_at(model, {"w": torch.zeros(num_weights)}, *first_batch)
    return pl.fit_laplace(model, data, start)


# --- one batch ------------------------------------------------------------------------------------


@given(
    log_num_obs=st.floats(0.0, 4.0),
    num_weights=st.integers(1, 6),
    noise=st.floats(0.1, 3.0),
    prior_std=st.floats(0.1, 10.0),
    seed=st.integers(0, 1000),
)
def test_equals_the_closed_form(log_num_obs, num_weights, noise, prior_std, seed):
    pyro.clear_param_store()
    x, y = linear_data(round(10**log_num_obs), num_weights, seed)
    guide = laplace(linear_model(noise, prior_std), (x, y), x, y)
    assert_equals(guide, linear_regression(x, y, noise, prior_std))


@pytest.mark.parametrize("num_obs", [1, 2, 10_000])
def test_fits_its_own_map_guide(num_obs):
    x, y = linear_data(num_obs)
    guide = pl.fit_laplace(linear_model(NOISE, PRIOR_STD), (x, y))
    assert_equals(guide, exact_posterior(x, y))


def test_from_fit_map():
    x, y = linear_data(NUM_OBS)
    model = linear_model(NOISE, PRIOR_STD)
    map_guide = pl.fit_map(model, (x, y))
    assert_close(map_guide.median()["w"], exact_posterior(x, y).mean, rtol=0, atol=0.05)
    assert_equals(pl.fit_laplace(model, (x, y), map_guide), exact_posterior(x, y))


def test_tuple_dict_and_tensor_are_one_batch():
    x, y = linear_data(NUM_OBS)
    model = linear_model(NOISE, PRIOR_STD)

    def model_of_one_tensor(xy):
        return model(xy[:, :-1], xy[:, -1])

    assert_equals(pl.fit_laplace(model, (x, y)), exact_posterior(x, y))
    assert_equals(pl.fit_laplace(model, {"x": x, "y": y}), exact_posterior(x, y))
    assert_equals(pl.fit_laplace(model_of_one_tensor, torch.cat([x, y[:, None]], -1)), exact_posterior(x, y))


def test_program_without_a_plate():
    """All data in one event."""

    def model(x, y=None):
        w = pyro.sample("w", normal(PRIOR_STD, 3))
        return pyro.sample("y", dist.Normal(x @ w, NOISE).to_event(1), obs=y)

    x, y = linear_data(NUM_OBS)
    assert_equals(laplace(model, (x, y), x, y), exact_posterior(x, y))
    assert_equals(laplace(model, split((x, y), 7), x[:7], y[:7]), exact_posterior(x, y))


def test_program_that_closes_over_its_data():
    x, y = linear_data(NUM_OBS)
    model = linear_model(NOISE, PRIOR_STD)
    assert_equals(laplace(lambda: model(x, y), ()), exact_posterior(x, y))


def test_weights_in_a_plate_of_their_own():
    def model(x, y=None):
        with pyro.plate("weights", 3):
            w = pyro.sample("w", dist.Normal(0.0, PRIOR_STD))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    x, y = linear_data(NUM_OBS)
    assert_equals(laplace(model, (x, y), x, y), exact_posterior(x, y))


def test_many_outputs_share_one_design():
    """`Y = X W`: the columns of W are independent posteriors, interleaved in theta."""

    def model(x, y=None):
        w = pyro.sample("w", normal(PRIOR_STD, 3, 2))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, NOISE).to_event(1), obs=y)

    x, y = linear_data(NUM_OBS)
    columns = [exact_posterior(x, y), exact_posterior(x, y.flip(0))]
    guide = pl.fit_laplace(model, (x, torch.stack([y, y.flip(0)], -1)))
    assert_same(guide.median()["w"], torch.stack([column.mean for column in columns], -1))
    assert_same(guide.precision.to_dense(), torch.kron(columns[0].prec, torch.eye(2)))
    assert guide.log_evidence == pytest.approx(sum(column.log_evidence for column in columns), rel=1e-8)


# --- batches --------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(size=st.integers(1, NUM_OBS + 5))
def test_batches_of_any_size(size):
    pyro.clear_param_store()
    x, y = linear_data(NUM_OBS)
    batches = split((x, y), size)
    guide = laplace(linear_model(NOISE, PRIOR_STD), batches, *batches[0])
    assert_equals(guide, exact_posterior(x, y))


@settings(max_examples=10)
@given(cuts=st.sets(st.integers(1, NUM_OBS - 1), max_size=6))
def test_ragged_batches(cuts):
    pyro.clear_param_store()
    x, y = linear_data(NUM_OBS)
    edges = [0, *sorted(cuts), NUM_OBS]
    batches = [{"x": x[a:b], "y": y[a:b]} for a, b in pairwise(edges)]
    guide = laplace(linear_model(NOISE, PRIOR_STD), batches, x[: edges[1]], y[: edges[1]])
    assert_equals(guide, exact_posterior(x, y))


@pytest.mark.parametrize("batch_size", [1, 7, NUM_OBS])
@pytest.mark.parametrize("shuffle", [False, True])
def test_data_loader(batch_size, shuffle):
    x, y = linear_data(NUM_OBS)
    loader = DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=shuffle)
    assert_equals(laplace(linear_model(NOISE, PRIOR_STD), loader, x[:1], y[:1]), exact_posterior(x, y))


class Rows(Dataset):
    """Items as dicts, which a DataLoader collates to dicts."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, n: int) -> dict:
        return {"x": self.x[n], "y": self.y[n]}


def test_data_loader_of_dicts():
    x, y = linear_data(NUM_OBS)
    loader = DataLoader(Rows(x, y), batch_size=16)
    assert_equals(laplace(linear_model(NOISE, PRIOR_STD), loader, x[:1], y[:1]), exact_posterior(x, y))


def test_loader_without_a_map_guide():
    x, y = linear_data(NUM_OBS)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    assert_equals(pl.fit_laplace(linear_model(NOISE, PRIOR_STD), loader), exact_posterior(x, y))


def test_ten_thousand_data_in_batches():
    x, y = linear_data(10_000)
    guide = laplace(linear_model(NOISE, PRIOR_STD), split((x, y), 999), x[:999], y[:999])
    assert_equals(guide, exact_posterior(x, y))


# --- plates that subsample ------------------------------------------------------------------------


def draws_its_own_rows(batch_size: int):
    """All data in, a random batch of them observed at each call."""

    def model(x, y):
        w = pyro.sample("w", normal(PRIOR_STD, 3))
        with pyro.plate("data", len(x), subsample_size=batch_size) as rows:
            pyro.sample("y", dist.Normal(x[rows] @ w, NOISE), obs=y[rows])

    return model


@pytest.mark.parametrize("batch_size", [1, 7, NUM_OBS])
def test_plate_that_draws_its_own_rows(batch_size):
    x, y = linear_data(NUM_OBS)
    assert_equals(laplace(draws_its_own_rows(batch_size), (x, y), x, y), exact_posterior(x, y))


def test_plate_that_draws_its_own_rows_from_data_it_closes_over():
    x, y = linear_data(NUM_OBS)
    model = draws_its_own_rows(7)
    assert_equals(laplace(lambda: model(x, y), ()), exact_posterior(x, y))


def test_plate_that_draws_its_own_rows_without_a_map_guide():
    x, y = linear_data(NUM_OBS)
    assert_equals(pl.fit_laplace(draws_its_own_rows(20), (x, y)), exact_posterior(x, y))


@pytest.mark.parametrize("batch_size", [1, 7, NUM_OBS])
def test_plate_given_its_rows(batch_size):
    """`subsample=` from outside; rows come in batches, data are closed over."""
    x, y = linear_data(NUM_OBS)

    def model(rows):
        w = pyro.sample("w", normal(PRIOR_STD, 3))
        with pyro.plate("data", NUM_OBS, subsample=rows):
            pyro.sample("y", dist.Normal(x[rows] @ w, NOISE), obs=y[rows])

    batches = list(torch.randperm(NUM_OBS).split(batch_size))
    start = map_guide_at(model, {"w": torch.zeros(3)}, batches[0])
    assert_equals(pl.fit_laplace(model, batches, start), exact_posterior(x, y))


def minibatch_model(x, y=None):
    """Batches from outside in a plate of the full size: Pyro multiplies each by `NUM_OBS / len(x)`."""
    w = pyro.sample("w", normal(PRIOR_STD, 3))
    with pyro.plate("data", NUM_OBS, subsample_size=len(x)):
        return pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


@pytest.mark.parametrize("batch_size", [1, 7, NUM_OBS])
def test_plate_of_full_size_around_minibatches(batch_size):
    x, y = linear_data(NUM_OBS)
    batches = split((x, y), batch_size)
    assert_equals(laplace(minibatch_model, batches, *batches[0]), exact_posterior(x, y))


def test_plate_of_full_size_around_minibatches_without_a_map_guide():
    x, y = linear_data(NUM_OBS)
    assert_equals(pl.fit_laplace(minibatch_model, split((x, y), 16)), exact_posterior(x, y))


def test_subsampling_plate_in_two_dimensions():
    """The subsampled plate is not the only one."""
    x, y = linear_data(NUM_OBS)
    y2 = torch.stack([y, y.flip(0)])

    def model(rows):
        w = pyro.sample("w", normal(PRIOR_STD, 3))
        with pyro.plate("outputs", 2, dim=-2), pyro.plate("data", NUM_OBS, subsample=rows, dim=-1):
            pyro.sample("y", dist.Normal(x[rows] @ w, NOISE), obs=y2[:, rows])

    batches = list(torch.arange(NUM_OBS).split(15))
    start = map_guide_at(model, {"w": torch.zeros(3)}, batches[0])
    exact = exact_posterior(torch.cat([x, x]), torch.cat([y, y.flip(0)]))
    assert_equals(pl.fit_laplace(model, batches, start), exact)


# --- scale and mask -------------------------------------------------------------------------------

SCALE = 0.3


def scaled_likelihood(x, y=None):
    w = pyro.sample("w", normal(PRIOR_STD, 3))
    with pyro.plate("data", NUM_OBS, subsample_size=len(x)), poutine.scale(scale=SCALE):
        return pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


@pytest.mark.parametrize("batch_size", [7, NUM_OBS])
def test_users_scale_of_the_likelihood_is_kept(batch_size):
    """A plate's own scale is undone, the user's kept: the noise variance is divided by it."""
    x, y = linear_data(NUM_OBS)
    exact = exact_posterior(x, y, noise=NOISE / SCALE**0.5)
    batches = split((x, y), batch_size)
    guide = laplace(scaled_likelihood, batches, *batches[0])
    assert_same(guide.median()["w"], exact.mean)
    assert_same(guide.precision.to_dense(), exact.prec)


@pytest.mark.parametrize("batch_size", [7, NUM_OBS])
def test_users_scale_of_the_program_is_kept(batch_size):
    """Prior and likelihood to a power: the mode stays, the covariance is divided by it."""
    x, y = linear_data(NUM_OBS)
    exact = exact_posterior(x, y)
    batches = split((x, y), batch_size)
    guide = laplace(poutine.scale(minibatch_model, scale=SCALE), batches, *batches[0])
    assert_same(guide.median()["w"], exact.mean)
    assert_same(guide.precision.to_dense(), SCALE * exact.prec)


def test_log_evidence_of_a_scaled_program():
    x, y = linear_data(NUM_OBS)
    case = Case(poutine.scale(linear_model(NOISE, PRIOR_STD), scale=SCALE), (x, y))
    exact = exact_posterior(x, y)
    expected = case.flat.laplace_evidence(exact.mean, SCALE * exact.prec)
    assert laplace(case.model, (x, y), x, y).log_evidence == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("batch_size", [7, NUM_OBS])
def test_masked_data_do_not_count(batch_size):
    def model(x, keep, y=None):
        w = pyro.sample("w", normal(PRIOR_STD, 3))
        with pyro.plate("data", len(x)), poutine.mask(mask=keep):
            return pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    x, y = linear_data(NUM_OBS)
    keep = torch.arange(NUM_OBS) % 3 != 0
    batches = split((x, keep, y), batch_size)
    assert_equals(laplace(model, batches, *batches[0]), exact_posterior(x[keep], y[keep]))


# --- priors said otherwise ------------------------------------------------------------------------


def prior_as_factor(x, y=None):
    w = pyro.sample("w", dist.ImproperUniform(constraints.real_vector, torch.Size(), torch.Size([3])))
    pyro.factor("prior", normal(PRIOR_STD, 3).log_prob(w))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def prior_as_observation(x, y=None):
    """The factor graph of `dist.ImproperUniform`'s docstring."""
    w = pyro.sample("w", dist.ImproperUniform(constraints.real_vector, torch.Size(), torch.Size([3])))
    pyro.sample("prior", normal(PRIOR_STD, 3), obs=w)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


@pytest.mark.parametrize("model", [prior_as_factor, prior_as_observation])
def test_a_prior_in_a_factor_is_not_lost(model):
    x, y = linear_data(NUM_OBS)
    assert_equals(laplace(model, (x, y), x, y), exact_posterior(x, y))


def test_flat_prior():
    """Without a prior the posterior is least squares'."""

    def model(x, y=None):
        w = pyro.sample("w", dist.ImproperUniform(constraints.real_vector, torch.Size(), torch.Size([3])))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    x, y = linear_data(NUM_OBS)
    guide = pl.fit_laplace(model, (x, y))
    assert_same(guide.median()["w"], torch.linalg.lstsq(x, y).solution)
    assert_same(guide.precision.to_dense(), x.T @ x / NOISE**2)


# --- hard numerics --------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["raw year", "raw height", "scales 1e5 apart"])
def test_badly_scaled_designs(columns):
    """Conditioning of 1e10 and more: compared on the scale of the posterior's own standard deviations."""
    g = torch.Generator().manual_seed(0)
    uniform = torch.rand(NUM_OBS, generator=g)
    x = {
        "raw year": torch.stack([torch.ones(NUM_OBS), 1950 + 70 * uniform], -1),
        "raw height": torch.stack([torch.ones(NUM_OBS), 1500 + 500 * uniform], -1),
        "scales 1e5 apart": torch.stack([torch.ones(NUM_OBS), 1e5 * uniform, 1e-5 * uniform**2], -1),
    }[columns]
    y = x @ torch.tensor([1.0, 1e-3, 2.0])[: x.shape[1]] + NOISE * torch.randn(NUM_OBS, generator=g)
    exact = linear_regression(x, y, NOISE, prior_std=100.0)
    std = exact.cov.diagonal().sqrt()

    guide = pl.fit_laplace(linear_model(NOISE, 100.0), (x, y))
    assert_close((guide.median()["w"] - exact.mean) / std, torch.zeros_like(std), rtol=0, atol=1e-5)
    assert_close(posterior_covariance(guide) / std / std[:, None], exact.cov / std / std[:, None], rtol=0, atol=1e-6)


def test_small_noise_in_single_precision():
    """What comes out of a float32 program is close to what its float64 twin gives."""
    x, y = linear_data(500, num_weights=8)
    exact = linear_regression(x, y, noise=0.01, prior_std=1.0)
    torch.set_default_dtype(torch.float32)
    try:
        guide = pl.fit_laplace(linear_model(0.01, 1.0), (x.float(), y.float()))
        cov, mean = posterior_covariance(guide), guide.median()["w"]
    finally:
        torch.set_default_dtype(torch.float64)
    std = exact.cov.diagonal().sqrt()
    assert mean.dtype == cov.dtype == torch.float32
    assert_close(mean.double() / std, exact.mean / std, rtol=0, atol=0.05)
    assert_close(cov.double() / std / std[:, None], exact.cov / std / std[:, None], rtol=0, atol=1e-3)
