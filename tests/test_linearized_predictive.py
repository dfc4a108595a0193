"""`LinearizedPredictive` against closed forms, brute force, and Monte Carlo in function space.

Its equality with laplace-torch is in `test_peers`.
"""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn

import pyro_laplace as pl
from pyro_laplace.predictive import jacobian

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]
CLOSE = {"rtol": 1e-8, "atol": 1e-10}
NOISE = 0.3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape):
    return dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape))


def linear(x, y=None):
    w, b = pyro.sample("w", normal(2)), pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w + b, NOISE), obs=y)


def network(x, y=None, outputs=2, observe=None):
    w1, b1 = pyro.sample("w1", normal(2, 5)), pyro.sample("b1", normal(5))
    w2, b2 = pyro.sample("w2", normal(5, outputs)), pyro.sample("b2", normal(outputs))
    f = torch.tanh(x @ w1 + b1) @ w2 + b2
    with pyro.plate("data", len(x)):
        return pyro.sample("y", observe(f), obs=y)


def program(observe, outputs=2):
    return lambda x, y=None: network(x, y, outputs, observe)


OBSERVE = {
    "vector": (lambda f: dist.Normal(f, NOISE).to_event(1), 2),
    "heteroscedastic": (lambda f: dist.Normal(f[:, 0], (0.3 * f[:, 1] - 1).exp()), 2),
    "bernoulli": (lambda f: dist.Bernoulli(logits=f[:, 0]), 1),
    "binomial": (lambda f: dist.Binomial(total_count=torch.tensor(5.0), logits=f[:, 0]), 1),
    "categorical": (lambda f: dist.Categorical(logits=f), 3),
    "one hot": (lambda f: dist.OneHotCategorical(logits=f), 3),
    "probs": (lambda f: dist.Categorical(probs=f.softmax(-1)), 3),
    "poisson": (lambda f: dist.Poisson(f[:, 0].exp()), 1),
    "lognormal": (lambda f: dist.LogNormal(f[:, 0], NOISE), 1),
}


def data(name, num_obs=25):
    observe, outputs = OBSERVE[name]
    x = torch.randn(num_obs, 2, generator=generator())
    pyro.set_rng_seed(5)
    y = observe(torch.randn(num_obs, outputs, generator=generator(1))).sample()
    return x, y


def fit(name, structure="full", subset="all", num_obs=25):
    observe, outputs = OBSERVE[name]
    shapes = {"w1": (2, 5), "b1": (5,), "w2": (5, outputs), "b2": (outputs,)}
    g = generator(3)
    values = {site: torch.randn(*shape, generator=g) for site, shape in shapes.items()}
    options = {"structure": structure, "subset": subset, "polish": False, "on_not_a_mode": "ignore"}
    model = program(observe, outputs)
    return model, pl.fit_laplace(model, data(name, num_obs), values, **options)


X = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None] * torch.tensor([1.0, -0.5], dtype=torch.float64)


def logits(theta, outputs):
    w1, b1 = theta[:10].reshape(2, 5), theta[10:15]
    w2, b2 = theta[15 : 15 + 5 * outputs].reshape(5, outputs), theta[15 + 5 * outputs :]
    return torch.tanh(X @ w1 + b1) @ w2 + b2


def brute(guide, outputs):
    """Mean [n, o], Jacobian [n, o, p] and the covariance of theta."""
    rows = torch.func.jacrev(logits)(guide.theta, outputs)[..., guide.index]
    return logits(guide.theta, outputs), rows, torch.linalg.inv(guide.precision.to_dense())


# --- linear models ---------------------------------------------------------------------------------


@pytest.fixture(params=["full", "kron", "diag", "block", pl.LowRank(2)], ids=str)
def structure(request):
    return request.param


def regression():
    x = torch.randn(20, 2, generator=generator())
    y = x @ torch.tensor([1.0, -2.0]) + 0.5 + NOISE * torch.randn(20, generator=generator(1))
    design = torch.cat([x, torch.ones(20, 1)], 1)
    prec = design.T @ design / NOISE**2 + torch.tensor([1.0, 1.0, 0.25]).diag()
    test = torch.cat([X, torch.ones(len(X), 1)], 1)
    return (x, y), test @ torch.linalg.solve(prec, design.T @ y) / NOISE**2, test @ torch.linalg.inv(prec) @ test.T


