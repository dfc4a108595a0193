"""Proposals against torch's own densities."""

import math

import pytest
import torch
from pyro.distributions import MultivariateStudentT

from pyro_laplace.proposals.blend import Blend
from pyro_laplace.proposals.ellipses import Ellipse, Scaled, Triangular

THETA = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
INDEX = torch.tensor([0, 2, 3])


@pytest.fixture
def root(float64):
    """A lower triangle over the three free coordinates."""
    torch.manual_seed(1)
    return torch.randn(3, 3).tril(-1) + torch.diag(torch.tensor([0.5, 1.0, 2.0]))


def points(count: int = 6) -> torch.Tensor:
    theta = THETA.repeat(count, 1)
    theta[:, INDEX] += torch.randn(count, 3)
    return theta


def test_densities_are_torchs(root):
    theta, ellipse = points(), Ellipse(THETA, INDEX, Triangular(root))
    normal = torch.distributions.MultivariateNormal(THETA[INDEX], scale_tril=root)
    torch.testing.assert_close(ellipse.log_prob(theta), normal.log_prob(theta[:, INDEX]))
    student = MultivariateStudentT(5.0, THETA[INDEX], root)
    torch.testing.assert_close(ellipse.heavy().log_prob(theta), student.log_prob(theta[:, INDEX]))


def test_stretched_coordinates(root):
    factor = torch.tensor([2.0, 0.5, 3.0])
    theta, stretched = points(), Ellipse(THETA, INDEX, Scaled(Triangular(root), factor))
    normal = torch.distributions.MultivariateNormal(THETA[INDEX], scale_tril=factor.diag() @ root)
    torch.testing.assert_close(stretched.log_prob(theta), normal.log_prob(theta[:, INDEX]))
    torch.testing.assert_close(stretched.precision.variance(), normal.variance)


def test_held_coordinates_have_to_be_the_own(root):
    other = points()
    other[0, 1] += 1e-3
    log_p = Ellipse(THETA, INDEX, Triangular(root)).log_prob(other)
    assert log_p[0] == -math.inf
    assert log_p[1:].isfinite().all()


@pytest.mark.statistical
@pytest.mark.parametrize("heavy", [False, True])
def test_draws_have_the_density(root, heavy):
    ellipse = Ellipse(THETA, INDEX, Triangular(root))
    ellipse = ellipse.heavy() if heavy else ellipse
    draws = ellipse.draw(100_000)
    assert (draws[:, 1] == THETA[1]).all()
    inflated = 5 / 3 if heavy else 1.0  # df / (df - 2)
    torch.testing.assert_close(draws[:, INDEX].mean(0), THETA[INDEX], atol=0.03, rtol=0)
    torch.testing.assert_close(draws[:, INDEX].mT.cov(), inflated * root @ root.mT, atol=0.05, rtol=0.05)


@pytest.mark.statistical
def test_a_blend_is_drawn_in_its_proportions(root):
    far = Ellipse(THETA + 100.0, INDEX, Triangular(root))
    far = Ellipse(torch.where(torch.arange(4) == 1, THETA, far.theta), INDEX, far.precision)
    blend = Blend([(1.0, Ellipse(THETA, INDEX, Triangular(root)))]).joined(Blend([(1.0, far)]), 0.25)
    draws = blend.draw(1_000)
    assert len(draws) == 1_000
    assert (draws[:, 0] > 50).sum() == 250
    torch.testing.assert_close(blend.log_prob(draws[-1:]), math.log(0.25) + far.log_prob(draws[-1:]))


def test_moments_are_matched(root):
    theta, weight = points(4_000), torch.rand(4_000)
    weight /= weight.sum()
    free = theta[:, INDEX]
    mean = weight @ free
    covariance = (weight[:, None] * (free - mean)).mT @ (free - mean)
    matched = Ellipse(THETA, INDEX, Triangular(root)).matched(theta, weight)
    torch.testing.assert_close(matched.theta[INDEX], mean)
    torch.testing.assert_close(matched.precision.scale_tril @ matched.precision.scale_tril.mT, covariance)
    few = torch.zeros(4_000)
    few[:5] = 0.2
    scaled = Ellipse(THETA, INDEX, Triangular(root)).matched(theta, few)
    torch.testing.assert_close(scaled.precision.variance(), free[:5].var(0, correction=0))
