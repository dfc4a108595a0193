"""Subnetworks: single coordinates random, the rest at the mode."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin

import pyro_laplace as pl
from pyro_laplace.data import as_data
from pyro_laplace.program.program import Program

pytestmark = pytest.mark.usefixtures("float64")

X = torch.tensor(
    [[-1.0, 0.5, 0.2], [0.3, -0.7, 1.1], [1.5, 0.1, -0.4], [0.0, 0.9, 0.6], [-0.8, -0.2, 0.7], [0.6, 1.2, -1.0]],
    dtype=torch.float64,
)
Y = torch.linspace(0.0, 1.0, 6, dtype=torch.float64)


def normal(*shape: int) -> TorchDistributionMixin:
    return dist.Normal(torch.zeros(()), 1.0).expand_by(shape).to_event(len(shape))


def observe(loc, y):
    with pyro.plate("data", len(loc)):
        pyro.sample("y", dist.Normal(loc, 0.5), obs=y)


def linear_regression(x, y=None):
    b, w = pyro.sample("b", dist.Normal(torch.zeros(()), 1.0)), pyro.sample("w", normal(3))
    observe(b + x @ w, y)


def scaled_network(x, y=None):
    """A captured layer, a site under a constraint, one that no operation captures, and a simplex."""
    w1, b1 = pyro.sample("w1", normal(3, 4)), pyro.sample("b1", normal(4))
    w2 = pyro.sample("w2", normal(4))
    tau = pyro.sample("tau", dist.HalfNormal(torch.ones(3)).to_event(1))
    mix = pyro.sample("mix", dist.Dirichlet(torch.ones(3)))
    observe(torch.tanh((x * tau) @ w1 + b1) @ w2 + mix[0] - mix[2], y)


def fit(subset="all", model=scaled_network, **options):
    """The posterior at a point that need not be the mode."""
    generator = torch.Generator().manual_seed(2)
    program = Program.trace(model, as_data((X, Y)))
    values = program.unpack(torch.randn(program.num_params, generator=generator))
    options = {"polish": False, "on_not_a_mode": "ignore", "curvature": "ggn"} | options
    return pl.fit_laplace(model, (X, Y), values, subset=subset, **options)


def mask_of(index, guide):
    """The mask that holds some coordinates of theta."""
    flags = torch.zeros(len(guide.theta), dtype=torch.bool).index_fill(0, torch.as_tensor(index), True)
    return {name: flags[site.slice].reshape(site.unconstrained_shape) for name, site in guide.latents.items()}


def assert_block(part, whole, structure="full"):
    """A subnetwork's precision is the block of the whole precision at its coordinates."""
    expected = whole.precision.to_dense()[part.index[:, None], part.index[None]]
    expected = expected.diagonal().diag() if structure == "diag" else expected
    torch.testing.assert_close(part.precision.to_dense(), expected, rtol=1e-9, atol=1e-9)


INDICES = {
    "scattered": [0, 5, 7, 13, 17, 20, 22, 24],  # w1 [0:12], b1 [12:16], w2 [16:20], tau [20:23], mix [23:25]
    "a whole row and its bias": [0, 4, 8, 12],
    "a row without its bias": [1, 5, 9],
    "whole sites and parts": [*range(12), 14, 19, 21],
    "one": [3],
    "uncaptured only": [20, 24],
}


@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher"])
@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_a_mask_gives_the_block_of_the_whole_curvature(index, structure, curvature):
    whole = fit(curvature=curvature)
    part = fit(pl.Subnetwork(mask=mask_of(index, whole)), structure=structure, curvature=curvature)
    assert part.index.tolist() == index
    assert_block(part, whole, structure)


def test_a_mask_by_sites_and_by_mapping_of_structures():
    whole = fit()
    index = torch.tensor([0, 5, 13, 17, 18, 24])
    mask = mask_of(index, whole)
    block = fit(pl.Subnetwork(mask=mask), structure="block")
    assert [part.size for part in block.precision.blocks] == [2, 1, 2, 1]
    mapped = fit(pl.Subnetwork(mask=mask), structure={"w*": "full", "*": "diag"})
    dense = whole.precision.to_dense()[index[:, None], index[None]]
    w = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(mapped.precision.to_dense()[w[:, None], w[None]], dense[w[:, None], w[None]])
    assert float(mapped.precision.to_dense()[2, 0]) == 0.0


def test_a_mask_under_an_exact_hessian():
    whole = fit(model=linear_regression, curvature="hessian")
    part = fit(pl.Subnetwork(mask=mask_of([0, 2], whole)), linear_regression, curvature="hessian")
    assert_block(part, whole)


def shared(x, y=None):
    """A weight used by row, by column, in part, and at several positions."""
    w = pyro.sample("w", normal(3, 3))
    hidden = torch.tanh(torch.stack([x @ w, x @ w.T, x @ w[:, [0, 0, 1]]], 1)) @ w
    observe(hidden.sum((1, 2)), y)


@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("index", [[0, 4], [0, 3, 6], [0, 1, 2], [2, 5, 8], list(range(8))])
def test_a_part_of_a_shared_weight(index, structure):
    whole = fit(model=shared)
    assert_block(fit(pl.Subnetwork(mask=mask_of(index, whole)), shared, structure=structure), whole, structure)


