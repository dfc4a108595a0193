"""Links of a Gaussian predictor: formulas, limits, and the mixture's densities and moments."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_laplace.predictive.links import FunctionMixture, laplace_bridge, probit

pytestmark = pytest.mark.usefixtures("float64")


def gaussian(classes=4, batch=3, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    root = scale * torch.randn(batch, classes, classes + 1, generator=generator)
    return torch.randn(batch, classes, generator=generator), root @ root.mT


def test_probit_is_mackays_formula_and_leaves_a_certain_logit():
    assert float(probit(torch.tensor(2.0), torch.tensor(3.0))) == pytest.approx(2 / math.sqrt(1 + math.pi * 3 / 8))
    assert torch.equal(probit(torch.tensor(2.0), torch.tensor(0.0)), torch.tensor(2.0))


def test_probit_is_within_two_hundredths_of_quadrature():
    f, s = torch.linspace(-4, 4, 9)[:, None], torch.linspace(0.1, 4, 8)
    z = torch.linspace(-9, 9, 4001)
    exact = (torch.sigmoid(f[..., None] + s[:, None] * z) * torch.exp(-z * z / 2)).sum(-1) / torch.exp(-z * z / 2).sum()
    assert ((probit(f, s**2).sigmoid() - exact).abs() < 0.02).all()


@pytest.mark.parametrize("normalised", [False, True])
def test_bridge_conditions_on_logits_that_sum_to_zero(normalised):
    mean, covariance = gaussian()
    total = covariance.sum((1, 2))
    f = mean - covariance.sum(2) * (mean.sum(1) / total)[:, None]
    v = covariance.diagonal(dim1=1, dim2=2) - covariance.sum(2) ** 2 / total[:, None]
    torch.testing.assert_close(f.sum(1), torch.zeros(3), rtol=0, atol=1e-12)
    if normalised:
        scale = v.mean(1, keepdim=True) / math.sqrt(4 / 2)
        f, v = f / scale.sqrt(), v / scale
    alpha = (1 - 2 / 4 + f.exp() * (-f).exp().sum(1, keepdim=True) / 16) / v
    expected = alpha / alpha.sum(1, keepdim=True)
    torch.testing.assert_close(laplace_bridge(mean, covariance, normalised), expected, rtol=1e-10, atol=1e-12)


def test_bridge_without_variance_is_the_softmax():
    mean, covariance = gaussian()
    torch.testing.assert_close(laplace_bridge(mean, 0 * covariance), mean.softmax(-1))


def test_mixture_has_the_mean_density_and_the_moments_of_its_components():
    eta = torch.randn(40, 5, 1, generator=torch.Generator().manual_seed(2))
    mixture = FunctionMixture(eta, lambda at: dist.Poisson(at[..., 0].exp()))
    assert mixture.batch_shape == (5,)
    y = torch.arange(200.0)[:, None].expand(200, 5)
    density = mixture.log_prob(y).exp()
    expected = torch.stack([dist.Poisson(e[:, 0].exp()).log_prob(y).exp() for e in eta]).mean(0)
    torch.testing.assert_close(density, expected, rtol=1e-10, atol=1e-14)
    mean = (density * y).sum(0)
    torch.testing.assert_close(mixture.mean, mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mixture.variance, (density * y**2).sum(0) - mean**2, rtol=1e-8, atol=1e-8)


def test_mixture_draws_have_its_moments_and_go_with_events():
    eta = torch.randn(30, 4, 3, 1, generator=torch.Generator().manual_seed(2))
    mixture = FunctionMixture(eta, lambda at: dist.Poisson(at[..., 0].exp()).to_event(1))
    pyro.set_rng_seed(0)
    draws = mixture.sample((20000,))
    assert draws.shape == (20000, 4, 3)
    assert mixture.sample().shape == (4, 3)
    assert mixture.log_prob(draws[0]).shape == (4,)
    assert mixture.log_prob(draws[:6].reshape(2, 3, 4, 3)).shape == (2, 3, 4)
    assert ((draws.mean(0) - mixture.mean).abs() < 5 * (mixture.variance / 20000).sqrt()).all()
