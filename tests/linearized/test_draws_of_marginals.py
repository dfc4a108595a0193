"""Draws of each datum's own Gaussian: against draws of theta, and against the Gaussian as `latent` gives it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.linearized import X, normal
from programs.zoo import generator
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_laplace as pl
from pyro_laplace.likelihood.mixture import FunctionMixture
from pyro_laplace.linearized.jacobian import Linearized
from pyro_laplace.linearized.marginal import chunks_of_draws, triangular
from pyro_laplace.structure.precision import Precision

pytestmark = pytest.mark.usefixtures("float64")

DRAWS = 20_000

OBSERVE = {
    "3 classes": (3, lambda f: dist.Categorical(logits=f)),
    "10 classes": (10, lambda f: dist.Categorical(logits=f)),
    "probabilities": (3, lambda f: dist.Categorical(probs=f.softmax(-1))),
    "one hot": (3, lambda f: dist.OneHotCategorical(logits=f)),
    "bernoulli": (1, lambda f: dist.Bernoulli(logits=f[..., 0])),
    "binomial": (1, lambda f: dist.Binomial(5, logits=f[..., 0])),
    "multinomial": (3, lambda f: dist.Multinomial(5, logits=f)),
    "poisson": (1, lambda f: dist.Poisson((f[..., 0] / 3).exp())),
    "gamma": (2, lambda f: dist.Gamma((2 + f[..., 0] / 3).exp(), (f[..., 1] / 3).exp())),
    "heteroscedastic": (2, lambda f: dist.Normal(f[..., 0], (0.3 * f[..., 1] - 1).exp())),
    "student": (2, lambda f: dist.StudentT(5.0, f[..., 0], (0.3 * f[..., 1] - 1).exp())),
    "beta": (2, lambda f: dist.Beta((1 + f[..., 0] / 3).exp(), (1 + f[..., 1] / 3).exp())),
    "event": (3, lambda f: dist.Poisson((f / 3).exp()).to_event(1)),
}
"""Outputs of the network, and what is observed of them."""

CLASSES = ("3 classes", "10 classes", "probabilities", "one hot")

STRUCTURES = {
    "full": {},
    "kron": {"structure": "kron"},
    "diag": {"structure": "diag"},
    "low rank": {"structure": pl.LowRank(4)},
    "last layer": {"subset": "last_layer"},
}


class Network(PyroModule):
    """Two layers under a likelihood."""

    def __init__(self, outputs, observe, scale=1.0):
        super().__init__()
        self.observe = observe
        self.body, self.head = PyroModule[nn.Linear](2, 5), PyroModule[nn.Linear](5, outputs)
        for layer in (self.body, self.head):
            layer.weight = PyroSample(dist.Normal(torch.zeros(layer.weight.shape), scale).to_event(2))
            layer.bias = PyroSample(dist.Normal(torch.zeros(layer.bias.shape), scale).to_event(1))

    def forward(self, x, y=None):
        f = self.head(torch.tanh(self.body(x)))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", self.observe(f), obs=y)


def fit(name, seed=3, num_obs=60, **options):
    outputs, observe = OBSERVE[name]
    model, g = Network(outputs, observe), generator(seed)
    shapes = {"body.weight": (5, 2), "body.bias": (5,), "head.weight": (outputs, 5), "head.bias": (outputs,)}
    values = {site: torch.randn(*shape, generator=g) for site, shape in shapes.items()}
    pyro.set_rng_seed(5)
    x = torch.randn(num_obs, 2, generator=generator())
    y = observe(torch.randn(num_obs, outputs, generator=generator(1))).sample()
    options = {"polish": False, "on_not_a_mode": "ignore", "curvature": "ggn", "progress": False} | options
    return model, pl.fit_laplace(model, (x, y), values, **options)


def predicted(model, guide, num_samples=DRAWS):
    pyro.set_rng_seed(1)
    return pl.LinearizedPredictive(model, guide, link="sample", num_samples=num_samples)(X)["y"]


def moments(name, draws):
    """What is compared at each draw of the predictor: class probabilities; mean of y, and of its square."""
    observe = OBSERVE[name][1]
    fn = observe(draws)
    if name in CLASSES:
        return fn.probs
    if name == "bernoulli":
        return fn.probs.unsqueeze(-1)
    return torch.stack([fn.mean, fn.variance + fn.mean.square()], -1)


def of_predictive(name, fn):
    if name in CLASSES:
        return fn.probs
    if name == "bernoulli":
        return fn.probs.unsqueeze(-1)
    return torch.stack([fn.mean, fn.variance + fn.mean.square()], -1)


def observed(name, linear):
    """The network's outputs of the linear predictor, which is what the likelihood's link makes of them."""
    if name in ("poisson", "event"):
        return 3 * linear
    if name == "gamma":
        return 3 * (linear - torch.tensor([2.0, 0.0]))
    if name == "beta":
        return 3 * (linear - 1)
    if name in ("heteroscedastic", "student"):
        return torch.stack([linear[..., 0], (linear[..., 1] + 1) / 0.3], -1)
    return linear


def by_hand(predictive, num_samples=DRAWS):
    """Draws of each datum's Gaussian, by the eigenvectors of its covariance."""
    mean, covariance = predictive.latent(X)["y"]
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    white = torch.randn(num_samples, *mean.shape, generator=generator(7))
    return mean + torch.einsum("nij,snj->sni", root, white)


