"""`update` is the joint fit where it stands, or moves to; how "expand" and "reduce" count shared positions."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import zoo as programs
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

STRUCTURES = {
    "full": "full",
    "block": "block",
    "kron": "kron",
    "diag": "diag",
    "low rank": pl.LowRank(200),
    "mapping": {"w?": "kron", "*": "full"},
    "nested mapping": {"*1*": "diag", "*": "block"},
}


def halves(case):
    x, y = case.data
    return (x, y), (x[:7], y[:7]), (x[7:], y[7:])


def theta_of(case, seed=0):
    torch.manual_seed(seed)
    guide = pl.fit_laplace(case.model, case.data, progress=False, structure="diag", on_not_a_mode="ignore")
    return guide.median()


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher"])
def test_update_equals_the_joint_fit(structure, curvature):
    case = programs.mlp_classifier()
    point, (everything, first, second) = theta_of(case), halves(case)
    options = {"structure": structure, "curvature": curvature, "polish": False, "on_not_a_mode": "ignore"}
    joint = pl.fit_laplace(case.model, everything, point, **options)
    half = pl.fit_laplace(case.model, first, point, **options)
    before = half.precision.to_dense().clone()
    updated = pl.update(half, second, move=False, on_not_a_mode="ignore")
    assert_close(updated.precision.to_dense(), joint.precision.to_dense(), rtol=1e-8, atol=1e-8)
    assert updated.log_evidence == pytest.approx(joint.log_evidence, abs=1e-8)
    assert updated.mode.decrement == pytest.approx(joint.mode.decrement, rel=1e-7)
    assert_close(half.precision.to_dense(), before, rtol=0, atol=0)


def test_update_keeps_what_is_held():
    case = programs.mlp_classifier()
    point, (everything, first, second) = theta_of(case), halves(case)
    options = {"subset": "last_layer", "polish": False, "on_not_a_mode": "ignore"}
    joint = pl.fit_laplace(case.model, everything, point, **options)
    half = pl.fit_laplace(case.model, first, point, **options)
    updated = pl.update(half, second, move=False, on_not_a_mode="ignore")
    assert updated.layout == joint.layout
    assert_close(updated.precision.to_dense(), joint.precision.to_dense(), rtol=1e-9, atol=1e-9)


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def test_data_that_move_the_mode_are_told():
    torch.manual_seed(0)
    x = torch.randn(20, 2)
    guide = pl.fit_laplace(linear, (x, x @ torch.ones(2)), progress=False)
    with pytest.warns(pl.NotAModeWarning, match="fit all data jointly"):
        pl.update(guide, (x, x @ torch.tensor([-3.0, 4.0])), move=False)
    with pytest.raises(pl.NotAMode):
        pl.update(guide, (x, x @ torch.tensor([-3.0, 4.0])), move=False, on_not_a_mode="raise")


# --- moved to the mode of all data --------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["full", "block", pl.LowRank(20)], ids=str)
def test_a_linear_gaussian_posterior_moves_to_that_of_all_data(structure):
    """In closed form: data in three parts are as good as data in one."""
    g = programs.generator()
    x, coefficients = torch.randn(60, 2, generator=g), torch.tensor([0.5, -1.0])
    y = x @ coefficients + 0.5 * torch.randn(60, generator=g)
    guide = pl.fit_laplace(linear, (x[:5], y[:5]), structure=structure, progress=False)
    for own in (slice(5, 6), slice(6, 60)):
        guide = pl.update(guide, (x[own], y[own]), on_not_a_mode="raise")
    precision = x.mT @ x / 0.25 + torch.eye(2)
    marginal = torch.distributions.MultivariateNormal(torch.zeros(60), x @ x.mT + 0.25 * torch.eye(60))
    assert_close(guide.median()["w"], torch.linalg.solve(precision, x.mT @ y / 0.25), rtol=1e-9, atol=1e-9)
    assert_close(guide.precision.to_dense(), precision, rtol=1e-9, atol=1e-9)
    assert guide.log_evidence == pytest.approx(float(marginal.log_prob(y)), abs=1e-8)


def logistic(x, y=None):
    w = pyro.sample("w", dist.Normal(0, 2).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def poisson(x, y=None):
    w = pyro.sample("w", dist.Normal(0, 2).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson((x @ w).exp()), obs=y)


def newton(model, x, y):
    """The mode of all data and the precision there, by hand."""
    w = torch.zeros(3)
    for _ in range(30):
        f = x @ w
        mean = f.sigmoid() if model is logistic else f.exp()
        curvature = mean * (1 - mean) if model is logistic else mean
        precision = x.mT @ (curvature[:, None] * x) + torch.eye(3) / 4
        w = w + torch.linalg.solve(precision, x.mT @ (y - mean) - w / 4)
    return w, precision


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
@pytest.mark.parametrize("model", [logistic, poisson])
def test_three_updates_come_close_to_the_joint_fit(model, curvature):
    g = programs.generator()
    x = torch.cat([torch.ones(400, 1), torch.randn(400, 2, generator=g)], 1)
    f = x @ torch.tensor([0.3, 1.0, -0.7])
    y = torch.bernoulli(f.sigmoid(), generator=g) if model is logistic else torch.poisson(f.exp(), generator=g)
    first, *others = [(x[own], y[own]) for own in torch.arange(400).split(100)]
    moved = left = pl.fit_laplace(model, first, curvature=curvature, progress=False)
    for data in others:
        moved = pl.update(moved, data, on_not_a_mode="raise")
        left = pl.update(left, data, move=False, on_not_a_mode="ignore")
    mode, precision = newton(model, x, y)

    def distance(guide):
        away = guide.median()["w"] - mode
        return float(away @ precision @ away) ** 0.5

    assert distance(moved) < 0.5 < distance(left)
    assert_close(moved.precision.to_dense(), precision, rtol=0.15, atol=0.15 * float(precision.max()))


def test_what_is_held_stays_while_the_rest_moves():
    case = programs.mlp_classifier()
    point, (_, first, second) = theta_of(case), halves(case)
    half = pl.fit_laplace(case.model, first, point, subset="last_layer", polish=True)
    updated = pl.update(half, second, on_not_a_mode="raise")
    apart = (updated.theta != half.theta).nonzero()[:, 0]
    assert set(apart.tolist()) <= set(half.index.tolist())
    assert len(apart)


def test_a_mixture_is_updated_by_component():
    x = torch.linspace(-1.0, 1.0, 12)[:, None].expand(12, 2)
    y = x.sum(1) + 0.1
    starts = [{"w": torch.zeros(2)}, {"w": torch.ones(2)}]
    options = {"polish": False, "on_not_a_mode": "ignore"}
    mixture = pl.fit_laplace(linear, (x[:6], y[:6]), starts, weights="equal", **options)
    updated = pl.update(mixture, (x[6:], y[6:]))
    assert isinstance(updated, pl.LaplaceMixture)
    assert_close(updated.weights, mixture.weights)
    for part, own in zip(updated.components, mixture.components, strict=True):
        assert_close(part.theta, pl.update(own, (x[6:], y[6:])).theta)


def test_what_cannot_be_updated_is_refused():
    x = torch.randn(20, 2)
    guide = pl.fit_laplace(linear, (x, x @ torch.ones(2)), progress=False)
    with pytest.raises(pl.InvalidData, match="data has no values of the observed site 'y'"):
        pl.update(guide, (x,))
    with pytest.raises(pl.InvalidOption, match="not a dict"):
        pl.update({}, (x, x[:, 0]))


class Pooled(PyroModule):
    """A convolution averaged over positions, and a head."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = PyroModule[nn.Conv1d](2, 3, 2, bias=False), PyroModule[nn.Linear](3, 2, bias=False)
        self.conv.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3, 2, 2]).to_event(3))
        self.head.weight = PyroSample(dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))

    def forward(self, x, y=None):
        f = self.head(self.conv(x).mean(-1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=f), obs=y)


