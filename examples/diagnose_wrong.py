# %% [markdown]
# # Two wrong answers, and how one finds out
#
# A Laplace approximation always gives an answer. Two programs for which it is wrong, each in its own way: one
# whose posterior is skewed, one that has two modes. `pl.diagnose` weighs draws of the guide with the program
# itself, says which of them may be believed, and what to type next.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from _options import OUT, QUICK

import pyro_laplace as pl
from pyro_laplace.plots.style import COLORS, tidy

pyro.set_rng_seed(0)
DRAWS = 500 if QUICK else 8000


def density(program, site, values, *data):
    """The exact posterior density of a program with one latent number, along a line."""
    joint = []
    for value in values:
        at = pyro.poutine.condition(program, {site: value})
        joint.append(pyro.poutine.trace(at).get_trace(*data).log_prob_sum())
    joint = torch.stack(joint)
    step = float(values[1] - values[0])
    return ((joint - joint.max()).exp() / ((joint - joint.max()).exp().sum() * step)).detach()


# %% [markdown]
# ## A skewed one
#
# A single waiting time, and an unknown mean. The posterior has a long right tail, even in the logarithm, where
# the Gaussian lives.

# %%
times = torch.tensor([0.9])


def waiting(times):
    mean = pyro.sample("mean", dist.LogNormal(0.0, 3.0))
    with pyro.plate("data", len(times)):
        pyro.sample("time", dist.Exponential(1 / mean), obs=times)


skewed = pl.fit_laplace(waiting, times, progress=False)
found = pl.diagnose(waiting, skewed, times)
print(found)

# %% [markdown]
# The weights say how far mean and spread have to move. Since the draws cover the posterior, they can be corrected:

# %%
corrected = pl.importance_resample(waiting, skewed, times, num_samples=DRAWS)
print("exact after the correction:", corrected.exact, " k-hat:", round(corrected.khat, 2))

# %% [markdown]
# ## Two modes
#
# Only the square of `w` is observed, so that its sign is open: two modes, of which a fit finds one. Nothing that
# is measured *at* this mode can tell. It is no flaw of `diagnose` that it trusts the guide "around its mode"; ask
# for several modes, and the other one shows.

# %%
squares = 1.5**2 + 0.6 * torch.randn(12)


def squared(y):
    w = pyro.sample("w", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w**2, 0.6), obs=y)


one = pl.fit_laplace(squared, squares, progress=False)
print(pl.diagnose(squared, one, squares).verdict, "- one Gaussian, at", round(float(one.median()["w"]), 2))

modes = [{"w": torch.tensor(start)} for start in (-1.0, 1.0)]
mixture = pl.fit_laplace(squared, squares, modes, progress=False)
print("a Gaussian at each of two starting points, with weights", [round(float(w), 2) for w in mixture.weights])

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.6))
line = torch.linspace(0.05, 9.0, 300)
bins = np.linspace(0.0, 9.0, 70)
left.plot(line, density(waiting, "mean", line, times), color="0.15", linewidth=1.8, label="exact posterior")
for number, (name, draws) in enumerate(
    {"Laplace": skewed.sample_posterior(DRAWS)["mean"], "corrected": corrected["mean"]}.items()
):
    left.hist(
        draws.flatten().numpy(),
        bins=bins,
        density=True,
        histtype="step",
        color=COLORS[number],
        linewidth=1.5,
        label=name,
    )
left.set(xlabel="mean waiting time", ylabel="density", title="skewed", xlim=(0, 9))
line = torch.linspace(-2.2, 2.2, 300)
bins = np.linspace(-2.2, 2.2, 90)
right.plot(line, density(squared, "w", line, squares), color="0.15", linewidth=1.8, label="exact posterior")
for number, (name, guide) in enumerate({"one mode": one, "both modes": mixture}.items()):
    draws = guide.sample_posterior(DRAWS)["w"].flatten().numpy()
    right.hist(draws, bins=bins, density=True, histtype="step", color=COLORS[number], linewidth=1.5, label=name)
right.set(xlabel="w", title="two modes", xlim=(-2.2, 2.2))
for axes in (left, right):
    tidy(axes, None)
    axes.legend(loc="upper center" if axes is right else "upper right")
figure.savefig(OUT / "wrong.png")

# %% [markdown]
# ![Left, a skewed posterior, Laplace's draws beside it and the corrected ones on it; right, two peaks, of which
# one Gaussian has one](wrong.png)
#
# Left, the corrected draws lie on the exact posterior, and Laplace's do not. Right, one Gaussian is right about
# its own mode and does not know of the other; the mixture has both.
#
# The same happens with networks, whose units can change places: there the modes predict the same, and one is enough.
# [Reading the verdict](../verdict.md) has the rules, and [mixtures](../mixtures.md) what to do with several modes.
