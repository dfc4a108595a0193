"""Seconds and peak memory of `structure="sparse"` for a hierarchy of many groups.

    python measure_groups.py 10000 --threads 2

prints them as JSON. It is run by `test_groups.py`, outside pytest.
"""

import argparse
import json
import resource
import time
import warnings

import pyro
import pyro.distributions as dist
import torch

import pyro_laplace as pl

PER_GROUP = 5


def problem(groups: int):
    """Random intercepts and five fixed effects, of five Bernoulli rows a group."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(groups).repeat_interleave(PER_GROUP)
    x = torch.randn(len(group), 5, generator=generator)
    effects = 0.8 * torch.randn(groups, generator=generator)
    eta = x @ torch.tensor([0.5, -0.5, 0.3, 0.0, 1.0]) + effects[group]
    y = torch.bernoulli(eta.sigmoid(), generator=generator)

    def model(x, group, y=None):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(5), 2.0).to_event(1))
        with pyro.plate("groups", groups):
            u = pyro.sample("u", dist.Normal(torch.zeros(()), 0.8))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ beta + u[group]), obs=y)

    return model, (x, group, y)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def seconds_of(call) -> tuple[float, object]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("groups", type=int)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    small, small_data = problem(50)
    pl.fit_laplace(small, small_data, structure="sparse", progress=False)  # what a process loads once
    before = peak_gib()
    model, data = problem(given.groups)
    fit_seconds, guide = seconds_of(lambda: pl.fit_laplace(model, data, structure="sparse", progress=False))
    at = guide.median()
    again = {"structure": "sparse", "polish": False, "progress": False}
    posterior_seconds, _ = min(
        (seconds_of(lambda: pl.fit_laplace(model, data, at, **again)) for _ in range(3)), key=lambda pair: pair[0]
    )
    draw_seconds, _ = seconds_of(lambda: guide.sample_posterior(100))
    quantile_seconds, _ = seconds_of(lambda: guide.quantiles([0.05, 0.95]))
    print(
        json.dumps(
            {
                "groups": given.groups,
                "fit_seconds": fit_seconds,
                "posterior_seconds": posterior_seconds,
                "draw_seconds": draw_seconds,
                "quantile_seconds": quantile_seconds,
                "peak_gib": peak_gib(),
                "loaded_gib": before,
                "is_mode": guide.mode.is_mode,
            }
        )
    )


if __name__ == "__main__":
    main()
