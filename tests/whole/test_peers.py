"""Equality with laplace-torch 0.3, where it is a sound oracle: the same network, weights, prior and data.

Kron is compared without biases, because laplace-torch drops the block between a weight and its bias. Its evidence and
its functional variances are those of temperature 1. Its subnetworks take one prior precision only, and leave the prior
of the weights that are held out of the evidence: there everything but the evidence is compared.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_laplace as pl

laplace = pytest.importorskip("laplace")
from laplace.curvature import BackPackGGN, CurvlinopsGGN  # noqa: E402 (only where laplace-torch is installed)

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),  # BackPACK's hooks
]

N, INPUTS, NOISE = 40, 5, 0.7
BACKENDS = {"curvlinops": CurvlinopsGGN, "backpack": BackPackGGN}
TOLERANCE = {"rtol": 1e-8, "atol": 1e-8}

SCALAR, PER_SITE = "scalar prior", "a prior for each site"


@dataclass(frozen=True)
class Problem:
    """A torch network with its data, and the program that says the same.

    Attributes:
        net: the network that laplace-torch takes.
        x: inputs [n, ...].
        y: classes [n] or numbers [n, outputs].
        prior_prec: for each parameter of the network.
    """

    net: nn.Sequential
    x: Tensor
    y: Tensor
    prior_prec: dict[str, float]

    @property
    def classification(self) -> bool:
        return not self.y.is_floating_point()

    def batches(self, size: int | None) -> DataLoader:
        return DataLoader(TensorDataset(self.x, self.y), batch_size=size or len(self.x))

    def peer(
        self,
        structure: str,
        backend: str = "curvlinops",
        subset: str = "all",
        size: int | None = None,
        subnetwork: Tensor | None = None,
    ):
        """laplace-torch's posterior; `subnetwork` holds the random coordinates of the network's parameters."""
        options = {} if subnetwork is None else {"subnetwork_indices": subnetwork}
        likelihood = {} if self.classification else {"sigma_noise": NOISE}
        names = [name for name, _ in self.net.named_parameters()]
        if subset == "last_layer":
            names = names[-2:] if names[-1].endswith("bias") else names[-1:]
        prior = torch.tensor([self.prior_prec[name] for name in names])
        posterior = laplace.Laplace(
            copy.deepcopy(self.net),  # BackPACK leaves hooks on it that `torch.func` refuses
            "classification" if self.classification else "regression",
            subset_of_weights=subset,
            hessian_structure=structure,
            # one number where it may be one: it has no prior for each site of a last layer
            prior_precision=prior[0] if bool((prior == prior[0]).all()) else prior,
            backend=BACKENDS[backend],
            **likelihood,
            **options,
        )
        posterior.fit(self.batches(size))
        return posterior

    def observe(self, f: Tensor, y: Tensor | None) -> None:
        with pyro.plate("data", len(f)):
            if self.classification:
                pyro.sample("y", dist.Categorical(logits=f), obs=y)
            elif f.shape[-1] == 1:
                pyro.sample("y", dist.Normal(f[:, 0], NOISE), obs=None if y is None else y[:, 0])
            else:
                pyro.sample("y", dist.Normal(f, NOISE).to_event(1), obs=y)

    def prior(self, name: str, shape: torch.Size):
        scale = torch.tensor(self.prior_prec[name]).rsqrt()
        return dist.Normal(0.0, scale).expand(shape).to_event(len(shape))


def as_module(problem: Problem) -> tuple[Callable, dict[str, Tensor]]:
    """The network itself with priors on its parameters."""
    net = copy.deepcopy(problem.net)
    values = {f"net.{name}": value.detach() for name, value in problem.net.named_parameters()}
    to_pyro_module_(net)
    for name, value in list(net.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(owner), leaf, PyroSample(problem.prior(name, value.shape)))

    class Program(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, y=None):
            problem.observe(self.net(x), y)

    return Program(), values


def by_hand(problem: Problem) -> tuple[Callable, dict[str, Tensor]]:
    """``x @ w + b``, the weights transposed and in no module."""
    values = {n: v.detach().mT if v.dim() == 2 else v.detach() for n, v in problem.net.named_parameters()}

    def program(x, y=None):
        for number, layer in enumerate(problem.net):
            if isinstance(layer, nn.Linear):
                name = f"{number}.weight"
                x = x @ pyro.sample(name, problem.prior(name, values[name].shape))
                if layer.bias is not None:
                    x = x + pyro.sample(f"{number}.bias", problem.prior(f"{number}.bias", layer.bias.shape))
            else:
                x = layer(x)
        problem.observe(x, y)

    return program, values


WRITTEN = {"module": as_module, "by hand": by_hand}


def ours(problem: Problem, written: str, structure: str, subset: str | pl.Subnetwork = "all", size: int | None = None):
    """The program and its guide at the peer's weights."""
    program, values = WRITTEN[written](problem)
    data = problem.batches(size) if size else (problem.x, problem.y)
    guide = pl.fit_laplace(
        program,
        data,
        values,
        structure=structure,
        subset=subset,
        polish=False,
        on_not_a_mode="ignore",
    )
    return program, guide


