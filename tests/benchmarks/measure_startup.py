"""Measures one process of `test_startup_speed.py`: the imports, and the first two fits of a program; prints JSON."""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")


def seconds_of(what) -> float:
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


def pyro() -> None:
    import pyro  # noqa: F401


def pyro_laplace() -> None:
    import pyro_laplace  # noqa: F401


def measure(name: str, threads: int) -> dict[str, float]:
    """Seconds of each; the first fit includes what it loads, the data and the program do not count."""
    found = {"import pyro": seconds_of(pyro), "import pyro_laplace": seconds_of(pyro_laplace)}
    import torch

    torch.set_num_threads(threads)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from programs.first_fits import FITS

    return found | {"first fit": seconds_of(FITS[name]), "second fit": seconds_of(FITS[name])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("fit")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    print(json.dumps(measure(given.fit, given.threads)))
