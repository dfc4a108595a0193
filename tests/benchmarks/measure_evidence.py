"""One line of the evidence's table, measured outside pytest, where the package's array types are not checked.

    python measure_evidence.py "mlp 784-256-64-10" 10000 --threads 2

prints the line as JSON. It is run by `test_evidence_speed.py`.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable

import pyro
import torch
from torch import Tensor, nn

import pyro_laplace as pl
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import as_data
from pyro_laplace.evidence.surface import Surface
from pyro_laplace.posterior.search import Search
from pyro_laplace.program.program import Program

REPEATS = 5
TRIALS = 30
HELD_OUT = 1_000
NETS = {
    "mlp 784-256-64-10": lambda: nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)
    ),
    "conv 8x8": lambda: nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 10),
    ),
}  # fmt: skip


def data_of(name: str, net: nn.Module, num_obs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random inputs, with the classes that the network itself finds the most probable."""
    g = torch.Generator().manual_seed(seed)
    shape = (num_obs, 1, 8, 8) if name.startswith("conv") else (num_obs, 784)
    x = torch.randn(shape, generator=g)
    with torch.no_grad():
        return x, net(x).argmax(-1)


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name: str, num_obs: int) -> dict:
    """Median seconds of a fit, a prediction, a step in the prior scales, all of `maximize_evidence`, and of `tune`."""
    pyro.set_rng_seed(0)
    net = NETS[name]()
    model = pl.bayesianize(net, pl.nn.Isotropic(pl.nn.learned(0.1)), pl.nn.Classification())
    train, held = data_of(name, net, num_obs, 0), data_of(name, net, HELD_OUT, 1)
    values = {key: value.detach() for key, value in net.named_parameters()}
    options = {"structure": "kron", "on_not_a_mode": "ignore", "progress": False}
    guide = pl.fit_laplace(model, train, values, **options)
    program = Program.trace(model, as_data(train), values)
    index = torch.arange(program.num_params)
    search = Search(Loop(program, as_data(train)), index, "kron", CURVATURES["ggn"], True, False)
    with torch.no_grad():
        surface = Surface.around(search, search.measured(program.start), search.hyperparameters())

    def step() -> None:
        flat = surface.start.requires_grad_()
        surface.at(flat).value.backward()

    calls = {
        "fit": lambda: pl.fit_laplace(model, train, values, **options),
        "predict": lambda: pl.LinearizedPredictive(model, guide)(held[0]),
        "step": step,
        "maximize": lambda: pl.maximize_evidence(model, train, values, keep=False, **options),
        "tune": lambda: pl.tune(model, train, held, map_guide=values, trials=TRIALS, keep=False, **options),
    }
    step()
    seconds: dict[str, list[float]] = {what: [] for what in calls}
    for _ in range(REPEATS):
        for what, call in calls.items():
            seconds[what].append(timed(call))
    median = {what: statistics.median(each) for what, each in seconds.items()}
    ratios = {
        "step of a fit": median["step"] / median["fit"],
        "tune of twice a fit and a prediction": median["tune"] / (2 * median["fit"] + median["predict"]),
    }
    return {"net": name, "num_obs": num_obs, "params": program.num_params, "seconds": median, "ratios": ratios}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("net", choices=list(NETS))
    parser.add_argument("num_obs", type=int)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    print(json.dumps(measure(given.net, given.num_obs)))
