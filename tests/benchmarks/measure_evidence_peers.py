"""The evidence that is found, and what it is worth, beside laplace-torch's post-hoc tuning: one data set and structure.

    python measure_evidence_peers.py diabetes full --seeds 5

prints a line of JSON for each seed. It is run by `test_evidence_peers.py`, outside pytest.
"""

import argparse
import copy
import json
import time
import warnings

import pyro
import torch
from laplace import Laplace
from sklearn.datasets import load_diabetes, load_linnerud, make_friedman1, make_friedman2, make_friedman3
from sklearn.preprocessing import scale
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_laplace as pl

SETS = {
    "diabetes": lambda seed: load_diabetes(return_X_y=True),
    "linnerud": lambda seed: load_linnerud(return_X_y=True),
    "friedman1": lambda seed: make_friedman1(400, noise=1.0, random_state=seed),
    "friedman2": lambda seed: make_friedman2(400, noise=100.0, random_state=seed),
    "friedman3": lambda seed: make_friedman3(400, noise=0.1, random_state=seed),
}
STEPS = 200
"""Of Adam, in which laplace-torch's evidence has long settled."""


def data_of(name: str, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Three quarters to fit and a quarter to predict, standardised; of several targets the first."""
    inputs, target = SETS[name](seed)
    target = target[:, 0] if target.ndim == 2 else target
    x, y = (torch.tensor(scale(each), dtype=torch.float32) for each in (inputs, target))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    cut = len(x) * 3 // 4
    return (x[order[:cut]], y[order[:cut]]), (x[order[cut:]], y[order[cut:]])


def trained(x: Tensor, y: Tensor) -> nn.Module:
    """A network of 50 hidden units, trained with weight decay."""
    net = nn.Sequential(nn.Linear(x.shape[1], 50), nn.Tanh(), nn.Linear(50, 1))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2, weight_decay=1e-3)
    for _ in range(1_000):
        optimiser.zero_grad()
        (net(x)[:, 0] - y).square().mean().backward()
        optimiser.step()
    return net


def theirs(net: nn.Module, train: tuple, test: tuple, structure: str) -> dict:
    """laplace-torch: prior precision and noise by the gradient of its evidence."""
    subset, kind = ("last_layer", "full") if structure == "last layer" else ("all", structure)
    start = time.perf_counter()
    la = Laplace(copy.deepcopy(net), "regression", subset, kind)
    la.fit(DataLoader(TensorDataset(train[0], train[1][:, None]), batch_size=len(train[0])))
    log_prec, log_noise = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.Adam([log_prec, log_noise], 0.1)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = -la.log_marginal_likelihood(log_prec.exp(), log_noise.exp())
        loss.backward()
        optimiser.step()
    seconds = time.perf_counter() - start
    la.prior_precision, la.sigma_noise = log_prec.exp().detach(), log_noise.exp().detach()
    mean, variance = la(test[0])
    predicted = torch.distributions.Normal(mean[:, 0], (variance[:, 0, 0] + la.sigma_noise**2).sqrt())
    return {"log_evidence": -loss.item(), "lpd": predicted.log_prob(test[1]).mean().item(), "seconds": seconds}


def ours(net: nn.Module, train: tuple, test: tuple, structure: str, refit: bool | str) -> dict:
    """The same program, its prior std and noise learned at the same weights, or with the mode found again."""
    pyro.clear_param_store()
    prior = pl.nn.Isotropic(pl.nn.learned(1.0, name="std"))
    model = pl.bayesianize(net, prior, pl.nn.Regression(noise=pl.nn.learned(1.0)))
    values = {name: value.detach() for name, value in net.named_parameters()}
    subset, kind = ("last_layer", "full") if structure == "last layer" else ("all", structure)
    options = {"subset": subset, "structure": kind, "on_not_a_mode": "ignore", "progress": False}
    start = time.perf_counter()
    guide = pl.maximize_evidence(model, train, values, refit=refit, **options)
    seconds = time.perf_counter() - start
    lpd = -pl.scores(pl.LinearizedPredictive(model, guide), test)["nll"]
    return {"log_evidence": guide.log_evidence, "lpd": float(lpd), "seconds": seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data", choices=list(SETS))
    parser.add_argument("structure", choices=["full", "diag", "last layer"])
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for seed in range(given.seeds):
        pyro.set_rng_seed(seed)
        train, test = data_of(given.data, seed)
        net = trained(*train)
        found = {
            "laplace-torch": theirs(net, train, test, given.structure),
            "held": ours(net, train, test, given.structure, False),
            "refit": ours(net, train, test, given.structure, True),
        }
        print(json.dumps({"data": given.data, "structure": given.structure, "seed": seed, "found": found}), flush=True)
