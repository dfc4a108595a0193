"""The evidence found on regressions beside laplace-torch's post-hoc tuning: means, and paired differences.

``make bench PYTEST_ARGS="-k evidence_peers"``; `BENCH_SEEDS` says how many seeds there are.
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


@pytest.mark.parametrize("structure", ["full", "diag", "last layer"])
@pytest.mark.parametrize("data", ["diabetes", "linnerud", "friedman1", "friedman2", "friedman3"])
def test_evidence_peers(data, structure):
    command = [sys.executable, "measure_evidence_peers.py", data, structure, "--seeds", str(SEEDS)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
    lines = [json.loads(line)["found"] for line in done.stdout.splitlines() if line.startswith("{")]
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / f"evidence-peers-{data}-{structure.replace(' ', '-')}.json").write_text(
        json.dumps(lines, indent=1) + "\n"
    )
    for who in lines[0]:
        apart = [line[who]["lpd"] - line["laplace-torch"]["lpd"] for line in lines]
        error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
        mean = {key: statistics.mean(line[who][key] for line in lines) for key in ("log_evidence", "lpd", "seconds")}
        print(
            f"\n{data:<10} {structure:<10} {who:<14} evidence {mean['log_evidence']:>9.2f}  lpd {mean['lpd']:>7.3f}"
            f"  (difference {statistics.mean(apart):+.3f} +- {error:.3f})  {mean['seconds']:>6.1f} s",
            end="",
        )
        assert all(line[who]["log_evidence"] > line["laplace-torch"]["log_evidence"] - 0.1 for line in lines)
