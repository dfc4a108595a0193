"""Nested Laplace over many groups, and NUTS on a funnel's marginal beside its joint density: `make bench`, `-k nested`.

The goals: 10,000 groups of 5 Bernoulli rows within 60 s and 2 GiB, time linear in groups, and ten times the joint
density's effective draws a second (short of that: docs/benchmarks.md).
"""

import json
import math
import resource
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl

pytestmark = pytest.mark.benchmark

HERE = Path(__file__).parent
GROUPS = (3_000, 10_000, 20_000)


def keep(name: str, found: dict) -> None:
    """Write the figures beside those of the other benchmarks."""
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def random_intercepts(x, group, count, y=None):
    beta = pyro.sample("beta", dist.Normal(0.0, 2.5).expand([5]).to_event(1))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", count):
        u = pyro.sample("u", dist.Normal(0.0, tau))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=(beta * x).sum(-1) + u[..., group]), obs=y)


def data_of(count: int) -> tuple:
    """Five rows a group."""
    x, group = torch.randn(5 * count, 5), torch.arange(count).repeat_interleave(5)
    effect = 0.8 * torch.randn(count)
    y = torch.bernoulli((x @ torch.tensor([-0.5, 1.0, -1.0, 0.5, 0.0]) + effect[group]).sigmoid())
    return x, group, count, y


def test_ten_thousand_groups_are_cheap_and_time_is_linear(float64):
    pl.fit_nested_laplace(random_intercepts, data_of(300), progress=False)  # what is loaded once
    seconds, work = {}, {}
    for count in GROUPS:
        data = data_of(count)
        start, begun = time.perf_counter(), time.process_time()
        guide = pl.fit_nested_laplace(random_intercepts, data, progress=False)
        seconds[count], work[count] = time.perf_counter() - start, time.process_time() - begun
        assert float(guide.median()["tau"]) == pytest.approx(0.8, abs=0.15)
    exponent = math.log(work[GROUPS[-1]] / work[GROUPS[0]]) / math.log(GROUPS[-1] / GROUPS[0])
    gibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    told = ", ".join(f"{count:,} groups {value:.1f} s" for count, value in seconds.items())
    print(f"\nnested Laplace: {told}; exponent {exponent:.2f}; {gibibytes:.2f} GiB")
    keep("nested-groups", {"seconds": seconds, "exponent": exponent, "peak_gib": gibibytes})
    assert seconds[10_000] < 60
    assert exponent < 1.15
    assert gibibytes < 2


def funnel(y):
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(theta, 10.0), obs=y)


def test_nuts_on_the_marginal_of_a_funnel_against_the_joint_density(float64):
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    marginal = pl.laplace_marginal(funnel, (y,))
    rate = {}
    for name, program, data in (("joint", funnel, (y,)), ("marginal", marginal, ())):
        start = time.perf_counter()
        values = {"tau": torch.tensor(5.0), "theta": y / 2}  # on the way to its mode the joint density collapses
        initial = {site: values[site] for site in ("tau", "theta")[: 1 if program is marginal else 2]}
        mcmc = pl.fit_nuts(program, data, initial=initial, num_samples=100, warmup_steps=100, progress=False)
        rate[name] = float(mcmc.diagnostics()["tau"]["n_eff"]) / (time.perf_counter() - start)
    print(f"\nNUTS, effective draws of tau a second: {rate}; ratio {rate['marginal'] / rate['joint']:.1f}")
    keep("nested-funnel", rate)
    assert rate["marginal"] > rate["joint"]
