# %% [markdown]
# # A hierarchy: where one Gaussian is not enough, and nested Laplace is
#
# Eight schools coached their pupils for a test (Rubin 1981). Each reports an effect and its standard error. How
# much do schools differ, and how far is each school's estimate to be drawn to the common mean? The scale between
# schools, `tau`, decides, and it is exactly what a single Gaussian at the joint mode cannot tell.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from _options import OUT, QUICK
from pyro.infer.reparam import LocScaleReparam

import pyro_laplace as pl
from pyro_laplace.plots.style import COLORS, MARKERS, tidy

pyro.set_rng_seed(0)
error = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
effect = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


def schools(error, effect=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


# %% [markdown]
# ## The joint mode is the wrong place
#
# With all schools at their mean, the density of the eight effects grows without bound as `tau` falls.
# `fit_laplace` notices and refuses:

# %%
try:
    pl.fit_laplace(schools, (error, effect), on_not_a_mode="raise", progress=False)
except pl.LaplaceError as refusal:
    print(type(refusal).__name__, "-", refusal)

# %% [markdown]
# ## Nested Laplace
#
# *Given* `tau`, everything else is Gaussian. So `fit_nested_laplace` integrates the other sites out at each value
# of `tau`, and explores `tau` alone. It finds by itself which site is to be explored.

# %%
guide = pl.fit_nested_laplace(schools, (error, effect), progress=False)
print("explored:", guide.hyper, " because:", guide.reasons)
print(pl.diagnose(schools, guide, (error, effect)).verdict)

# %% [markdown]
# ## Beside NUTS
#
# NUTS loses its way in the funnel that `tau` and the effects form, unless the program is written with effects of
# unit scale. Nested Laplace takes either form.

# %%
scaled = pyro.poutine.reparam(schools, config={"theta": LocScaleReparam(0.0)})
mcmc = pl.fit_nuts(
    scaled,
    (error, effect),
    num_samples=50 if QUICK else 600,
    warmup_steps=50 if QUICK else 300,
    max_tree_depth=3 if QUICK else 8,
    progress=False,
)
nuts = mcmc.get_samples()
nuts["theta"] = nuts["mu"][:, None] + nuts["tau"][:, None] * nuts["theta_decentered"]
nested = guide.sample_posterior(500 if QUICK else 4000)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.8), width_ratios=(1, 1.25))
bins = np.geomspace(0.1, 60.0, 36)
for number, (name, draws) in enumerate({"nested Laplace": nested, "NUTS": nuts}.items()):
    tau = draws["tau"].flatten().numpy()
    left.hist(
        tau,
        bins=bins,
        weights=np.full(len(tau), 1 / len(tau)),
        histtype="step",
        linewidth=1.8,
        color=COLORS[number],
        label=name,
    )
    theta = draws["theta"].reshape(-1, 8)
    low, middle, high = theta.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)
    at = torch.arange(8) + 0.25 * number
    right.errorbar(
        middle,
        at,
        xerr=torch.stack([middle - low, high - middle]),
        fmt=MARKERS[number],
        color=COLORS[number],
        markersize=5,
        linewidth=1.5,
    )
right.plot(effect, torch.arange(8) + 0.125, "x", color="0.2", label="reported")
left.set(xscale="log", xlabel="tau: scale between schools", ylabel="share of draws")
right.set(xlabel="effect of coaching, 90% intervals", yticks=range(8), yticklabels=[f"school {c}" for c in "ABCDEFGH"])
right.invert_yaxis()
for axes in (left, right):
    tidy(axes)
handles = [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
figure.legend(handles, ["nested Laplace", "NUTS", "reported effect"], loc="outside lower center", ncols=3)
figure.savefig(OUT / "hierarchy.png")

# %% [markdown]
# ![Left, two histograms of tau that coincide; right, intervals of eight schools that coincide and are drawn
# together](hierarchy.png)
#
# Left: `tau` has its mass anywhere between nothing and 20, skewed, and both say the same. Right: each school's
# effect is drawn far towards the common mean of about 4; the 28 that school A reported becomes an interval from
# -2 to 16.
