"""The dual form of a full precision is the primal's posterior: against dense references, in float64 and float32."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.structure.dense import Dense
from pyro_laplace.structure.dual import Dual

SIZES = {"w1": (5, 50), "b1": (50,), "w2": (50, 1), "b2": (1,)}


def network(x, w1, b1, w2, b2):
    return (torch.relu(x @ w1 + b1) @ w2 + b2)[:, 0]


def model_of(sigma=0.5, mask=None, scales=(1.0, 2.0, 0.5, 3.0), twice=False):
    """A 5-50-1 network; every site's prior has its own scale. `twice`: a site that two operations use."""

    def model(x, y):
        sites = {
            name: pyro.sample(name, dist.Normal(x.new_zeros(shape), x.new_tensor(scale)).to_event(len(shape)))
            for (name, shape), scale in zip(SIZES.items(), scales, strict=True)
        }
        f = network(x, **sites)
        if twice:
            f = f + network(x.flip(-1), **sites)
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=True if mask is None else mask):
            pyro.sample("y", dist.Normal(f, sigma), obs=y)

    return model


def data(num_obs=40, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_obs, 5, generator=generator, dtype=torch.float64)
    return x.to(dtype), x[:, 0].sin().to(dtype)


def weights(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return {k: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) / 2 for k, s in SIZES.items()}


def fit(model, batches, point=None, **options):
    options = {"polish": False, "on_not_a_mode": "ignore"} | options
    return pl.fit_laplace(model, batches, weights() if point is None else point, **options)


def reference(x, sigma=0.5, scales=(1.0, 2.0, 0.5, 3.0), point=None):
    """J'J / sigma^2 + H in float64, by hand."""
    point = {k: v.double() for k, v in (weights() if point is None else point).items()}
    rows = torch.func.jacrev(lambda sites: network(x.double(), **sites))(point)
    j = torch.cat([rows[name].flatten(1) for name in SIZES], 1) / sigma
    h = torch.cat([torch.full((math.prod(s),), c**-2).double() for s, c in zip(SIZES.values(), scales, strict=True)])
    return j.T @ j + h.diag()


def block_of(guide):
    (block,) = guide.precision.blocks
    return block


def assert_is_posterior(block, matrix, tol):
    """All operations of a block against a dense precision."""
    size, cov = len(matrix), torch.linalg.inv(matrix)
    assert_close(block.to_dense(), matrix, rtol=tol, atol=tol)
    assert_close(block.log_det(), torch.logdet(matrix), rtol=tol, atol=tol)
    eye = torch.eye(size, dtype=matrix.dtype)
    assert_close(block.solve(eye), cov, rtol=tol, atol=tol)
    root = block.color(eye)
    assert_close(root.T @ root, cov, rtol=tol, atol=tol)
    assert_close(block.whiten(root), eye, rtol=tol, atol=tol)
    assert_close(block.variance(), cov.diagonal(), rtol=tol, atol=0)
    pushed = block.push(eye)
    assert_close(pushed @ pushed.T, cov, rtol=tol, atol=tol)


