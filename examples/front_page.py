# %% [markdown]
# The figure of the README and of the documentation's front page
#
# A regression with a gap, and a classifier's plane, each with and without a posterior around the network's
# weights. Takes half a minute and writes `front_page.png`, in few colours so that it is small.
#
#     python examples/front_page.py [folder]

# %%
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from PIL import Image
from torch import nn

import pyro_laplace as pl
from pyro_laplace.plots.style import COLORS, tidy

mpl.use("Agg")
torch.set_num_threads(1)
FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
pyro.set_rng_seed(0)

# %%
x, y = pl.datasets.gap(60)
net = nn.Sequential(nn.Linear(1, 25), nn.Tanh(), nn.Linear(25, 1))
prior = pl.nn.Isotropic(pl.nn.learned(2.0, name="std"))
curve = pl.bayesianize(net, prior=prior, likelihood=pl.nn.Regression(0.15))
curve_guide = pl.maximize_evidence(curve, (x, y), progress=False)
grid = torch.linspace(-3.4, 3.4, 201)[:, None]
predicted = pl.LinearizedPredictive(curve, curve_guide)(grid)["y"]

# %%
points, labels = pl.datasets.nonlinear(200)
net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))
plane = pl.bayesianize(net, prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.BinaryClassification())
plane_guide = pl.fit_laplace(plane, (points, labels), progress=False)
side = np.linspace(-14, 14, 121)
square = torch.cartesian_prod(*[torch.tensor(side, dtype=torch.float32)] * 2)
predictive = pl.LinearizedPredictive(plane, plane_guide)
ways = {
    "a classifier: the mode alone": predictive.latent(square)["y"][0][:, 0].sigmoid(),
    "its Laplace posterior": predictive(square)["y"].mean,
}

# %%
figure, panels = plt.subplots(1, 3, figsize=(9.6, 3.1), width_ratios=(1.35, 1, 1), layout="constrained")
mean, std = predicted.mean, predicted.variance.sqrt()
for width, alpha in ((1.645, 0.2), (0.674, 0.35)):
    panels[0].fill_between(
        grid[:, 0], mean - width * std, mean + width * std, color=COLORS[0], alpha=alpha, linewidth=0
    )
panels[0].plot(grid[:, 0], mean, color=COLORS[0], linewidth=1.8)
panels[0].plot(x[:, 0], y, "o", color="0.15", alpha=0.6, markersize=3, markeredgewidth=0)
panels[0].set(title="a network with a Laplace posterior", ylim=(-3, 3.4))
tidy(panels[0], None)
for axes, (name, probs) in zip(panels[1:], ways.items(), strict=True):
    image = probs.detach().reshape(len(side), -1).T.numpy()
    filled = axes.pcolormesh(side, side, image, vmin=0, vmax=1, cmap="RdBu", shading="gouraud", rasterized=True)
    axes.contour(side, side, image, levels=[0.1, 0.5, 0.9], colors="0.2", linewidths=0.8)
    axes.scatter(
        *points.T, s=9, c=["#2166AC" if label else "#B2182B" for label in labels], edgecolor="white", linewidth=0.4
    )
    axes.set(title=name, aspect="equal", xticks=[-10, 0, 10], yticks=[-10, 0, 10])
figure.colorbar(filled, ax=panels[2], label="probability of blue")
figure.savefig(FOLDER / "front_page.png", dpi=100)
picture = Image.open(FOLDER / "front_page.png").convert("RGB")
picture.quantize(128, dither=Image.Dither.NONE).save(FOLDER / "front_page.png", optimize=True)
