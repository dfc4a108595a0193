"""Times the closed-form predictive of classes against laplace-torch's, interleaved; prints medians, and keeps them.

256 test inputs, 10 classes. A timing never decides a test; that both give the same probabilities does, where they hold
the same posterior (laplace-torch's Kron leaves out the block between a weight and its bias).
"""

import copy
import datetime
import json
import statistics
import time
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("laplace")
import laplace
from contenders import Loader, run_quietly
from laplace.curvature import BackPackGGN, CurvlinopsGGN
from measure import environment
from problems import ROWS, Problem

import pyro_laplace as pl

pytestmark = pytest.mark.benchmark

LINES = [name for name in ROWS if name.startswith("mlp") and name != "mlp 20-50-10, full"]
REPEATS, PATIENCE = 11, 20.0
BACKENDS = {"curvlinops": CurvlinopsGGN, "backpack": BackPackGGN}


def calls(name: str, backends: dict, num_test: int = 256) -> dict:
    """Every contender's call, by name: ours as it is kept, ours made anew, and the peer's with each backend."""
    problem = Problem.make(name, 1000)
    row, x = problem.row, torch.randn(num_test, *problem.row.input_shape)
    model, point = problem.program()
    options = {"structure": row.structure, "subset": row.subset}
    guide = pl.fit_laplace(model, problem.batches, point, polish=False, on_not_a_mode="ignore", **options)
    kept = pl.LinearizedPredictive(model, guide)
    found = {
        "ours": lambda: kept(x)["y"].probs,
        "ours, made anew": lambda: pl.LinearizedPredictive(model, guide)(x)["y"].probs,
    }
    for peer, backend in backends.items():
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


@pytest.mark.parametrize("name", LINES)
def test_closed_form_predictive(name: str) -> None:
    found = calls(name, BACKENDS)
    if "kron" not in name:
        ours, theirs = found["ours"](), run_quietly(found["backpack"])
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-4)
    seconds = medians(found)
    fastest = min(seconds[peer] for peer in BACKENDS)
    print(f"\n{name}: " + ", ".join(f"{who} {1e3 * s:.3g} ms" for who, s in seconds.items()), end="")
    print(f"; fastest peer / ours {fastest / seconds['ours']:.1f}")
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    path = Path(__file__).parent / "results" / f"functional-{stamp}.json"
    path.parent.mkdir(exist_ok=True)
    line = {"row": name, "seconds": seconds, "environment": environment(torch.get_num_threads())}
    path.write_text(json.dumps(line, indent=1) + "\n")
