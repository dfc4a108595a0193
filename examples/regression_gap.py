# %% [markdown]
# # Regression with a gap: four ways to say what a network does not know
#
# A wave was observed on the left and on the right, and not in the middle. A point estimate draws one curve
# through the gap and says nothing of it. Which posterior admits that it has not seen the middle?

# %%
import matplotlib.pyplot as plt
import pyro
import torch
from _options import OUT, QUICK
from torch import nn

import pyro_laplace as pl
from pyro_laplace.plots.style import COLORS, tidy

pyro.set_rng_seed(0)
x, y = pl.datasets.gap(60)  # y = sin(2 x), and noise
grid = torch.linspace(-4.0, 4.0, 161)[:, None]

# %% [markdown]
# ## One program
#
# A network of 25 tanh units. How much its curve can bend between the data is a matter of the prior's scale: a
# hyperparameter of the program (`pl.nn.learned`), which the evidence finds. The search begins with a wide prior,
# since from a narrow one the evidence can lead to a network that explains nothing ([choosing
# priors](../choosing-priors.md)). The noise is known here; it could be learned in the same way.

# %%
NOISE = 0.15
net = nn.Sequential(nn.Linear(1, 25), nn.Tanh(), nn.Linear(25, 1))
model = pl.bayesianize(
    net,
    prior=pl.nn.Isotropic(pl.nn.learned(2.0, name="std")),
    likelihood=pl.nn.Regression(noise=NOISE),
)
guide = pl.maximize_evidence(model, (x, y), refit=not QUICK, on_not_a_mode="ignore", progress=False)
mode = guide.median()
print({name: round(float(value), 3) for name, value in guide.hyperparameters.items()})

# %% [markdown]
# ## Four predictions from it
#
# - **The mode alone**, with the noise around it: what training gives.
# - **The last layer**: Laplace over 26 of the 76 weights. The features stay as they were trained.
# - **All weights, linearised**: what a Gauss-Newton posterior is the posterior *of*.
# - **All weights, drawn and pushed through the network**: the same draws, in the wrong program.

# %%
last = pl.fit_laplace(model, (x, y), mode, subset="last_layer", on_not_a_mode="ignore", progress=False)


def moments(predictive):
    """Mean and standard deviation of y along the grid."""
    found = predictive(grid)["y"]
    return found.mean, found.variance.sqrt()


with torch.no_grad():
    at_mode = pl.LinearizedPredictive(model, guide).latent(grid)["y"][0][:, 0]
drawn = pl.Predictive(model, posterior_samples=guide.sample_posterior(100 if QUICK else 1000))(grid)["y"]
ways = {
    "the mode alone": (at_mode, torch.full_like(at_mode, NOISE)),
    "last layer": moments(pl.LinearizedPredictive(model, last)),
    "all weights, linearised": moments(pl.LinearizedPredictive(model, guide)),
    "all weights, sampled": (drawn.mean(0), drawn.std(0)),
}

# %%
figure, panels = plt.subplots(2, 2, figsize=(8.4, 6.0), sharex=True, sharey=True)
for axes, (name, (mean, std)) in zip(panels.flat, ways.items(), strict=True):
    axes.axvspan(-0.9, 0.9, color="0.95", zorder=0)
    for width, alpha in ((1.645, 0.2), (0.674, 0.35)):
        axes.fill_between(grid[:, 0], mean - width * std, mean + width * std, color=COLORS[0], alpha=alpha, linewidth=0)
    axes.plot(grid[:, 0], mean, color=COLORS[0], linewidth=1.8, label="mean, with intervals of 50% and 90%")
    axes.plot(grid[:, 0], (2 * grid[:, 0]).sin(), color="0.3", linestyle="--", linewidth=1.0, label="truth")
    axes.plot(x[:, 0], y, "o", color="0.15", alpha=0.6, markersize=3, markeredgewidth=0, label="data")
    axes.set(title=name, ylim=(-3.2, 3.2))
    tidy(axes, None)
for axes in panels[1]:
    axes.set_xlabel("x")
for axes in panels[:, 0]:
    axes.set_ylabel("y")
figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
figure.savefig(OUT / "gap.png")

# %% [markdown]
# ![Four panels of a wave with a gap: only the band of all weights, linearised, widens in the gap and fits the
# data](gap.png)
#
# The mode alone is as sure in the gap as on the data, and wrong there. The last layer hardly differs: its
# features were trained on the data, and none of them bends in the gap. All weights, linearised, fit the data as
# well and are unsure in the gap and beyond. The same draws pushed through the network miss even the data, since
# they belong to the linearised program. Which is best is a number, too: the negative log density of new data,
# where there were data and over the whole range.

# %%
seen = pl.datasets.gap(400, seed=1)
everywhere = torch.linspace(-2.5, 2.5, 400)[:, None]
new = everywhere, (2 * everywhere[:, 0]).sin() + NOISE * torch.randn(400)
nll = {
    "last layer": [pl.scores(pl.LinearizedPredictive(model, last), data)["nll"] for data in (seen, new)],
    "all weights": [pl.scores(pl.LinearizedPredictive(model, guide), data)["nll"] for data in (seen, new)],
}
for name, (near, whole) in nll.items():
    print(f"{name:<12} negative log density where data were seen {near:6.2f}, over the whole range {whole:6.2f}")
