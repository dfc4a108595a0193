"""The Monte Carlo Fisher against Fisher information, over every label or over many, and the labels it draws."""

from dataclasses import replace

import pyro
import pytest
import torch
from programs.fisher import (
    EMPIRICAL,
    MONTE_CARLO,
    PROBLEMS,
    N,
    assert_same,
    bernoulli,
    data_of,
    diagonal,
    matrix,
    measured,
)
from programs.zoo import Case, logistic, map_guide_at_theta, split
from pyro import poutine

import pyro_laplace as pl
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import as_data
from pyro_laplace.program.program import Program

pytestmark = pytest.mark.usefixtures("float64")


def test_scores_of_every_label_average_to_the_fisher_information():
    """Bernoulli labels can be enumerated: sum_y p(y) g_y g_y' is the GGN."""
    x, _ = data_of(PROBLEMS["bernoulli"])
    theta = 0.4 * torch.randn(5, generator=torch.Generator().manual_seed(2))
    probs = torch.sigmoid(x @ theta[:4] + theta[4])

    def weighted(x, y):
        with poutine.scale(scale=torch.where(y == 1, probs, 1 - probs)):
            bernoulli(x, y)

    total = torch.zeros(5, 5)
    for label in (torch.ones(N), torch.zeros(N)):
        # the weight multiplies the latent sites' density too, which is no part of the likelihood's curvature
        program = Program.trace(poutine.block(weighted, hide=[]), as_data((x, label)))
        total += matrix(EMPIRICAL, program, Anchor(theta, torch.arange(5), program.latents), (x, label))
    inputs = torch.cat([x, torch.ones(N, 1)], 1)
    assert_same(total, inputs.T @ ((probs * (1 - probs))[:, None] * inputs))


def mean_and_error(program, point, data, draws):
    found = torch.stack([matrix(replace(MONTE_CARLO, seed=10_000 * s), program, point, data) for s in range(draws)])
    return found.mean(0), found.std(0) / draws**0.5


@pytest.mark.statistical
@pytest.mark.parametrize(
    "name", ["unknown_scale", "bernoulli", "network", "poisson", "joint_outputs", "masked_and_scaled", "log_normal"]
)
def test_mc_fisher_is_unbiased(name):
    problem = PROBLEMS[name]
    data = data_of(problem)
    program, point = measured(problem, data)
    with pl.settings.using(mc_labels=50):
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
    first = 0
    for chunk in program.chunks(as_data(batches)):
        with undisturbed():
            run = CapturedRun.make(program, point, chunk)
            rows = torch.func.jacrev(curvature.root(program, run.run, chunk, first))(point.theta)
        total, first = total + rows.T @ rows, first + run.num_data
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
