# %% [markdown]
# # A convolutional net, its last layer, and pictures that are no digits
#
# A classifier gives each picture one of its ten labels, a letter or noise too, and often with confidence. The net
# is trained in plain torch, as one would; afterwards a Laplace posterior over its last layer says how sure it may
# be. Does that tell digits from what are none?

# %%
import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from _options import OUT, QUICK
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import nn

import pyro_laplace as pl
from pyro_laplace.plots.style import COLORS, tidy

pyro.set_rng_seed(0)
data = load_digits()
images, labels = torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)
x, x_test, y, y_test = train_test_split(images, labels, test_size=0.3, random_state=0, stratify=labels)

# %% [markdown]
# ## Train it

# %%
net = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
    nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
)  # fmt: skip
optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(2 if QUICK else 25):
    for rows in torch.randperm(len(x)).split(64):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
with torch.no_grad():
    print(f"accuracy on held-out digits: {(net(x_test).argmax(-1) == y_test).float().mean():.3f}")

# %% [markdown]
# ## Make it Bayesian
#
# Three lines. `bayesianize` makes a program of the net; `maximize_evidence` sets the prior's scale, with no other data
# than those of the training; only the last layer is random, 330 weights of 9,802. `refit=False` leaves the net as it
# was trained.

# %%
model = pl.bayesianize(net, prior=pl.nn.Isotropic(pl.nn.learned(1.0, name="std")), likelihood=pl.nn.Classification())
point = {name: weight.detach() for name, weight in net.named_parameters()}
options = {"subset": "last_layer", "refit": False, "on_not_a_mode": "ignore", "progress": False}
guide = pl.maximize_evidence(model, (x, y), point, **options)
print(f"prior std of the last layer: {float(guide.hyperparameters['std']):.3f}")

# %% [markdown]
# ## What it says of digits, and of what are none
#
# Three kinds of pictures that no digit is among: noise, digits with their pixels shuffled (the same grey values),
# and two digits laid over each other. Uncertainty is the entropy of the predicted probabilities, in nats; ten
# equal ones have 2.3.

# %%
shuffled = x_test.flatten(1)[:, torch.randperm(64)].reshape(x_test.shape)
strange = {
    "noise": torch.rand_like(x_test),
    "shuffled pixels": shuffled,
    "two digits at once": (x_test + x_test[torch.randperm(len(x_test))]).clamp(max=1.0),
}
predictive = pl.LinearizedPredictive(model, guide, link="probit")


def plugin(x):
    with torch.no_grad():
        return net(x).softmax(-1)


def laplace(x):
    return predictive(x)["y"].probs


def entropy(probs):
    return torch.special.entr(probs).sum(-1)


# %%
kinds = {"digits": x_test} | strange
figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.8), sharey=True)
bins = np.linspace(0.0, np.log(10), 40)
for axes, (name, way) in zip(panels, {"the net alone": plugin, "last-layer Laplace": laplace}.items(), strict=True):
    for number, (kind, pictures) in enumerate(kinds.items()):
        values = entropy(way(pictures)).numpy()
        axes.hist(
            values, bins=bins, weights=np.full(len(values), 1 / len(values)), cumulative=True, histtype="step",
            linewidth=1.8, color=COLORS[number], linestyle=("-", "--", "-.", ":")[number], label=kind,
        )  # fmt: skip
    axes.set(title=name, xlabel="entropy of the prediction (nats)", xlim=(0, np.log(10) - 0.06), ylim=(0, 1.02))
    tidy(axes)
panels[0].set_ylabel("share of pictures below")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
figure.savefig(OUT / "entropy.png")

# %% [markdown]
# ![Cumulative shares of pictures by entropy: the curve of digits rises at once, the others later, and later still
# with Laplace](entropy.png)
#
# A curve that rises at once belongs to pictures that the model is sure of. Digits should, the others should not.
# The net alone is sure of many that are none. With the posterior around its last layer the curves of these move
# to the right. The area under the ROC curve says how well entropy tells the two apart, 1 being perfectly and 0.5
# not at all:

# %%
print(f"{'':<20}{'the net alone':>16}{'Laplace':>12}")
for kind, pictures in strange.items():
    known = [0] * len(x_test) + [1] * len(pictures)
    areas = [
        roc_auc_score(known, torch.cat([entropy(way(x_test)), entropy(way(pictures))])) for way in (plugin, laplace)
    ]
    print(f"{kind:<20}{areas[0]:>16.3f}{areas[1]:>12.3f}")
held = pl.scores(predictive, (x_test, y_test))
alone = nn.functional.nll_loss(plugin(x_test).log(), y_test)
print(f"{'NLL of digits':<20}{float(alone):>16.3f}{held['nll']:>12.3f}")

# %% [markdown]
# All three are told apart better. It has a price on digits themselves, whose negative log density rises: the scale that
# the evidence finds for a last layer is a wide one. Where the probabilities of digits matter more than strange
# pictures, let [held-out data choose it](../choosing-priors.md): `pl.tune` in place of `maximize_evidence`.
#
# Which pictures deceive the net most? The three of noise, and the three with shuffled pixels, of which it is surest,
# with the label and the probability that each way gives.

# %%
kinds_of_two = [strange["noise"], strange["shuffled pixels"]]
wrong = torch.cat([each[plugin(each).max(-1).values.argsort(descending=True)[:3]] for each in kinds_of_two])
figure, panels = plt.subplots(1, 6, figsize=(8.4, 2.2))
for axes, picture, p, q in zip(panels, wrong, plugin(wrong), laplace(wrong), strict=True):
    axes.imshow(picture[0].numpy(), cmap="Greys", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"“{int(p.argmax())}”\nnet {p.max():.0%}\nLaplace {q[p.argmax()]:.0%}", fontsize=9)
figure.savefig(OUT / "deceived.png")

# %% [markdown]
# ![Six pictures that are no digits, each with the label that the net gives it, and the lower probability that
# Laplace gives](deceived.png)
#
# The label stays, since the mean of the logits does; what changes is the probability.