def test_linear_regression_is_exact_with_noise():
    batch, mean, covariance = regression()
    guide = pl.fit_laplace(linear, batch, progress=False)
    predictive = pl.LinearizedPredictive(linear, guide)
    fn = predictive(X)["y"]
    torch.testing.assert_close(fn.mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fn.variance, covariance.diagonal() + NOISE**2, **CLOSE)
    f, single = predictive.latent(X)["y"]
    assert f.shape == (7, 1)
    torch.testing.assert_close(single[:, 0, 0], covariance.diagonal(), **CLOSE)
    torch.testing.assert_close(predictive.latent(X, joint=True)["y"][1], covariance, **CLOSE)
    parts = predictive.decompose(X)["y"]
    torch.testing.assert_close(parts.epistemic, covariance.diagonal(), **CLOSE)
    torch.testing.assert_close(parts.aleatoric, torch.full((7,), NOISE**2), **CLOSE)
    torch.testing.assert_close(parts.total, fn.variance, **CLOSE)


def test_function_samples_have_the_joint_covariance():
    batch, mean, covariance = regression()
    predictive = pl.LinearizedPredictive(linear, pl.fit_laplace(linear, batch, progress=False))
    pyro.set_rng_seed(0)
    f = predictive.sample(40000, latent=True)(X)["y"][..., 0]
    y = predictive.sample(40000)(X)["y"]
    for draws, expected in ((f, covariance), (y, covariance + NOISE**2 * torch.eye(7))):
        variance = expected.diagonal()
        error = (torch.outer(variance, variance) + expected**2).div(40000).sqrt()  # standard error of a covariance
        assert ((torch.cov(draws.T) - expected).abs() < 5 * error).all()
        assert ((draws.mean(0) - mean).abs() < 5 * (variance / 40000).sqrt() + 1e-6).all()


def test_a_datum_at_the_origin_keeps_its_predictor():
    def slope(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x * w, NOISE), obs=y)

    x = torch.linspace(-1, 1, 10)
    predictive = pl.LinearizedPredictive(slope, pl.fit_laplace(slope, (x, 2 * x), progress=False))
    mean, covariance = predictive.latent(torch.zeros(1))["y"]
    assert mean.tolist() == [[0.0]]
    assert covariance.tolist() == [[[0.0]]]
    torch.testing.assert_close(predictive(torch.zeros(1))["y"].stddev, torch.tensor([NOISE]))


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
    monkeypatch.setattr(jacobian.Linearizer, "_dense", None)
    pl.LinearizedPredictive(model, guide)(X)


def test_rows_come_in_chunks(monkeypatch):
    from pyro_laplace.predictive import functional

    model, guide = fit("categorical")
    expected = pl.LinearizedPredictive(model, guide).latent(X)["y"]
    shapes = []
    push = type(next(iter(guide.precision.blocks))).push
    monkeypatch.setattr(functional, "ELEMENTS", 2 * 3 * guide.latent_dim)
    monkeypatch.setattr(
        type(next(iter(guide.precision.blocks))),
        "push",
        lambda self, rows: shapes.append(len(rows)) or push(self, rows),
    )
    found = pl.LinearizedPredictive(model, guide).latent(X)["y"]
    torch.testing.assert_close(found, expected, **CLOSE)
    assert shapes == [2, 2, 2, 1]


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

    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, y=None):
            f = self.net(x)
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Categorical(logits=f), obs=y)

    model, x = Model().eval(), torch.randn(12, 1, 4)
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


# --- distributions of y ----------------------------------------------------------------------------


def test_vector_observations_are_multivariate():
    model, guide = fit("vector")
    mean, rows, sigma = brute(guide, 2)
    fn = pl.LinearizedPredictive(model, guide)(X)["y"]
    assert (fn.batch_shape, fn.event_shape) == ((7,), (2,))
    torch.testing.assert_close(fn.mean, mean, **CLOSE)
    torch.testing.assert_close(fn.covariance_matrix, rows @ sigma @ rows.mT + NOISE**2 * torch.eye(2), **CLOSE)


