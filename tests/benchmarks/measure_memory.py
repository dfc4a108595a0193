"""Seconds and peak memory of a posterior over ten million weights, and over a residual net, from one tuple of data.

    python measure_memory.py mlp kron --threads 2

prints them as JSON. It is run by `test_memory.py`, outside pytest.
"""

import argparse
import json
import resource
import time
import warnings

import torch
from torch import Tensor, nn

import pyro_laplace as pl

NUM_OBS = {"mlp": 1_000, "resnet": 256}


class Block(nn.Module):
    """Two convolutions and what goes past them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(784, 2300), nn.ReLU(), nn.Linear(2300, 2300), nn.ReLU(), nn.Linear(2300, 1250), nn.ReLU(),
        nn.Linear(1250, 10),
    )  # fmt: skip


def resnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 56, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), Block(56), nn.MaxPool2d(2), Block(56),
        Block(56), Block(56), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(56, 10),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("net", choices=list(NUM_OBS))
    parser.add_argument("structure")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    net = {"mlp": mlp, "resnet": resnet}[given.net]().eval()
    shape = (784,) if given.net == "mlp" else (3, 32, 32)
    x, y = torch.randn(NUM_OBS[given.net], *shape), torch.randint(10, (NUM_OBS[given.net],))
    model = pl.bayesianize(net, prior=pl.nn.Isotropic(0.1), likelihood=pl.nn.Classification())
    point = {name: value.detach() for name, value in net.named_parameters() if name in model.priors}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    pl.fit_laplace(model, (x, y), point, structure=given.structure, on_not_a_mode="ignore", progress=False)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = sum(value.numel() for value in point.values())
    line = {"net": given.net, "structure": given.structure, "num_params": size, "num_obs": len(x)}
    print(json.dumps({**line, "seconds": seconds, "peak_gib": peak / 2**20, "before_gib": before / 2**20}))


if __name__ == "__main__":
    main()
