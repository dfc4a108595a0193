"""The references held against one another, before anything is held against them."""

import math

import pytest
import torch
from oracles import naive as oracles
from oracles.naive import pyro_laplace_at
from programs import zoo as programs
from torch.testing import assert_close

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("num_obs", [1, 7, 300])
def test_linear_regression_is_the_laplace_approximation_of_its_program(num_obs):
    x, y = programs.linear_data(num_obs)
    exact = oracles.linear_regression(x, y, noise=0.7, prior_std=1.3)
    flat = oracles.FlatProgram(programs.linear_model(0.7, 1.3), x, y)
    mode = flat.mode()
    assert_close(mode, exact.mean)
    assert_close(flat.hessian(mode), exact.prec)
    assert_close(flat.ggn(mode), exact.prec)
    assert flat.laplace_evidence(mode, exact.prec) == pytest.approx(exact.log_evidence, rel=1e-10)


def test_both_ways_to_the_evidence_of_a_linear_regression_agree():
    x, y = programs.linear_data(200)
    in_data_space = oracles.linear_regression(x, y, 0.7, 1.3).log_evidence
    doubled = oracles.linear_regression(torch.cat([x, 0 * x[:1]]), torch.cat([y, y.new_zeros(1)]), 0.7, 1.3)
    zero_given_zero = -0.5 * math.log(2 * math.pi * 0.7**2)
    assert doubled.log_evidence == pytest.approx(in_data_space + zero_given_zero, rel=1e-10)


@pytest.mark.parametrize("make", programs.CANONICAL)
def test_ggn_is_the_hessian_of_canonical_likelihoods(make):
    case = make()
    theta = programs.some_theta(case)
    assert_close(case.flat.ggn(theta), case.flat.hessian(theta))


@pytest.mark.parametrize("make", programs.OTHERS)
def test_ggn_is_not_the_hessian_of_others(make):
    if make in (programs.logistic_probs, programs.softmax_probs, programs.masked, programs.masked_fn):
        pytest.skip("canonical, said otherwise")
    case = make()
    theta = programs.some_theta(case)
    ggn = case.flat.ggn(theta)
    assert torch.linalg.eigvalsh(ggn).min() > 0
    assert (ggn - case.flat.hessian(theta)).abs().max() > 1e-3


@pytest.mark.parametrize("make", [programs.logistic, programs.gamma_poisson, programs.linear_unknown_noise])
def test_hessian_agrees_with_pyro(make):
    case = make()
    mode = case.flat.mode()
    loc, cov = pyro_laplace_at(case.model, case.flat.constrain(mode)[0], *case.data)
    assert_close(loc, mode, rtol=1e-8, atol=1e-8)
    assert_close(cov, torch.linalg.inv(case.flat.hessian(mode)), rtol=1e-8, atol=1e-8)