def assert_means_agree(found, draws, num_samples, also=0.0):
    """Means over draws of which each has an error of its own: both are within five standard errors of another."""
    error = (draws.var(0) * (1 / len(draws) + 1 / num_samples)).sqrt()
    assert ((found - draws.mean(0)).abs() <= 5 * error + 1e-9 + also).all()


# --- against theta, and by hand ---------------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", OBSERVE)
def test_predictions_are_those_of_draws_of_theta_and_of_the_marginals(name, structure):
    if name == "heteroscedastic" and structure != "full":
        pytest.skip("it is a closed form")
    model, guide = fit(name, **STRUCTURES[structure])
    predictive = pl.LinearizedPredictive(model, guide)
    found = of_predictive(name, predicted(model, guide))
    pyro.set_rng_seed(2)
    joint = predictive.sample(DRAWS, latent=True)(X)["y"]
    assert_means_agree(found, moments(name, observed(name, joint)), DRAWS)
    assert_means_agree(found, moments(name, observed(name, by_hand(predictive))), DRAWS)


@pytest.mark.statistical
def test_a_hundred_classes():
    OBSERVE["100 classes"] = (100, OBSERVE["3 classes"][1])
    model, guide = fit("100 classes", structure="kron")
    predictive = pl.LinearizedPredictive(model, guide)
    found = predicted(model, guide).probs
    for draws in (predictive.sample(DRAWS, latent=True)(X)["y"], by_hand(predictive)):
        assert_means_agree(found, draws.softmax(-1), DRAWS)


