"""Peak memory of posteriors over many weights, each in a process of its own; ``make bench PYTEST_ARGS="-k memory"``.

The goal: factors and diagonal of ten million weights within 8 GiB, from one tuple of data.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
THREADS = int(os.environ.get("BENCH_THREADS", os.cpu_count() or 1))

pytestmark = pytest.mark.benchmark


def test_memory():
    lines = []
    for net in ("resnet", "mlp"):
        for structure in ("diag", "kron"):
            command = [sys.executable, "measure_memory.py", net, structure, "--threads", str(THREADS)]
            done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
            lines.append(json.loads(done.stdout.splitlines()[-1]))
            line = lines[-1]
            print(
                f"\n{net:<8}{structure:<6}{line['num_params']:>12,} weights {line['num_obs']:>6} data "
                f"{line['seconds']:>8.1f} s {line['peak_gib']:>6.2f} GiB",
                end="",
            )
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "memory.json").write_text(json.dumps(lines, indent=1) + "\n")
    assert all(line["seconds"] > 0 for line in lines)