def test_a_scale_of_latent_sites_is_lognormal():
    model, guide = fit("heteroscedastic")
    _, rows, sigma = brute(guide, 2)
    f, v = logits(guide.theta, 2), (rows @ sigma @ rows.mT).diagonal(dim1=1, dim2=2)
    expected = v[:, 0] + torch.exp(2 * (0.3 * f[:, 1] - 1) + 2 * 0.3**2 * v[:, 1])
    fn = pl.LinearizedPredictive(model, guide)(X)["y"]
    torch.testing.assert_close(fn.variance, expected, **CLOSE)
    pyro.set_rng_seed(0)
    draws = pl.LinearizedPredictive(model, guide).sample(60000)(X)["y"]
    assert ((draws.mean(0) - fn.mean).abs() < 5 * (fn.variance / 60000).sqrt()).all()
    fourth = (draws - draws.mean(0)).pow(4).mean(0)
    assert ((draws.var(0) - fn.variance).abs() < 6 * ((fourth - fn.variance**2) / 60000).sqrt()).all()


def test_a_fixed_transform_stays_around_the_normal():
    model, guide = fit("lognormal")
    _, rows, sigma = brute(guide, 1)
    scale = ((rows @ sigma @ rows.mT)[:, 0, 0] + NOISE**2).sqrt()
    y = torch.linspace(0.1, 3, 7)
    expected = dist.LogNormal(logits(guide.theta, 1)[:, 0], scale).log_prob(y)
    torch.testing.assert_close(pl.LinearizedPredictive(model, guide)(X)["y"].log_prob(y), expected, **CLOSE)


def test_masks_stay():
    keep = torch.arange(7) % 2 == 0

    def masked(x, y=None):
        w = pyro.sample("w", normal(2))
        fn = dist.Bernoulli(logits=x @ w)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", fn.mask(keep) if len(x) == 7 else fn, obs=y)

    x = torch.randn(20, 2, generator=generator())
    guide = pl.fit_laplace(masked, (x, (x[:, 0] > 0).double()), progress=False)
    log_prob = pl.LinearizedPredictive(masked, guide)(X)["y"].log_prob(torch.ones(7))
    assert torch.equal(log_prob != 0, keep)


def test_known_multivariate_noise_is_added():
    noise = torch.tensor([[0.5, 0.2], [0.2, 0.4]])
    OBSERVE["mvn"] = (lambda f: dist.MultivariateNormal(f, noise), 2)
    model, guide = fit("mvn")
    _, rows, sigma = brute(guide, 2)
    fn = pl.LinearizedPredictive(model, guide)(X)["y"]
    torch.testing.assert_close(fn.covariance_matrix, rows @ sigma @ rows.mT + noise, **CLOSE)
    assert pl.LinearizedPredictive(model, guide).latent(X)["y"][0].shape == (7, 2)


@pytest.mark.parametrize("link", ["probit", "sample"])
@pytest.mark.parametrize("name", ["bernoulli", "binomial"])
def test_one_logit_agrees_with_monte_carlo(name, link):
    model, guide = fit(name)
    f = pl.LinearizedPredictive(model, guide).sample(100_000, latent=True)(X)["y"][..., 0]
    fn = pl.LinearizedPredictive(model, guide, link=link, num_samples=100_000)(X)["y"]
    assert ((fn.probs - f.sigmoid().mean(0)).abs() < {"probit": 0.02, "sample": 0.006}[link]).all()
    if name == "binomial":
        assert torch.equal(fn.total_count, torch.full((7,), 5.0)) or float(fn.total_count) == 5.0


CLASSES = {
    "logits": lambda f: dist.Categorical(logits=f),
    "one hot": lambda f: dist.OneHotCategorical(logits=f),
    "probs": lambda f: dist.Categorical(probs=f.softmax(-1)),
    "normalised": lambda f: dist.Categorical(logits=f.log_softmax(-1)),
}