def by_site(problem: Problem, flat: Tensor, written: str) -> dict[str, Tensor]:
    """What the peer has for each of its coordinates [p], by the program's sites, in their shapes."""
    parts = flat.split([value.numel() for value in problem.net.parameters()])
    sites = {}
    for (name, value), part in zip(problem.net.named_parameters(), parts, strict=True):
        shaped = part.reshape(value.shape)
        if written == "module":
            sites[f"net.{name}"] = shaped
        else:
            sites[name] = shaped.mT if value.dim() == 2 else shaped
    return sites


def order(problem: Problem, guide, written: str) -> Tensor:
    """The peer's coordinates of the guide's, both in the order of their sites."""
    count = sum(value.numel() for value in problem.net.parameters())
    places = by_site(problem, torch.arange(count), written)
    theirs = torch.cat([places[name].reshape(-1) for name in guide.latents])[guide.index]
    return theirs.argsort().argsort()  # the rank among those that are random


def mlp(classification: bool, bias: bool = True, priors: str = SCALAR, outputs: int = 3) -> Problem:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(INPUTS, 6, bias=bias),
        nn.Tanh(),
        nn.Linear(6, 4, bias=bias),
        nn.ReLU(),
        nn.Linear(4, outputs, bias=bias),
    )
    x = torch.randn(N, INPUTS)
    y = torch.randint(outputs, (N,)) if classification else torch.randn(N, outputs)
    return Problem(net, x, y, _priors(net, priors))


def conv(bias: bool = True, priors: str = SCALAR) -> Problem:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=bias),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 3, 2, stride=2, bias=bias),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 3, bias=bias),
    )
    return Problem(net, torch.randn(N, 2, 8, 8), torch.randint(3, (N,)), _priors(net, priors))


def _priors(net: nn.Module, priors: str) -> dict[str, float]:
    return {n: 1.7 if priors == SCALAR else 0.5 + 0.4 * i for i, (n, _) in enumerate(net.named_parameters())}


def posterior_precision(peer) -> Tensor:
    prec = peer.posterior_precision
    if isinstance(prec, Tensor):
        return prec if prec.dim() == 2 else prec.diag()
    return prec.to_matrix()


def assert_same_posterior(problem: Problem, guide, peer, written: str, evidence: bool = True) -> None:
    """Precision, covariance, and evidence."""
    perm = order(problem, guide, written)
    expected = posterior_precision(peer).detach()[perm][:, perm]
    torch.testing.assert_close(guide.precision.to_dense(), expected, **TOLERANCE)
    torch.testing.assert_close(guide.covariance, torch.linalg.inv(expected), **TOLERANCE)
    torch.testing.assert_close(guide.precision.log_det(), peer.log_det_posterior_precision.detach(), **TOLERANCE)
    if evidence:
        assert guide.log_evidence == pytest.approx(float(peer.log_marginal_likelihood()), rel=1e-8)


def assert_same_predictive(problem: Problem, program: Callable, guide, peer) -> None:
    """Mean and covariance of the linear predictor at new inputs, of each and of all together; probabilities."""
    x = torch.randn(4, *problem.x.shape[1:])
    predictive = pl.LinearizedPredictive(program, guide)
    for joint in (False, True):
        mean, covariance = predictive.latent(x, joint=joint)["y"]
        f, f_cov = peer._glm_predictive_distribution(x, joint=joint)
        torch.testing.assert_close(mean, f.detach(), **TOLERANCE)
        torch.testing.assert_close(covariance, f_cov.detach(), **TOLERANCE)
    if problem.classification:
        assert_same_links(program, guide, peer, x)