@pytest.mark.statistical
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["gamma", "event"])
def test_draws_have_the_covariance_of_latent_and_data_are_apart(name, structure):
    model, guide = fit(name, **STRUCTURES[structure])
    fn = predicted(model, guide)
    mean, covariance = pl.LinearizedPredictive(model, guide).latent(X)["y"]
    eta = fn.eta.reshape(DRAWS, len(X), -1)
    n, k = mean.shape
    exact = torch.zeros(n, k, n, k)
    exact[range(n), :, range(n)] = covariance
    exact = exact.reshape(n * k, n * k)
    variance = exact.diagonal()
    error = ((torch.outer(variance, variance) + exact.square()) / DRAWS).sqrt()
    assert ((torch.cov(eta.flatten(1).T) - exact).abs() < 5 * error + 1e-12).all()
    assert ((eta.mean(0) - mean).abs().flatten() < 5 * (variance / DRAWS).sqrt() + 1e-12).all()


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["3 classes", "bernoulli", "poisson", "gamma"])
def test_decompositions_are_those_of_draws_of_theta(name):
    model, guide = fit(name)
    predictive = pl.LinearizedPredictive(model, guide, num_samples=DRAWS)
    pyro.set_rng_seed(1)
    parts = predictive.decompose(X)["y"]
    fn = OBSERVE[name][1](observed(name, predictive.sample(DRAWS, latent=True)(X)["y"]))
    if parts.kind == "entropy":
        entropies, spread = fn.entropy(), 0.01
    else:
        entropies, spread = fn.variance, 0.05 * fn.mean.var(0)
        assert ((parts.epistemic - fn.mean.var(0)).abs() < 1.5 * spread).all()
    assert_means_agree(parts.aleatoric, entropies, DRAWS)
    total = parts.aleatoric + parts.epistemic
    assert ((total - parts.total).abs() < 1e-12).all()
    if name == "3 classes":
        mean = fn.probs.mean(0)
        assert ((parts.total + (mean * mean.log()).sum(-1)).abs() < spread).all()


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["3 classes", "poisson"])
def test_a_mixture_of_posteriors_mixes_the_marginals_of_each(name):
    guides = [fit(name, seed=seed)[1] for seed in (3, 4)]
    model = fit(name)[0]
    mixture = pl.LaplaceMixture(guides, weights="equal")
    predictive = pl.LinearizedPredictive(model, mixture)
    found = of_predictive(name, predicted(model, mixture))
    pyro.set_rng_seed(2)
    draws = moments(name, observed(name, predictive.sample(DRAWS, latent=True)(X)["y"]))
    assert_means_agree(found, draws, DRAWS)


# --- what is not drawn ------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["3 classes", "bernoulli", "poisson", "beta", "event"])
def test_no_theta_is_drawn(name, structure, monkeypatch):
    """The cost of a draw does not grow with the parameters: nothing is coloured."""
    model, guide = fit(name, **STRUCTURES[structure])
    monkeypatch.setattr(Precision, "color", None)
    predictive = pl.LinearizedPredictive(model, guide, link="sample", num_samples=1000)
    predictive(X[:2])
    predictive.decompose(X[:2])


@pytest.mark.statistical
def test_functions_are_functions_still():
    """`sample` has one theta at all data: equal inputs have equal functions; predictives of each datum have not."""
    model, guide = fit("poisson")
    predictive = pl.LinearizedPredictive(model, guide, num_samples=100)
    twice = torch.cat([X, X])
    f = predictive.sample(100, latent=True)(twice)["y"]
    torch.testing.assert_close(f[:, :7], f[:, 7:])
    eta = predictive(twice)["y"].eta
    assert ((eta[:, :7] - eta[:, 7:]).abs().amax(0) > 0.1).all()


def test_an_event_of_more_entries_than_parameters_is_drawn_by_theta():
    """Its covariance, 500 by 500, has rank 2."""

    def model(x, y=None):
        w = pyro.sample("w", normal(2))
        return pyro.sample("y", dist.Poisson((x @ w).exp()).to_event(1), obs=y)

    x = torch.randn(500, 2, generator=generator())
    guide = pl.fit_laplace(model, (x, torch.ones(500)), progress=False)
    fn = pl.LinearizedPredictive(model, guide, num_samples=300)(x)["y"]
    assert isinstance(fn, FunctionMixture)
    assert torch.linalg.matrix_rank(fn.eta[..., 0] - fn.eta[:1, ..., 0]) == 2


