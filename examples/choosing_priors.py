# %% [markdown]
# What the evidence chooses, and what held-out data choose
#
# The figures and numbers of `docs/choosing-priors.md`: a regression along one input at two guessed prior scales and the
# learned one; a scale for each input of the diabetes data; a network whose evidence has two maxima; a larger one, where
# the evidence is right; and the digits, where it misleads. Takes two minutes on one core; writes PNGs into a folder.
#
#     python examples/choosing_priors.py [folder]

# %%
import sys
import warnings
from pathlib import Path
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.distributions import constraints

import pyro_laplace as pl
from pyro_laplace.plots.style import COLORS, tidy

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
SEEDS = range(5)
STDS = np.geomspace(0.005, 5.0, 13)
torch.set_num_threads(1)
warnings.simplefilter("ignore", pl.LaplaceWarning)  # they are shown, and spoken of, on the page


def set_to(name: str, value: float) -> None:
    """Set a param of the store, as a user does."""
    pyro.get_param_store()[name] = torch.tensor(value)


def nll(predictive, data) -> float:
    """Mean held-out -log p(y), in nats."""
    return float(pl.scores(predictive, data)["nll"])


def save(figure, name: str) -> None:
    """Small enough for a repository."""
    figure.savefig(FOLDER / name, dpi=110)


# %% [markdown]
# ## One input: 25 bumps, with two guessed scales of their heights and the learned one

# %%
CENTRES = torch.linspace(-5.0, 5.0, 25)


def bumps(x, y=None):
    std = pyro.param("std", torch.tensor(1.0), constraint=constraints.positive)
    noise = pyro.param("noise", torch.tensor(0.3), constraint=constraints.positive)
    height = pyro.sample("height", dist.Normal(0.0, std).expand([len(CENTRES)]).to_event(1))
    f = torch.exp(-(x[:, None] - CENTRES).square() / (2 * 0.6**2)) @ height
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, noise), obs=y)


pyro.set_rng_seed(0)
x = torch.cat([torch.linspace(-2.5, -0.9, 20), torch.linspace(0.8, 2.5, 20)])
y = torch.sin(2 * x) + 0.15 * torch.randn(len(x))
x_gap = torch.linspace(-3.0, 3.0, 400)
gap = x_gap, torch.sin(2 * x_gap) + 0.15 * torch.randn(len(x_gap))

learned = pl.maximize_evidence(bumps, (x, y), progress=False)
guides = {}
for std in (0.05, 30.0):
    set_to("std", std)
    guides[f"std = {std:g}, guessed"] = pl.fit_laplace(bumps, (x, y), learned.median(), progress=False)
guides[f"std = {float(learned.hyperparameters['std']):.2f}, learned"] = learned
print("\nbumps: log evidence, NLL of new data on [-3, 3]")
for name, guide in guides.items():
    print(f"  {name:<22} {guide.log_evidence:8.1f} {nll(pl.LinearizedPredictive(bumps, guide), gap):8.2f}")
x_new = torch.linspace(-4.5, 4.5, 181)
save(pl.plots.predictive_bands(bumps, guides, (x, y), x_new), "choosing_priors_bands.png")

# %% [markdown]
# ## Diabetes: a scale for each of ten inputs

# %%
data = load_diabetes(scaled=False)
inputs = torch.tensor(data.data, dtype=torch.float32)
target = torch.tensor(data.target, dtype=torch.float32)
inputs = (inputs - inputs.mean(0)) / inputs.std(0)
target = (target - target.mean()) / target.std()
pyro.set_rng_seed(0)
train, validation, test = ((inputs[i], target[i]) for i in torch.randperm(len(target)).split([250, 92, 100]))


def regression(x, y=None, scales=(10,)):
    std = pyro.param("std", torch.ones(scales), constraint=constraints.positive)
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    w = pyro.sample("w", dist.Normal(0.0, std).expand([10]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, noise), obs=y)


def one_scale(x, y=None):
    regression(x, y, ())


print("\ndiabetes: log evidence, effective parameters, NLL of test data")
for program in (one_scale, regression):
    pyro.clear_param_store()
    guide = pl.maximize_evidence(program, train, progress=False)
    found = pl.log_evidence(program, guide, train)
    score = nll(pl.LinearizedPredictive(program, guide), test)
    print(f"  {program.__name__:<22} {guide.log_evidence:8.1f} {found.effective_dim:8.1f} {score:8.3f}")
print(
    "  scales: "
    + ", ".join(f"{n} {s:.2g}" for n, s in zip(data.feature_names, guide.hyperparameters["std"], strict=True))
)
figure = pl.plots.evidence(guide)
figure.axes[0].autoscale(axis="y")  # from the first step on: most is gained in the first ten
save(figure, "choosing_priors_path.png")

