"""Times `pl.Predictive` against `pyro.infer.Predictive`, prints the table, and keeps it in `results/`.

Each line is measured in a process of its own, because under pytest every call of the package is checked against its
array types; both contenders are interleaved there. ``make bench PYTEST_ARGS="-k predictive_speed"`` runs these alone.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from measure import environment
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

import pyro_laplace as pl

HERE = Path(__file__).parent
THREADS = int(os.environ.get("BENCH_THREADS", os.cpu_count() or 1))
REPEATS = 5
DRAWS = 1_000
SIZES = (64, 1_000)
NETS = ("written out", "PyroModule")

pytestmark = pytest.mark.benchmark


def prior(scale: float, *shape: int) -> dist.Distribution:
    return dist.Normal(0.0, scale).expand(torch.Size(shape)).to_event(len(shape))


def written_out(x: Tensor, y: Tensor | None = None) -> Tensor:
    """A network 10-50-1 of plain products."""
    w1, b1 = pyro.sample("w1", prior(1.0, 10, 50)), pyro.sample("b1", prior(1.0, 50))
    w2, b2 = pyro.sample("w2", prior(0.2, 50, 1)), pyro.sample("b2", prior(1.0, 1))
    f = (torch.tanh(x @ w1 + b1) @ w2 + b2)[:, 0]
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(f, 0.1), obs=y)


class Net(PyroModule):
    """The same network of `PyroModule[nn.Linear]` layers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = PyroModule[nn.Linear](10, 50), PyroModule[nn.Linear](50, 1)
        for layer in (self.hidden, self.out):
            layer.weight = PyroSample(prior(layer.in_features**-0.5, *layer.weight.shape))
            layer.bias = PyroSample(prior(1.0, *layer.bias.shape))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        f = self.out(torch.tanh(self.hidden(x)))[:, 0]
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(f, 0.1), obs=y)


def measure(net: str, num_inputs: int) -> dict:
    """Seconds of each contender, and how far their predictive standard deviations are apart."""
    pyro.set_rng_seed(0)
    model = written_out if net == NETS[0] else Net()
    x = torch.randn(num_inputs, 10)
    guide = AutoNormal(model, init_scale=0.1)
    guide(x, torch.randn(num_inputs))
    contenders = {
        "pyro_laplace": pl.Predictive(model, guide=guide, num_samples=DRAWS),
        "pyro": pyro.infer.Predictive(model, guide=guide, num_samples=DRAWS),
    }
    std = {who: predictive(x)["y"].std(0) for who, predictive in contenders.items()}
    seconds: dict[str, list[float]] = {who: [] for who in contenders}
    for _ in range(REPEATS):
        for who, predictive in contenders.items():
            start = time.perf_counter()
            predictive(x)
            seconds[who].append(time.perf_counter() - start)
    return {
        "row": f"Predictive, network 10-50-1, {net}",
        "num_inputs": num_inputs,
        "num_samples": DRAWS,
        "seconds": {who: statistics.median(times) for who, times in seconds.items()},
        "all_seconds": seconds,
        "largest_difference": float((std["pyro_laplace"] / std["pyro"] - 1).abs().max()),
        "environment": environment(torch.get_num_threads()),
    }


def table(lines: list[dict]) -> str:
    """Medians."""
    rows = [f"{'row':44} {'inputs':>7} {'draws':>6} {'pyro':>9} {'pyro_laplace':>13} {'ratio':>7}"]
    for line in lines:
        own, theirs = line["seconds"]["pyro_laplace"], line["seconds"]["pyro"]
        rows.append(
            f"{line['row']:44} {line['num_inputs']:7} {line['num_samples']:6} {theirs:7.3f} s {own:11.4f} s "
            f"{theirs / own:6.1f}x"
        )
    return "\n".join(rows)


@pytest.fixture(scope="module")
def lines() -> Iterator[list[dict]]:
    """The lines that were measured; at the end they are printed and written."""
    found: list[dict] = []
    yield found
    if found:
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        path = HERE / "results" / f"predictive-{stamp}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"\n\n{table(found)}\n\nwritten to {path}")


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("num_inputs", SIZES, ids=lambda n: f"{n}-inputs")
def test_predictive_speed(net: str, num_inputs: int, lines: list[dict]) -> None:
    command = [sys.executable, "-W", "error", __file__, net, str(num_inputs), "--threads", str(THREADS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    lines.append(json.loads(run.stdout.splitlines()[-1]))
    assert lines[-1]["largest_difference"] < 0.3  # two estimates of a deviation from 1,000 draws each


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("net", choices=NETS)
    parser.add_argument("num_inputs", type=int)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(measure(arguments.net, arguments.num_inputs)))
