"""The covariance J Sigma J' of a program's outputs against dense Jacobians, and how much is computed at a time."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.linearized import CLOSE, NOISE, X, brute, fit, normal
from programs.zoo import generator
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn

import pyro_laplace as pl
from pyro_laplace.linearized import covariance, expansion, jacobian, routes

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]


@pytest.fixture(params=["full", "kron", "diag", "block", pl.LowRank(2)], ids=str)
def structure(request):
    return request.param


# --- J Sigma J' ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_test", [7, 1])
@pytest.mark.parametrize("subset", ["all", "last_layer", "w1", pl.Subnetwork(size=9)], ids=str)
def test_functional_covariance_is_that_of_dense_jacobians(structure, subset, num_test):
    if isinstance(subset, pl.Subnetwork) and structure == "kron":
        pytest.skip("kron covers whole sites")
    model, guide = fit("vector", structure, subset)
    mean, rows, sigma = brute(guide, 2)
    x, mean, rows = X[:num_test], mean[:num_test], rows[:num_test]
    predictive = pl.LinearizedPredictive(model, guide)
    for _ in range(2):  # the second call finds what the first has kept
        found = predictive.latent(x)["y"]
        torch.testing.assert_close(found[0], mean, **CLOSE)
        torch.testing.assert_close(found[1], rows @ sigma @ rows.mT, **CLOSE)
    flat = rows.flatten(0, 1)
    joint = predictive.latent(x, joint=True)["y"]
    torch.testing.assert_close(joint[0], mean.flatten(), **CLOSE)
    torch.testing.assert_close(joint[1], flat @ sigma @ flat.T, **CLOSE)
    dense = pl.LinearizedPredictive(model, guide, differentiable=True)
    torch.testing.assert_close(dense.latent(x)["y"][1].detach(), found[1], **CLOSE)
    torch.testing.assert_close(dense.latent(x, joint=True)["y"][1].detach(), joint[1], **CLOSE)


def test_a_structured_program_makes_no_dense_jacobian(structure, monkeypatch):
    model, guide = fit("categorical", structure)
    monkeypatch.setattr(routes, "_row_by_row", None)
    pl.LinearizedPredictive(model, guide)(X)


def test_rows_come_in_chunks(monkeypatch):
    model, guide = fit("categorical")
    expected = pl.LinearizedPredictive(model, guide).latent(X)["y"]
    shapes = []
    push = type(next(iter(guide.precision.blocks))).push
    monkeypatch.setattr(
        type(next(iter(guide.precision.blocks))),
        "push",
        lambda self, rows: shapes.append(len(rows)) or push(self, rows),
    )
    with pl.settings.using(pass_elements=2 * 3 * guide.latent_dim):
        found = pl.LinearizedPredictive(model, guide).latent(X)["y"]
    torch.testing.assert_close(found, expected, **CLOSE)
    assert shapes == [2, 2, 2, 1]


class Classifier(PyroModule):
    """A network whose outputs are logits."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, y=None):
        f = self.net(x)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=f), obs=y)


def test_convolutions_and_batch_statistics():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.out = nn.Conv1d(1, 3, 2), nn.BatchNorm1d(3), nn.Linear(9, 2)

        def forward(self, x):
            return self.out(torch.tanh(self.norm(self.conv(x))).flatten(1))

    net = Net()
    to_pyro_module_(net)
    for module in (net.conv, net.norm, net.out):
        for name, value in list(module.named_parameters()):
            setattr(module, name, PyroSample(dist.Normal(torch.zeros(value.shape), 1.0).to_event(value.dim())))

    model, x = Classifier(net).eval(), torch.randn(12, 1, 4)
    y = torch.arange(12) % 2
    values = {n: torch.randn_like(v) for n, v in pl.fit_map(model, (x, y), progress=False).median().items()}
    for structure in ("full", "diag", "kron"):
        model.eval()
        guide = pl.fit_laplace(model, (x, y), values, structure=structure, polish=False, on_not_a_mode="ignore")
        for training in (False, True):
            model.train(training)
            before = copy.deepcopy(model.state_dict())
            predictive, dense = (pl.LinearizedPredictive(model, guide, differentiable=d) for d in (False, True))
            if training:
                for call in (predictive, predictive.sample(3), dense.decompose):
                    with pytest.raises(pl.UnsupportedProgram, match=r"\.eval\(\)"):
                        call(x)
                assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
                continue
            torch.testing.assert_close(predictive.latent(x)["y"][1], dense.latent(x)["y"][1].detach(), **CLOSE)
            predictive(x), predictive.sample(3)(x), predictive.decompose(x)
            assert all(module.training is training for module in model.modules())
            after = model.state_dict()
            assert before.keys() == after.keys()
            assert all(torch.equal(after[name], value) for name, value in before.items())