def assert_same_links(program: Callable, guide, peer, x: Tensor) -> None:
    """Probabilities; of the bridges where the covariance has more than one direction.

    With one, as behind a layer of which a single unit is on, logits of a known sum vary no more: the peer divides zero
    by zero, and gives probabilities of -3, or of 1 to all.
    """
    varies = torch.linalg.matrix_rank(peer._glm_predictive_distribution(x)[1].detach(), rtol=1e-10) > 1
    for link in ("probit", "bridge", "bridge_norm"):
        found = pl.LinearizedPredictive(program, guide, link=link)(x)["y"].probs
        expected = peer(x, link_approx=link).detach()
        rows = torch.ones_like(varies) if link == "probit" else varies
        torch.testing.assert_close(found[rows], expected[rows], **TOLERANCE)


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("priors", [SCALAR, PER_SITE])
@pytest.mark.parametrize("classification", [True, False], ids=["classes", "numbers"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("structure", ["full", "diag"])
def test_full_and_diag(structure, backend, classification, priors, written):
    problem = mlp(classification, priors=priors)
    (program, guide), peer = ours(problem, written, structure), problem.peer(structure, backend)
    assert_same_posterior(problem, guide, peer, written)
    assert_same_predictive(problem, program, guide, peer)


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("priors", [SCALAR, PER_SITE])
@pytest.mark.parametrize("classification", [True, False], ids=["classes", "numbers"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_kron_without_biases(backend, classification, priors, written):
    problem = mlp(classification, bias=False, priors=priors)
    (program, guide), peer = ours(problem, written, "kron"), problem.peer("kron", backend)
    assert_same_posterior(problem, guide, peer, written)
    assert_same_predictive(problem, program, guide, peer)


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_several_batches(structure, written):
    problem = mlp(True, bias=structure != "kron")
    (program, guide), peer = ours(problem, written, structure, size=15), problem.peer(structure, size=15)
    assert_same_posterior(problem, guide, peer, written)
    assert_same_predictive(problem, program, guide, peer)


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("classification", [True, False], ids=["classes", "numbers"])
@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_last_layer(structure, classification, written):
    problem = mlp(classification, bias=structure != "kron")
    program, guide = ours(problem, written, structure, "last_layer")
    peer = problem.peer(structure, subset="last_layer")
    assert_same_posterior(problem, guide, peer, written)
    assert_same_predictive(problem, program, guide, peer)


@pytest.mark.parametrize("priors", [SCALAR, PER_SITE])
@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_convolutions(structure, priors):
    """With the curvlinops backend: BackPACK's Kron factors of a convolution are others."""
    problem = conv(bias=structure != "kron", priors=priors)
    (program, guide), peer = ours(problem, "module", structure), problem.peer(structure)
    assert_same_posterior(problem, guide, peer, "module")
    assert_same_predictive(problem, program, guide, peer)


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_one_output(structure):
    """A regression net whose program observes numbers [n] and whose peer observes [n, 1]."""
    problem = mlp(False, bias=structure != "kron", outputs=1)
    (program, guide), peer = ours(problem, "module", structure), problem.peer(structure)
    assert_same_posterior(problem, guide, peer, "module")
    assert_same_predictive(problem, program, guide, peer)


SUBNETWORKS = {
    "scattered": lambda count: torch.arange(2, count, 3),
    "one": lambda count: torch.tensor([count // 4]),
    "a stretch": lambda count: torch.arange(count // 4, count // 2),
    "everything": lambda count: torch.arange(count),
}


@pytest.mark.parametrize("chosen", SUBNETWORKS.values(), ids=SUBNETWORKS)
@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("classification", [True, False], ids=["classes", "numbers"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("structure", ["full", "diag"])
def test_subnetworks(structure, backend, classification, written, chosen):
    assert_same_subnetwork(mlp(classification), chosen, structure, backend, written)


@pytest.mark.parametrize("structure", ["full", "diag"])
def test_subnetworks_of_convolutions(structure):
    assert_same_subnetwork(conv(), SUBNETWORKS["scattered"], structure, "curvlinops", "module")


def assert_same_subnetwork(problem: Problem, chosen: Callable, structure: str, backend: str, written: str) -> None:
    count = sum(value.numel() for value in problem.net.parameters())
    index = chosen(count)
    random = torch.zeros(count, dtype=torch.bool).index_fill(0, index, True)
    subset = pl.Subnetwork(mask=by_site(problem, random, written))
    program, guide = ours(problem, written, structure, subset)
    peer = problem.peer(structure, backend, "subnetwork", subnetwork=index)
    assert_same_posterior(problem, guide, peer, written, evidence=False)
    assert_same_predictive(problem, program, guide, peer)
