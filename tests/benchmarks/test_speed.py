"""Times `fit_laplace` against its peers, prints the table, and keeps it in `results/`. A timing never decides a test.

Choose lines with ``make bench PYTEST_ARGS="-k 'mlp and 1000-data'"``, threads with the variable ``BENCH_THREADS``. Each
line is measured by `measure.py` in a process of its own, all its contenders interleaved.
"""

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("laplace")
from contenders import CONTENDERS, OURS
from problems import ROWS

HERE = Path(__file__).parent
THREADS = int(os.environ.get("BENCH_THREADS", os.cpu_count() or 1))
SIZES = (1_000, 10_000)
PEERS = [who for who in CONTENDERS if who != OURS]

pytestmark = pytest.mark.benchmark


def cell(line: dict, who: str) -> str:
    """Seconds of a peer, and how many times ours; or why it was left out."""
    if who in line["left_out"]:
        return line["left_out"][who][:22]
    runs = line["runs"][who]
    few = "" if runs >= 5 else f" ({runs} run{'s' * (runs > 1)})"
    return f"{line['seconds'][who]:.4g} s {line['seconds'][who] / line['seconds'][OURS]:.1f}x{few}"


def memory(line: dict) -> str:
    """Our peak over the leanest peer's, in MiB."""
    own = line["peak_mib"].get(OURS)
    others = [peak for who, peak in line["peak_mib"].items() if who != OURS and peak is not None]
    return f"{own:.0f} / {min(others):.0f}" if own is not None and others else "-"


def table(lines: list[dict]) -> str:
    """The times are medians; the floor leaves the factorisation out."""
    heads = ["row", "N", "params", OURS, *PEERS, "floor", "factorise", "ours/floor", "MiB ours/leanest"]
    body = [
        [
            line["row"],
            str(line["num_obs"]),
            str(line["num_params"]),
            f"{line['seconds'][OURS]:.4g} s",
            *(cell(line, who) for who in PEERS),
            f"{line['seconds']['floor']:.4g} s",
            f"{line['seconds']['factorisation']:.4g} s",
            f"{line['seconds'][OURS] / (line['seconds']['floor'] + line['seconds']['factorisation']):.1f}x",
            memory(line),
        ]
        for line in lines
    ]
    widths = [max(len(row[i]) for row in [heads, *body]) for i in range(len(heads))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in [heads, *body]
    )


@pytest.fixture(scope="module")
def lines() -> Iterator[list[dict]]:
    """The lines that were measured; at the end they are printed and written."""
    found: list[dict] = []
    yield found
    if found:
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        path = HERE / "results" / f"{stamp}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"\n\n{table(found)}\n\nwritten to {path}")


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("num_obs", SIZES, ids=lambda n: f"{n}-data")
def test_against_peers(name: str, num_obs: int, lines: list[dict]) -> None:
    if "3x32x32" in name and num_obs > 1_000:
        pytest.skip("a minute for each call of the peers")
    command = [sys.executable, "-W", "ignore", str(HERE / "measure.py"), name, str(num_obs), "--threads", str(THREADS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    line = json.loads(run.stdout.splitlines()[-1])
    lines.append(line)
    print(f"\n{table([line])}")
    # Kron factors join a weight with its bias here, and not there; they differ beside the diagonal only
    assert all(difference < 1e-3 for difference in line["largest_difference"].values()), line["largest_difference"]
