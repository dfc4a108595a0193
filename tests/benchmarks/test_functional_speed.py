"""Times the closed-form predictive of classes against laplace-torch's, interleaved; prints medians, and keeps them.

256 test inputs, 10 classes; each line in a process of its own. A timing never decides a test; that both give the same
probabilities does, where they hold the same posterior (laplace-torch's Kron leaves out the block between a weight and
its bias).
"""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("laplace")
from problems import ROWS

HERE = Path(__file__).parent
THREADS = int(os.environ.get("BENCH_THREADS", os.cpu_count() or 1))
LINES = [name for name in ROWS if name.startswith("mlp") and name != "mlp 20-50-10, full"]

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize("name", LINES)
def test_closed_form_predictive(name: str) -> None:
    command = [sys.executable, "-W", "ignore", str(HERE / "measure_functional.py"), name, "--threads", str(THREADS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    line = json.loads(run.stdout.splitlines()[-1])
    seconds = line["seconds"]
    fastest = min(seconds[peer] for peer in ("curvlinops", "backpack") if peer in seconds)
    print(
        f"\n{name}: " + ", ".join(f"{who} {1e3 * s:.3g} ms" for who, s in seconds.items()),
        end="",
    )
    print(f"; fastest peer / ours {fastest / seconds['ours']:.1f}")
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    path = HERE / "results" / f"functional-{stamp}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(line, indent=1) + "\n")
    assert "kron" in name or line["largest_difference"] < 1e-4
