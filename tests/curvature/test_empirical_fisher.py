"""The empirical Fisher against naive sums of score outer products, one hand-written density a program."""

import pytest
import torch
from programs.captured import factors_of
from programs.fisher import EMPIRICAL, PROBLEMS, assert_same, data_of, diagonal, matrix, measured, naive
from programs.zoo import Case, map_guide_at_theta, split
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.data import as_data

pytestmark = pytest.mark.usefixtures("float64")


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
    with undisturbed(), torch.no_grad():
        chunk = next(program.chunks(data))
        root = EMPIRICAL.root(program, CapturedRun.make(program, point, chunk).run, chunk)
        captured = factors_of(program, point, chunk, root)
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
    assert_same(matrix(EMPIRICAL, program, Anchor(point.theta, index, program.latents), data), expected)


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
