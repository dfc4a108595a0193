"""Mixtures of many ellipses against each part by itself, by torch's own densities and naive moments."""

import math

import pytest
import torch
from pyro.distributions import MultivariateStudentT
from torch.distributions import MultivariateNormal

import pyro_laplace as pl
from pyro_laplace.proposals.blend import Blend
from pyro_laplace.proposals.ellipses import Ellipse, Scaled, Triangular

SIZE, PARTS = 4, 14
EVERY = torch.arange(SIZE)


@pytest.fixture(autouse=True)
def double(float64):
    """Everything is in double precision."""
    torch.manual_seed(0)


def roots() -> list[torch.Tensor]:
    """Lower triangles, of very different sizes."""
    size = torch.logspace(-1.0, 1.0, PARTS)
    return [each * (0.3 * torch.randn(SIZE, SIZE).tril(-1) + torch.diag(torch.rand(SIZE) + 0.5)) for each in size]


def parts_of(triangles, centres) -> list[tuple[float, Ellipse]]:
    shares = torch.rand(PARTS).softmax(0).tolist()
    ellipses = [Ellipse(c, EVERY, Triangular(root)) for c, root in zip(centres, triangles, strict=True)]
    return list(zip(shares, ellipses, strict=True))


def log_terms(parts, theta) -> torch.Tensor:
    """Part by part."""
    found = []
    for share, each in parts:
        root = each.precision.scale_tril
        one = MultivariateNormal(each.theta, scale_tril=root)
        if each.df < math.inf:
            one = MultivariateStudentT(float(each.df), each.theta, root)
        found.append(math.log(share) + one.log_prob(theta))
    return torch.stack(found)


def test_the_density_of_many_parts_is_torchs():
    own = Blend(parts_of(roots(), 3.0 * torch.randn(PARTS, SIZE)))
    blend = own.joined(Blend([(share, each.heavy()) for share, each in own.parts]), 0.25)
    theta = torch.cat([blend.draw(300), 30.0 * torch.randn(50, SIZE)])
    expected = log_terms(blend.parts, theta)
    torch.testing.assert_close(blend.log_terms(theta), expected, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(blend.log_prob(theta), expected.logsumexp(0), rtol=1e-11, atol=1e-9)
    with pl.settings.using(streamed_elements=64, together_elements=64):  # a few rows and parts at a time
        torch.testing.assert_close(Blend(blend.parts).log_prob(theta), expected.logsumexp(0), rtol=1e-11, atol=1e-9)


def test_a_part_that_is_narrow_and_far_away_loses_no_digits():
    """Its square, about one, would be the difference of numbers of 1e20."""
    triangles, centres = roots(), 3.0 * torch.randn(PARTS, SIZE)
    triangles[5], centres[5] = 1e-7 * triangles[5], centres[5] + 1e3
    blend = Blend(parts_of(triangles, centres))
    theta = centres[5] + torch.randn(40, SIZE) @ triangles[5].mT
    white = torch.linalg.solve_triangular(triangles[5], (theta - centres[5]).mT, upper=False)
    log_det = float(triangles[5].diagonal().log().sum())
    expected = -0.5 * white.square().sum(0) - log_det - 0.5 * SIZE * math.log(2 * math.pi)
    torch.testing.assert_close(blend.log_terms(theta)[5], expected + math.log(blend.parts[5][0]), rtol=0, atol=1e-6)


def test_held_coordinates_have_to_be_those_of_a_part():
    index = torch.tensor([0, 2, 3])
    triangles = [root[:3, :3] for root in roots()]
    centres = torch.randn(PARTS, SIZE)
    parts = [(1 / PARTS, Ellipse(c, index, Triangular(root))) for c, root in zip(centres, triangles, strict=True)]
    theta = centres[3] + torch.tensor([0.5, 0.0, -0.5, 1.0])
    terms = Blend(parts).log_terms(theta.unsqueeze(0))[:, 0]
    one = MultivariateNormal(centres[3][index], scale_tril=triangles[3]).log_prob(theta[index]) - math.log(PARTS)
    torch.testing.assert_close(terms[3], one)
    assert (terms.isfinite().nonzero()[:, 0] == torch.tensor([3])).all()


def test_each_part_is_matched_to_its_share_of_the_draws():
    """One has draws enough for a covariance, most for variances alone, and of one a single draw is left."""
    triangles, centres = roots(), 2.0 * torch.randn(PARTS, SIZE)
    centres[7] += 50.0  # with draws of its own alone
    own = Blend(parts_of(triangles, centres))
    theta = torch.cat([own.draw(4000), centres[9] + 200.0 + torch.randn(1, SIZE)])
    weight = torch.rand(len(theta)).softmax(0)
    terms = log_terms(own.parts, theta)
    terms[9] = -math.inf
    terms[:, -1], terms[9, -1] = -math.inf, 0.0
    weight[-1] = 0.01
    weight = weight / weight.sum()
    matched = own.matched(theta, weight, terms)
    shares = weight * terms.softmax(0)
    total = shares.sum(1)
    assert len(matched.parts) == int((total > pl.settings.least_share).sum()) > 8
    kept = [place for place in range(PARTS) if float(total[place]) > pl.settings.least_share]
    whole = 0
    for place, (share, each) in zip(kept, matched.parts, strict=True):
        assert share == pytest.approx(float(total[place] / total[kept].sum()))
        w = shares[place] / total[place]
        if place == 9:
            assert each is own.parts[9][1]  # a single draw has no variance
            continue
        mean = (w.unsqueeze(-1) * theta).sum(0)
        covariance = torch.einsum("d, dp, dq -> pq", w, theta - mean, theta - mean)
        torch.testing.assert_close(each.theta, mean)
        torch.testing.assert_close(each.precision.variance(), covariance.diagonal(), rtol=1e-7, atol=0)
        if isinstance(each.precision, Triangular):
            torch.testing.assert_close(each.precision.scale_tril @ each.precision.scale_tril.mT, covariance)
            whole += 1
        else:
            assert isinstance(each.precision, Scaled)
            assert each.precision.inner is own.parts[place][1].precision
    assert whole > 0


def test_variances_that_cancel_are_those_of_the_part_alone():
    """A hundred draws within 1e-6 of a point that is 1e5 away from all others."""
    triangles, centres = roots(), 2.0 * torch.randn(PARTS, SIZE)
    own = Blend(parts_of(triangles, centres))
    near = 1e5 + 1e-6 * torch.randn(100, SIZE)
    theta = torch.cat([own.draw(500), near])
    terms = torch.full((PARTS, 600), -math.inf)
    terms[0, :500], terms[1, 500:] = 0.0, 0.0
    with pl.settings.using(match_draws=10_000):  # variances alone
        fitted = own.matched(theta, torch.full((600,), 1 / 600), terms).parts[1][1]
    torch.testing.assert_close(fitted.precision.variance(), near.var(0, correction=0), rtol=1e-3, atol=0)
