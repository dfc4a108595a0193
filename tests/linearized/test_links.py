"""Links of a Gaussian predictor: formulas, limits, and the mixture's densities and moments."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_laplace.likelihood.links import laplace_bridge, probit
from pyro_laplace.likelihood.mixture import FunctionMixture

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


@pytest.mark.parametrize("normalised", [False, True])
def test_bridge_without_variance_is_the_softmax(normalised):
    mean, covariance = gaussian()
    torch.testing.assert_close(laplace_bridge(mean, 0 * covariance, normalised), mean.softmax(-1))


@pytest.mark.parametrize("normalised", [False, True])
def test_bridge_of_logits_along_one_direction_is_the_softmax(normalised):
    """Given their sum, such logits vary no more."""
    generator = torch.Generator().manual_seed(1)
    mean, direction = torch.randn(2, 200, 3, generator=generator)
    covariance = direction[:, :, None] * direction[:, None]
    torch.testing.assert_close(laplace_bridge(mean, covariance, normalised), mean.softmax(-1))


def test_normalised_bridge_of_nearly_certain_logits_is_finite():
    mean = torch.tensor([[1.0, 0.0, -1.0]])
    assert laplace_bridge(mean, 1e-8 * torch.eye(3), normalised=True).isfinite().all()


def as_gaussian(alpha):
    """The Laplace approximation of a Dirichlet in the softmax basis (Hobbhahn et al. 2022, equation 3; MacKay 1998)."""
    classes, inverse = alpha.shape[-1], 1 / alpha
    mean = alpha.log() - alpha.log().mean(-1, keepdim=True)
    pairs = inverse[..., None] + inverse[..., None, :] - inverse.mean(-1)[..., None, None]
    return mean, inverse.diag_embed() - pairs / classes


@pytest.mark.parametrize("shift", [0.0, 2.0])
@pytest.mark.parametrize("concentration", [1.0, 10.0, 1e8])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_bridge_of_a_dirichlet_is_its_mean(classes, concentration, shift):
    """Its inverse is exact; that of a large concentration, which has no variance, is the softmax of the logits."""
    alpha = concentration * (0.2 + torch.rand(5, classes, generator=torch.Generator().manual_seed(1)))
    mean, covariance = as_gaussian(alpha)
    found = laplace_bridge(mean, covariance + shift)  # a variance of what all logits share
    torch.testing.assert_close(found, alpha / alpha.sum(-1, keepdim=True), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found, mean.softmax(-1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("variance", [1e-6, 1.0, 30.0])
def test_bridge_of_equal_variances_does_not_see_them(variance):
    """``alpha_k ~ 1 - 2/K + exp(f_k) sum_l exp(-f_l) / K^2``: the softmax of two classes, and of no more."""
    for classes in (2, 3, 10):
        mean, _ = gaussian(classes)
        found = laplace_bridge(mean, variance * torch.eye(classes).expand(3, -1, -1))
        alpha = 1 - 2 / classes + (mean[:, :, None] - mean[:, None]).exp().sum(-1) / classes**2
        torch.testing.assert_close(found, alpha / alpha.sum(-1, keepdim=True))
        far = float((found - mean.softmax(-1)).abs().max())
        assert far < 1e-9 if classes == 2 else far > 0.05


def test_normalised_bridge_of_small_variances_is_the_likeliest_class():
    """Its logits are measured in standard deviations: it leaves the softmax as the variance falls, unless to zero."""
    mean = torch.tensor([[1.0, 0.2, -1.0]])
    found = laplace_bridge(mean, 1e-4 * torch.eye(3)[None], normalised=True)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("normalised", [False, True])
def test_bridge_goes_with_a_permutation_of_the_classes(normalised):
    mean, covariance = gaussian(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    found = laplace_bridge(mean[:, order], covariance[:, order][:, :, order], normalised)
    torch.testing.assert_close(found, laplace_bridge(mean, covariance, normalised)[:, order])


# Independent logits of one variance, three classes: the largest error of a probability against the mean of 100,000
# softmaxes, on average over 40 problems with means of N(0, 1.5^2). Measured: bridge 0.081, 0.073, 0.042, 0.125, 0.247;
# normalised 0.288, 0.219, 0.057, 0.056, 0.032; probit 0.000, 0.003, 0.019, 0.035, 0.017.
ERRORS = {0.01: (0.11, 0.4), 0.1: (0.11, 0.3), 1.0: (0.07, 0.1), 10.0: (0.18, 0.09), 100.0: (0.35, 0.07)}


@pytest.mark.parametrize("variance", ERRORS)
def test_bridges_against_monte_carlo(variance):
    """The normalised bridge is for large variances (Hobbhahn et al. 2022, section 3), and pays for it at small ones."""
    generator = torch.Generator().manual_seed(3)
    mean = 1.5 * torch.randn(40, 3, generator=generator)
    noise = variance**0.5 * torch.randn(100_000, 3, generator=generator)
    exact = torch.stack([(f + noise).softmax(-1).mean(0) for f in mean])
    covariance = variance * torch.eye(3).expand(40, -1, -1)

    def error(probs):
        torch.testing.assert_close(probs.sum(-1), torch.ones(40))
        return float((probs - exact).abs().amax(-1).mean())

    plain, normalised = (error(laplace_bridge(mean, covariance, n)) for n in (False, True))
    assert plain < ERRORS[variance][0]
    assert normalised < ERRORS[variance][1]
    assert (normalised < plain) == (variance >= 10)
    assert error(probit(mean, torch.full_like(mean, variance)).softmax(-1)) < min(0.06, plain, normalised)


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


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda at: dist.Gamma(at[..., 0].exp(), 1.0), "FunctionMixture(Gamma, batch_shape=[4, 3], draws=30)"),
        (
            lambda at: dist.Poisson(at[..., 0].exp()).to_event(1),
            "FunctionMixture(Poisson, batch_shape=[4], event_shape=[3], draws=30)",
        ),
        (
            lambda at: dist.LogNormal(at[..., 0], 1.0).mask(torch.ones(3, dtype=torch.bool)).to_event(2),
            "FunctionMixture(LogNormal, batch_shape=[], event_shape=[4, 3], draws=30)",
        ),
    ],
    ids=["batch", "event", "wrapped"],
)
def test_mixture_says_what_it_mixes(make, expected):
    eta = torch.randn(30, 4, 3, 1, generator=torch.Generator().manual_seed(2))
    assert repr(FunctionMixture(eta, make)) == expected


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