@pytest.mark.parametrize(("link", "error"), [("probit", 0.03), ("sample", 0.006), ("bridge", 0.1)])
@pytest.mark.parametrize("name", CLASSES)
def test_classes_agree_with_monte_carlo(name, link, error):
    def model(x, y=None):
        f = x @ pyro.sample("w", normal(2, 3)) + pyro.sample("b", normal(3))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", CLASSES[name](f), obs=y)

    x = torch.randn(100, 2, generator=generator())
    pyro.set_rng_seed(2)
    guide = pl.fit_laplace(model, (x, CLASSES[name](torch.zeros(100, 3)).sample()), progress=False)
    f = pl.LinearizedPredictive(model, guide).sample(100_000, latent=True)(X)["y"]
    fn = pl.LinearizedPredictive(model, guide, link=link, num_samples=100_000)(X)["y"]
    found = (fn.probs - f.softmax(-1).mean(0)).abs()
    assert (found < error).all(), float(found.max())
    torch.testing.assert_close(fn.probs.sum(-1), torch.ones(7))


def test_others_are_mixtures_in_function_space():
    model, guide = fit("poisson", num_obs=200)
    mean, rows, sigma = brute(guide, 1)
    v = (rows @ sigma @ rows.mT)[:, 0, 0]
    pyro.set_rng_seed(0)
    fn = pl.LinearizedPredictive(model, guide, num_samples=50_000)(X)["y"]
    rate = (mean[:, 0] + v / 2).exp()  # the mean of a log-normal
    spread = ((v.exp() - 1) * rate**2 / 50_000).sqrt()
    assert ((fn.mean - rate).abs() < 5 * spread).all()
    parts = pl.LinearizedPredictive(model, guide, num_samples=50_000).decompose(X)["y"]
    assert parts.kind == "variance"
    assert ((parts.aleatoric - rate).abs() < 5 * spread).all()
    assert fn.log_prob(torch.zeros(7)).shape == (7,)
    assert fn.sample((3,)).shape == (3, 7)


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_entropies_decompose(name):
    model, guide = fit(name)
    pyro.set_rng_seed(0)
    parts = pl.LinearizedPredictive(model, guide, num_samples=20_000).decompose(X)["y"]
    pyro.set_rng_seed(1)
    f = pl.LinearizedPredictive(model, guide).sample(20_000, latent=True)(X)["y"]
    p = f.softmax(-1) if name == "categorical" else torch.cat([f.sigmoid(), 1 - f.sigmoid()], -1)
    aleatoric = -(p * p.log()).sum(-1).mean(0)
    total = -(p.mean(0) * p.mean(0).log()).sum(-1)
    assert parts.kind == "entropy"
    torch.testing.assert_close(parts.aleatoric, aleatoric, rtol=0, atol=0.01)
    torch.testing.assert_close(parts.total, total, rtol=0, atol=0.01)
    assert (parts.epistemic >= 0).all()


# --- gradients, and what must not change -------------------------------------------------------------


def problem(classification, bias=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias))
    x = torch.randn(40, 4)
    y = torch.randint(3, (40,)) if classification else torch.randn(40, 3)
    module = copy.deepcopy(net)
    to_pyro_module_(module)
    for name, value in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        prior = dist.Normal(torch.zeros(value.shape), 0.8).to_event(value.dim())
        setattr(module.get_submodule(owner), leaf, PyroSample(prior))

    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = module

        def forward(self, x, y=None):
            f = self.net(x)
            with pyro.plate("data", len(x)):
                fn = dist.Categorical(logits=f) if classification else dist.Normal(f, NOISE).to_event(1)
                return pyro.sample("y", fn, obs=y)

    return net, Model(), x, y


@pytest.mark.parametrize("name", ["vector", "bernoulli", "categorical", "heteroscedastic"])
def test_gradients_flow_to_the_inputs(name):
    model, guide = fit(name)
    predictive = pl.LinearizedPredictive(model, guide, differentiable=True)

    def moments(x):
        mean, covariance = predictive.latent(x)["y"]
        fn = predictive(x)["y"]
        return mean, covariance, fn.probs if hasattr(fn, "probs") else fn.variance

    assert torch.autograd.gradcheck(moments, X[:3].clone().requires_grad_(), rtol=1e-4)


