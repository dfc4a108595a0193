"""The demo over several seeds: Laplace at the learned scale less each of the others, with its standard error.

``make bench PYTEST_ARGS="-k demo"``; twenty minutes on one core. `BENCH_SEEDS` says how many seeds there are.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SEEDS = int(os.environ.get("BENCH_SEEDS", "5"))

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize("data", ["diabetes", "breast_cancer"])
def test_demo(data):
    lines = []
    for seed in range(SEEDS):
        command = [sys.executable, "measure_demo.py", data, str(seed)]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
        lines.append(json.loads(done.stdout.splitlines()[-1]))
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"demo-{data}.json").write_text(json.dumps(lines, indent=1) + "\n")
    for who in lines[0].keys() - {"data", "seed", "laplace"}:
        apart = [line["laplace"] - line[who] for line in lines]
        error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
        mean = statistics.mean(line[who] for line in lines)
        print(
            f"\n{data:<14} {who:<26} {mean:>8.3f}   laplace less it {statistics.mean(apart):+.3f} +- {error:.3f}",
            end="",
        )
        assert mean == mean
