"""Hierarchies of many groups by `structure="sparse"`, each in its own process: ``make bench PYTEST_ARGS="-k groups"``.

The goals: 10,000 groups of 5 Bernoulli rows, random intercepts and 5 fixed effects, within 60 s and 2 GiB; and time
that is linear in groups.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
THREADS = int(os.environ.get("BENCH_THREADS", os.cpu_count() or 1))
GROUPS = (1_000, 3_000, 10_000, 30_000)
MOST_SECONDS, MOST_GIB, MOST_EXPONENT = 60.0, 2.0, 1.15

pytestmark = pytest.mark.benchmark


def slope(lines: list[dict], name: str) -> float:
    """The exponent of time in groups, by least squares of the logs."""
    x = [math.log(line["groups"]) for line in lines]
    y = [math.log(line[name]) for line in lines]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def test_groups():
    lines = []
    for groups in GROUPS:
        command = [sys.executable, "measure_groups.py", str(groups), "--threads", str(THREADS)]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
        lines.append(json.loads(done.stdout.splitlines()[-1]))
        line = lines[-1]
        print(
            f"\n{groups:>7,} groups: fit {line['fit_seconds']:.2f} s, the posterior at its mode "
            f"{line['posterior_seconds']:.3f} s, 100 draws {line['draw_seconds']:.3f} s, quantiles "
            f"{line['quantile_seconds']:.3f} s, {line['peak_gib']:.2f} GiB (before the fit {line['loaded_gib']:.2f})",
            end="",
        )
    exponents = {name: slope(lines, name) for name in ("fit_seconds", "posterior_seconds")}
    print(f"\nexponents of time in groups: {exponents}")
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "groups.json").write_text(json.dumps({"lines": lines, "exponents": exponents}, indent=1) + "\n")
    (goal,) = (line for line in lines if line["groups"] == 10_000)
    assert goal["is_mode"]
    assert goal["fit_seconds"] <= MOST_SECONDS
    assert goal["peak_gib"] <= MOST_GIB
    assert max(exponents.values()) <= MOST_EXPONENT
