"""Times what a process pays once: the import beyond Pyro's, and the first fit beyond the second; keeps the medians.

Each run is a process of its own, and the programs take turns. ``make bench PYTEST_ARGS="-k startup_speed"`` runs
these alone.

The goals: `import pyro_laplace` at most 0.5 s beyond `import pyro`; the first fit of a small program at most 0.7 s
beyond its second.
"""

import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from measure import environment
from programs.first_fits import FITS

HERE = Path(__file__).parent
THREADS = int(os.environ.get("BENCH_THREADS", os.cpu_count() or 1))
REPEATS = 5

pytestmark = pytest.mark.benchmark


def test_startup_speed():
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in FITS}
    for _ in range(REPEATS):
        for name, found in runs.items():
            command = [sys.executable, "measure_startup.py", name, "--threads", str(THREADS)]
            done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    lines = [{"fit": name, "seconds": medians(found), "runs": found} for name, found in runs.items()]
    print(f"\n{'medians of ' + str(REPEATS) + ', in s':<24}" + "".join(f"{what:>21}" for what in lines[0]["seconds"]))
    for line in lines:
        print(f"{line['fit']:<24}" + "".join(f"{value:>21.3f}" for value in line["seconds"].values()))
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    name = f"startup-{datetime.datetime.now():%Y%m%d-%H%M%S}.json"
    (results / name).write_text(json.dumps({"environment": environment(THREADS), "lines": lines}, indent=1) + "\n")
    assert all(line["seconds"]["first fit"] > 0 for line in lines)


def medians(found: list[dict[str, float]]) -> dict[str, float]:
    """Of each time, and of the first fit less the second of the same process."""
    beyond = [{**each, "first beyond second": each["first fit"] - each["second fit"]} for each in found]
    return {what: statistics.median(each[what] for each in beyond) for what in beyond[0]}
