"""Empirical and Monte Carlo Fisher against naive sums of score outer products, one hand-written density a program."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from capture_programs import factors_of
from programs import Case, logistic, map_guide_at_theta, mlp_classifier, mlp_regression, normal, split
from pyro import poutine
from pyro.distributions import constraints
from torch.nn import functional
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace._compat import undisturbed
from pyro_laplace.curvature import CURVATURES, Pass, Point, likelihood_diagonal, likelihood_matrix
from pyro_laplace.data import as_data
from pyro_laplace.predictive.nonlinearity import nonlinearity
from pyro_laplace.program import Program

pytestmark = pytest.mark.usefixtures("float64")

assert_same = partial(assert_close, rtol=1e-9, atol=1e-9)

N = 12
EMPIRICAL, MONTE_CARLO = CURVATURES["empirical_fisher"], CURVATURES["mc_fisher"]


class Logistic(dist.TorchDistribution):
    """A density that no registry knows, and that cannot be drawn from."""

    arg_constraints: ClassVar = {"loc": constraints.real}
    support = constraints.real

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Logistic(self.loc.expand(batch_shape))

    def log_prob(self, value):
        z = value - self.loc
        return -z - 2 * functional.softplus(-z)


# --- programs, and the same densities by hand -----------------------------------------------------
# `density(theta, *data)` is log p(y_n | theta) [n]. Where a program scales or masks, `weight` says by how much.


def gaussian(y, loc, scale):
    return (
        -0.5 * ((y - loc) / scale) ** 2
        - torch.log(torch.as_tensor(scale))
        - 0.5 * torch.log(torch.tensor(2 * torch.pi))
    )


def known_scale(x, y):
    w = pyro.sample("w", normal(1.0, 4))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def unknown_scale(x, y):
    w, b = pyro.sample("w", normal(1.0, 4)), pyro.sample("b", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.sin(x @ w) + b, sigma), obs=y)


def two_heads(x, y):
    w, v = pyro.sample("w", normal(1.0, 4)), pyro.sample("v", normal(1.0, 4))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, (x @ v).exp()), obs=y)


def bernoulli(x, y):
    w, b = pyro.sample("w", normal(1.0, 4)), pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)


def network(x, y):
    w1, b1, w2 = (
        pyro.sample("w1", normal(1.0, 4, 3)),
        pyro.sample("b1", normal(1.0, 3)),
        pyro.sample("w2", normal(1.0, 3, 3)),
    )
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=torch.tanh(x @ w1 + b1) @ w2), obs=y)


def network_density(theta, x, y):
    w1, b1, w2 = theta[:12].reshape(4, 3), theta[12:15], theta[15:].reshape(3, 3)
    return (torch.tanh(x @ w1 + b1) @ w2).log_softmax(-1).gather(1, y[:, None])[:, 0]


def convolution(x, y):
    kernel, head = pyro.sample("kernel", normal(1.0, 2, 1, 2, 2)), pyro.sample("head", normal(1.0, 3, 18))
    hidden = torch.tanh(functional.conv2d(x.reshape(-1, 1, 2, 2), kernel, padding=1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=functional.linear(hidden.flatten(1), head)), obs=y)


def convolution_density(theta, x, y):
    kernel, head = theta[:8].reshape(2, 1, 2, 2), theta[8:].reshape(3, 18)
    hidden = torch.tanh(functional.conv2d(x.reshape(-1, 1, 2, 2), kernel, padding=1))
    return (hidden.flatten(1) @ head.T).log_softmax(-1).gather(1, y[:, None])[:, 0]


def poisson(x, y):
    w = pyro.sample("w", normal(1.0, 4))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson((x @ w).exp()), obs=y)


def student(x, y):
    w, sigma = pyro.sample("w", normal(1.0, 4)), pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.StudentT(4.0, x @ w, sigma), obs=y)


def student_density(theta, x, y):
    z = (y - x @ theta[:4]) / theta[4].exp()
    return -2.5 * torch.log1p(z**2 / 4) - theta[4]


def unregistered(x, y):
    w1, w2 = pyro.sample("w1", normal(1.0, 4, 3)), pyro.sample("w2", normal(1.0, 3))
    with pyro.plate("data", len(x)):
        pyro.sample("y", Logistic(torch.tanh(x @ w1) @ w2), obs=y)


def unregistered_density(theta, x, y):
    z = y - torch.tanh(x @ theta[:12].reshape(4, 3)) @ theta[12:]
    return -z - 2 * torch.log1p(torch.exp(-z))


def joint_outputs(x, y):
    w = pyro.sample("w", normal(1.0, 4, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.sin(x @ w), 0.3).to_event(1), obs=y)


def joint_density(theta, x, y):
    return gaussian(y, torch.sin(x @ theta.reshape(4, 2)), 0.3).sum(1)


def plated_outputs(x, y):
    w = pyro.sample("w", normal(1.0, 4, 2))
    with pyro.plate("data", len(x), dim=-2), pyro.plate("outputs", 2, dim=-1):
        pyro.sample("y", dist.Normal(torch.sin(x @ w), 0.3), obs=y)


def masked_entries(x, y):
    w = pyro.sample("w", normal(1.0, 4, 2))
    keep = torch.tensor([[True, False], [True, True], [False, False]]).repeat(N // 3, 1)[: len(x)]
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.sin(x @ w), 0.3).mask(keep).to_event(1), obs=y)


def masked_entries_density(theta, x, y):
    keep = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]).repeat(N // 3, 1)
    return (keep * gaussian(y, torch.sin(x @ theta.reshape(4, 2)), 0.3)).sum(1)


def masked_and_scaled(x, y):
    w, b = pyro.sample("w", normal(1.0, 4)), pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0), poutine.scale(scale=0.25):
        pyro.sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)


def scaled_student(x, y):
    w = pyro.sample("w", normal(1.0, 4))
    with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0), poutine.scale(scale=3.0):
        pyro.sample("y", dist.StudentT(4.0, x @ w, 0.5), obs=y)


def log_normal(x, y):
    w = pyro.sample("w", normal(1.0, 4))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.LogNormal(x @ w, 0.5), obs=y)


def indexed(x, y):
    effect = pyro.sample("effect", normal(1.0, 3))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(effect[(x[:, 0] > 0).long()], 0.5), obs=y)


def batch_statistics(x, y):
    w1, w2 = pyro.sample("w1", normal(1.0, 4, 3)), pyro.sample("w2", normal(1.0, 3, 3))
    hidden = x @ w1
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=(hidden - hidden.mean(0)) @ w2), obs=y)


def batch_statistics_density(theta, x, y):
    hidden = x @ theta[:12].reshape(4, 3)
    return ((hidden - hidden.mean(0)) @ theta[12:].reshape(3, 3)).log_softmax(-1).gather(1, y[:, None])[:, 0]


def single_datum(x, y):
    """No plate: the site is one datum with as many entries as there are rows."""
    w = pyro.sample("w", normal(1.0, 4))
    pyro.sample("y", dist.Normal(torch.sin(x @ w), 0.5).to_event(1), obs=y)


def logit_density(theta, x, y):
    logit = x @ theta[:4] + theta[4]
    return y * logit - torch.log1p(logit.exp())


@dataclass(frozen=True)
class Problem:
    model: Callable
    density: Callable
    label: str
    weight: float = 1.0
    captured: bool = True
    batches: bool = True


PROBLEMS = {
    "known_scale": Problem(known_scale, lambda t, x, y: gaussian(y, x @ t, 0.5), "real"),
    "unknown_scale": Problem(
        unknown_scale, lambda t, x, y: gaussian(y, torch.sin(x @ t[:4]) + t[4], t[5].exp()), "real"
    ),
    "two_heads": Problem(two_heads, lambda t, x, y: gaussian(y, x @ t[:4], (x @ t[4:]).exp()), "real"),
    "bernoulli": Problem(bernoulli, logit_density, "binary"),
    "network": Problem(network, network_density, "class"),
    "convolution": Problem(convolution, convolution_density, "class"),
    "poisson": Problem(poisson, lambda t, x, y: y * (x @ t) - (x @ t).exp(), "count"),
    "student": Problem(student, student_density, "real"),
    "unregistered": Problem(unregistered, unregistered_density, "real"),
    "joint_outputs": Problem(joint_outputs, joint_density, "pair"),
    "plated_outputs": Problem(
        plated_outputs, lambda t, x, y: gaussian(y, torch.sin(x @ t.reshape(4, 2)), 0.3).flatten(), "pair"
    ),
    "masked_entries": Problem(masked_entries, masked_entries_density, "pair", batches=False),
    "masked_and_scaled": Problem(masked_and_scaled, logit_density, "binary", weight=0.25),
    "scaled_student": Problem(
        scaled_student, lambda t, x, y: -2.5 * torch.log1p(((y - x @ t) / 0.5) ** 2 / 4), "real", weight=3.0
    ),
    "log_normal": Problem(log_normal, lambda t, x, y: gaussian(y.log(), x @ t, 0.5), "positive"),
    "indexed": Problem(indexed, lambda t, x, y: gaussian(y, t[(x[:, 0] > 0).long()], 0.5), "real"),
    "batch_statistics": Problem(batch_statistics, batch_statistics_density, "class", captured=False, batches=False),
    "single_datum": Problem(
        single_datum,
        lambda t, x, y: gaussian(y, torch.sin(x @ t), 0.5).sum(0, keepdim=True),
        "real",
        captured=False,
        batches=False,
    ),
}

MASKED = {"masked_and_scaled", "scaled_student"}


def data_of(problem, num_obs=N):
    generator = torch.Generator().manual_seed(1)
    x, pair = torch.randn(num_obs, 4, generator=generator), torch.randn(num_obs, 2, generator=generator)
    labels = {
        "real": pair[:, 0],
        "pair": pair,
        "positive": pair[:, 0].exp(),
        "binary": (pair[:, 0] > 0).double(),
        "class": torch.arange(num_obs) % 3,
        "count": torch.arange(num_obs).double() % 4,
    }
    return x, labels[problem.label]


def measured(problem, data):
    """The program, and a point of no importance."""
    program = Program.trace(problem.model, as_data(data))
    theta = 0.4 * torch.randn(program.num_params, generator=torch.Generator().manual_seed(2))
    return program, Point(theta, torch.arange(len(theta)))


def matrix(curvature, program, point, data):
    with undisturbed(), torch.no_grad():
        return likelihood_matrix(curvature, Pass(program, point, as_data(data)))


def diagonal(curvature, program, point, data):
    with undisturbed(), torch.no_grad():
        return likelihood_diagonal(curvature, Pass(program, point, as_data(data)))


def naive(name, theta, x, y):
    """sum_n w_n g_n g_n', a datum at a time."""
    problem = PROBLEMS[name]
    scores = torch.func.jacrev(lambda t: problem.density(t, x, y))(theta)  # n, p
    weights = problem.weight * ((x[:, 0] > 0).double() if name in MASKED else torch.ones(len(scores)))
    total = torch.zeros(len(theta), len(theta))
    for weight, score in zip(weights, scores, strict=True):
        total += weight * torch.outer(score, score)
    return total


