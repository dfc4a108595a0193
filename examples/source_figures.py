# %% [markdown]
# # Three figures of "Effortless Bayesian Deep Learning in Julia"
#
# Patrick Altmeyer's article of 2022 and his talk at JuliaCon introduced LaplaceRedux.jl (then BayesLaplace.jl)
# with three figures: what a trained classifier says of the plane, beside what its Laplace approximation says.
# Here they are from the same steps, in Pyro. What to look for in all three: both pictures agree where there are
# data, and only one of them knows where there are none.

# %%
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from _options import OUT, QUICK
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from torch import Tensor, nn

import pyro_laplace as pl

pyro.set_rng_seed(2022)
FASTER = 10 if QUICK else 1  # so many times fewer, larger steps

# %% [markdown]
# ## A weight decay is a prior
#
# The article trains with the loss
#
# $$\ell_n(w) = -\log p(y_n \mid x_n, w) + \tfrac{1}{2} \lambda^2 \lVert w \rVert^2$$
#
# on one example after the other. The penalty comes with *each* of the $N$ examples, so an epoch minimises $\sum_n
# -\log p(y_n \mid x_n, w) + \tfrac{1}{2} N \lambda^2 \lVert w \rVert^2$. That is minus the log density of a
# program whose weights have the prior $N(0, 1 / (N \lambda^2))$: with $\lambda = 0.5$ and $N = 100$ a standard
# deviation of 0.2.
#
# The Laplace step is then given $\lambda$ itself as the prior's precision: $N(0, 1 / \lambda)$, a standard
# deviation of 1.41. So the point comes from one program and the curvature from another. Both are ordinary Pyro
# programs, and here they differ in one argument.


# %%
def decay_std(penalty: float, num_data: int) -> float:
    """The prior's standard deviation that a penalty on each single example amounts to."""
    return (num_data * penalty**2) ** -0.5


def step_std(penalty: float) -> float:
    """The one that the article's Laplace step takes."""
    return penalty**-0.5


# %% [markdown]
# ## Figure 1: logistic regression
#
# A hundred points in two classes, a net of one layer, 50 epochs of Adam on single examples. The program is the
# net; Pyro's `AutoDelta` finds its mode, and a plate that subsamples one datum makes each step one of a single
# example.

# %%
x, y = pl.datasets.linear(100)
PENALTY = 0.5


DECAY = decay_std(PENALTY, len(x))


def logistic(x, y=None, std=DECAY, size=None):
    weight = pyro.sample("weight", dist.Normal(0.0, std).expand([2]).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, std))
    with pyro.plate("data", len(x), subsample_size=size) as rows:
        logits = x[rows] @ weight + bias
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=None if y is None else y[rows])