def test_the_criteria():
    whole, diag = fit(), fit(structure="diag")
    by = lambda score: score.topk(6).indices.sort().values.tolist()  # noqa: E731
    assert fit(pl.Subnetwork(size=6)).index.tolist() == by(diag.precision.variance())
    assert fit(pl.Subnetwork(size=6, by="magnitude")).index.tolist() == by(whole.theta.abs())
    pyro.set_rng_seed(1)
    first, second = (fit(pl.Subnetwork(size=6, by="random")).index.tolist() for _ in range(2))
    pyro.set_rng_seed(1)
    assert fit(pl.Subnetwork(size=6, by="random")).index.tolist() == first != second
    assert_block(fit(pl.Subnetwork(size=6)), whole)


def test_all_coordinates_are_all_sites():
    whole, part = fit(), fit(pl.Subnetwork(size=25, by="random"))
    torch.testing.assert_close(part.precision.to_dense(), whole.precision.to_dense())
    assert part.log_evidence == pytest.approx(whole.log_evidence)
    assert part.layout == whole.layout
    assert part.partial == ()


def test_the_guide_draws_whole_sites_of_which_only_these_coordinates_vary():
    whole = fit()
    index = [0, 7, 13, 21, 24]
    guide = fit(pl.Subnetwork(mask=mask_of(index, whole)))
    assert guide.layout == {"w1": slice(0, 2), "b1": slice(2, 3), "tau": slice(3, 4), "mix": slice(4, 5)}
    assert guide.partial == ("w1", "b1", "tau", "mix")
    draws = guide.sample_posterior(500)
    assert {name: value.shape[1:] for name, value in draws.items()} == {
        name: latent.shape for name, latent in guide.latents.items()
    }
    varies = {name: value.std(0) > 0 for name, value in draws.items()}
    assert varies["w1"].reshape(-1).nonzero()[:, 0].tolist() == [0, 7]
    assert varies["tau"].tolist() == [False, True, False]
    assert not varies["w2"].any()
    theta = guide.sample_theta(20_000)[:, index]
    covariance = torch.linalg.inv(guide.precision.to_dense())
    scale = covariance.diagonal().sqrt()
    torch.testing.assert_close(
        torch.cov(theta.T) / scale / scale[:, None], covariance / scale / scale[:, None], rtol=0, atol=0.04
    )


def test_pyro_takes_a_subnetworks_guide():
    guide = fit(pl.Subnetwork(size=7, by="magnitude"))
    data = X, Y
    values = guide(*data)
    assert {name: value.shape for name, value in values.items()} == {n: s.shape for n, s in guide.latents.items()}
    median, levels = guide.median(), guide.quantiles([0.1, 0.5, 0.9])
    for name, latent in guide.latents.items():
        torch.testing.assert_close(levels[name][1], median[name])
        torch.testing.assert_close(median[name], latent.constrain(guide.theta[latent.slice]))
    assert bool(torch.isfinite(torch.tensor(pyro.infer.Trace_ELBO().loss(scaled_network, guide, *data))))
    draws = pyro.infer.Predictive(scaled_network, guide=guide, num_samples=5)(X)
    assert draws["y"].shape == (5, 6)
    tree = pl.to_datatree(scaled_network, guide, data, num_samples=20)
    assert tree.sample_stats["lp_approx"].shape == (1, 20)


def test_nuts_refuses_the_metric_of_a_part_of_a_site():
    guide = fit(pl.Subnetwork(size=3, by="magnitude"))
    with pytest.raises(pl.InvalidOption, match="whole sites"):
        pl.fit_nuts(scaled_network, (X, Y), precondition=guide, num_samples=2, warmup_steps=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 3, "by": "norm"}, "by='norm' is not one of 'variance', 'magnitude', 'random'"),
        ({}, "either size= .* or mask="),
        ({"size": 2, "mask": {"w1": torch.ones(3, 4, dtype=torch.bool)}}, "either size="),
        ({"size": 0}, "size=0.* at least 1"),
        ({"size": 26}, "size=26.* 25 coordinates"),
        ({"mask": {"w9": torch.ones(3, dtype=torch.bool)}}, "'w9', .*'w1', 'b1', 'w2', 'tau', 'mix'"),
        ({"mask": {"w1": torch.ones(4, 3, dtype=torch.bool)}}, r"'w1' has shape \[4, 3\], .* \[3, 4\]"),
        ({"mask": {"w1": torch.ones(3, 4)}}, "'w1' is no boolean tensor, but torch.float"),
        ({"mask": {"w1": torch.zeros(3, 4, dtype=torch.bool)}}, "chooses no coordinate"),
    ],
)
def test_what_is_no_subnetwork_is_refused(options, message):
    with pytest.raises(pl.InvalidOption, match=message):
        fit(pl.Subnetwork(**options))


def test_kron_needs_whole_sites():
    with pytest.raises(pl.InvalidOption, match=r"a part of sites \[.*'full', 'block' or 'diag'"):
        fit(pl.Subnetwork(size=3, by="magnitude"), structure="kron")