@pytest.mark.statistical
def test_data_on_two_axes_are_apart(monkeypatch):
    """The Gaussian of a datum is that of one element of the batch, whichever axes that has."""

    def model(x, y=None):
        f = x @ pyro.sample("w", normal(2, 2))
        with pyro.plate("rows", x.shape[0], dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
            return pyro.sample("y", dist.Gamma(f[..., 0].exp(), f[..., 1].exp()), obs=y)

    monkeypatch.setattr(Linearized, "_apart_is_cheaper", lambda *_: True)
    x = 0.3 * torch.randn(4, 3, 2, generator=generator())
    y = torch.rand(4, 3, generator=generator(1)) + 0.5
    guide = pl.fit_laplace(model, (x, y), progress=False)
    predictive = pl.LinearizedPredictive(model, guide, num_samples=DRAWS)
    eta = predictive(x)["y"].eta
    mean, covariance = predictive.latent(x)["y"]
    assert eta.shape == (DRAWS, 4, 3, 2)
    deviation = eta - mean
    found = torch.einsum("snmi,snmj->nmij", deviation, deviation) / DRAWS
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    error = 6 * scale[..., None] * scale[..., None, :] / math.sqrt(DRAWS)
    assert ((found - covariance).abs() < error).all()
    one, other = deviation[:, 0, 0], deviation[:, 0, 1]
    assert ((one * other).mean(0).abs() < 6 * scale[0, 0] * scale[0, 1] / math.sqrt(DRAWS)).all()


# --- covariances without an inverse -----------------------------------------------------------------


def semidefinite(k=4, rank=2, batch=6):
    half = torch.randn(batch, k, rank, generator=generator(), dtype=torch.float64)
    return half @ half.mT


def scaled(*units):
    unit = torch.tensor(units, dtype=torch.float64)
    return semidefinite(rank=9) * unit * unit[:, None]


EQUAL = torch.tensor([0, 0, 1, 2])
SINGULAR = {
    "rank 2 of 4": semidefinite(),
    "rank 1": semidefinite(rank=1),
    "equal outputs": semidefinite()[:, EQUAL][:, :, EQUAL],
    "centred": (torch.eye(4) - 0.25).expand(2, 4, 4).double(),
    "zero": torch.zeros(2, 4, 4, dtype=torch.float64),
    "an output without variance": scaled(1, 0, 1, 1),
    "mixed": torch.cat([semidefinite(rank=9), semidefinite(), torch.zeros(1, 4, 4)]),
    "of very different units": scaled(1e8, 1, 1e-8, 1),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_a_root_of_what_is_singular(name):
    covariance = SINGULAR[name]
    root = triangular(covariance, torch.zeros(covariance.shape[:-1], dtype=torch.bool))
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    unit = torch.where(scale > 0, scale, 1.0)
    off = (root @ root.mT - covariance) / unit[..., None] / unit[..., None, :]
    assert (off.abs() < 1e-13).all()
    assert (root.triu(1).abs() <= 1e-13 * unit[..., None]).all()
    assert (root.diagonal(dim1=-2, dim2=-1) >= 0).all()


def test_a_root_is_cholesky_s_where_there_is_one():
    covariance = semidefinite(rank=9)
    root = triangular(covariance, torch.zeros(6, 4, dtype=torch.bool))
    torch.testing.assert_close(root, torch.linalg.cholesky(covariance), rtol=1e-12, atol=1e-12)


def test_a_root_goes_over_into_that_of_what_is_singular():
    """So that draws of one seed move little as a variance vanishes."""
    covariance = semidefinite(rank=3)
    none = torch.zeros(6, 4, dtype=torch.bool)
    near = triangular(covariance + 1e-12 * torch.eye(4), none)
    torch.testing.assert_close(triangular(covariance, none), near, rtol=0, atol=1e-5)


def test_an_output_that_is_certain_is_left_out_of_a_root():
    """Whatever is said of its variance."""
    covariance = semidefinite(rank=9)
    certain = torch.zeros(6, 4, dtype=torch.bool)
    certain[:, 2] = True
    others = [0, 1, 3]
    expected = triangular(covariance[:, others][:, :, others], certain[:, others])
    covariance[:, 2], covariance[:, :, 2] = torch.nan, torch.inf
    root = triangular(covariance, certain)
    torch.testing.assert_close(root[:, others][:, :, others], expected)
    assert (root[:, 2] == 0).all()
    assert (root[:, :, 2] == 0).all()


def test_what_is_not_a_number_is_of_its_datum_alone():
    covariance = semidefinite()
    expected = triangular(covariance, torch.zeros(6, 4, dtype=torch.bool))
    covariance[1, 0, 0] = torch.nan
    root = triangular(covariance, torch.zeros(6, 4, dtype=torch.bool))
    assert root[1].isnan().any()
    torch.testing.assert_close(root[2:], expected[2:])


@pytest.mark.statistical
@pytest.mark.parametrize("rank", [2, 3])
def test_predictors_that_are_singular_at_every_datum(rank, monkeypatch):
    """Logits of which one is the sum of others, or does not move, at inputs of which one is the origin."""

    def model(x, y=None):
        w = pyro.sample("w", normal(2, rank))
        f = x @ w
        f = torch.cat([f, f.sum(-1, keepdim=True), torch.ones_like(f[..., :1]) + 0 * f[..., :1]], -1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=f), obs=y)

    monkeypatch.setattr(Linearized, "_apart_is_cheaper", lambda *_: True)
    x = torch.randn(40, 2, generator=generator())
    guide = pl.fit_laplace(model, (x, torch.arange(40) % (rank + 2)), progress=False)
    predictive = pl.LinearizedPredictive(model, guide, link="sample", num_samples=DRAWS)
    new = X.index_fill(0, torch.tensor(3), 0.0)
    found = predictive(new)["y"].probs
    assert_means_agree(found, predictive.sample(DRAWS, latent=True)(new)["y"].softmax(-1), DRAWS)
    torch.testing.assert_close(found[3], torch.tensor([0.0] * (rank + 1) + [1.0]).softmax(-1))


@pytest.mark.statistical
@pytest.mark.parametrize(
    "options", [{"structure": "kron"}, {"structure": "diag"}, {}, {"subset": "last_layer"}], ids=str
)
def test_a_wide_prior_on_what_a_softmax_does_not_see(options, monkeypatch):
    """In single precision: the constant of all logits has a variance a million times that of their differences."""
    monkeypatch.setattr(Linearized, "_apart_is_cheaper", lambda *_: True)
    torch.set_default_dtype(torch.float32)
    x = torch.randn(60, 2, generator=generator())
    g = generator(3)
    values = {
        "body.weight": torch.randn(5, 2, generator=g), "body.bias": torch.randn(5, generator=g),
        "head.weight": torch.randn(3, 5, generator=g), "head.bias": torch.randn(3, generator=g),
    }  # fmt: skip
    model = Network(3, OBSERVE["3 classes"][1], scale=1000.0)
    options = options | {"polish": False, "on_not_a_mode": "ignore", "progress": False}
    guide = pl.fit_laplace(model, (x, torch.arange(60) % 3), values, **options)
    predictive = pl.LinearizedPredictive(model, guide, link="sample", num_samples=DRAWS)
    found = predictive(x)["y"].probs
    draws = predictive.sample(DRAWS, latent=True)(x)["y"]
    torch.set_default_dtype(torch.float64)
    assert (
        options.get("structure") == "diag"
        or (draws.mean(-1).var(0) > 1e5 * (draws[..., 0] - draws[..., 1]).var(0)).all()
    )
    assert_means_agree(found.double(), draws.double().softmax(-1), DRAWS, also=1e-4)


# --- gradients --------------------------------------------------------------------------------------

ORIGIN = X.index_fill(0, torch.tensor(3), 0.0)[2:5]


@pytest.mark.parametrize("name", ["3 classes", "probabilities", "bernoulli", "poisson", "gamma", "event"])
def test_gradients_flow_through_draws(name, monkeypatch):
    """Of marginals, where their roots have derivatives; logits that are centred have none."""
    if name != "probabilities":
        monkeypatch.setattr(Precision, "color", None)
    model, guide = fit(name)
    predictive = pl.LinearizedPredictive(model, guide, link="sample", num_samples=200, differentiable=True)

    def means(x):
        pyro.set_rng_seed(3)
        return of_predictive(name, predictive(x)["y"])

    x = X[[0, 2, 6]].clone().requires_grad_()
    assert torch.autograd.gradcheck(means, x, rtol=1e-4)
    assert torch.autograd.gradgradcheck(means, x, rtol=1e-3)


@pytest.mark.parametrize("outputs", [1, 2])
def test_gradients_flow_where_a_datum_has_no_variance(outputs):
    """The draws are of theta then: ``x @ w`` has derivatives at the origin, and its standard deviation has none."""

    def model(x, y=None):
        f = x @ pyro.sample("w", normal(2, 2))
        fn = dist.Poisson(f[..., 0].exp()) if outputs == 1 else dist.Gamma(f[..., 0].exp(), f[..., 1].exp())
        with pyro.plate("data", len(x)):
            return pyro.sample("y", fn, obs=y)

    x = 0.3 * torch.randn(20, 2, generator=generator())
    guide = pl.fit_laplace(model, (x, torch.ones(20)), on_not_a_mode="ignore", progress=False)
    predictive = pl.LinearizedPredictive(model, guide, num_samples=50, differentiable=True)

    def means(x):
        pyro.set_rng_seed(3)
        return predictive(x)["y"].mean

    assert torch.autograd.gradcheck(means, ORIGIN.clone().requires_grad_(), rtol=1e-4)


@pytest.mark.statistical
def test_gradients_of_draws_are_those_of_the_law():
    """Of the mean of log-normal rates, ``exp(f + v / 2)``."""
    model, guide = fit("poisson")
    predictive = pl.LinearizedPredictive(model, guide, num_samples=DRAWS, differentiable=True)
    x = X[[0, 2, 6]].clone().requires_grad_()
    (found,) = torch.autograd.grad(predictive(x)["y"].mean.sum(), x)
    mean, covariance = predictive.latent(x)["y"]
    (exact,) = torch.autograd.grad((mean[:, 0] + covariance[:, 0, 0] / 2).exp().sum(), x)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.02)


