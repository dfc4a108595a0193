"""The sparse inner problem: the same numbers as the dense one, from a few products with the Hessian."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl
from pyro_laplace.settings import settings
from pyro_laplace.sparse.compression import Compression
from pyro_laplace.sparse.symmetric import Symmetric


@pytest.fixture(autouse=True)
def double(float64):
    """Both are compared in double precision."""


def arrow(size: int, dense: int) -> torch.Tensor:
    """A matrix with a few full rows and columns, and a diagonal."""
    matrix = torch.diag(torch.arange(1.0, size + 1))
    matrix[:dense] = torch.rand(dense, size)
    matrix[:, :dense] = matrix[:dense].T
    matrix[:dense, :dense] = matrix[:dense, :dense] + matrix[:dense, :dense].T
    return matrix


def band(size: int) -> torch.Tensor:
    beside = torch.rand(size - 1)
    return torch.diag(torch.rand(size) + 1) + torch.diag(beside, 1) + torch.diag(beside, -1)


PATTERNS = {
    "arrow": (lambda: arrow(40, 3), 4),
    "band": (lambda: band(30), 3),
    "both": (lambda: torch.block_diag(band(10), arrow(20, 2)), 5),
    "dense": (lambda: torch.ones(5, 5), 5),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_few_products_give_all_entries(name):
    make, most = PATTERNS[name]
    matrix = make()
    found = Compression.of(Symmetric.of_dense(matrix))
    assert len(found.seeds) <= most
    torch.testing.assert_close(found.seeds.sum(0), torch.ones(len(matrix)))
    torch.testing.assert_close(found.entries(found.seeds @ matrix).matrix(), matrix)
    other = Symmetric.of_dense(torch.where(matrix != 0, torch.rand(matrix.shape), 0.0).tril())
    symmetric = other.matrix()
    weights = found.weights(symmetric[found.row, found.col])
    torch.testing.assert_close((weights * (found.seeds @ matrix)).sum(), (symmetric * matrix).sum())


def crossed(row, column, y):
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
    scales = pyro.sample("scales", dist.HalfNormal(1.0).expand([2]).to_event(1))
    with pyro.plate("rows", 12):
        u = pyro.sample("u", dist.Normal(0.0, scales[..., 0]))
    with pyro.plate("columns", 5):
        v = pyro.sample("v", dist.Normal(0.0, scales[..., 1]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson((beta + u[..., row] + v[..., column]).exp()), obs=y)


def test_crossed_effects_are_as_with_a_dense_hessian(monkeypatch):
    for name, value in {
        "grid_step": 0.8,
        "grid_drop": 2.0,
        "grid_drop_line": 2.0,
        "grid_fewest": 1,
        "correction_most": 1,
    }.items():
        monkeypatch.setattr(settings, name, value)
    row, column = torch.arange(60) % 12, torch.arange(60) // 12
    y = torch.poisson(torch.rand(60) * 3)
    dense, sparse = (
        pl.fit_nested_laplace(crossed, (row, column, y), structure=structure, progress=False)
        for structure in ("full", "sparse")
    )
    assert sparse.log_evidence == pytest.approx(dense.log_evidence, abs=1e-7)
    torch.testing.assert_close(sparse.mean, dense.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(sparse.variance, dense.variance, rtol=1e-6, atol=1e-7)
    theta = dense.sample_theta(5)
    log_q, expected = (guide.get_posterior().log_prob(theta) for guide in (sparse, dense))
    torch.testing.assert_close(log_q, expected, rtol=1e-6, atol=1e-6)


def many(group, count, y):
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", count):
        u = pyro.sample("u", dist.Normal(mu, tau))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=u[..., group]), obs=y)


def test_many_groups_are_sparse_by_themselves():
    count = 400
    truth, group = 0.9 * torch.randn(count), torch.arange(count).repeat(6)
    y = torch.bernoulli(truth[group].sigmoid())
    marginal = pl.laplace_marginal(many, (group, count, y))
    log_tau = torch.tensor(-0.1, requires_grad=True)
    value = marginal.log_marginal({"tau": log_tau.exp()})
    (slope,) = torch.autograd.grad(value, log_tau)
    full = pl.laplace_marginal(many, (group, count, y), structure="full")
    ahead, behind = full.log_marginal({"tau": (log_tau.detach() + torch.tensor([1e-4, -1e-4])).exp()})
    assert float(value.detach()) == pytest.approx(float(ahead + behind) / 2, abs=1e-4)
    assert float(slope) == pytest.approx(float(ahead - behind) / 2e-4, abs=1e-4)


def test_what_is_not_sparse_is_refused_by_name():
    def model(x, y):
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        w = pyro.sample("w", dist.Normal(0.0, tau).expand([x.shape[1]]).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    with pytest.raises(pl.InvalidOption, match=r"structure='sparse'.*inner sites \['w'\]"):
        pl.laplace_marginal(model, (torch.randn(300, 700), torch.randn(300)), structure="sparse")


@pytest.mark.parametrize("count", [600, 2_000])
def test_many_groups_in_single_precision(count):
    """The factor equals its value in double precision, to what single precision resolves."""
    group = torch.arange(3 * count) % count
    y = torch.bernoulli(torch.full((3 * count,), 0.5, dtype=torch.float64))

    def model(group, y=None):
        tau = pyro.sample("tau", dist.HalfNormal(torch.ones((), dtype=y.dtype)))
        with pyro.plate("groups", count):
            u = pyro.sample("u", dist.Normal(torch.zeros((), dtype=y.dtype), tau))
        with pyro.plate("data", len(group)):
            pyro.sample("y", dist.Bernoulli(logits=u[group]), obs=y)

    found = []
    for dtype in (torch.float32, torch.float64):
        marginal = pl.laplace_marginal(model, (group, y.to(dtype)), structure="sparse")
        found.append(float(marginal.log_marginal({"tau": torch.tensor(0.7, dtype=dtype)})))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
