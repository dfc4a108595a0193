# %% [markdown]
# # Bayesian optimisation: gradients to the inputs, and draws of functions
#
# Find the maximum of a function that is dear to evaluate, in few evaluations. A surrogate says where it may be:
# it has to know what it does not know, be a whole function when it is drawn, and have gradients with respect to
# its *inputs*. The posterior of any program that `LinearizedPredictive` predicts with is all three.

# %%
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from _options import OUT, QUICK

import pyro_laplace as pl
from pyro_laplace.plots.style import COLORS, tidy

pyro.set_rng_seed(1)


def dear(x):
    """What we want the maximum of: one of several hills is the highest, at 2.42."""
    return (3.0 * x).sin() * 0.6 + torch.exp(-((x - 1.9) ** 2)) - 0.05 * x**2


# %% [markdown]
# ## The surrogate
#
# A sum of bumps whose heights are unknown: a network with fixed features, for which Laplace is exact. Noise is
# small, since `dear` has none.

# %%
CENTRES = torch.linspace(-4.0, 4.0, 33)


def model(x, y=None):
    height = pyro.sample("height", dist.Normal(0.0, 0.5).expand([len(CENTRES)]).to_event(1))
    f = torch.exp(-(x - CENTRES).square() / (2 * 0.4**2)) @ height
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, 0.02), obs=y)


def fitted(x, y):
    return pl.fit_laplace(model, (x, y), progress=False)


# %% [markdown]
# ## Where to look next, by the gradient of an acquisition
#
# The upper confidence bound, mean plus two standard deviations. `differentiable=True` lets the gradient flow from
# both to the inputs, so that a few steps of Adam from several places find its maximum; in one dimension a grid
# would do, in ten it would not.


# %%
def upper_bound(predictive, x):
    """Optimistic, but not beyond reason."""
    mean, variance = predictive.latent(x)["y"]
    return mean[:, 0] + 2.0 * variance[:, 0, 0].clamp(min=1e-9).sqrt()


def climb(guide, starts=12, steps=10 if QUICK else 40):
    """The maximum of the upper bound between -3 and 3."""
    predictive = pl.LinearizedPredictive(model, guide, differentiable=True)
    x = torch.linspace(-3.0, 3.0, starts)[:, None].requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        (-upper_bound(predictive, x).sum()).backward()
        optimiser.step()
        with torch.no_grad():
            x.clamp_(-3.0, 3.0)
    return x.detach()[upper_bound(predictive, x).detach().argmax()]


x = torch.tensor([[-2.4], [-0.4], [0.9]])
y = dear(x[:, 0])
guide = fitted(x, y)
history = [(x, y, guide)]
for _ in range(2 if QUICK else 7):
    x = torch.cat([x, climb(guide)[None]])
    y = dear(x[:, 0])
    guide = fitted(x, y)
    history.append((x, y, guide))
print("evaluations:", [f"{float(at):.2f} -> {float(value):.3f}" for at, value in zip(x[:, 0], y, strict=True)])

# %%
grid = torch.linspace(-3.0, 3.0, 201)[:, None]
shown = [history[0], history[len(history) // 2], history[-1]]
figure, panels = plt.subplots(1, 3, figsize=(9.6, 3.5), sharey=True)
for axes, (x_seen, y_seen, posterior) in zip(panels, shown, strict=True):
    mean, variance = (part.detach() for part in pl.LinearizedPredictive(model, posterior).latent(grid)["y"])
    mean, std = mean[:, 0], variance[:, 0, 0].sqrt()
    axes.fill_between(
        grid[:, 0], mean - 2 * std, mean + 2 * std, color=COLORS[0], alpha=0.2, linewidth=0, label="mean and 2 sd"
    )
    axes.plot(grid[:, 0], mean, color=COLORS[0], linewidth=1.8)
    axes.plot(grid[:, 0], dear(grid[:, 0]), color="0.3", linestyle="--", linewidth=1.0, label="the function")
    axes.plot(x_seen[:, 0], y_seen, "o", color="0.15", markersize=5, label="evaluated")
    axes.plot(x_seen[3:, 0][-1:], y_seen[3:][-1:], "o", color=COLORS[1], markersize=7, label="the last one")
    axes.set(title=f"{len(x_seen)} evaluations", xlabel="x", ylim=(-3.0, 3.5))
    tidy(axes, None)
panels[0].set_ylabel("value")
figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
figure.savefig(OUT / "optimisation.png")

# %% [markdown]
# ![Three panels with 3, 7 and 10 evaluations: the band closes where the function was evaluated, and the last are
# at the maximum](optimisation.png)
#
# With three evaluations the surrogate is unsure nearly everywhere; each evaluation closes the band around it, and
# the last ones gather on the highest hill.

# %% [markdown]
# ## Draws of functions
#
# A draw of `sample(..., latent=True)` is one function, the same at all inputs. Thompson sampling evaluates next
# where such a draw has its maximum: each draw votes for a place, in proportion to how probable it is that the
# maximum is there.

# %%
early, late = history[0][2], history[-1][2]
figure, panels = plt.subplots(2, 2, figsize=(8.6, 4.8), sharex=True, height_ratios=(2, 1))
for column, (posterior, (x_seen, y_seen, _)) in enumerate(((early, history[0]), (late, history[-1]))):
    above, below = panels[:, column]
    draws = (
        pl.LinearizedPredictive(model, posterior)
        .sample(100 if QUICK else 1000, latent=True)(grid)["y"]
        .squeeze(-1)
        .detach()
    )
    above.plot(grid[:, 0], draws[:12].T, color=COLORS[0], linewidth=0.9, alpha=0.7)
    above.plot(x_seen[:, 0], y_seen, "o", color="0.15", markersize=5, zorder=3)
    above.set(title=f"twelve draws after {len(x_seen)} evaluations", ylim=(-3.5, 4.0))
    below.hist(grid[draws.argmax(-1), 0].numpy(), bins=40, range=(-3, 3), density=True, color=COLORS[1])
    below.set(xlabel="x")
    for axes in (above, below):
        tidy(axes, None)
panels[0, 0].set_ylabel("value")
panels[1, 0].set_ylabel("density of\nthe maximum")
figure.savefig(OUT / "draws.png")

# %% [markdown]
# ![Draws of functions that go through the evaluated points; below, where their maxima are: anywhere at first, one
# peak at the end](draws.png)
#
# All draws go through what was evaluated. Below, where their maxima lie: first anywhere that is unknown, at the
# end where the maximum is.