# --- chunks, and seeds ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["3 classes", "probabilities", "bernoulli", "poisson", "event"])
def test_draws_do_not_depend_on_chunks(name):
    model, guide = fit(name)
    whole = of_predictive(name, predicted(model, guide, 203))
    for elements in (1, 400, 3000):
        with pl.settings.using(draw_elements=elements):
            torch.testing.assert_close(of_predictive(name, predicted(model, guide, 203)), whole, rtol=1e-10, atol=1e-12)
    assert not torch.equal(of_predictive(name, predicted(model, guide, 204)), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_samples", [1, 5, 15, 16, 17, 203])
@pytest.mark.parametrize("elements", [1, 3, 7, 16, 21, 100])
def test_noise_is_the_same_in_chunks_of_any_size(num_samples, elements, dtype):
    root = torch.eye(elements, dtype=dtype).unsqueeze(0)
    drawn = []
    for budget in (1, 50, 1000, 10**9):
        with pl.settings.using(draw_elements=budget):
            pyro.set_rng_seed(0)
            parts = list(chunks_of_draws(root, num_samples))
            drawn.append(torch.cat(parts))
            assert all(part.numel() <= max(2 * budget, 2 * 16 * elements) for part in parts)
    assert drawn[0].shape == (num_samples, 1, elements)
    assert all(torch.equal(each, drawn[0]) for each in drawn)


@pytest.mark.parametrize("name", ["3 classes", "bernoulli"])
def test_no_more_draws_are_held_than_the_budget(name, monkeypatch):
    """Averages of classes go through draws some at a time."""
    model, guide = fit(name)
    likelihood = pl.likelihood.FAMILIES[type(OBSERVE[name][1](torch.zeros(1, 3))).__mro__[1]]
    seen, average = [], type(likelihood).average
    monkeypatch.setattr(
        type(likelihood),
        "average",
        lambda self, eta, *weights: seen.append(eta.numel()) or average(self, eta, *weights),
    )
    with pl.settings.using(draw_elements=700):
        predicted(model, guide, 2000)
    assert max(seen) <= max(2 * 700, 2 * 16 * 21)
    assert sum(seen) >= 2000 * 7


def test_single_precision_draws_are_single():
    torch.set_default_dtype(torch.float32)
    model, guide = fit("poisson")
    eta = pl.LinearizedPredictive(model, guide, num_samples=5)(X.float())["y"].eta
    torch.set_default_dtype(torch.float64)
    assert eta.dtype == torch.float32
