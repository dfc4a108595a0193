"""Importance weights against closed forms: Pareto tails, normal posteriors, known normalising constants."""

import math

import pytest
import torch
from arviz_stats.base.array import array_stats

from pyro_laplace.diagnostics.weights import Shift, Weights


@pytest.fixture(autouse=True)
def double(float64):
    """Everything here is compared with closed forms."""


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9, 1.5])
def test_khat_is_the_shape_of_a_pareto_tail(k):
    log_ratio = k * torch.distributions.Exponential(1.0).sample((40_000,))  # exp of it is Pareto with shape k
    weights = Weights.of(log_ratio)
    assert abs(weights.khat - k) < 0.1
    assert weights.trusted == (weights.khat <= 0.7)


def test_equals_arviz_on_the_same_ratios():
    log_ratio = 3 * torch.randn(1_000)
    weights = Weights.of(log_ratio)
    smoothed, khat = array_stats.psislw(-log_ratio.numpy())
    assert weights.khat == float(khat)
    torch.testing.assert_close(weights.normalised.log(), torch.as_tensor(smoothed))


def test_equal_weights_are_perfect():
    weights = Weights.of(torch.full((50,), -1e4))
    assert weights.khat == -math.inf
    assert weights.ess == pytest.approx(50)
    assert weights.log_mean == pytest.approx(-1e4)
    assert weights.log_mean_error < 1e-6


def test_draws_without_density_have_no_weight():
    finite = torch.randn(1_000)
    weights = Weights.of(torch.cat([finite, torch.tensor([math.nan, -math.inf])]))
    assert weights.normalised[-2:].tolist() == [0.0, 0.0]
    assert math.isfinite(weights.khat)
    assert weights.log_mean == pytest.approx(float(finite.logsumexp(0)) - math.log(1_002))


@pytest.mark.parametrize("finite", [1, 5])
def test_hardly_any_density_is_not_trusted(finite):
    ratio = torch.full((1_000,), -math.inf)
    ratio[:finite] = torch.randn(finite)
    assert not Weights.of(ratio).trusted


def test_no_density_at_all():
    weights = Weights.of(torch.full((100,), -math.inf))
    assert weights.khat == math.inf
    assert weights.normalised.sum() == pytest.approx(1.0)


def test_the_mean_weight_is_the_normalising_constant():
    """p = 3 Normal(0.3, 0.8) in place of a density, drawn from Normal(0, 1)."""
    x = torch.randn(40_000)
    log_p = math.log(3.0) + torch.distributions.Normal(0.3, 0.8).log_prob(x)
    weights = Weights.of(log_p - torch.distributions.Normal(0.0, 1.0).log_prob(x))
    assert abs(weights.log_mean - math.log(3.0)) < 4 * weights.log_mean_error
    assert weights.log_mean_error < 0.01


@pytest.mark.statistical
def test_moves_of_a_normal_posterior_and_their_errors():
    """From Normal(0, 1) to Normal(0.5, 0.8): the mean moves by 0.5 / 0.8, the deviation shrinks by 0.8."""
    truth, z_mean, z_std = torch.distributions.Normal(0.5, 0.8), [], []
    for _ in range(200):
        x = torch.randn(500, 1)
        log_ratio = (truth.log_prob(x) - torch.distributions.Normal(0.0, 1.0).log_prob(x))[:, 0]
        shift = Shift.by(Weights.of(log_ratio), x)
        z_mean.append(float((shift.mean - 0.625) / shift.mean_error))
        z_std.append(float((shift.log_std - math.log(0.8)) / shift.log_std_error))
    for z in (torch.tensor(z_mean), torch.tensor(z_std)):
        assert abs(float(z.mean())) < 0.5
        assert 0.7 < float(z.std()) < 1.4  # the errors are neither too small nor too large


@pytest.mark.statistical
def test_moves_by_other_draws():
    x, others = torch.randn(20_000, 1), 0.5 + 0.8 * torch.randn(20_000, 1)
    shift = Shift.between(x, Weights.of(torch.zeros(20_000)), others)
    assert abs(float(shift.mean) - 0.625) < 4 * float(shift.mean_error)
    assert abs(float(shift.log_std) - math.log(0.8)) < 4 * float(shift.log_std_error)
    expected = math.hypot(1 / 0.8, 1) / 20_000**0.5
    assert float(shift.mean_error) == pytest.approx(expected, rel=0.05)


def test_what_does_not_vary_does_not_move():
    values = torch.stack([torch.ones(100), torch.randn(100)], 1)
    shift = Shift.by(Weights.of(torch.randn(100)), values)
    assert shift.mean[0] == shift.mean_error[0] == shift.log_std[0] == 0.0
    assert shift.mean[1] != 0.0
