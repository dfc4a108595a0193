"""`LinearizedPredictive` against closed forms and Monte Carlo in function space: distributions, gradients, state.

Its covariance of functions is in `test_functional_covariance`, its equality with laplace-torch in `test_peers`.
"""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.linearized import CLOSE, NOISE, OBSERVE, X, brute, fit, logits, normal
from programs.zoo import generator
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_laplace as pl

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]


# --- linear models ---------------------------------------------------------------------------------


def linear(x, y=None):
    w, b = pyro.sample("w", normal(2)), pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w + b, NOISE), obs=y)


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
    probs = fn.mean / {"bernoulli": 1, "binomial": 5}[name]
    assert ((probs - f.sigmoid().mean(0)).abs() < {"probit": 0.02, "sample": 0.006}[link]).all()
    if (name, link) == ("binomial", "probit"):
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