for program, trials in ((one_scale, 30), (regression, 30), (regression, 120)):
    pyro.clear_param_store()
    guide = pl.tune(program, train, validation, trials=trials, progress=False)
    score, noise = nll(pl.LinearizedPredictive(program, guide), test), guide.hyperparameters["noise"]
    scales = ", ".join(f"{float(scale):.2g}" for scale in guide.hyperparameters["std"].reshape(-1))
    print(f"  tune, {program.__name__}, {trials} trials: {score:.3f}, noise {noise:.2g}, scales {scales}")

# %% [markdown]
# ## A small network: where the search begins decides between two maxima

# %%
pyro.set_rng_seed(0)
x = torch.cat([torch.linspace(-2.0, -0.9, 20), torch.linspace(0.7, 2.0, 20)])[:, None]
y = torch.sin(2 * x[:, 0]) + 0.15 * torch.randn(len(x))
print("\nnetwork 1-20-1: std and noise that the search begins with; log evidence, std and noise at its end")
for std, fitted_first in ((0.3, False), (3.0, False), (0.3, True)):
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
    prior = pl.nn.Isotropic(pl.nn.learned(std, name="std"))
    model = pl.bayesianize(net, prior=prior, likelihood=pl.nn.Regression(pl.nn.learned(0.3)))
    if fitted_first:
        pl.fit_map(model, (x, y), progress=False)
    noise = float(pyro.get_param_store()["noise"].detach()) if fitted_first else 0.3
    guide = pl.maximize_evidence(model, (x, y), progress=False)
    end = "  ".join(f"{float(value):.2g}" for value in guide.hyperparameters.values())
    print(f"  {std:g} {noise:.2g}: {guide.log_evidence:8.1f}  {end}")


# %% [markdown]
# ## A larger network for regression: more weights than data, and an evidence that is right


# %%
def trained_regression(seed: int, hidden: int = 50):
    """The diabetes data, split anew, and a net that was trained on the first part of them with weight decay."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    parts = [(inputs[i], target[i]) for i in torch.randperm(len(target)).split([250, 92, 100])]
    net = nn.Sequential(nn.Linear(10, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    train_on(net, parts[0], lambda f, y: (f[:, 0] - y).square().mean(), 100, 50, lr=1e-2, weight_decay=3e-2)
    return net, *parts


def train_on(net, data, loss, epochs: int, size: int, **options) -> None:
    """Train in the ordinary way."""
    x, y = data
    optimiser = torch.optim.Adam(net.parameters(), **options)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(size):
            optimiser.zero_grad()
            loss(net(x[rows]), y[rows]).backward()
            optimiser.step()


def weights(net) -> dict:
    """The point that a trained net is at."""
    return {name: weight.detach() for name, weight in net.named_parameters()}


KRON = {"structure": "kron", "keep": False, "progress": False}
found = []
for seed in SEEDS:
    net, train, held, test = trained_regression(seed)
    prior = pl.nn.Isotropic(pl.nn.learned(0.3, name="std"))
    model = pl.bayesianize(net, prior=prior, likelihood=pl.nn.Regression(pl.nn.learned(0.7)))
    guide = pl.maximize_evidence(model, train, weights(net), refit=False, **KRON)
    with torch.no_grad():
        residuals = [net(x)[:, 0] - y for x, y in (train, test)]
    noise = residuals[0].square().mean().sqrt()
    alone = -dist.Normal(0.0, noise).log_prob(residuals[1]).mean()
    values = [float(value) for value in guide.hyperparameters.values()]
    score = pl.scores(pl.LinearizedPredictive(model, guide), test)[["nll", "coverage_90"]]
    found.append((*values, float(alone), *score))
size = sum(weight.numel() for weight in net.parameters())
print(f"\nregression by {size} weights, {len(SEEDS)} seeds: std, noise, NLL of the weights alone, NLL, coverage of 90%")
for name, row in (("lowest", np.min(found, 0)), ("mean", np.mean(found, 0)), ("highest", np.max(found, 0))):
    print(f"  {name:<8}" + "".join(f"{value:8.3f}" for value in row))

# %% [markdown]
# ## Digits: a convolutional net of 9,930 weights, trained on 1,077 images


# %%
def digits(seed: int, channels: tuple[int, int] = (16, 32), epochs: int = 60):
    """Data, and a net that was trained on the first part of them."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target)
    x, x_test, y, y_test = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=seed)
    x, x_held, y, y_held = train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)
    first, second = channels
    net = nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.Conv2d(first, second, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * second, 10),
    )  # fmt: skip
    train_on(net, (x, y), nn.functional.cross_entropy, epochs, 64, lr=1e-3, weight_decay=1e-4)
    return net, (x, y), (x_held, y_held), (x_test, y_test)


def classifier(net):
    """The program of a net, and what the weights predict alone."""
    prior = pl.nn.Isotropic(pl.nn.learned(1.0, name="std"))
    model = pl.bayesianize(net, prior=prior, likelihood=pl.nn.Classification())
    draws = {name: value[None] for name, value in weights(net).items()}
    return model, pl.Predictive(model, posterior_samples=draws)


