# %% [markdown]
# # Priors, guessed and learned
#
# The prior's scale is the knob that matters most, and a guess is seldom good: too narrow and the network cannot
# bend, too wide and the bands say nothing. Make it a hyperparameter, and the evidence sets it, with no held-out
# data.

# %%
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from _options import OUT, QUICK
from torch.distributions import constraints

import pyro_laplace as pl
from pyro_laplace.plots.style import COLORS, tidy

pyro.set_rng_seed(0)
x, y = pl.datasets.heteroscedastic(40)
y = y + (1.5 * x[:, 0]).sin()

# %% [markdown]
# ## One program, two hyperparameters
#
# Twenty-five bumps along one input. `std` and `noise` are `pyro.param`s. `fit_laplace` takes them as they are;
# `maximize_evidence` moves them to where the evidence is highest.

# %%
CENTRES = torch.linspace(-6.0, 6.0, 25)


def bumps(x, y=None):
    std = pyro.param("std", torch.tensor(1.0), constraint=constraints.positive)
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    height = pyro.sample("height", dist.Normal(0.0, std).expand([len(CENTRES)]).to_event(1))
    f = torch.exp(-(x - CENTRES).square() / (2 * 0.7**2)) @ height
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, noise), obs=y)


def guessed(std, noise=0.5):
    """A posterior at these values."""
    store = pyro.get_param_store()
    store["std"], store["noise"] = torch.tensor(std), torch.tensor(noise)
    return pl.fit_laplace(bumps, (x, y), progress=False)


pyro.param("std", torch.tensor(1.0), constraint=constraints.positive)
pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
guides = {"std 0.1, guessed": guessed(0.1), "std 20, guessed": guessed(20.0)}
learned = pl.maximize_evidence(bumps, (x, y), progress=False)
at = {name: float(value) for name, value in learned.hyperparameters.items()}
guides[f"std {at['std']:.2f}, learned"] = learned

# %%
new_x, new_y = pl.datasets.heteroscedastic(400, seed=1)
new_y = new_y + (1.5 * new_x[:, 0]).sin()
grid = torch.linspace(-5.5, 5.5, 160)[:, None]
figure, panels = plt.subplots(1, 3, figsize=(9.6, 3.5), sharey=True)
for axes, (name, guide) in zip(panels, guides.items(), strict=True):
    for param, value in guide.hyperparameters.items():
        pyro.get_param_store()[param] = value
    predictive = pl.LinearizedPredictive(bumps, guide)
    found = predictive(grid)["y"]
    mean, std = found.mean, found.variance.sqrt()
    for width, alpha in ((1.645, 0.2), (0.674, 0.35)):
        axes.fill_between(grid[:, 0], mean - width * std, mean + width * std, color=COLORS[0], alpha=alpha, linewidth=0)
    axes.plot(grid[:, 0], mean, color=COLORS[0], linewidth=1.8)
    axes.plot(x[:, 0], y, "o", color="0.15", alpha=0.6, markersize=3, markeredgewidth=0)
    nll = pl.scores(predictive, (new_x, new_y))["nll"]
    axes.set_title(f"{name}\nlog evidence {guide.log_evidence:.0f}, new data {-nll:.2f} nats", fontsize=10)
    axes.set(xlabel="x", ylim=(-6, 6))
    tidy(axes, None)
    print(f"{name:<18} log evidence {guide.log_evidence:8.1f}   log density of a new datum {-nll:6.2f}")
panels[0].set_ylabel("y")
figure.savefig(OUT / "before_after.png")

# %% [markdown]
# ![Three fits of the same data: too narrow a prior is flat, too wide a one wild beyond the data, the learned one
# in between](before_after.png)
#
# Left, the prior does not let the curve reach the data. Middle, it says so little that the curve is anything a
# step beyond the data. Right, learned: the evidence weighs fit against freedom, and new data agree with its
# choice.

# %% [markdown]
# ## The evidence over the scale
#
# Not a search in the dark: the log evidence of each scale, and the log density of new data, which the evidence
# has not seen.

# %%
scales = torch.logspace(-1.5, 1.7, 3 if QUICK else 25)
curve = []
for scale in scales.tolist():
    guide = guessed(scale, at["noise"])
    curve.append((guide.log_evidence, -pl.scores(pl.LinearizedPredictive(bumps, guide), (new_x, new_y))["nll"]))
evidence, density = zip(*curve, strict=True)
figure, (above, below) = plt.subplots(2, 1, figsize=(6.4, 4.6), sharex=True)
above.plot(scales, evidence, color=COLORS[0], marker="o", markersize=4)
above.set_ylabel("log evidence (nats)")
below.plot(scales, density, color=COLORS[1], marker="s", markersize=4)
below.set(xscale="log", xlabel="prior std of the heights", ylabel="log density of\na new datum (nats)")
for axes in (above, below):
    axes.axvline(at["std"], color="0.3", linestyle="--")
    tidy(axes)
above.annotate(" learned", (at["std"], min(evidence)), color="0.3")
figure.savefig(OUT / "evidence.png")

# %% [markdown]
# ![Two curves over the prior's scale that rise to a plateau and fall, with the learned scale on top of the
# first](evidence.png)
#
# Both rise to a plateau and fall on either side: a scale that is wrong by a factor of ten costs half a nat for
# each new datum, and the evidence stays clear of both slopes without having seen one. It need not be so. Where
# the program is far from true, or the network much larger than the data, the evidence can mislead, and [held-out
# data are the better judge](../choosing-priors.md).
