"""`importance_resample`: closed forms, quadrature, what takes its draws, and when it does not call itself exact."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.judged import TWO_PARAMETERS, Judged, few_residuals, glm, linear_gaussian, network, schools
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

import pyro_laplace as pl
from pyro_laplace.data import as_data
from pyro_laplace.program.program import Program


@pytest.fixture(autouse=True)
def double(float64):
    """Everything here is compared with closed forms."""


def quadrature(case: Judged) -> tuple[float, dict[str, tuple[float, float]]]:
    """Log p(y), and mean and deviation of each of two latent numbers, on a fine grid of the unconstrained plane."""
    program = Program.trace(case.model, as_data(case.data))
    (chunk,) = program.chunks(as_data(case.data))
    line = torch.linspace(-12.0, 12.0, 801)
    theta = torch.cartesian_prod(line, line)
    with pyro.validation_enabled(False):
        log_p = torch.func.vmap(lambda row: program.log_joint(row, chunk))(theta)
    log_p = torch.where(log_p.isnan(), -math.inf, log_p)
    log_evidence = float(log_p.logsumexp(0)) + 2 * math.log(float(line[1] - line[0]))
    weight = log_p.softmax(0)
    found = {}
    for name, value in program.unpack(theta).items():
        mean = float(weight @ value)
        found[name] = mean, float(weight @ (value - mean).square()) ** 0.5
    return log_evidence, found


@pytest.mark.statistical
@pytest.mark.parametrize("name", TWO_PARAMETERS)
def test_evidence_and_means_are_those_of_quadrature(name):
    case = TWO_PARAMETERS[name]
    log_evidence, moments = quadrature(case)
    guide = pl.fit_laplace(case.model, case.data)
    draws = pl.importance_resample(case.model, guide, case.data, 20_000)
    assert draws.exact
    assert draws.log_evidence_error < 0.02
    assert abs(draws.log_evidence - log_evidence) < 3 * draws.log_evidence_error
    assert abs(guide.log_evidence - log_evidence) > 3 * draws.log_evidence_error  # there was something to correct
    for site, (mean, std) in moments.items():
        assert abs(float(draws[site].mean()) - mean) / std < 0.05 + 3 / draws.ess**0.5, site
        assert float(draws[site].std()) / std == pytest.approx(1.0, abs=0.1), site


@pytest.mark.statistical
def test_a_skewed_scale_has_its_exact_mean():
    case = few_residuals()
    draws = pl.importance_resample(case.model, pl.fit_laplace(case.model, case.data), case.data, 20_000)
    squares, shape = float((case.data[0] - case.data[0].mean()).square().sum()), 4.5
    variance_mean = squares / 2 / (shape - 1)  # of an inverse gamma
    assert float(draws["sigma"].square().mean()) == pytest.approx(variance_mean, rel=0.05)


@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
def test_moment_matching_repairs_a_funnel():
    """Against the same posterior with its groups integrated out, by quadrature over mu and log tau."""
    case = schools()

    def marginal(noise, y):
        mu, tau = pyro.sample("mu", dist.Normal(0.0, 10.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
        pyro.sample("y", dist.Normal(mu, (tau**2 + noise**2).sqrt()).to_event(1), obs=y)

    guide = pl.fit_laplace(case.model, case.data)
    with pytest.warns(pl.LaplaceWarning, match="k-hat is .*up to 0.7 can be trusted"):
        left = pl.importance_resample(case.model, guide, case.data, moment_matching=False)
    assert not left.exact
    assert "NOT exact" in repr(left)
    draws = pl.importance_resample(case.model, guide, case.data, 20_000)
    assert draws.exact
    program = Program.trace(marginal, as_data(case.data))
    (chunk,) = program.chunks(as_data(case.data))
    mu, log_tau = torch.linspace(-40, 50, 401), torch.linspace(-15, 6, 401)
    grid = torch.cartesian_prod(mu, log_tau)
    log_p = torch.func.vmap(lambda row: program.log_joint(row, chunk))(grid)
    log_evidence = float(log_p.logsumexp(0) + (mu[1] - mu[0]).log() + (log_tau[1] - log_tau[0]).log())
    assert abs(draws.log_evidence - log_evidence) < 3 * draws.log_evidence_error
    assert abs(guide.log_evidence - log_evidence) > 1.0
    log_tau_mean = float(log_p.softmax(0) @ grid[:, 1])
    log_tau_std = float(log_p.softmax(0) @ (grid[:, 1] - log_tau_mean).square()) ** 0.5
    assert abs(float(draws["tau"].log().mean()) - log_tau_mean) / log_tau_std < 0.05 + 3 / draws.ess**0.5


def test_an_exact_posterior_stays():
    case = linear_gaussian(2)
    guide = pl.fit_laplace(case.model, case.data)
    draws = pl.importance_resample(case.model, guide, case.data, 4_000)
    assert draws.exact
    assert draws.log_evidence == pytest.approx(guide.log_evidence, abs=4 * draws.log_evidence_error)
    z = (draws["w"].mean(0) - guide.median()["w"]) / draws["w"].std(0) * draws.ess**0.5
    assert float(z.abs().max()) < 5


def test_draws_are_taken_by_whatever_takes_draws():
    case = glm("gamma")
    guide = pl.fit_laplace(case.model, case.data)
    draws = pl.importance_resample(case.model, guide, case.data, 500)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {"w": (500, 6), "s": (500,)}
    tree = pl.to_datatree(case.model, draws, case.data)
    assert tree.posterior["w"].shape == (1, 500, 6)
    attributes = ("khat", "ess", "log_evidence", "log_evidence_error")
    assert [tree.attrs[name] for name in attributes] == [getattr(draws, name) for name in attributes]
    table = pl.compare(case.model, {"laplace": guide, "corrected": draws}, case.data, num_samples=500)
    assert list(table.index) == ["laplace", "corrected"]
    for predictive in (pyro.infer.Predictive, pl.Predictive):
        replicated = predictive(case.model, posterior_samples=draws)(case.data[0])["y"]
        assert replicated.shape == (500, 500)
        close = 5 * float(replicated.std()) / 500
        assert abs(float(replicated.mean() - case.data[1].mean())) < 0.2 + close


@pytest.mark.statistical
def test_corrects_any_guide():
    case = TWO_PARAMETERS["scale"]
    log_evidence, _ = quadrature(case)
    guide = pl.fit_svi(case.model, case.data, AutoNormal(case.model), num_steps=500, learning_rate=0.05, progress=False)
    draws = pl.importance_resample(case.model, guide, case.data, 10_000)
    assert draws.exact
    assert abs(draws.log_evidence - log_evidence) < 3 * draws.log_evidence_error


@pytest.mark.statistical
@pytest.mark.parametrize("seed", range(4))
def test_independent_draws_of_a_correlated_posterior_are_not_called_exact_by_chance(seed):
    """Ten coordinates with correlations of 0.9, and a guide of their conditional deviations, a third of theirs."""
    covariance = torch.full((10, 10), 0.9) + 0.1 * torch.eye(10)

    def model(y):
        t = pyro.sample("t", dist.MultivariateNormal(torch.zeros(10), covariance))
        pyro.sample("y", dist.Normal(1e-4 * t[0], 1.0), obs=y)

    def guide(y):
        std = torch.linalg.inv(covariance).diagonal().rsqrt()
        pyro.sample("t", dist.Normal(torch.zeros(10), std).to_event(1))

    pyro.set_rng_seed(seed)
    draws = pl.importance_resample(model, guide, torch.tensor(0.0), 4_000)
    assert draws.exact
    assert abs(draws.log_evidence + 0.5 * math.log(2 * math.pi)) < 4 * draws.log_evidence_error
    torch.testing.assert_close(draws["t"].std(0), torch.ones(10), atol=0.06, rtol=0)


@pytest.mark.statistical
def test_corrects_a_mixture_of_two_modes():
    """An even function of x: half of the draws are on each side."""

    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 3.0))
        pyro.sample("y", dist.Normal(x.square(), 1.0), obs=y)

    y = torch.tensor(4.0)
    mixture = pl.fit_laplace(model, y, [{"x": torch.tensor(2.0)}, {"x": torch.tensor(-2.0)}])
    draws = pl.importance_resample(model, mixture, y, 10_000)
    x = torch.linspace(-6, 6, 4_001)
    log_p = dist.Normal(0.0, 3.0).log_prob(x) + dist.Normal(x.square(), 1.0).log_prob(y)
    log_evidence = float(log_p.logsumexp(0) + (x[1] - x[0]).log())
    assert abs(draws.log_evidence - log_evidence) < 3 * draws.log_evidence_error
    assert float((draws["x"] > 0).double().mean()) == pytest.approx(0.5, abs=0.02)


def test_of_some_sites_the_others_stay():
    case = few_residuals()
    guide = pl.fit_laplace(case.model, case.data, subset=["mu"])
    draws = pl.importance_resample(case.model, guide, case.data, 100)
    assert (draws["sigma"] == draws["sigma"][0]).all()
    assert len(draws["mu"].unique()) > 90
    assert abs(draws.log_evidence - guide.log_evidence) < 4 * draws.log_evidence_error  # given sigma, mu is Gaussian


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
def test_a_network_is_not_called_exact():
    case = network()
    guide = pl.fit_laplace(case.model, case.data)
    with pytest.warns(pl.LaplaceWarning, match="Draw with pl.fit_nuts"):
        draws = pl.importance_resample(case.model, guide, case.data, 200)
    assert not draws.exact


def test_of_the_linearised_program_it_is_exact():
    case = network()
    guide = pl.fit_laplace(case.model, case.data)
    draws = pl.importance_resample(pl.linearize(case.model, guide), guide, case.data, 200, moment_matching=False)
    assert draws.exact
    assert abs(draws.log_evidence - guide.log_evidence) < 4 * draws.log_evidence_error


def test_single_precision_and_a_seed(float64):
    torch.set_default_dtype(torch.float32)
    case = few_residuals()
    data = (case.data[0].float(),)
    guide = pl.fit_laplace(case.model, data)

    def drawn() -> Tensor:
        pyro.set_rng_seed(3)
        return pl.importance_resample(case.model, guide, data, 50)["sigma"]

    assert drawn().dtype == torch.float32
    assert torch.equal(drawn(), drawn())
    assert not torch.equal(drawn(), pl.importance_resample(case.model, guide, data, 50)["sigma"])
    torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_samples": True}, "num_samples=True"),
        ({"num_proposals": 5}, "num_proposals=5.*at least 30"),
        ({"moment_matching": "often"}, "moment_matching='often' is not one of True, False, 'auto'"),
    ],
)
def test_options_are_checked(options, message):
    case = few_residuals()
    guide = pl.fit_laplace(case.model, case.data)
    with pytest.raises(pl.InvalidOption, match=message):
        pl.importance_resample(case.model, guide, case.data, **options)


def point(case: Judged) -> AutoDelta:
    return pl.fit_map(case.model, case.data)


def ensemble(case: Judged) -> pl.LaplaceMixture:
    return pl.LaplaceMixture.of_modes(case.model, case.data, [point(case).median()])


def chains(case: Judged) -> MCMC:
    return MCMC(NUTS(case.model), num_samples=1)


@pytest.mark.parametrize(
    ("posterior", "message"),
    [
        (point, "AutoDelta is a point.*fit_laplace"),
        (ensemble, "LaplaceMixture is a point"),
        (chains, "is an MCMC.*arviz.summary"),
        (lambda case: {"mu": torch.zeros(3), "sigma": torch.ones(3)}, "a mapping of values or draws"),
        (lambda case: AutoNormal(case.model), "never been run"),
        (lambda case: "laplace", "the guide is a str"),
    ],
)
@pytest.mark.parametrize("call", [pl.importance_resample, pl.diagnose])
def test_what_has_no_density_is_refused(posterior: Callable[[Judged], object], message, call):
    case = few_residuals()
    with pytest.raises(pl.InvalidOption, match=message):
        call(case.model, posterior(case), case.data)