def test_no_graph_is_built_otherwise():
    model, guide = fit("vector")
    x = X.clone().requires_grad_()
    predictive = pl.LinearizedPredictive(model, guide)
    fn = predictive(x)["y"]
    results = [fn.mean, fn.variance, *predictive.latent(x)["y"], predictive.sample(2)(x)["y"]]
    assert not any(result.requires_grad for result in results)


class Failing(Exception):
    pass


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("differentiable", [False, True])
def test_the_model_is_left_as_it_was(fail, differentiable):
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.norm, self.body = nn.BatchNorm1d(2), nn.Linear(2, 3)
            self.count: torch.Tensor
            self.register_buffer("count", torch.zeros(()))
            self.head = PyroModule[nn.Linear](3, 1)
            self.head.weight = PyroSample(normal(1, 3))
            self.head.bias = PyroSample(normal(1))

        def forward(self, x, y=None):
            f = self.head(torch.tanh(self.body(self.norm(x))))[:, 0] + 0 * self.count
            if len(x) == 7:
                self.body.train()
                self.count = self.count + 1
            if fail and len(x) == 7:
                raise Failing
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(f, NOISE), obs=y)

    model = Model().eval()
    x = torch.randn(20, 2, generator=generator())
    guide = pl.fit_laplace(model, (x, x[:, 0]), progress=False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    theta, names = guide.theta.clone(), set(pyro.get_param_store().keys())
    predictive = pl.LinearizedPredictive(model, guide, differentiable=differentiable, num_samples=10)
    for call in (predictive, predictive.latent, predictive.sample(3), predictive.decompose):
        if fail:
            with pytest.raises(Failing):
                call(X)
        else:
            call(X)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())
        assert torch.equal(guide.theta, theta)
        assert set(pyro.get_param_store().keys()) == names


def test_options_are_checked():
    model, guide = fit("bernoulli")
    with pytest.raises(pl.InvalidOption, match="link='mc' is not one of 'probit'"):
        pl.LinearizedPredictive(model, guide, link="mc")
    with pytest.raises(pl.InvalidOption, match="num_samples=0"):
        pl.LinearizedPredictive(model, guide, num_samples=0)
    with pytest.raises(pl.InvalidOption, match="num_samples=True"):
        pl.LinearizedPredictive(model, guide).sample(True)
    with pytest.raises(pl.InvalidOption, match="fit_laplace"):
        pl.LinearizedPredictive(model, lambda x: x)
    with pytest.raises(pl.InvalidOption, match=r"link='bridge' is for classes.*'y'"):
        pl.LinearizedPredictive(model, guide, link="bridge")(X)


def test_seeds_reproduce_draws_and_a_linearised_program_is_taken():
    model, guide = fit("vector")
    draws = []
    for program_ in (model, pl.linearize(model, guide)):
        pyro.set_rng_seed(4)
        draws.append(pl.LinearizedPredictive(program_, guide).sample(3)(X)["y"])
    assert torch.equal(*draws)
    assert draws[0].shape == (3, 7, 2)


# --- what is computed, and how much at a time -------------------------------------------------------


def test_logits_that_are_a_product_of_the_program_need_no_backward_pass(monkeypatch):
    net, model, x, y = problem(classification=True)
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
    monkeypatch.setattr(jacobian, "push_forward", None)
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
    from pyro_laplace.predictive import linearized_predictive

    model, guide = fit("categorical")
    sample = pl.LinearizedPredictive(model, guide, differentiable=differentiable).sample(32, latent=True)
    pyro.set_rng_seed(0)
    whole = sample(X)["y"]
    counts = []
    moved = linearized_predictive.moved
    monkeypatch.setattr(linearized_predictive, "moved", lambda p, d: counts.append(len(d)) or moved(p, d))
    monkeypatch.setattr(linearized_predictive, "ELEMENTS", 1000)
    pyro.set_rng_seed(0)
    parts = sample(X)["y"]
    assert sum(counts) == 32
    assert len(counts) > 1
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
