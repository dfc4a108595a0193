# %% [markdown]
# # Counts: a likelihood is a line of the program
#
# Most Laplace libraries know two likelihoods, "regression" and "classification". Here the observed site says what
# the data are, and it may be any distribution. Counts whose rate rises and falls twentyfold: a Poisson program, a
# negative binomial one for when counts scatter more than that, and the Normal program that one would use for lack
# of either.

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
x, y = pl.datasets.counts(100)
grid = torch.linspace(-5.5, 5.5, 160)[:, None]

# %% [markdown]
# ## Three programs that differ in their last line
#
# The log rate is a sum of 20 bumps. The scale of their heights is a `pyro.param`: a hyperparameter, which
# `maximize_evidence` sets.

# %%
CENTRES = torch.linspace(-5.5, 5.5, 20)


def bumps(x, owner):
    """The log rate at inputs [N, 1]; each program has its own scale."""
    std = pyro.param(f"std of {owner}", torch.tensor(1.0), constraint=constraints.positive)
    level = pyro.sample("level", dist.Normal(0.0, 3.0))
    height = pyro.sample("height", dist.Normal(0.0, std).expand([len(CENTRES)]).to_event(1))
    return level + torch.exp(-(x - CENTRES).square() / (2 * 0.9**2)) @ height


def poisson(x, y=None):
    f = bumps(x, "poisson")
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson(f.exp()), obs=y)


def negative_binomial(x, y=None):
    f = bumps(x, "negative_binomial")
    size = pyro.sample("size", dist.LogNormal(3.0, 1.0))  # as it grows, a Poisson
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.NegativeBinomial(total_count=size, logits=f - size.log()), obs=y)


def normal(x, y=None):
    f = bumps(x, "normal")
    noise = pyro.sample("noise", dist.HalfNormal(5.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f.exp(), noise), obs=y)


# %% [markdown]
# One call for each. Nothing says what the likelihood is, but for the program; the evidence compares programs that
# were observed on the same data.

# %%
programs = (poisson, negative_binomial, normal)
guides = {program: pl.maximize_evidence(program, (x, y), progress=False) for program in programs}
for program, guide in guides.items():
    (std,) = guide.hyperparameters.values()
    print(f"{program.__name__:<18} std {float(std):.2f}  log evidence {guide.log_evidence:8.1f}")

# %% [markdown]
# The Normal program's evidence is a *density* of numbers and the others' a *probability* of whole numbers. For
# counts, whose spacing is 1, both are in the same unit, and the comparison holds: that the data are counts is
# worth a lot.

# %%
figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.8), sharey=True)
for axes, program in zip(panels, (poisson, normal), strict=True):
    predictive = pl.LinearizedPredictive(program, guides[program])
    draws = predictive.sample(200 if QUICK else 2000)(grid)["y"]
    for level, alpha in ((0.9, 0.2), (0.5, 0.35)):
        low, high = draws.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2]), dim=0)
        axes.fill_between(
            grid[:, 0], low, high, color=COLORS[0], alpha=alpha, linewidth=0, label=f"{level:.0%} of counts"
        )
    truth = (1.5 + 1.5 * grid[:, 0].sin()).exp()
    axes.plot(grid[:, 0], truth, color="0.3", linestyle="--", linewidth=1.0, label="true rate")
    axes.plot(x[:, 0], y, "o", color="0.15", alpha=0.6, markersize=3, markeredgewidth=0, label="data")
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set(title=program.__name__, xlabel="x", ylim=(-9, 42))
    tidy(axes, None)
panels[0].set_ylabel("count")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
figure.savefig(OUT / "counts.png")

# %% [markdown]
# ![Counts over x with bands: the Poisson's are narrow where counts are low, the Normal's equally wide and partly
# below zero](counts.png)
#
# The Poisson band is narrow where counts are few and wide where they are many, and never below zero. The Normal's
# is equally wide everywhere, so that it predicts negative counts in the valleys and is overconfident on the
# hills.

# %%
new = pl.datasets.counts(500, seed=1)
for program, guide in guides.items():
    found = pl.scores(pl.LinearizedPredictive(program, guide), new)
    nll, inside = found["nll"], found["coverage_90"]
    print(f"{program.__name__:<18} negative log density of new data {nll:.3f}, inside 90%: {inside:.0%}")
