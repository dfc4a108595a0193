"""One seed of the demo: held-out log density of every posterior, and of Laplace at the scales one would write down.

    python measure_demo.py diabetes 0

prints them as JSON. It is run by `test_demo.py`.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import compare_posteriors as demo

import pyro_laplace as pl


def at_written_scales(problem: demo.Problem) -> demo.Net:
    """The same network with the prior that fan-in suggests: 1/sqrt(fan-in) of weights, 1 of biases."""

    class Written(type(problem.model)):
        def prior(self, shape: torch.Size, _: Any) -> Any:
            std = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
            return dist.Normal(0.0, std).expand(shape).to_event(len(shape))

    return Written(len(problem.features), 5)


def measure(name: str, seed: int) -> dict:
    """Mean held-out log density by posterior, in nats."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    problem = {"diabetes": demo.diabetes, "breast_cancer": demo.breast_cancer}[name](seed)
    posteriors = demo.fit(problem, False)
    found = pl.compare(problem.model, posteriors, problem.train, test_data=problem.test)["test_lpd"].to_dict()
    pyro.clear_param_store()
    written = at_written_scales(problem)
    guide = pl.fit_laplace(written, problem.train)
    table = pl.compare(written, {"laplace": guide}, problem.train, test_data=problem.test)
    return {"data": name, "seed": seed, **found, "laplace, written scales": float(table["test_lpd"].iloc[0])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data", choices=["diabetes", "breast_cancer"])
    parser.add_argument("seed", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(json.dumps(measure(given.data, given.seed)))