@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_how_positions_that_share_a_weight_count(shared):
    torch.manual_seed(0)
    x, y = torch.randn(9, 2, 6), torch.arange(9) % 2

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(-1)

    net = nn.Sequential(nn.Conv1d(2, 3, 2, bias=False), Mean(), nn.Linear(3, 2, bias=False))
    point = {"conv.weight": net[0].weight.detach(), "head.weight": net[2].weight.detach()}
    guide = pl.fit_laplace(Pooled(), (x, y), point, structure=pl.Kron(shared), polish=False, on_not_a_mode="ignore")
    # The factors by hand: g of every position, a of every patch, with the Fisher root of the softmax
    patches = x.unfold(-1, 2, 1).permute(0, 2, 1, 3).flatten(2)  # n t i
    f = net(x)
    p = f.softmax(-1).detach()
    root = p.sqrt().diag_embed() - p.unsqueeze(-1) * p.sqrt().unsqueeze(1)
    z = net[0](x)
    out = net[2](z.mean(-1))
    g = torch.stack([torch.autograd.grad((out * root[..., k]).sum(), z, retain_graph=True)[0] for k in range(2)], 1)
    g = g.mT.detach()  # n k t o
    if shared == "expand":
        a = torch.einsum("nti,ntj->ij", patches, patches)
        b = torch.einsum("nkto,nktp->op", g, g) / patches.shape[:2].numel()
    else:
        mean, total = patches.mean(1), g.sum(2)
        a, b = mean.mT @ mean, torch.einsum("nko,nkp->op", total, total) / len(x)
    expected = torch.kron(b, a) + torch.eye(12)
    block = guide.precision.to_dense()[guide.layout["conv.weight"], guide.layout["conv.weight"]]
    assert_close(block, expected, rtol=1e-9, atol=1e-9)
