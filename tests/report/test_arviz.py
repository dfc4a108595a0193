"""ArviZ's functions, called as its users call them, on the trees of every family that each is defined for."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import arviz as az
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import pyro_laplace as pl

matplotlib.use("Agg")

GUIDES = ("laplace", "linearized", "mixture", "nested", "mean field", "full rank")
DRAWS = ("nuts", "draws", "importance")
POINT = ("point",)
SOME = (*GUIDES, *DRAWS)
EVERY = (*SOME, *POINT)


def counts(x, group, y=None):
    """Counts with a random intercept: its scale is positive, its data are whole numbers."""
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 4):
        level = pyro.sample("level", dist.Normal(0.0, scale))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Poisson((slope * x + level[group]).exp()), obs=y)


def data():
    g = torch.Generator().manual_seed(0)
    x, group = torch.randn(32, generator=g), torch.arange(32) % 4
    rate = (0.5 * x + 0.3 * torch.randn(4, generator=g)[group]).exp()
    return x, group, torch.poisson(rate, generator=g)


@cache
def posterior(family: str) -> Any:
    given = data()
    if family == "point":
        return pl.fit_map(counts, given, progress=False)
    if family in ("mean field", "full rank"):
        kind = AutoNormal if family == "mean field" else AutoMultivariateNormal
        return pl.fit_svi(counts, given, kind(counts), num_steps=60, progress=False)
    if family == "nuts":
        return pl.fit_nuts(
            counts, given, num_samples=40, warmup_steps=40, num_chains=2, max_tree_depth=4, progress=False
        )
    if family == "nested":
        return pl.fit_nested_laplace(counts, given, hyper=["scale"], progress=False)
    guide = pl.fit_laplace(counts, given, progress=False, on_not_a_mode="ignore")
    if family == "mixture":
        return pl.LaplaceMixture([guide, guide])
    if family == "draws":
        return guide.sample_posterior(80)
    if family == "importance":
        return pl.importance_resample(counts, guide, given, 80, progress=False)
    return guide


@cache
def tree(family: str) -> Any:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        linearized = family == "linearized"
        return pl.to_datatree(
            counts,
            posterior(family),
            data(),
            num_samples=80,
            num_prior_samples=60,
            linearized=linearized,
            progress=False,
        )


def approximate(family: str) -> Any:
    stats = tree(family).sample_stats
    return az.loo_approximate_posterior(tree(family), stats.lp, stats.lp_approx, pointwise=True)


def moment_matched(family: str) -> Any:
    before = az.loo(tree(family), pointwise=True, reff=1.0)
    u = pl.unconstrained(counts, posterior(family), data())
    worst = float(before.pareto_k.max()) - 1e-6
    return az.loo_moment_match(tree(family), before, u.log_prob, u.log_lik, k_threshold=worst, max_iters=1)


FUNCTIONS: dict[str, tuple[tuple[str, ...], Callable[[str], Any]]] = {
    "loo": (SOME, lambda f: az.loo(tree(f), pointwise=True)),
    "compare": (SOME, lambda f: az.compare({"one": tree(f), "other": tree("laplace")})),
    "loo_approximate_posterior": (GUIDES, approximate),
    "loo_moment_match": (("draws", "nuts", "importance"), moment_matched),
    "loo_pit": (SOME, lambda f: az.loo_pit(tree(f))),
    "psense_summary": (SOME, lambda f: az.psense_summary(tree(f), var_names=["slope", "scale"])),
    "summary": (EVERY, lambda f: az.summary(tree(f), kind="stats")),
    "plot_ppc_dist": (EVERY, lambda f: az.plot_ppc_dist(tree(f), num_samples=20, backend="matplotlib")),
    "plot_ppc_rootogram": (EVERY, lambda f: az.plot_ppc_rootogram(tree(f), backend="matplotlib")),
    "plot_forest": (SOME, lambda f: az.plot_forest(tree(f), backend="matplotlib")),
    "plot_loo_pit": (SOME, lambda f: az.plot_loo_pit(tree(f), backend="matplotlib")),
    "plot_compare": (
        ("laplace",),
        lambda f: az.plot_compare(
            az.compare({n: tree(n) for n in ("laplace", "nuts", "mean field")}), backend="matplotlib"
        ),
    ),
    "plot_prior_posterior": (
        SOME,
        lambda f: az.plot_prior_posterior(tree(f), var_names=["slope"], kind="hist", backend="matplotlib"),
    ),
    "plot_khat": (SOME, lambda f: az.plot_khat(az.loo(tree(f), pointwise=True), backend="matplotlib")),
    "plot_dist": (SOME, lambda f: az.plot_dist(tree(f), var_names=["slope"], kind="hist", backend="matplotlib")),
}
"""ArviZ's functions: the families that each is defined for, and the call."""

FIGURES = {"laplace", "nuts", "mean field", "point"}
"""Families whose figures are drawn: those of the others differ in numbers alone."""


@pytest.mark.filterwarnings("ignore")  # ArviZ's own, of Pareto k and few draws
@pytest.mark.parametrize("name", FUNCTIONS)
def test_arviz_takes_every_family(name):
    families, call = FUNCTIONS[name]
    for family in families:
        if name.startswith("plot_") and family not in FIGURES:
            continue
        found = call(family)
        assert found is not None, family
        assert np.isfinite(getattr(found, "elpd", 0.0)).all(), family
        plt.close("all")


def test_a_tree_says_what_each_family_has():
    assert {"lp", "lp_approx"} <= set(tree("mean field").sample_stats.data_vars)
    assert "lp_approx" not in tree("draws").sample_stats
    assert dict(tree("nuts")["warmup_posterior"]["level"].sizes) == {"chain": 2, "draw": 40, "groups": 4}
    assert (tree("nuts")["warmup_posterior"]["scale"] > 0).all()
    assert tree("laplace")["unconstrained_posterior"]["theta"].shape == (1, 80, 6)


@pytest.mark.parametrize("family", ["laplace", "nuts", "importance"])
def test_a_tree_goes_through_zarr(family, tmp_path):
    import xarray as xr

    pytest.importorskip("zarr")
    whole = tree(family)
    whole.to_zarr(tmp_path / "tree.zarr", consolidated=False)
    with xr.open_datatree(tmp_path / "tree.zarr", engine="zarr", consolidated=False) as read:
        assert set(read.children) == set(whole.children)
        for group in whole.children:
            xr.testing.assert_allclose(read[group].to_dataset(), whole[group].to_dataset())
            assert all(each.dtype.kind != "O" for each in whole[group].to_dataset().variables.values())
        assert read.attrs == whole.attrs
