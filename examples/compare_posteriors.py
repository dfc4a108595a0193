"""A Bayesian neural net on two real data sets: Laplace beside MAP, an ensemble, MC dropout, SWAG, VI and NUTS.

One Pyro program per data set. Its mode is fitted with AutoDelta and turned into a Laplace posterior, before and after
the scale of its prior is learned by the evidence, and over the last layer; an ensemble, MC dropout, SWAG, mean-field
VI and NUTS run on the same program at the learned scale. Half of the held-out data then calibrate what each predicts of
the other half. Prints tables per data set; writes figures, netCDF DataTrees and a report into a folder.

    python examples/compare_posteriors.py [--out compare_posteriors] [--quick]
"""

# %% Set-up
import argparse
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.distributions import constraints

import pyro_laplace as pl


# %% The model: a network with priors on its weights, and the distribution of its data
class Net(PyroModule):
    """One hidden layer; every weight and bias is Normal(0, std), and std is a hyperparameter: a `pyro.param`.

    Its dropout layer is off but for `pl.mc_dropout`.
    """

    def __init__(self, inputs: int, hidden: int, activation: type[nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.net = PyroModule[nn.Sequential](
            PyroModule[nn.Linear](inputs, hidden), activation(), nn.Dropout(0.1), PyroModule[nn.Linear](hidden, 1)
        )
        self.std = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        for layer in (self.net[0], self.net[-1]):
            layer.weight = PyroSample(partial(self.prior, layer.weight.shape))
            layer.bias = PyroSample(partial(self.prior, layer.bias.shape))
        self.eval()

    def prior(self, shape: torch.Size, _: Any) -> Any:
        """The prior of a weight or bias, with the std that the param store holds."""
        return dist.Normal(0.0, self.std).expand(shape).to_event(len(shape))


class Regression(Net):
    """Normal data with unknown noise."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        loc = self.net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(loc, sigma), obs=y)


class Classification(Net):
    """Two classes."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = self.net(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


# %% The data: real, standardised, split
@dataclass(frozen=True)
class Problem:
    """A data set and its model."""

    name: str
    model: Net
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    features: list[str]


def diabetes(seed: int) -> Problem:
    """Disease progression of 442 patients from ten measurements, the body mass index first."""
    data = load_diabetes()
    order = sorted(range(10), key=lambda column: data.feature_names[column] != "bmi")
    x, x_test, y, y_test = train_test_split(data.data[:, order], data.target, test_size=0.25, random_state=seed)
    x, x_test = standardise(x, x_test)
    y, y_test = (part[:, 0] for part in standardise(y[:, None], y_test[:, None]))
    features = [data.feature_names[column] for column in order]
    return Problem("diabetes", Regression(10, 5), (x, y), (x_test, y_test), features)


def breast_cancer(seed: int) -> Problem:
    """Malignant or benign: 569 tumours, thirty measurements."""
    data = load_breast_cancer()
    split = train_test_split(data.data, data.target, test_size=0.25, random_state=seed, stratify=data.target)
    x, x_test = standardise(*split[:2])
    y, y_test = (torch.tensor(part, dtype=torch.float32) for part in split[2:])
    features = [str(name) for name in data.feature_names]
    return Problem("breast_cancer", Classification(30, 5), (x, y), (x_test, y_test), features)


def standardise(train: Any, test: Any) -> tuple[Tensor, Tensor]:
    """Both parts in units of the training part's mean and standard deviation."""
    scaler = StandardScaler().fit(train)
    first, second = (torch.tensor(scaler.transform(part), dtype=torch.float32) for part in (train, test))
    return first, second


# %% One program, its prior learned, and nine posteriors
def fit(problem: Problem, quick: bool) -> dict[str, Any]:
    """Fit every posterior; each takes the program and the data as they are."""
    model, train = problem.model, problem.train
    map_guide = pl.fit_map(model, train)
    before = pl.fit_laplace(model, train, map_guide)
    guide = pl.maximize_evidence(model, train, map_guide)  # from here on the param store holds the std that it found
    std = float(guide.hyperparameters["std"])
    print(f"log evidence {before.log_evidence:.1f} at std 1, {guide.log_evidence:.1f} at std {std:.3f}")
    mode = guide.median()
    return {
        "map": map_guide,
        "laplace, std 1": before,
        "laplace": guide,
        "laplace, last layer": pl.fit_laplace(model, train, mode, subset="last_layer"),
        "ensemble": pl.fit_ensemble(model, train, 2 if quick else 4, num_steps=50 if quick else 1000),
        "mc dropout": pl.mc_dropout(model, train, num_steps=50 if quick else 1000),
        "swag": pl.fit_swag(model, train, mode, num_iterates=10 if quick else 100),
        "vi": pl.fit_svi(
            model, train, AutoNormal(model, init_loc_fn=pl.init_to_start), num_steps=300 if quick else 3000
        ),
        "nuts": pl.fit_nuts(
            model,
            train,
            num_samples=20 if quick else 150,
            warmup_steps=20 if quick else 150,
            max_tree_depth=3 if quick else 6,
            initial=mode,
        ),
    }


# %% What they say
def report(problem: Problem, posteriors: dict[str, Any], folder: Path) -> pd.DataFrame:
    """Compare the posteriors; write figures, DataTrees and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    model, train, test = problem.model, problem.train, problem.test
    table = pl.compare(model, posteriors, train, test_data=test)
    spread = {name: posterior for name, posterior in posteriors.items() if name != "map"}
    trees = {name: pl.to_datatree(model, posterior, train) for name, posterior in spread.items()}
    for name, tree in trees.items():
        tree.to_netcdf(folder / f"{slug(name)}.nc")
    held_out = {n: pl.to_datatree(model, posterior, test, num_prior_samples=0) for n, posterior in spread.items()}
    few = {name: posteriors[name] for name in ("laplace", "vi", "nuts")}
    believed, figure = calibrated(problem, posteriors)
    print(f"\nheld-out loss (nats a datum), half of the data calibrating the other\n{believed.round(3).to_string()}")
    figures = {
        "comparison": pl.plots.comparison(table),
        "evidence": pl.plots.evidence(posteriors["laplace"]),
        "forest": pl.plots.posterior_forest({name: trees[name] for name in few}, max_rows=20),
        "calibration": pl.plots.calibration(held_out, title=f"{problem.name}, held-out data"),
        "believed": figure,
    }
    figures |= bands(problem, few) if isinstance(model, Regression) else surface(problem)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        plt.close(figure)
    (folder / "report.md").write_text(markdown(problem, table, list(figures)))
    return table


def calibrated(problem: Problem, posteriors: dict[str, Any]) -> tuple[pd.DataFrame, Figure]:
    """The loss before and after a temperature or a scale; and the curves of some, before."""
    model, half = problem.model, len(problem.test[0]) // 2
    tuning, rest = (tuple(each[part] for each in problem.test) for part in (slice(half), slice(half, None)))
    rows, predictives = {}, {}
    for name, posterior in posteriors.items():
        if isinstance(posterior, pl.AutoLaplace) and posterior.curvature != "none":
            predictive = pl.LinearizedPredictive(model, posterior)
        elif isinstance(posterior, MCMC):
            predictive = pl.Predictive(model, posterior_samples=posterior.get_samples())
        else:
            predictive = pl.Predictive(model, guide=posterior, num_samples=300)
        after = pl.calibrate(predictive, tuning)
        number = {**after.temperatures, **after.scales}["y"]
        rows[name] = {
            "before": pl.scores(predictive, rest)["nll"],
            "after": pl.scores(after, rest)["nll"],
            "temperature" if after.temperatures else "scale": number,
        }
        predictives[name] = predictive
    shown = {name: predictives[name] for name in ("map", "laplace", "ensemble", "mc dropout")}
    draw = pl.plots.coverage if isinstance(model, Regression) else pl.plots.reliability
    return pd.DataFrame.from_dict(rows, orient="index"), draw(shown, problem.test, title=problem.name)


def bands(problem: Problem, posteriors: dict[str, Any]) -> dict[str, Figure]:
    """Predictions along the first input, the others at their means."""
    inputs = torch.zeros(60, len(problem.features))
    inputs[:, 0] = torch.linspace(-4.0, 6.0, 60)
    labels = f"{problem.features[0]} (standardised)", "disease progression (standardised)"
    return {"bands": pl.plots.predictive_bands(problem.model, posteriors, problem.train, inputs, labels=labels)}


def surface(problem: Problem) -> dict[str, Figure]:
    """Predictions over two inputs, by a network of ReLUs that sees no others: far from the data it is unsure."""
    names = ["worst radius", "worst texture"]
    columns = [problem.features.index(name) for name in names]
    train = problem.train[0][:, columns], problem.train[1]
    model = Classification(2, 8, nn.ReLU)
    map_guide = pl.fit_map(model, train)
    laplace = pl.maximize_evidence(model, train, map_guide, on_not_a_mode="ignore")  # it is on a kink of the ReLUs
    posteriors = {"map": map_guide, "laplace": laplace}
    figure = pl.plots.class_surface(
        model, posteriors, train, margin=1.0, class_names=("malignant", "benign"), labels=tuple(names)
    )
    return {"surface": figure}


def markdown(problem: Problem, table: pd.DataFrame, figures: list[str]) -> str:
    """A short report."""
    rows = ["| posterior | " + " | ".join(table.columns) + " |", "|---" * (len(table.columns) + 1) + "|"]
    rows += [
        f"| {name} | " + " | ".join(value if isinstance(value, str) else f"{value:.3g}" for value in row) + " |"
        for name, row in table.iterrows()
    ]
    pictures = [f"![{name}]({name}.png)" for name in figures]
    note = (
        f"{len(problem.train[0])} training, {len(problem.test[0])} test data. The std of the prior is 1 in *map* and "
        "*laplace, std 1*, and the one of the highest evidence in all others. *laplace* predicts with the linearised "
        "program; *laplace (sampled)* pushes the same draws through the nonlinear network, to show the difference. The "
        "features of the last-layer posterior were fitted to all data, so its leave-one-out figures are optimistic."
    )
    return "\n\n".join([f"# {problem.name}", note, "\n".join(rows), *pictures]) + "\n"


def slug(name: str) -> str:
    """A file name."""
    return "".join(c if c.isalnum() else "_" for c in name)


# %% All of it
def main() -> None:
    """Run both problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("compare_posteriors"), help="folder for the results")
    parser.add_argument("--seed", type=int, default=0, help="of the splits and of every fit")
    parser.add_argument("--quick", action="store_true", help="few steps and draws: to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)  # networks this small lose more to a second thread than they gain
    start = time.perf_counter()
    for make in (diabetes, breast_cancer):
        pyro.set_rng_seed(options.seed)
        pyro.clear_param_store()  # the std is a param of the same name in both programs
        problem = make(options.seed)
        print(f"\n{problem.name}: {len(problem.train[0])} training data, {len(problem.features)} inputs")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=pl.LaplaceWarning, message="fit_map leaves the hyperparameters")
            warnings.filterwarnings("ignore", category=pl.LaplaceWarning, message="the posterior was built at other")
            table = report(problem, fit(problem, options.quick), options.out / problem.name)
        print(f"\n{table.round(3).to_string()}\n")
    print(f"Figures, netCDF files and reports are in {options.out}/ ({time.perf_counter() - start:.0f} s).")


if __name__ == "__main__":
    main()
