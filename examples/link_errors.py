# %% [markdown]
# How wrong are probit and the Laplace bridges?
#
# Class probabilities of Gaussian logits, against the mean of the softmax over 100,000 draws. Takes a few seconds and
# writes `link_errors.png`.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from pyro_laplace.likelihood.links import laplace_bridge, probit

CLASSES, PROBLEMS, DRAWS = 3, 100, 100_000
VARIANCES = torch.logspace(-2, 2, 9, dtype=torch.float64)
LINKS = {
    "probit": lambda f, v: probit(f, v.diagonal(dim1=-2, dim2=-1)).softmax(-1),
    "bridge": laplace_bridge,
    "bridge_norm": lambda f, v: laplace_bridge(f, v, normalised=True),
}


# %%
def error(link: str, variance: float) -> float:
    """Mean over random problems of the largest error of a class probability."""
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for _ in range(PROBLEMS):
        f = 1.5 * torch.randn(CLASSES, generator=generator, dtype=torch.float64)
        root = torch.randn(CLASSES, CLASSES, generator=generator, dtype=torch.float64)
        covariance = root @ root.T * (variance * CLASSES / root.square().sum())
        noise = torch.randn(DRAWS, CLASSES, generator=generator, dtype=torch.float64)
        exact = (f + noise @ torch.linalg.cholesky(covariance).T).softmax(-1).mean(0)
        total += float((LINKS[link](f[None], covariance[None])[0] - exact).abs().max())
    return total / PROBLEMS


errors = {link: [error(link, float(v)) for v in VARIANCES] for link in LINKS}

# %%
figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
for link, values in errors.items():
    axes.loglog(VARIANCES, values, marker="o", label=link)
axes.set(xlabel="mean variance of a logit", ylabel="mean of the largest error of a probability")
axes.legend()
figure.savefig(Path("link_errors.png"), dpi=150)

# %%
print("| variance | " + " | ".join(errors) + " |\n|---|" + "---|" * len(errors))
for i, v in enumerate(VARIANCES.tolist()):
    print(f"| {v:.2g} | " + " | ".join(f"{values[i]:.3f}" for values in errors.values()) + " |")