# --- empirical Fisher -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_empirical_fisher_is_the_sum_of_score_outer_products(name):
    problem = PROBLEMS[name]
    data = data_of(problem)
    program, point = measured(problem, data)
    expected = naive(name, point.theta, *data)
    assert expected.abs().max() > 0.1
    assert_same(matrix(EMPIRICAL, program, point, data), expected)
    assert_same(diagonal(EMPIRICAL, program, point, data), expected.diagonal())
    for size in (1, 5) if problem.batches else ():
        assert_same(matrix(EMPIRICAL, program, point, split(data, size)), expected)
        assert_same(diagonal(EMPIRICAL, program, point, split(data, size)), expected.diagonal())


@pytest.mark.parametrize("name", PROBLEMS)
def test_captured_where_it_should_be(name):
    problem = PROBLEMS[name]
    data = as_data(data_of(problem))
    program, point = measured(problem, data_of(problem))
    (run, root), *_ = EMPIRICAL.roots(Pass(program, point, data))
    with undisturbed(), torch.no_grad():
        captured = factors_of(program, point, run.chunk, root)
    assert (captured is not None) == problem.captured
    if name == "unregistered":
        assert captured is not None
        assert not len(captured[0].dense_index)


@pytest.mark.parametrize("name", ["network", "two_heads", "unregistered"])
def test_empirical_fisher_of_a_subset_is_the_submatrix(name):
    problem = PROBLEMS[name]
    data = data_of(problem)
    program, point = measured(problem, data)
    last = list(program.layout.values())[-1]
    index = torch.arange(last.start, last.stop)
    expected = naive(name, point.theta, *data)[index][:, index]
    assert_same(matrix(EMPIRICAL, program, Point(point.theta, index), data), expected)


