"""Grids whose inner problems are far from Gaussian, against conjugate programs by quadrature."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

HOURS = torch.tensor([1.0, 4.0, 0.5, 2.0, 10.0, 1.0, 3.0, 0.7])
FAILURES = torch.tensor([0.0, 5.0, 0.0, 1.0, 3.0, 2.0, 0.0, 1.0])
SHAPE = 1.2


def pumps(hours, y=None):
    beta = pyro.sample("beta", dist.LogNormal(0.0, 1.0))
    with pyro.plate("pumps", len(hours)):
        rate = pyro.sample("rate", dist.Gamma(SHAPE, beta))
        pyro.sample("y", dist.Poisson(rate * hours), obs=y)


def log_marginal_of_pumps(log_beta):
    beta = log_beta.exp().unsqueeze(-1)
    counts = dist.GammaPoisson(torch.tensor(SHAPE), beta / HOURS)
    return counts.log_prob(FAILURES).sum(-1)


SUCCESSES = torch.tensor([0.0, 2, 2, 1, 0, 2, 0, 0, 2, 1, 2, 2, 0, 2, 0, 1])


def pairs(y):
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", len(y)):
        u = pyro.sample("u", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Binomial(2, logits=u), obs=y)


def log_marginal_of_pairs(log_tau):
    z = torch.linspace(-9.0, 9.0, 1801)
    log_p = dist.Binomial(2, logits=log_tau.exp().unsqueeze(-1) * z).log_prob(torch.arange(3.0)[:, None, None])
    each = (log_p + dist.Normal(0.0, 1.0).log_prob(z)).logsumexp(-1) + (z[1] - z[0]).log()
    return each[SUCCESSES.long()].sum(0)


class Quadrature:
    """The posterior of one log scale, whose prior is normal."""

    def __init__(self, log_marginal, mean: float) -> None:
        self.h = torch.linspace(-10.0, 14.0, 4801)
        log_p = log_marginal(self.h) + dist.Normal(mean, 1.0).log_prob(self.h)
        self.weights = log_p.softmax(0)
        self.log_evidence = float(log_p.logsumexp(0) + (self.h[1] - self.h[0]).log())

    def moments(self, mean, variance=0.0):
        """Mean and sd of what has these given h."""
        first = self.weights @ mean
        return first, (self.weights @ (mean.square() + variance) - first.square()).sqrt()


def plain(**options):
    """Without draws."""
    return pl.settings.using(correction_fewest=10_000, **options)


def test_rates_of_few_counts_are_as_by_quadrature():
    truth = Quadrature(log_marginal_of_pumps, 0.0)
    guide = pl.fit_nested_laplace(pumps, (HOURS, FAILURES), progress=False)
    assert guide.log_evidence == pytest.approx(truth.log_evidence, abs=0.05)
    draws = {name: value.log() for name, value in guide.sample_posterior(40_000).items()}
    mean, sd = truth.moments(truth.h)
    assert abs(draws["beta"].mean() - mean) < 0.06 * sd
    assert abs((draws["beta"].std() / sd).log()) < 0.06
    counts, beta = SHAPE + FAILURES, truth.h.exp().unsqueeze(-1)
    given_beta = counts.digamma() - (beta + HOURS).log()
    mean, sd = truth.moments(given_beta, torch.special.polygamma(1, counts).expand_as(given_beta))
    assert float(((draws["rate"].mean(0) - mean) / sd).abs().max()) < 0.1
    assert float((draws["rate"].std(0) / sd).log().abs().max()) < 0.12
    with plain(one_loop_coordinates=1):
        laplace = pl.fit_nested_laplace(pumps, (HOURS, FAILURES), progress=False)
    assert abs(laplace.log_evidence - truth.log_evidence) > 0.3
    rates = laplace.sample_posterior(40_000)["rate"].log()
    assert float((rates.std(0) / sd).log().abs().max()) > 0.2


def test_two_bernoulli_data_a_group_tell_their_spread():
    truth = Quadrature(log_marginal_of_pairs, 0.0)
    mean, sd = truth.moments(truth.h)
    errors = []
    for setting in (pl.settings.using(), plain()):
        with setting:
            guide = pl.fit_nested_laplace(pairs, (SUCCESSES,), progress=False)
        draws = guide.sample_posterior(40_000)["tau"].log()
        errors.append([float((draws.mean() - mean) / sd), guide.log_evidence - truth.log_evidence])
    assert max(map(abs, errors[0])) < 0.06
    assert min(map(abs, errors[1])) > 0.2


def test_draws_that_contradict_one_another_move_nothing():
    with plain():
        laplace = pl.fit_nested_laplace(pumps, (HOURS, FAILURES), progress=False)
    with pl.settings.using(correction_error=1e-12):
        guide = pl.fit_nested_laplace(pumps, (HOURS, FAILURES), progress=False)
    assert guide.log_evidence == laplace.log_evidence
    assert_close(guide.weights, laplace.weights)


def test_many_groups_are_left_to_laplace():
    """Of hundreds of skewed sites, one draw outweighs all others."""
    pyro.set_rng_seed(0)
    data = (torch.ones(150), torch.poisson(torch.full((150,), 0.4)))
    guides = []
    for setting in (pl.settings.using(), plain()):
        with setting:
            guides.append(pl.fit_nested_laplace(pumps, data, outer="grid", progress=False))
    assert_close(guides[0].weights, guides[1].weights)


def test_more_sites_than_quasi_random_numbers_have_axes_are_left_to_laplace(monkeypatch):
    monkeypatch.setattr(torch.quasirandom.SobolEngine, "MAXDIM", len(HOURS) - 1)
    guide = pl.fit_nested_laplace(pumps, (HOURS, FAILURES), progress=False)
    with plain():
        assert guide.log_evidence == pl.fit_nested_laplace(pumps, (HOURS, FAILURES), progress=False).log_evidence
