"""Measures one line of `test_functional_speed.py` in this process, and prints it as JSON.

Apart from pytest, under which every call of the package is checked against its types.
"""

import argparse
import copy
import json
import statistics
import time
from functools import partial

import laplace
import torch
from contenders import Loader, left_out, run_quietly
from laplace.curvature import BackPackGGN, CurvlinopsGGN
from measure import environment
from problems import ROWS, Problem

import pyro_laplace as pl

LINES = [name for name in ROWS if name.startswith("mlp") and name != "mlp 20-50-10, full"]
INPUTS, REPEATS, PATIENCE = 256, 31, 20.0
BACKENDS = {"curvlinops": CurvlinopsGGN, "backpack": BackPackGGN}


def calls(name: str, backends: dict) -> dict:
    """Every contender's call, by name: ours as it is kept, ours made anew, and the peer's with each backend."""
    problem = Problem.make(name, 1000)
    row, x = problem.row, torch.randn(INPUTS, *problem.row.input_shape)
    model, point = problem.program()
    options = {"structure": row.structure, "subset": row.subset}
    guide = pl.fit_laplace(model, problem.batches, point, polish=False, on_not_a_mode="ignore", **options)
    kept = pl.LinearizedPredictive(model, guide)
    found = {
        "ours": lambda: kept(x)["y"].probs,
        "ours, made anew": lambda: pl.LinearizedPredictive(model, guide)(x)["y"].probs,
    }
    for peer, backend in backends.items():
        if left_out(peer, problem) is not None:
            continue
        posterior = laplace.Laplace(
            copy.deepcopy(problem.net), "classification", subset_of_weights=row.subset,
            hessian_structure=row.structure, prior_precision=1.0, backend=backend,
        )  # fmt: skip
        run_quietly(partial(posterior.fit, Loader(problem)))
        found[peer] = lambda posterior=posterior: posterior(x, link_approx="probit")
    return found


def medians(found: dict) -> dict[str, float]:
    """Seconds of each call; one that takes longer than `PATIENCE` altogether is run less often."""
    seconds: dict[str, list[float]] = {who: [] for who in found}
    for who, call in found.items():
        start = time.perf_counter()
        run_quietly(call)
        if (first := time.perf_counter() - start) > PATIENCE / 2:
            seconds[who].append(first)
    for _ in range(REPEATS):
        for who, call in found.items():
            if sum(seconds[who]) < PATIENCE:
                start = time.perf_counter()
                run_quietly(call)
                seconds[who].append(time.perf_counter() - start)
    return {who: statistics.median(times) for who, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=LINES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = calls(options.row, BACKENDS)
    difference = float((found["ours"]() - run_quietly(found["backpack"]).detach()).abs().max())
    seconds = medians(found)
    line = {"row": options.row, "seconds": seconds, "largest_difference": difference}
    print(json.dumps(line | {"environment": environment(options.threads)}))


if __name__ == "__main__":
    main()
