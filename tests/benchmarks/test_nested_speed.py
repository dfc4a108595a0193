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


def neal(y):
    log_variance = pyro.sample("tau", dist.Normal(0.0, 3.0))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(0.0, (log_variance / 2).exp()))
        pyro.sample("y", dist.Normal(theta, 3.0), obs=y)


EIGHT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


@pytest.mark.parametrize(("model", "y"), [(funnel, EIGHT), (neal, EIGHT / 3)])
def test_nuts_on_the_marginal_of_a_funnel_against_the_joint_density(float64, model, y):
    """Effective draws a CPU second, making the marginal included, over seeds whose chains take turns."""
    y = y.double()
    effective, seconds = dict.fromkeys(("joint", "marginal"), 0.0), dict.fromkeys(("joint", "marginal"), 0.0)
    for seed in range(3):
        for name in effective:
            pyro.set_rng_seed(seed)
            start = time.process_time()
            program, data = (model, (y,)) if name == "joint" else (pl.laplace_marginal(model, (y,)), ())
            values = {"tau": torch.tensor(2.0), "theta": y / 2}  # on the way to its mode the joint density collapses
            initial = values if name == "joint" else {"tau": values["tau"]}
            mcmc = pl.fit_nuts(program, data, initial=initial, num_samples=400, warmup_steps=250, progress=False)
            seconds[name] += time.process_time() - start
            effective[name] += float(mcmc.diagnostics()["tau"]["n_eff"])
    rate = {name: effective[name] / seconds[name] for name in effective}
    ratio = rate["marginal"] / rate["joint"]
    print(f"\nNUTS, {model.__name__}, effective draws of tau a second: {rate}; {ratio:.1f} times")
    keep(f"nested-{model.__name__}", rate)
    assert rate["marginal"] > rate["joint"]