@pytest.mark.parametrize("name", ["network", "unregistered", "two_heads"])
def test_single_precision(name):
    problem = PROBLEMS[name]
    data = tuple(tensor.float() if tensor.is_floating_point() else tensor for tensor in data_of(problem))
    torch.set_default_dtype(torch.float32)
    program, point = measured(problem, data)
    found = matrix(EMPIRICAL, program, point, data)
    torch.set_default_dtype(torch.float64)
    assert point.theta.dtype == torch.float32
    assert found.dtype == torch.float64
    expected = naive(name, point.theta.double(), *data_of(problem))
    assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def several_terms(x, y):
    """Two observed sites, a factor in a plate, and a prior written as an observed site."""
    w = pyro.sample("w", normal(1.0, 4))
    pyro.sample("prior", dist.Normal(0.5, 2.0).expand_by([4]).to_event(1), obs=w)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)
        pyro.sample("z", dist.Poisson((x @ w).exp()), obs=(y > 0).double())
        pyro.factor("penalty", -((x @ w) ** 4))


@pytest.mark.parametrize("curvature", ["empirical_fisher", "mc_fisher"])
def test_factors_and_derived_sites_keep_their_hessian(curvature):
    data = x, y = data_of(PROBLEMS["known_scale"])
    program = Program.trace(several_terms, as_data(data))
    theta = 0.4 * torch.randn(4, generator=torch.Generator().manual_seed(2))
    point = Point(theta, torch.arange(4))
    z = (y > 0).double()
    exact = torch.func.hessian(lambda t: ((x @ t) ** 4).sum() + 0.5 * (((t - 0.5) / 2) ** 2).sum())(theta)
    found = matrix(CURVATURES[curvature], program, point, data) - exact
    if curvature == "empirical_fisher":
        scores = torch.func.jacrev(lambda t: torch.cat([gaussian(y, x @ t, 0.5), z * (x @ t) - (x @ t).exp()]))(theta)
        assert_same(found, scores.T @ scores)
    else:
        assert torch.linalg.eigvalsh(found).min() > -1e-9
        assert_same(diagonal(CURVATURES[curvature], program, point, data), (found + exact).diagonal())