@pytest.mark.usefixtures("float64")
def test_it_is_the_posterior_by_hand():
    x, y = data()
    guide = fit(model_of(), (x, y))
    assert isinstance(block_of(guide), Dual)
    assert_is_posterior(guide.precision, reference(x), 1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher", "mc_fisher"])
def test_it_equals_the_primal(curvature, twice):
    model = model_of(twice=twice)
    torch.manual_seed(0)
    dual = fit(model, data(), curvature=curvature)
    torch.manual_seed(0)
    with pl.settings.using(small=10**6):
        primal = fit(model, data(), curvature=curvature)
    assert isinstance(block_of(dual), Dual)
    assert isinstance(block_of(primal), Dense)
    assert dual.log_evidence == pytest.approx(primal.log_evidence, abs=1e-8)
    assert_is_posterior(dual.precision, primal.precision.to_dense(), 1e-8)


@pytest.mark.usefixtures("float64")
def test_it_does_not_depend_on_the_batches():
    x, y = data()
    whole, parts = fit(model_of(), (x, y)), fit(model_of(), [(x[:7], y[:7]), (x[7:30], y[7:30]), (x[30:], y[30:])])
    assert isinstance(block_of(parts), Dual)
    assert_close(parts.precision.to_dense(), whole.precision.to_dense(), rtol=1e-10, atol=1e-10)
    assert parts.log_evidence == pytest.approx(whole.log_evidence, abs=1e-9)


@pytest.mark.usefixtures("float64")
def test_masked_data_have_no_rows():
    x, y = data(400)
    mask = torch.arange(400) % 10 == 0
    guide = fit(model_of(mask=mask), (x, y))
    assert isinstance(block_of(guide), Dual)
    assert block_of(guide).get_buffer("rows").shape == (40, 351)
    assert_close(guide.precision.to_dense(), reference(x[mask]), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("num_obs", "form"), [(175, Dual), (176, Dense)])
def test_a_stream_with_too_many_rows_ends_in_the_primal(num_obs, form):
    x, y = data(num_obs)  # half of the 351 coordinates are 175
    guide = fit(model_of(), list(zip(x.split(50), y.split(50), strict=True)))
    assert isinstance(block_of(guide), form)
    assert_close(guide.precision.to_dense(), reference(x), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("more", "form"), [(60, Dual), (160, Dense)])
def test_update_equals_the_joint_fit(more, form):
    x, y = data(40 + more)
    joint, first = fit(model_of(), (x, y)), fit(model_of(), (x[:40], y[:40]))
    updated = pl.update(first, (x[40:], y[40:]), move=False, on_not_a_mode="ignore")
    assert isinstance(block_of(first), Dual)
    assert isinstance(block_of(updated), form)
    assert_close(updated.precision.to_dense(), joint.precision.to_dense(), rtol=1e-8, atol=1e-8)
    assert updated.log_evidence == pytest.approx(joint.log_evidence, abs=1e-8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("structure", ["block", {"w1": "full", "*": "diag"}])
def test_sites_of_their_own_take_it_too(structure):
    x, y = data()
    guide = fit(model_of(), (x, y), structure=structure)
    assert isinstance(next(iter(guide.precision.blocks)), Dual)
    place = guide.layout["w1"]
    assert_close(guide.precision.to_dense()[place, place], reference(x)[place, place], rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_a_prior_that_is_not_diagonal_stays_primal():
    def model(x, y):
        w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(201), torch.eye(201) + 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    x = torch.randn(5, 201)
    guide = fit(model, (x, x[:, 0]), {"w": torch.zeros(201)})
    assert isinstance(block_of(guide), Dense)


def test_float32_with_little_noise_is_as_good_as_the_float64_primal():
    single = {name: value.float() for name, value in weights().items()}
    x, y = data(150, torch.float32)
    guide = fit(model_of(sigma=0.01), (x, y), single)
    assert isinstance(block_of(guide), Dual)
    matrix = reference(x, sigma=0.01, point=single)
    scale = matrix.diagonal().sqrt()
    exact = torch.linalg.inv(matrix / scale / scale[:, None]) / scale / scale[:, None]
    assert_close(guide.precision.variance().double(), exact.diagonal(), rtol=1e-3, atol=0)
    assert_close(block_of(guide).log_det(), torch.logdet(matrix), rtol=1e-5, atol=1e-2)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("largest", [1e4, 1e8, 1e14])
def test_strong_data_leave_the_digits_of_their_root(largest):
    """A root with known singular values: what the data leave is 1 / (1 + s^2) of the prior."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(30, 4, generator=generator))[0]
    s = torch.logspace(0, math.log10(largest) / 2, 4)
    block = Dual(torch.ones(30), s[:, None] * basis.T)
    assert_close(block.solve(basis.T), basis.T / (1 + s**2)[:, None], rtol=0, atol=1e-14)
    left = (block.push(basis.T) @ block.push(basis.T).T).diagonal()
    assert_close(left, 1 / (1 + s**2), rtol=1e-16 * largest**0.5 * 1e4 + 1e-10, atol=0)
    assert_close(block.log_det(), (1 + s**2).log().sum(), rtol=1e-8, atol=0)