point = AutoDelta(logistic)
svi = SVI(logistic, point, pyro.optim.Adam({"lr": 1e-3 * FASTER}), Trace_ELBO())
for _ in range(50 * len(x) // FASTER):
    svi.step(x, y, size=1)

# %% [markdown]
# The curvature is the empirical Fisher, a sum of squared gradients, as in the article. `polish=False` leaves the
# point where training ended, and `on_not_a_mode="ignore"` says that we know: under the wider prior of the Laplace
# step this point is not the mode. Ask `fit_laplace` with neither and it moves there, or tells you how far away it
# is.


# %%
def wide(x, y=None):
    logistic(x, y, std=step_std(PENALTY))


guide = pl.fit_laplace(
    wide, (x, y), point, curvature="empirical_fisher", polish=False, on_not_a_mode="ignore", progress=False
)


def plugin_1(x: Tensor) -> Tensor:
    """The probability of class 1 at the mode alone."""
    at = guide.median()
    return (x @ at["weight"] + at["bias"]).sigmoid()


def laplace_1(x: Tensor) -> Tensor:
    """Averaged over the posterior, by the probit approximation."""
    return pl.LinearizedPredictive(wide, guide, link="probit")(x)["y"].mean


# %% [markdown]
# One function draws all three figures: probability of the blue class over a square of the plane, with the
# contours of 10%, 50% and 90%.


# %%
def surfaces(ways: dict[str, Callable[[Tensor], Tensor]], data: tuple[Tensor, Tensor], reach: float) -> plt.Figure:
    """A panel for each way to predict."""
    side = np.linspace(-reach, reach, 121)
    grid = torch.cartesian_prod(*[torch.tensor(side, dtype=torch.float32)] * 2)
    figure, panels = plt.subplots(1, len(ways), figsize=(8.4, 4.0), sharey=True)
    for axes, (name, probability) in zip(panels, ways.items(), strict=True):
        probs = probability(grid).detach().reshape(len(side), len(side)).T.numpy()
        filled = axes.pcolormesh(side, side, probs, vmin=0, vmax=1, cmap="RdBu", shading="gouraud", rasterized=True)
        lines = axes.contour(side, side, probs, levels=[0.1, 0.5, 0.9], colors="0.2", linewidths=0.9)
        axes.clabel(lines, fmt=lambda p: f"{p:.0%}", fontsize=8)
        for label, marker, colour in ((0, "s", "#B2182B"), (1, "o", "#2166AC")):
            at = data[0][data[1] == label].T
            axes.scatter(*at, s=14, marker=marker, color=colour, edgecolor="white", linewidth=0.5)
        axes.set(title=name, xlabel="$x_1$", aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
    panels[0].set_ylabel("$x_2$")
    figure.colorbar(filled, ax=panels, label="probability of class 1 (circles)", shrink=0.9)
    return figure


figure = surfaces({"plugin: the mode alone": plugin_1, "Laplace, probit": laplace_1}, (x, y), 8.0)
figure.savefig(OUT / "figure_1.png")

# %% [markdown]
# ![Two panels of the plane with two clouds of points: the plugin's contours are parallel lines, Laplace's fan
# out](figure_1.png)
#
# The plugin's contours are parallel: it is as sure at the far end of the boundary as between the clouds.
# Laplace's fan out, since nobody has seen where the boundary runs out there.

# %% [markdown]
# ## Figure 2: a network that was trained elsewhere
#
# Two hundred points that no line divides; 32 sigmoid units; $\lambda = 0.01$; 200 epochs. The net and its
# training are plain torch, as they were plain Flux in the article. `bayesianize` makes a program of the trained
# net, and `subset="last_layer"` lets only the last layer vary.

# %%
x_2, y_2 = pl.datasets.nonlinear(200)
PENALTY_2 = 0.01
net = nn.Sequential(nn.Linear(2, 32), nn.Sigmoid(), nn.Linear(32, 1))
optimiser = torch.optim.Adam(net.parameters(), lr=1e-3 * FASTER)
weights = list(net.parameters())
for _ in range(200 // FASTER):
    for n in torch.randperm(len(x_2)):
        optimiser.zero_grad()
        decay = 0.5 * PENALTY_2**2 * sum(weight.square().sum() for weight in weights)
        (nn.functional.binary_cross_entropy_with_logits(net(x_2[n])[0], y_2[n]) + decay).backward()
        optimiser.step()

program = pl.bayesianize(net, prior=pl.nn.Isotropic(step_std(PENALTY_2)), likelihood=pl.nn.BinaryClassification())
last = pl.fit_laplace(
    program,
    (x_2, y_2),
    dict(net.named_parameters()),  # the point: the net as it was trained
    subset="last_layer",
    curvature="empirical_fisher",
    polish=False,
    on_not_a_mode="ignore",
    progress=False,
)


def plugin_2(x: Tensor) -> Tensor:
    return net(x)[:, 0].sigmoid()


def laplace_2(x: Tensor) -> Tensor:
    return pl.LinearizedPredictive(program, last, link="probit")(x)["y"].mean


ways = {"plugin: the trained net": plugin_2, "Laplace over the last layer": laplace_2}
surfaces(ways, (x_2, y_2), 8.0).savefig(OUT / "figure_2.png")

# %% [markdown]
# ![Four clouds of two classes in opposite quadrants; the plugin is sure nearly everywhere, Laplace is less
# so](figure_2.png)
#
# Same boundary, less confidence: the trained net is certain of nearly every point of the plane, the posterior is not.

# %% [markdown]
# ## Figure 3: zoomed out
#
# The same two surfaces, six times as far.

# %%
surfaces(ways, (x_2, y_2), 50.0).savefig(OUT / "figure_3.png")

# %% [markdown]
# ![The plane six times as wide, the data a dot in its middle: the plugin is at 0% or 100% in broad wedges,
# Laplace is pale](figure_3.png)
#
# In broad wedges without a single datum the plugin is at 0% or 100% all the same, whichever way a few units
# happened to point. Laplace's colours are pale, and it reaches neither 10% nor 90% anywhere: of what it has not
# seen it does not claim to know the class. A sigmoid unit is constant far away, so both pictures end in constants
# along each ray; a posterior over *all* weights, or ReLU units, would take the second one to 50%.

# %%
far = torch.tensor([[50.0, 50.0], [50.0, -50.0], [-50.0, 50.0], [-50.0, -50.0]])
for name, way in ways.items():
    print(f"{name:<28} at the corners:", ", ".join(f"{float(p):.3f}" for p in way(far).detach()))