class Recurrent(PyroModule):
    """A recurrent cell over [n, time, 2] and a linear layer on its last state."""

    def __init__(self, cell, random):
        super().__init__()
        self.cell, self.head = cell(2, 3, batch_first=True), nn.Linear(3, 2)
        to_pyro_module_(self)
        for module in [self.head] if random == "head" else [self.cell, self.head]:
            for name, value in list(module.named_parameters()):
                setattr(module, name, PyroSample(normal(*value.shape)))

    def forward(self, x, y=None):
        f = self.head(self.cell(x)[0][:, -1])
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(f, NOISE).to_event(1), obs=y)


def lstm(gates_in, gates_hidden, h, c):
    i, f, g, o = (gates_in + gates_hidden).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(gates_in, gates_hidden, h, c):
    (r, z, n), (r_h, z_h, n_h) = gates_in.chunk(3, -1), gates_hidden.chunk(3, -1)
    r, z = (r + r_h).sigmoid(), (z + z_h).sigmoid()
    return (1 - z) * (n + r * n_h).tanh() + z * h, c


@pytest.mark.parametrize("random", ["head", "all"])
@pytest.mark.parametrize(("cell", "step"), [(nn.LSTM, lstm), (nn.GRU, gru)], ids=["lstm", "gru"])
def test_recurrent_networks(cell, step, random, structure):
    """Against dense Jacobians of the recurrence as its definition has it, with a part of the weights fixed or none."""
    torch.manual_seed(0)
    model = Recurrent(cell, random)
    x, y, test = torch.randn(12, 4, 2), torch.randn(12, 2), torch.randn(5, 4, 2)
    fixed = {name: value.detach() for name, value in model.named_parameters()}
    shapes = {f"cell.{n}": p.shape for n, p in cell(2, 3).named_parameters()} if random == "all" else {}
    shapes |= {"head.weight": (2, 3), "head.bias": (2,)}
    values = {name: 0.7 * torch.randn(shape) for name, shape in shapes.items()}
    options = {"structure": structure, "polish": False, "on_not_a_mode": "ignore"}
    guide = pl.fit_laplace(model, (x, y), values, **options)

    def outputs(theta, x):
        parts = theta.split([value.numel() for value in values.values()])
        w = fixed | {name: part.reshape(values[name].shape) for name, part in zip(values, parts, strict=True)}
        h = c = x.new_zeros(len(x), 3)
        for at in x.unbind(1):
            gates_in = at @ w["cell.weight_ih_l0"].T + w["cell.bias_ih_l0"]
            h, c = step(gates_in, h @ w["cell.weight_hh_l0"].T + w["cell.bias_hh_l0"], h, c)
        return h @ w["head.weight"].T + w["head.bias"]

    assert list(guide.latents) == list(values)
    rows = torch.func.jacrev(outputs)(guide.theta, x).flatten(0, 1)
    prec = guide.precision.to_dense()
    if structure == "full":
        torch.testing.assert_close(prec, rows.T @ rows / NOISE**2 + torch.eye(len(prec)), rtol=1e-6, atol=1e-8)
    rows, sigma = torch.func.jacrev(outputs)(guide.theta, test), torch.linalg.inv(prec)
    predictive = pl.LinearizedPredictive(model, guide)
    mean, covariance = predictive.latent(test)["y"]
    torch.testing.assert_close(mean, outputs(guide.theta, test), rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(covariance, rows @ sigma @ rows.mT, rtol=1e-6, atol=1e-10)
    flat = rows.flatten(0, 1)
    joint = predictive.latent(test, joint=True)["y"][1]
    torch.testing.assert_close(joint, flat @ sigma @ flat.T, rtol=1e-6, atol=1e-10)


def test_an_output_behind_a_unit_that_was_off_is_no_known_one():
    def model(x, y=None):
        a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x * a, (torch.relu(x * b) - 1).exp()), obs=y)

    x, ones = torch.linspace(-1, 2, 12), {"a": torch.tensor(1.0), "b": torch.tensor(1.0)}
    guide = pl.fit_laplace(model, (x, x), ones, polish=False, on_not_a_mode="ignore")
    predictive = pl.LinearizedPredictive(model, guide)
    on = torch.linspace(0.5, 2, 4)
    assert predictive.latent(-on)["y"][0].shape == (4, 2)
    torch.testing.assert_close(predictive(on)["y"].variance, pl.LinearizedPredictive(model, guide)(on)["y"].variance)


# --- what is computed, and how much at a time -------------------------------------------------------


def classifier():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(40, 4), torch.randint(3, (40,))
    module = copy.deepcopy(net)
    to_pyro_module_(module)
    for name, value in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        prior = dist.Normal(torch.zeros(value.shape), 0.8).to_event(value.dim())
        setattr(module.get_submodule(owner), leaf, PyroSample(prior))

    return net, Classifier(module), x, y