@pytest.mark.parametrize("structure", ["full", "diag"])
def test_fit_adds_the_prior(structure):
    """Through the front door, at a point of the user's."""
    problem = PROBLEMS["student"]
    data = data_of(problem)
    case = Case(problem.model, data)
    theta = 0.4 * torch.randn(5, generator=torch.Generator().manual_seed(2))
    options = {"polish": False, "on_not_a_mode": "ignore", "structure": structure, "curvature": "empirical_fisher"}
    guide = pl.fit_laplace(case.model, data, map_guide_at_theta(case, theta), **options)
    expected = naive("student", theta, *data) + torch.eye(5)  # of w, and of log sigma ~ Normal(0, 1)
    assert_same(guide.precision.to_dense(), expected if structure == "full" else expected.diagonal().diag())


# --- Kronecker factors ----------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["empirical_fisher", "mc_fisher"])
@pytest.mark.parametrize("make", [mlp_classifier, mlp_regression])
def test_kron_of_one_datum_is_the_block_diagonal(make, curvature):
    """A datum's factors are its outer product; over labels they share the input."""
    case = make()
    case = Case(case.model, tuple(tensor[:1] for tensor in case.data))
    theta = 0.4 * torch.randn(case.flat.size, generator=torch.Generator().manual_seed(2))
    options = {"polish": False, "on_not_a_mode": "ignore", "curvature": curvature}
    prec = {}
    for structure in ("full", "kron"):
        pyro.set_rng_seed(3)
        guide = pl.fit_laplace(case.model, case.data, map_guide_at_theta(case, theta), structure=structure, **options)
        prec[structure] = guide.precision.to_dense()
    layout = case.flat.layout
    for sites in (("w1", "b1"), ("w2", "b2")):
        index = torch.cat([torch.arange(layout[name].start, layout[name].stop) for name in sites])
        assert_same(prec["kron"][index][:, index], prec["full"][index][:, index])


