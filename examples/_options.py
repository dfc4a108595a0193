"""What every example is told: where its figures go, and whether a few steps suffice."""

import argparse
from pathlib import Path

import matplotlib as mpl
import torch

parser = argparse.ArgumentParser(description="Run an example; its figures go to a folder as PNGs.")
parser.add_argument("--out", type=Path, default=Path("."), help="the folder; made if there is none")
parser.add_argument("--quick", action="store_true", help="few steps and draws: to see that it runs")
options = parser.parse_args()

OUT: Path = options.out
QUICK: bool = options.quick
OUT.mkdir(parents=True, exist_ok=True)

mpl.use("Agg")  # files, and no windows
mpl.rcParams.update({"savefig.dpi": 110, "figure.constrained_layout.use": True, "legend.frameon": False})
torch.set_num_threads(1)  # programs this small lose more to a second thread than they gain
