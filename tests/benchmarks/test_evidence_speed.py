"""Times a step of the evidence, `maximize_evidence` and `tune` against a fit, prints the table, and keeps it.

Each line is measured in a process of its own, its calls interleaved. ``make bench PYTEST_ARGS="-k evidence_speed"``
runs these alone.

The goals: a step in the scales of 218,058 weights costs at most 2 % of their fit, whatever the number of data; thirty
trials of `tune` at most twice a fit and a prediction.
"""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from measure import environment

HERE = Path(__file__).parent
THREADS = int(os.environ.get("BENCH_THREADS", os.cpu_count() or 1))
LINES = [("mlp 784-256-64-10", 1_000), ("mlp 784-256-64-10", 10_000), ("conv 8x8", 1_000)]

pytestmark = pytest.mark.benchmark


def test_evidence_speed():
    lines = []
    for net, num_obs in LINES:
        command = [sys.executable, "measure_evidence.py", net, str(num_obs), "--threads", str(THREADS)]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
        lines.append(json.loads(done.stdout.splitlines()[-1]))
    print(
        f"\n{'net':<20}{'data':>7}{'fit s':>9}{'step ms':>9}{'maximize s':>12}{'tune s':>9}"
        "  step/fit  tune/(2 fit + predict)"
    )
    for line in lines:
        s, r = line["seconds"], list(line["ratios"].values())
        print(
            f"{line['net']:<20}{line['num_obs']:>7}{s['fit']:>9.3f}{1000 * s['step']:>9.1f}{s['maximize']:>12.2f}"
            f"{s['tune']:>9.2f}{r[0]:>10.2%}{r[1]:>10.2f}"
        )
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    name = f"evidence-{datetime.datetime.now():%Y%m%d-%H%M%S}.json"
    (results / name).write_text(json.dumps({"environment": environment(THREADS), "lines": lines}, indent=1) + "\n")
    assert all(line["seconds"]["step"] > 0 for line in lines)