@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher"])
def test_kron_does_not_see_masked_data(curvature):
    x, y = data_of(PROBLEMS["network"])
    keep = torch.arange(N) % 3 != 0

    def masked(x, y, keep):
        w1, w2 = pyro.sample("w1", normal(1.0, 4, 3)), pyro.sample("w2", normal(1.0, 3, 3))
        with pyro.plate("data", len(x)), poutine.mask(mask=keep):
            pyro.sample("y", dist.Categorical(logits=torch.tanh(x @ w1) @ w2), obs=y)

    values = {"w1": 0.5 * x[:4, :3], "w2": 0.5 * x[4:7, :3]}
    options = {"polish": False, "on_not_a_mode": "ignore", "curvature": curvature, "structure": "kron"}
    everything = {"x": x, "y": y, "keep": keep}
    kept = {"x": x[keep], "y": y[keep], "keep": keep[keep]}
    found, expected = (
        pl.fit_laplace(masked, data, values, **options).precision.to_dense() for data in (everything, kept)
    )
    assert_same(found, expected)


# --- Monte Carlo Fisher ---------------------------------------------------------------------------


def test_scores_of_every_label_average_to_the_fisher_information():
    """Bernoulli labels can be enumerated: sum_y p(y) g_y g_y' is the GGN."""
    x, _ = data_of(PROBLEMS["bernoulli"])
    theta = 0.4 * torch.randn(5, generator=torch.Generator().manual_seed(2))
    point = Point(theta, torch.arange(5))
    probs = torch.sigmoid(x @ theta[:4] + theta[4])

    def weighted(x, y):
        with poutine.scale(scale=torch.where(y == 1, probs, 1 - probs)):
            bernoulli(x, y)

    total = torch.zeros(5, 5)
    for label in (torch.ones(N), torch.zeros(N)):
        # the weight multiplies the latent sites' density too, which is no part of the likelihood's curvature
        program = Program.trace(poutine.block(weighted, hide=[]), as_data((x, label)))
        total += matrix(EMPIRICAL, program, point, (x, label))
    inputs = torch.cat([x, torch.ones(N, 1)], 1)
    assert_same(total, inputs.T @ ((probs * (1 - probs))[:, None] * inputs))


def mean_and_error(program, point, data, draws):
    found = torch.stack([matrix(replace(MONTE_CARLO, seed=10_000 * s), program, point, data) for s in range(draws)])
    return found.mean(0), found.std(0) / draws**0.5