def test_logits_that_are_a_product_of_the_program_need_no_backward_pass(monkeypatch):
    net, model, x, y = classifier()
    values = {f"net.{name}": value.detach() for name, value in net.named_parameters()}
    options = {"subset": "last_layer", "polish": False, "on_not_a_mode": "ignore"}
    guide = pl.fit_laplace(model, (x, y), values, **options)
    predictive = pl.LinearizedPredictive(model, guide)
    _, covariance = predictive.latent(x)["y"]
    monkeypatch.setattr(torch.autograd, "grad", None)
    torch.testing.assert_close(predictive.latent(x)["y"][1], covariance, **CLOSE)
    scaled = net(x).detach() / (1 + torch.pi / 8 * covariance.diagonal(dim1=1, dim2=2)).sqrt()
    torch.testing.assert_close(predictive(x)["y"].probs, scaled.softmax(-1), **CLOSE)


def test_forward_mode_is_left_out_where_the_graph_tells_the_outputs(monkeypatch):
    monkeypatch.setattr(expansion, "push_forward", None)
    for name, outputs in (("vector", 2), ("categorical", 3), ("bernoulli", 1), ("poisson", 1)):
        model, guide = fit(name)
        assert pl.LinearizedPredictive(model, guide).latent(X)["y"][0].shape == (7, outputs)


def test_a_parameter_that_is_no_site_is_no_output():
    def model(x, y=None):
        scale = pyro.param("scale", torch.tensor(NOISE), constraint=dist.constraints.positive)
        w = pyro.sample("w", normal(2))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, scale), obs=y)

    x = torch.randn(20, 2, generator=generator())
    guide = pl.fit_laplace(model, (x, x[:, 0]), progress=False)
    mean, covariance = pl.LinearizedPredictive(model, guide).latent(X)["y"]
    assert (mean.shape, covariance.shape) == ((7, 1), (7, 1, 1))


@pytest.mark.parametrize("differentiable", [False, True])
def test_draws_come_in_chunks(monkeypatch, differentiable):
    model, guide = fit("categorical")
    sample = pl.LinearizedPredictive(model, guide, differentiable=differentiable).sample(32, latent=True)
    pyro.set_rng_seed(0)
    whole = sample(X)["y"]
    counts = []
    shift = jacobian.shift
    monkeypatch.setattr(jacobian, "shift", lambda p, d: counts.append(len(d)) or shift(p, d))
    pyro.set_rng_seed(0)
    with pl.settings.using(pass_elements=1000):
        parts = sample(X)["y"]
    pieces = 7 if differentiable else 1  # rows come by datum then
    assert sum(counts) == 32 * pieces
    assert len(counts) > pieces
    assert parts.shape == whole.shape == (32, 7, 3)
    assert parts.isfinite().all()


@pytest.mark.parametrize("structure", ["diag", "kron"])
def test_shared_weights_are_not_pushed_through_the_block(structure, monkeypatch):
    def model(x, y=None):
        w, v = pyro.sample("w", normal(3, 1, 2)), pyro.sample("v", normal(9, 2))
        f = torch.tanh(torch.nn.functional.conv1d(x, w)).flatten(1) @ v
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=f), obs=y)

    x, y = torch.randn(12, 1, 4, generator=generator()), torch.arange(12) % 2
    values = {"w": torch.randn(3, 1, 2, generator=generator(1)), "v": torch.randn(9, 2, generator=generator(2))}
    guide = pl.fit_laplace(model, (x, y), values, structure=structure, polish=False, on_not_a_mode="ignore")
    dense = pl.LinearizedPredictive(model, guide, differentiable=True)
    expected = [dense.latent(x, joint=joint)["y"][1].detach() for joint in (False, True)]
    for block in guide.precision.blocks:
        monkeypatch.setattr(type(block), "push", None)
    predictive = pl.LinearizedPredictive(model, guide)
    found = [predictive.latent(x, joint=joint)["y"][1] for joint in (False, True)]
    torch.testing.assert_close(found, expected, **CLOSE)
    variance = torch.pi / 8 * expected[0].diagonal(dim1=1, dim2=2)
    logits = dense.latent(x)["y"][0].detach() / (1 + variance).sqrt()
    torch.testing.assert_close(predictive(x)["y"].probs, logits.softmax(-1), **CLOSE)


def test_forms_of_a_small_block_are_of_its_own_coordinates(monkeypatch):
    """The Jacobian is one product of 302 outputs here, of which the block of b has two."""
    monkeypatch.setattr(covariance.FormShare, "_covariance", None)

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([300]).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.tanh(w).mean() * x + b.cumsum(0)[-1] * x, 1.0), obs=y)

    x = torch.linspace(1.0, 2.0, 4)
    point = {"w": torch.zeros(300), "b": torch.zeros(2)}
    structure = {"w": "diag", "b": "full"}
    guide = pl.fit_laplace(model, (x, x), point, structure=structure, on_not_a_mode="ignore", progress=False)
    with pl.settings.using(pass_elements=100_000):
        _, found = pl.LinearizedPredictive(model, guide).latent(x)["y"]
    total = x.square().sum()
    of_w = 1 / (1 + total / 300**2) / 300
    of_b = torch.full((2,), 1.0) @ torch.linalg.solve(torch.eye(2) + total * torch.ones(2, 2), torch.ones(2))
    torch.testing.assert_close(found.flatten(), x.square() * (of_w + of_b), **CLOSE)
