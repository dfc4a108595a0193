"""`update` is the joint fit at the same point; "expand" and "reduce" count shared positions as their formulas say."""

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
    updated = pl.update(half, second, on_not_a_mode="ignore")
    assert_close(updated.precision.to_dense(), joint.precision.to_dense(), rtol=1e-8, atol=1e-8)
    assert updated.log_evidence == pytest.approx(joint.log_evidence, abs=1e-8)
    assert updated.mode.decrement == pytest.approx(joint.mode.decrement, rel=1e-7)
    assert_close(half.precision.to_dense(), before, rtol=0, atol=0)


def test_update_keeps_what_is_held():
    case = programs.mlp_classifier()
    point, (everything, first, second) = theta_of(case), halves(case)
    options = {"subset": "last_layer", "polish": False, "on_not_a_mode": "ignore"}
    joint = pl.fit_laplace(case.model, everything, point, **options)
    updated = pl.update(pl.fit_laplace(case.model, first, point, **options), second, on_not_a_mode="ignore")
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
        pl.update(guide, (x, x @ torch.tensor([-3.0, 4.0])))
    with pytest.raises(pl.NotAMode):
        pl.update(guide, (x, x @ torch.tensor([-3.0, 4.0])), on_not_a_mode="raise")


def test_what_cannot_be_updated_is_refused():
    x = torch.randn(20, 2)
    guide = pl.fit_laplace(linear, (x, x @ torch.ones(2)), progress=False)
    with pytest.raises(pl.UnsupportedProgram, match="has no value"):
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