def posteriors(model, point, train, held) -> dict:
    """By how the common std was chosen."""
    last = KRON | {"subset": "last_layer"}
    with pl.settings.using(kron_rounding=1e-9):  # the search comes to priors that sums in float32 are too coarse for
        linearized = pl.maximize_evidence(model, train, point, refit="linearized", **KRON)
    start = perf_counter()
    evidence = pl.maximize_evidence(model, train, point, **KRON)
    middle = perf_counter()
    tuned = pl.tune(model, train, held, map_guide=point, refit=False, **KRON)
    print(f"  evidence {middle - start:.1f} s, tune {perf_counter() - middle:.1f} s")
    return {
        "evidence": evidence,
        "evidence, linearized": linearized,
        "evidence, last layer": pl.maximize_evidence(model, train, point, **last),
        "tune": tuned,
        "tune, last layer": pl.tune(model, train, held, map_guide=point, refit=False, **last),
    }


print("\ndigits")
rows: dict[str, list] = {}
for seed in SEEDS:
    start = perf_counter()
    net, train, held, test = digits(seed)
    print(f"  training {perf_counter() - start:.1f} s")
    (model, alone), point = classifier(net), weights(net)
    guides = posteriors(model, point, train, held)
    found = {name: (guide, pl.LinearizedPredictive(model, guide)) for name, guide in guides.items()}
    rows.setdefault("MAP", []).append((0.0, *pl.scores(alone, test)[["nll", "ece", "accuracy"]]))
    for name, (guide, predictive) in found.items():
        row = float(guide.hyperparameters["std"]), *pl.scores(predictive, test)[["nll", "ece", "accuracy"]]
        rows.setdefault(name, []).append(row)
    if seed == SEEDS[0]:
        curve = []
        for std in STDS:
            set_to("std", float(std))
            guide = pl.fit_laplace(model, train, point, structure="kron", on_not_a_mode="ignore", progress=False)
            curve.append((guide.log_evidence, nll(pl.LinearizedPredictive(model, guide), test)))
        first = {"MAP": nll(alone, test)} | {
            name: float(guide.hyperparameters["std"]) for name, (guide, _) in found.items()
        }

print(f"\ndigits, {len(SEEDS)} seeds: std (lowest to highest), test NLL, calibration error, accuracy\n")
print("| std chosen by | std | test NLL | ECE | accuracy |\n|---|---|---|---|---|")
for name, values in rows.items():
    std, means = np.array(values)[:, 0], np.array(values)[:, 1:].mean(0)
    print(f"| {name} | {std.min():.2g} to {std.max():.2g} | {means[0]:.3f} | {means[1]:.3f} | {means[2]:.3f} |")

# %% [markdown]
# ## A smaller one of 746 weights: neither the Kronecker factors nor the missing mode are to blame

# %%
net, train, held, test = digits(0, (2, 4), 150)
(model, alone), point = classifier(net), weights(net)
print(f"\nsmall net: test NLL of the weights alone {nll(alone, test):.3f}; std, test NLL")
exact = KRON | {"structure": "full"}
tuning = {"map_guide": point, "on_not_a_mode": "ignore"}
for name, guide in {
    "evidence": pl.maximize_evidence(model, train, point, refit=False, **KRON),
    "evidence, full": pl.maximize_evidence(model, train, point, refit=False, **exact),
    "tune, refit=False": pl.tune(model, train, held, refit=False, **tuning, **KRON),
    "tune, refit=True": pl.tune(model, train, held, refit=True, **tuning, **KRON),
}.items():
    print(f"  {name:<20} {guide.hyperparameters['std']:.2g}  {nll(pl.LinearizedPredictive(model, guide), test):.3f}")

# %%
evidences, losses = np.array(curve).T
figure, (above, below) = plt.subplots(2, 1, figsize=(6.4, 5.2), sharex=True, layout="constrained")
above.plot(STDS, evidences, marker="o", markersize=4, color=COLORS[0])
above.set_yscale("symlog", linthresh=100)
above.set_ylabel("log evidence (nats)")
below.plot(STDS, losses, marker="o", markersize=4, color=COLORS[0], label="Kronecker-factored posterior")
below.axhline(first["MAP"], color="0.3", linestyle="--", label="trained weights alone (MAP)")
below.set_yscale("log")
below.set_yticks([0.05, 0.1, 0.2, 0.5, 1.0, 2.0], labels=["0.05", "0.1", "0.2", "0.5", "1", "2"])
below.minorticks_off()
below.set_ylabel("held-out NLL (nats)")
below.set_xlabel("prior std of all weights")
below.set_xscale("log")
for axes in (above, below):
    axes.axvline(first["evidence"], color=COLORS[1], label=f"evidence chooses {first['evidence']:.2f}")
    axes.axvline(first["tune"], color=COLORS[2], label=f"tune chooses {first['tune']:.3f}")
    tidy(axes)
figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
save(figure, "choosing_priors_digits.png")
