# %% [markdown]
# # Continual updates: add data, keep the posterior, forget the data
#
# Data come in portions, and the old ones are gone (or too many, or not ours to keep). A Laplace posterior holds
# what it needs of them: the sum of their curvature. `pl.update` adds a new portion to it.

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

# %% [markdown]
# ## Where nothing is lost
#
# In a linear program with Gaussian noise the quadratic *is* the log likelihood. Updating five times equals
# fitting once, to rounding, the evidence included.


# %%
def line(x, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, 0.5), obs=y)


x = torch.randn(100)
y = 0.5 - 1.2 * x + 0.5 * torch.randn(100)
portions = list(zip(x.split(20), y.split(20), strict=True))
guide = pl.fit_laplace(line, portions[0], progress=False)
for portion in portions[1:]:
    guide = pl.update(guide, portion, progress=False)
joint = pl.fit_laplace(line, (x, y), progress=False)
print("five portions:", guide.theta.tolist(), guide.log_evidence)
print("all at once:  ", joint.theta.tolist(), joint.log_evidence)

# %% [markdown]
# ## A classifier whose data come quadrant by quadrant
#
# Elsewhere the quadratic is a model of the old likelihood, good near the old mode. A classifier with fixed
# features sees the four quadrants of a plane one after the other, so each portion has but one class and says
# nothing of the rest. Plain training on the portion at hand forgets the earlier ones.

# %%
x, y = pl.datasets.nonlinear(200)
order = [slice(0, 50), slice(100, 150), slice(50, 100), slice(150, 200)]  # ++, +-, --, -+
portions = [(x[rows], y[rows]) for rows in order]
CENTRES = torch.cartesian_prod(*[torch.linspace(-5.0, 5.0, 5)] * 2)


def features(x):
    """Twenty-five bumps over the plane."""
    return torch.exp(-(x[:, None] - CENTRES).square().sum(-1) / (2 * 2.0**2))


def classifier(x, y=None):
    height = pyro.sample("height", dist.Normal(0.0, 3.0).expand([len(CENTRES)]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=features(x) @ height), obs=y)


guide = pl.fit_laplace(classifier, portions[0], progress=False)
stages = [guide]
for portion in portions[1:]:
    guide = pl.update(guide, portion, progress=False)
    stages.append(guide)
alone = [pl.fit_laplace(classifier, portion, progress=False) for portion in portions]
joint = pl.fit_laplace(classifier, (x, y), progress=False)

# %%
side = np.linspace(-6.5, 6.5, 41 if QUICK else 101)
grid = torch.cartesian_prod(*[torch.tensor(side, dtype=torch.float32)] * 2)


def surface(axes, guide, seen, title):
    """The probability of class 1, and what was seen so far."""
    probs = pl.LinearizedPredictive(classifier, guide)(grid)["y"].mean.reshape(len(side), -1).T.numpy()
    filled = axes.pcolormesh(side, side, probs, vmin=0, vmax=1, cmap="RdBu", shading="gouraud", rasterized=True)
    axes.contour(side, side, probs, levels=[0.25, 0.5, 0.75], colors="0.25", linewidths=0.7)
    for inputs, labels in seen:
        axes.scatter(
            *inputs.T, s=8, c=["#2166AC" if label else "#B2182B" for label in labels], edgecolor="white", linewidth=0.3
        )
    axes.set(title=title, aspect="equal", xticks=[-5, 0, 5], yticks=[-5, 0, 5])
    return filled


figure, panels = plt.subplots(2, 4, figsize=(9.6, 5.0), sharex=True, sharey=True)
for number in range(4):
    surface(panels[0, number], stages[number], portions[: number + 1], f"updated, {number + 1} of 4")
    filled = surface(panels[1, number], alone[number], [portions[number]], f"portion {number + 1} alone")
figure.colorbar(filled, ax=panels, label="probability of class 1", shrink=0.8)
figure.savefig(OUT / "continual.png")

# %% [markdown]
# ![Above, four surfaces that learn one quadrant after the other and keep the earlier ones; below, each portion
# alone](continual.png)
#
# Above, each update adds a quadrant and keeps the ones before, and where nothing was seen yet it stays undecided
# (white). Below, a fit to each portion alone knows nothing of the others. How near does the chain of updates come
# to the fit of all data at once?

# %%
chain, once = (pl.LinearizedPredictive(classifier, each)(grid)["y"].mean for each in (stages[-1], joint))
apart = float((chain - once).abs().max())
print(f"largest difference of a probability over the plane, four updates against one fit: {apart:.3f}")
figure, axes = plt.subplots(figsize=(5.0, 3.4))
evidence = {"updated": [stage.log_evidence for stage in stages]}
axes.plot(range(1, 5), evidence["updated"], marker="o", color=COLORS[0], label="after each update")
axes.axhline(joint.log_evidence, color="0.3", linestyle="--", label="all data at once")
axes.set(xlabel="portions seen", ylabel="log evidence (nats)", xticks=range(1, 5))
axes.legend()
tidy(axes)
figure.savefig(OUT / "evidence.png")

# %% [markdown]
# ![Log evidence after each of four updates, ending near the line of the joint fit](evidence.png)
#
# The evidence falls with each portion, as the probability of more data does, and ends near that of the joint fit.
# The difference is the price of a quadratic memory.