@pytest.mark.statistical
@pytest.mark.parametrize(
    "name", ["unknown_scale", "bernoulli", "network", "poisson", "joint_outputs", "masked_and_scaled", "log_normal"]
)
def test_mc_fisher_is_unbiased(name, monkeypatch):
    monkeypatch.setattr("pyro_laplace.curvature.mc_fisher.LABELS", 50)
    problem = PROBLEMS[name]
    data = data_of(problem)
    program, point = measured(problem, data)
    mean, error = mean_and_error(program, point, split(data, 6), draws=16)
    expected = matrix(CURVATURES["ggn"], program, point, data)
    assert error.max() < 0.1 * expected.abs().max()
    assert ((mean - expected).abs() <= 5 * error + 1e-9).all()


@pytest.mark.statistical
def test_mc_fisher_of_student_t_is_its_fisher_information():
    """I = (nu + 1) / (nu + 3) / scale^2 of the loc (Lange et al. 1989), 2 nu / (nu + 3) of the log scale."""
    problem = PROBLEMS["student"]
    data = x, _ = data_of(problem)
    program, point = measured(problem, data)
    mean, error = mean_and_error(program, point, data, draws=100)
    expected = torch.zeros(5, 5)
    expected[:4, :4] = 5 / 7 * (-2 * point.theta[4]).exp() * x.T @ x
    expected[4, 4] = N * 8 / 7
    assert ((mean - expected).abs() <= 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("name", ["unknown_scale", "network", "student", "plated_outputs", "batch_statistics"])
def test_captured_and_dense_paths_and_the_diagonal_see_the_same_labels(name):
    problem = PROBLEMS[name]
    data = data_of(problem)
    program, point = measured(problem, data)
    curvature = MONTE_CARLO.drawn()
    batches = split(data, 6)
    found = matrix(curvature, program, point, batches)
    assert_same(diagonal(curvature, program, point, batches), found.diagonal())
    total = torch.zeros(2 * [len(point.theta)])
    for _, root in curvature.roots(Pass(program, point, as_data(batches))):
        with undisturbed():
            rows = torch.func.jacrev(root)(point.theta)
        total += rows.T @ rows
    assert_same(found, total)


def fitted_precision(curvature):
    case = logistic()
    theta = 0.4 * torch.randn(case.flat.size, generator=torch.Generator().manual_seed(2))
    options = {"polish": False, "on_not_a_mode": "ignore", "curvature": curvature}
    start = map_guide_at_theta(case, theta)
    before = torch.random.get_rng_state()
    guide = pl.fit_laplace(case.model, case.data, start, **options)
    return guide.precision.to_dense(), bool((torch.random.get_rng_state() == before).all())


def test_mc_fisher_is_a_draw_from_the_users_generator():
    pyro.set_rng_seed(5)
    first, untouched = fitted_precision("mc_fisher")
    second, _ = fitted_precision("mc_fisher")
    pyro.set_rng_seed(5)
    again, _ = fitted_precision("mc_fisher")
    assert not untouched
    assert torch.equal(again, first)
    assert (second - first).abs().max() > 1e-3


@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher", "hessian"])
def test_the_others_draw_nothing(curvature):
    assert fitted_precision(curvature)[1]


def test_a_distribution_without_draws_is_refused():
    problem = PROBLEMS["unregistered"]
    data = data_of(problem)
    case = Case(problem.model, data)
    start = map_guide_at_theta(case, torch.zeros(15))
    with pytest.raises(pl.UnsupportedProgram, match=r"'mc_fisher'.*'y'.*Logistic.*'empirical_fisher'"):
        pl.fit_laplace(case.model, data, start, curvature="mc_fisher", polish=False)


@pytest.mark.parametrize("curvature", ["empirical_fisher", "mc_fisher"])
def test_a_linear_program_counts_as_linear(curvature):
    data = data_of(PROBLEMS["student"])
    for model in (known_scale, student):
        pyro.clear_param_store()
        guide = pl.fit_laplace(model, data, curvature=curvature, progress=False)
        assert nonlinearity(model, guide, as_data(data)) < 1e-6
