"""Installs a wheel in a fresh environment and tries it there, from outside the checkout: `make wheel`."""

import subprocess
import sys
import tempfile
from pathlib import Path

TRY = """
import importlib.metadata, importlib.resources, pathlib, sys
import pyro, pyro.distributions as dist, torch
import pyro_laplace as pl

where = pathlib.Path(pl.__file__)
assert sys.prefix in str(where), where
assert (where.parent / "py.typed").exists()
assert importlib.metadata.version("pyro-laplace") == pl.__version__

def model(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

data = pl.datasets.linear()
guide = pl.fit_laplace(model, data)
probs = pl.LinearizedPredictive(model, guide)(data[0])["y"].mean
assert ((probs > 0.5) == (data[1] > 0.5)).all()
pl.save(guide, "guide.safetensors")
assert torch.equal(pl.load("guide.safetensors", model).theta, guide.theta)
assert "posterior" in pl.to_datatree(model, guide, data, num_samples=20).children
print("works:", pl.diagnose(model, guide, data).verdict, "at", where.parent)
"""


def main() -> None:
    """Take a uv, and the wheel."""
    *uv, wheel = sys.argv[1].split() + sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "venv", "bin", "python")
        install = ["pip", "install", "--quiet", "--python", python, Path(wheel).resolve()]
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, python.parents[1]], check=True)
        subprocess.run([*uv, *install], check=True)
        subprocess.run([python, "-c", TRY], cwd=folder, check=True)


if __name__ == "__main__":
    main()
