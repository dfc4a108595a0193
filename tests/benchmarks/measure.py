"""One line of the table: every contender's time, interleaved in this process, and its peak memory, in one of its own.

    python measure.py "mlp 20-50-10, kron" 1000 --threads 2

prints the line as JSON. It is run by `test_speed.py`, outside pytest: there every call of the package is checked
against its array types, which would be timed too.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from contenders import CONTENDERS, OURS, left_out, marginal_precision, run_quietly
from floors import factorisation, floor
from problems import ROWS, Problem

REPEATS = 7
PATIENCE = 20.0
"""Seconds that a contender's runs may take together; one slower than that is run once."""


def measure(name: str, num_obs: int, patience: float = PATIENCE) -> dict:
    """Median seconds and the number of runs of each contender, and of the floor."""
    cold = {who: _warm_up(who) for who in CONTENDERS if left_out(who, Problem.make(name, num_obs)) is None}
    problem = Problem.make(name, num_obs)
    calls, skipped, results = {}, {}, {}
    for who, prepare in CONTENDERS.items():
        if (why := left_out(who, problem)) is not None:
            skipped[who] = why
        else:
            calls[who] = prepare(problem)
    products = floor(problem)
    calls["floor"] = products
    calls["factorisation"] = factorisation(problem, products())
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    for who in list(calls):
        try:
            first, results[who] = _timed(calls[who])
        except Exception as error:
            if who == OURS:
                raise
            skipped[who] = f"{type(error).__name__}: {str(error)[:80]}"
            del calls[who], seconds[who]
            continue
        if first > patience:
            seconds[who].append(first)
    agreement = _agreement(results)
    results.clear()
    for _ in range(REPEATS):
        for who, call in calls.items():
            spent = sum(seconds[who])
            if spent + (spent / len(seconds[who]) if seconds[who] else 0) <= patience:
                seconds[who].append(_timed(call)[0])
    return {
        "row": name,
        "num_obs": num_obs,
        "batch": min(problem.row.batch, num_obs),
        "num_params": problem.num_params,
        "seconds": {who: statistics.median(times) for who, times in seconds.items()},
        "fastest_seconds": {who: min(times) for who, times in seconds.items()},
        "runs": {who: len(times) for who, times in seconds.items()},
        "left_out": skipped,
        "cold_start_seconds": cold,
        "largest_difference": agreement,
    }


def _timed(call) -> tuple[float, object]:
    start = time.perf_counter()
    result = run_quietly(call)
    return time.perf_counter() - start, result


def _agreement(results: dict) -> dict[str, float]:
    """Largest difference of the precision's diagonal from ours, relative to its largest entry."""
    own = marginal_precision(results[OURS])
    found = {}
    for who, result in results.items():
        other = None if own is None or who == OURS else marginal_precision(result)
        if other is not None:
            found[who] = float((own.sort().values - other.sort().values).abs().max() / own.max())
    return found


def peak_memory(name: str, num_obs: int, who: str) -> float:
    """MiB by which the first call raises this process's resident memory at its highest."""
    _warm_up(who)
    problem = Problem.make(name, num_obs)
    call = CONTENDERS[who](problem)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is resident now
    run_quietly(call)
    return (_status("VmHWM") - before) / 1024


def _warm_up(who: str) -> float:
    """Seconds of a process's first fit, a tiny one: what is imported, scripted and allocated once is no part of a fit.

    It clears Pyro's param store, so it comes before the problem that is measured.
    """
    return _timed(CONTENDERS[who](Problem.make("regression 8-50-50-1, full", 5)))[0]


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field + ":")))


def peaks(line: dict, threads: int) -> dict[str, float | None]:
    """Peak memory of everyone who was timed; None where the platform does not tell (no /proc)."""
    found: dict[str, float | None] = {}
    for who in CONTENDERS:
        if who not in line["seconds"]:
            continue
        if not Path("/proc/self/clear_refs").exists() or line["seconds"][who] > PATIENCE:
            found[who] = None
            continue
        command = [sys.executable, __file__, line["row"], str(line["num_obs"]), "--memory-of", who]
        run = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=False)
        found[who] = float(run.stdout) if run.returncode == 0 else None
    return found


def environment(threads: int) -> dict:
    from importlib.metadata import PackageNotFoundError, version

    def version_of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = ("torch", "pyro-ppl", "laplace-torch", "curvlinops-for-pytorch", "backpack-for-pytorch", "pyro-laplace")
    models = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return {
        "packages": {package: version_of(package) for package in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "threads": threads,
        "dtype": "float32",
    }


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=list(ROWS))
    parser.add_argument("num_obs", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds of runs for each contender")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peaks, which take a process each")
    parser.add_argument("--memory-of", choices=list(CONTENDERS), help="print this contender's peak in MiB alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(peak_memory(options.row, options.num_obs, options.memory_of))
        return
    line = measure(options.row, options.num_obs, options.patience)
    line["peak_mib"] = {} if options.no_memory else peaks(line, options.threads)
    line["environment"] = environment(options.threads)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
