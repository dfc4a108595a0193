# %% [markdown]
# What the evidence chooses, and what held-out data choose
#
# The figures and numbers of `docs/choosing-priors.md`: a regression along one input at two guessed prior scales and the
# learned one; a scale for each input of the diabetes data; a network whose evidence has two maxima; and the digits,
# where the evidence misleads. Takes one to two minutes on one core; writes PNGs into the folder that it is given.
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
STDS = np.geomspace(0.005, 5.0, 16)
torch.set_num_threads(1)
warnings.simplefilter("ignore", pl.LaplaceWarning)  # they are shown, and spoken of, on the page


def set_to(name: str, value: float) -> None:
    """Set a param of the store, as a user does."""
    pyro.get_param_store()[name] = torch.tensor(value)


def nll(predictive, data) -> float:
    """Mean held-out -log p(y), in nats."""
    return float(pl.scores(predictive, data)["nll"])


def save(figure, name: str) -> None:
    """As a PNG of few colours: small, and no worse to look at."""
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
print("  scales: " + ", ".join(f"{n} {s:.2g}" for n, s in zip(data.feature_names, guide.hyperparameters["std"], strict=True)))
save(pl.plots.evidence(guide), "choosing_priors_path.png")

pyro.clear_param_store()
guide = pl.tune(one_scale, train, validation, progress=False)
print(f"  tune, one scale {guide.hyperparameters['std']:.2g}: {nll(pl.LinearizedPredictive(one_scale, guide), test):.3f}")

# %% [markdown]
# ## A small network: where the search begins decides between two maxima

# %%
pyro.set_rng_seed(0)
x = torch.cat([torch.linspace(-2.0, -0.9, 20), torch.linspace(0.7, 2.0, 20)])[:, None]
y = torch.sin(2 * x[:, 0]) + 0.15 * torch.randn(len(x))
print("\nnetwork 1-20-1: std and noise at the start; log evidence, std and noise at the end")
for std, noise in ((0.3, 0.1), (3.0, 0.1), (0.3, 0.65)):
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
    prior = pl.nn.Isotropic(pl.nn.learned(std, name="std"))
    model = pl.bayesianize(net, prior=prior, likelihood=pl.nn.Regression(pl.nn.learned(noise)))
    start = perf_counter()
    guide = pl.maximize_evidence(model, (x, y), progress=False)
    end = "  ".join(f"{float(value):.2g}" for value in guide.hyperparameters.values())
    print(f"  {std:g} {noise:g}: {guide.log_evidence:8.1f}  {end}   ({perf_counter() - start:.0f} s)")

# %% [markdown]
# ## Digits: a convolutional net of 9,930 weights, trained on 1,077 images


# %%
def digits(seed: int):
    """Data, and a net that was trained on the first part of them in the ordinary way."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target)
    parts = {"random_state": seed}
    x, x_test, y, y_test = train_test_split(images, labels, test_size=0.25, stratify=labels, **parts)
    x, x_held, y, y_held = train_test_split(x, y, test_size=0.2, stratify=y, **parts)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=1e-4)
    for _ in range(60):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
    return net, (x, y), (x_held, y_held), (x_test, y_test)


def posteriors(model, point, train, held) -> dict:
    """By how the common std was chosen."""
    options = {"structure": "kron", "keep": False, "progress": False}
    last = options | {"subset": "last_layer"}
    return {
        "evidence": pl.maximize_evidence(model, train, point, **options),
        "evidence, linearized": pl.maximize_evidence(model, train, point, refit="linearized", **options),
        "tune": pl.tune(model, train, held, map_guide=point, refit=False, **options),
        "evidence, last layer": pl.maximize_evidence(model, train, point, **last),
        "tune, last layer": pl.tune(model, train, held, map_guide=point, refit=False, **last),
    }


rows: dict[str, list] = {}
for seed in SEEDS:
    net, train, held, test = digits(seed)
    prior = pl.nn.Isotropic(pl.nn.learned(1.0, name="std"))
    model = pl.bayesianize(net, prior=prior, likelihood=pl.nn.Classification())
    point = {name: weight.detach() for name, weight in net.named_parameters()}
    alone = pl.Predictive(model, posterior_samples={name: value[None] for name, value in point.items()})
    found = {name: (guide, pl.LinearizedPredictive(model, guide)) for name, guide in posteriors(model, point, train, held).items()}
    rows.setdefault("MAP", []).append((np.nan, *pl.scores(alone, test)[["nll", "ece", "accuracy"]]))
    for name, (guide, predictive) in found.items():
        row = float(guide.hyperparameters["std"]), *pl.scores(predictive, test)[["nll", "ece", "accuracy"]]
        rows.setdefault(name, []).append(row)
    if seed == SEEDS[0]:
        curve = []
        for std in STDS:
            set_to("std", float(std))
            guide = pl.fit_laplace(model, train, point, structure="kron", on_not_a_mode="ignore", progress=False)
            curve.append((guide.log_evidence, nll(pl.LinearizedPredictive(model, guide), test)))
        first = {"MAP": nll(alone, test)} | {name: float(guide.hyperparameters["std"]) for name, (guide, _) in found.items()}

print(f"\ndigits, {len(SEEDS)} seeds: std (lowest to highest), test NLL, calibration error, accuracy\n")
print("| std chosen by | std | test NLL | ECE | accuracy |\n|---|---|---|---|---|")
for name, values in rows.items():
    std, *means = np.array(values)[:, 0], *np.array(values)[:, 1:].mean(0)
    print(f"| {name} | {std.min():.2g} to {std.max():.2g} | {means[0]:.3f} | {means[1]:.3f} | {means[2]:.3f} |")

# %%
evidences, losses = np.array(curve).T
figure, (above, below) = plt.subplots(2, 1, figsize=(6.4, 5.2), sharex=True, layout="constrained")
above.plot(STDS, evidences, marker="o", markersize=4, color=COLORS[0])
above.set_yscale("symlog", linthresh=100)
above.set_ylabel("log evidence (nats)")
below.plot(STDS, losses, marker="o", markersize=4, color=COLORS[0], label="Kronecker-factored posterior")
below.axhline(first["MAP"], color="0.3", linestyle="--", label="trained weights alone (MAP)")
below.set_ylabel("held-out NLL (nats)")
below.set_xlabel("prior std of all weights")
below.set_xscale("log")
for axes in (above, below):
    axes.axvline(first["evidence"], color=COLORS[1], label=f"evidence chooses {first['evidence']:.2f}")
    axes.axvline(first["tune"], color=COLORS[2], label=f"tune chooses {first['tune']:.3f}")
    tidy(axes)
below.legend(frameon=False, fontsize="small")
save(figure, "choosing_priors_digits.png")
