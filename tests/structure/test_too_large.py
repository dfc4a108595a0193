"""A dense matrix that is too large: what else there is, with sizes, that of these sites' first; and that it fits."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_says
from torch import nn

import pyro_laplace as pl
from pyro_laplace._memory import shown_bytes


def network(inputs=20, hidden=60, outputs=3):
    net = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
    model = pl.bayesianize(net, prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.Classification())
    data = torch.randn(4000, inputs), torch.randint(0, outputs, (4000,))
    return model, data, {name: value.detach() for name, value in net.named_parameters()}


def grouped(x, group, y=None):
    with pyro.plate("groups", 300):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x * u[group], 1.0), obs=y)


def fit(model, data, point, **options):
    return pl.fit_laplace(model, data, point, polish=False, on_not_a_mode="ignore", progress=False, **options)


def test_of_a_network():
    model, data, point = network()
    size = sum(value.numel() for value in point.values())
    with pl.settings.using(block_bytes=2**20), pytest.raises(pl.TooLarge) as caught:
        fit(model, data, point, structure="full")
    assert_says(caught, f"\\[{size}, {size}\\]", "GiB", "use structure='kron'", "last_layer", "'diag'", "LowRank")
    assert_says(caught, "Subnetwork", "362 coordinates fit")
    assert "sparse" not in str(caught.value)
    kron = 8 * (60**2 + 21**2 + 3**2 + 61**2 + 63)
    assert f"'kron' ({shown_bytes(kron)}, under 1 s" in str(caught.value)
    assert f"'diag' ({shown_bytes(8 * size)}, under 1 s)" in str(caught.value)
    last = 60 * 3 + 3
    assert f"'last_layer' of a network ('2.weight': {shown_bytes(8 * last**2)}, under 1 s)" in str(caught.value)
    with pl.settings.using(block_bytes=2**20):  # what is named does fit
        for options in (
            {"structure": "kron"},
            {"structure": "diag"},
            {"structure": pl.LowRank(3)},
            {"subset": "last_layer"},
            {"subset": pl.Subnetwork(size=100)},
        ):
            assert fit(model, data, point, **options).precision.variance().min() > 0


def test_times_are_counts_at_a_rate():
    """Of 100 rows, at 1,000 products a second: each a count by hand."""
    model, data, point = network()
    size = sum(value.numel() for value in point.values())
    kron = 100 * (60**2 + 21**2 + 3**2 + 61**2) + 9 * (60**3 + 21**3 + 3**3 + 61**3)
    last, most = 100 * 183**2 + 183**3 // 3, 100 * 362**2 + 362**3 // 3
    with (
        pl.settings.using(block_bytes=2**20, told_rows=100, products_per_second=1000),
        pytest.raises(pl.TooLarge) as caught,
    ):
        fit(model, data, point, structure="full")
    for said in (
        f"about {kron / 60_000:.0f} min, a pair of factors",
        f"about {last / 60_000:.0f} min)",
        f"'diag' ({shown_bytes(8 * size)}, about {100 * size / 60_000:.0f} min)",
        f"about {most / 3_600_000:.0f} h); times are rough, of 100 rows, data times outputs",
    ):
        assert said in str(caught.value), (said, str(caught.value))


def test_of_groups():
    data = torch.randn(600), torch.arange(600) % 300, torch.randn(600)
    point = {"u": torch.zeros(300)}
    with pl.settings.using(block_bytes=2**18), pytest.raises(pl.TooLarge) as caught:
        fit(grouped, data, point, structure="full", curvature="hessian")
    assert_says(caught, "use structure='sparse'", "'u'", "'diag'", "LowRank")
    assert "kron" not in str(caught.value)
    with pl.settings.using(block_bytes=2**18):
        sparse = fit(grouped, data, point, structure="sparse")
    full = fit(grouped, data, point, structure="full")
    torch.testing.assert_close(sparse.precision.variance(), full.precision.variance(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("size", "said"),
    [(8, "8 bytes"), (2048, "2 KiB"), (3 * 2**20, "3 MiB"), (5 * 2**29, "2.5 GiB"), (2**41, "2048 GiB")],
)
def test_sizes_as_they_are_read(size, said):
    assert shown_bytes(size) == said
    assert re.fullmatch(r"[\d.e+]+ (bytes|KiB|MiB|GiB)", said)
