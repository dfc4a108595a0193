"""Mixtures of Laplace approximations: as densities, as guides, and what they predict."""

import copy
import io
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import linear_regression
from programs import (
    gamma_poisson,
    linear_data,
    linear_model,
    map_guide_at_theta,
    mlp_classifier,
    normal,
    pyro_module_classifier,
    some_theta,
)
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList
from scipy.optimize import brentq
from torch.distributions import MixtureSameFamily, MultivariateNormal
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.predictive.mixture import DistributionMixture, MixturePredictive, mix

pytestmark = pytest.mark.usefixtures("float64")

# --- a posterior with two modes, in closed form ---------------------------------------------------

PRIOR, LOC, SCALE, NOISE = torch.tensor([0.3, 0.7]).double(), torch.tensor([-9.0, 7.0]).double(), 0.5, 4.0
Y = torch.tensor([-1.5]).double()


def bimodal(y):
    components = dist.Normal(LOC, SCALE)
    t = pyro.sample("t", dist.MixtureSameFamily(dist.Categorical(PRIOR), components))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(t, NOISE), obs=y)


def starts(*values: float) -> list[dict[str, torch.Tensor]]:
    return [{"t": torch.tensor(value)} for value in values]


def fit_bimodal(**options: Any) -> pl.LaplaceMixture:
    return pl.fit_laplace(bimodal, (Y,), starts(-8.0, 6.0), **options)


def exact_bimodal() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masses, means and standard deviations of the two modes; the tails of one at the other are e^-400."""
    mass = PRIOR * dist.Normal(LOC, math.hypot(SCALE, NOISE)).log_prob(Y).exp()
    precision = SCALE**-2 + NOISE**-2
    return mass, (LOC / SCALE**2 + Y / NOISE**2) / precision, torch.full((2,), precision**-0.5)


def test_the_masses_of_two_modes_are_exact():
    mass, mean, std = exact_bimodal()
    mixture = fit_bimodal()
    assert_close(mixture.weights, mass / mass.sum(), rtol=1e-8, atol=0)
    assert_close([float(c.log_evidence) for c in mixture.components], mass.log().tolist(), rtol=1e-8, atol=0)
    assert mixture.log_evidence == pytest.approx(float(mass.mean().log()), rel=1e-10)
    exact = MixtureSameFamily(torch.distributions.Categorical(mass), torch.distributions.Normal(mean, std))
    t = torch.linspace(-11, 9, 101)
    assert_close(mixture.get_posterior().log_prob(t[:, None]), exact.log_prob(t), rtol=1e-6, atol=1e-6)
    assert_close(mixture.mean, exact.mean[None], rtol=1e-8, atol=0)
    assert_close(mixture.variance, exact.variance[None], rtol=1e-8, atol=0)


def test_elbo_of_an_exact_mixture_is_the_log_of_the_sum_of_masses():
    """`log p(y, t) - log q(t)` is the same number at every draw, whichever mode it falls into."""
    mass, *_ = exact_bimodal()
    mixture = fit_bimodal()
    for elbo in (Trace_ELBO(), Trace_ELBO(num_particles=7), TraceMeanField_ELBO(num_particles=3)):
        assert elbo.loss(bimodal, mixture, Y) == pytest.approx(-float(mass.sum().log()), rel=1e-7)


def test_vectorised_particles():
    mass, *_ = exact_bimodal()
    elbo = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    assert elbo.loss(bimodal, fit_bimodal(), Y) == pytest.approx(-float(mass.sum().log()), rel=1e-7)


def test_weights_are_the_softmax_of_the_log_evidences_or_equal():
    mixture = fit_bimodal()
    evidences = torch.tensor([component.log_evidence for component in mixture.components])
    assert_close(mixture.weights, evidences.softmax(0), rtol=0, atol=0)
    assert_close(fit_bimodal(weights="evidence").weights, mixture.weights, rtol=0, atol=0)
    assert_close(fit_bimodal(weights="equal").weights, torch.tensor([0.5, 0.5]), rtol=0, atol=0)
    assert_close(pl.LaplaceMixture(mixture.components, weights="equal").weights, torch.tensor([0.5, 0.5]))


def test_components_are_those_of_single_fits():
    mixture = fit_bimodal()
    for component, start in zip(mixture.components, starts(-8.0, 6.0), strict=True):
        alone = pl.fit_laplace(bimodal, (Y,), start)
        assert_close(component.theta, alone.theta, rtol=0, atol=0)
        assert_close(component.precision.to_dense(), alone.precision.to_dense(), rtol=0, atol=0)
        assert component.log_evidence == alone.log_evidence


def test_one_mode_found_twice():
    """It counts twice; the evidence is that of one."""
    mixture = pl.fit_laplace(bimodal, (Y,), starts(6.0, 6.5, -8.0))
    single = mixture.components[0].log_evidence
    twice = pl.fit_laplace(bimodal, (Y,), starts(6.0, 6.5))
    assert twice.log_evidence == pytest.approx(single, abs=1e-8)
    mass, *_ = exact_bimodal()
    assert_close(mixture.weights, mass[[1, 1, 0]] / mass[[1, 1, 0]].sum(), rtol=1e-6, atol=0)


# --- density, moments and quantiles against torch's mixtures --------------------------------------


def fit_linear(*seeds: int) -> pl.LaplaceMixture:
    """Posteriors of one program on several data sets: modes as far apart as one likes."""
    return pl.LaplaceMixture([pl.fit_laplace(linear_model(), linear_data(num_obs=8, seed=seed)) for seed in seeds])


def torch_mixture(mixture: pl.LaplaceMixture) -> MixtureSameFamily:
    loc = torch.stack([component.theta for component in mixture.components])
    precision = torch.stack([component.precision.to_dense() for component in mixture.components])
    normals = MultivariateNormal(loc, precision_matrix=precision)
    return MixtureSameFamily(torch.distributions.Categorical(mixture.weights), normals)


def test_density_and_moments_are_those_of_a_mixture_of_normals():
    mixture = fit_linear(0, 1, 2)
    expected, posterior = torch_mixture(mixture), mixture.get_posterior()
    theta = 2 * torch.randn(4, 6, 3)
    assert_close(posterior.log_prob(theta), expected.log_prob(theta), rtol=1e-10, atol=1e-10)
    assert_close(mixture.mean, expected.mean, rtol=1e-10, atol=1e-10)
    assert_close(mixture.variance, expected.variance, rtol=1e-10, atol=1e-10)
    assert posterior.expand((2,)).sample((5,)).shape == (5, 2, 3)
    assert posterior.expand((2,)).mean.shape == posterior.expand((2,)).variance.shape == (2, 3)


@pytest.mark.statistical
@pytest.mark.parametrize("draw", ["sample_theta", "get_posterior"])
def test_draws_have_the_moments_of_the_mixture(draw):
    mixture = fit_linear(0, 1, 2)
    draws = mixture.sample_theta(40_000) if draw == "sample_theta" else mixture.get_posterior().sample((40_000,))
    expected = torch_mixture(mixture)
    loc, weights = expected.component_distribution.mean, mixture.weights
    covariance = torch.linalg.inv(expected.component_distribution.precision_matrix)
    deviation = loc - expected.mean
    total = torch.einsum("k,kpq->pq", weights, covariance + deviation[:, :, None] * deviation[:, None])
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(total), (draws - expected.mean).T, upper=False)
    assert_close(white.mean(1), torch.zeros(3), rtol=0, atol=5 / 200)
    assert_close(white @ white.T / 40_000, torch.eye(3), rtol=0, atol=10 / 200)


def test_quantiles_invert_the_mixtures_distribution_function():
    mixture = fit_linear(0, 1, 2)
    loc = torch.stack([component.theta for component in mixture.components])
    std = torch.stack([component.precision.variance().sqrt() for component in mixture.components])
    levels = [0.001, 0.05, 0.3, 0.5, 0.95, 0.999]
    found = mixture.quantiles(levels)["w"]
    for i, level in enumerate(levels):
        for p in range(3):
            normals = torch.distributions.Normal(loc[:, p], std[:, p])

            def excess(t: float, normals=normals, level=level) -> float:
                return float(mixture.weights @ normals.cdf(torch.tensor(t)) - level)

            assert float(found[i, p]) == pytest.approx(brentq(excess, -50, 50, xtol=1e-13), abs=1e-9)
    assert_close(mixture.median()["w"], found[3], rtol=0, atol=0)
    assert_close(mixture.quantiles(torch.tensor(levels))["w"], found, rtol=0, atol=0)
    assert mixture.quantiles([0.0, 1.0])["w"].isinf().all()


@pytest.mark.statistical
def test_quantiles_are_those_of_many_draws():
    case = gamma_poisson()
    thetas = [some_theta(case, seed) for seed in range(3)]
    given = [case.flat.constrain(theta)[0] for theta in thetas]
    mixture = pl.fit_laplace(
        case.model, case.data, given, polish=False, on_not_a_mode="ignore", weights="equal", structure="diag"
    )
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    draws, quantiles = mixture.sample_posterior(100_000), mixture.quantiles(levels)
    for name, quantile in quantiles.items():
        below = (draws[name].unsqueeze(0) <= quantile.unsqueeze(1)).double().mean(1)
        expected = levels.reshape(-1, *(1,) * (below.dim() - 1)).expand_as(below)
        assert_close(below, expected, rtol=0, atol=5 * 0.5 / 100_000**0.5)


def test_a_mixture_of_one_is_its_component():
    x, y = linear_data()
    alone = pl.fit_laplace(linear_model(), (x, y))
    mixture = pl.fit_laplace(linear_model(), (x, y), [alone.median()])
    theta = torch.randn(5, 3)
    assert mixture.weights.tolist() == [1.0]
    assert mixture.log_evidence == pytest.approx(alone.log_evidence, rel=1e-12)
    assert_close(mixture.median(), alone.median(), rtol=0, atol=1e-12)
    assert_close(mixture.quantiles([0.1, 0.9]), alone.quantiles([0.1, 0.9]), rtol=1e-10, atol=1e-10)
    assert_close(mixture.get_posterior().log_prob(theta), alone.get_posterior().log_prob(theta))
    assert Trace_ELBO().loss(linear_model(), mixture, x, y) == pytest.approx(-alone.log_evidence, rel=1e-8)


# --- a guide among guides -------------------------------------------------------------------------


def fit_at(case, *seeds: int, **options: Any) -> pl.LaplaceMixture:
    given = [case.flat.constrain(some_theta(case, seed))[0] for seed in seeds]
    return pl.fit_laplace(case.model, case.data, given, polish=False, on_not_a_mode="ignore", **options)


def test_is_a_guide_without_parameters(param_mode):
    mixture = fit_linear(0, 1)
    x, y = linear_data()
    stored = set(pyro.get_param_store())
    mixture(x, y)
    assert list(mixture.parameters()) == []
    assert set(pyro.get_param_store()) == stored
    assert {"weights", "_components.0.loc", "_components.1.theta"} <= set(mixture.state_dict())
    assert list(mixture.layout) == ["w"]


@pytest.mark.parametrize("make", [gamma_poisson, mlp_classifier, pyro_module_classifier])
def test_its_trace_has_the_density_of_the_constrained_values(make, param_mode):
    """Log density of theta, less the log-Jacobian of the sites' transforms."""
    case = make()
    mixture = fit_at(case, 0, 1, weights="equal")
    trace: Any = poutine.trace(mixture).get_trace(*case.data)
    theta = case.flat.unconstrain({name: trace.nodes[name]["value"] for name in mixture.layout})
    expected = torch_mixture(mixture).log_prob(theta) - case.flat.constrain(theta)[1]
    assert_close(trace.log_prob_sum(), expected, rtol=1e-8, atol=1e-8)
    draws = mixture.sample_posterior(3)
    assert {name: value.shape for name, value in draws.items()} == {
        name: (3, *value.shape) for name, value in mixture.median().items()
    }


@pytest.mark.statistical
@pytest.mark.parametrize("predictive", [Predictive, pl.Predictive])
def test_predictive_is_the_mixture_of_the_components(predictive, param_mode):
    """Moments of `sum_k w_k N(x m_k, x C_k x' + noise^2)`, and its distribution function."""
    mixture = fit_linear(0, 1)
    x, _ = linear_data(num_obs=5, seed=9)
    draws = predictive(linear_model(), guide=mixture, num_samples=4000)(x)["y"].reshape(4000, 5)
    exact = [linear_regression(*linear_data(num_obs=8, seed=seed), 0.7, 1.3) for seed in (0, 1)]
    mean = torch.stack([x @ each.mean for each in exact], -1)
    std = torch.stack([((x @ each.cov * x).sum(-1) + 0.7**2).sqrt() for each in exact], -1)
    for level in (-1.0, 0.0, 1.0):
        expected = torch.distributions.Normal(mean, std).cdf(torch.tensor(level)) @ mixture.weights
        assert_close((draws <= level).double().mean(0), expected, rtol=0, atol=5 * 0.5 / 4000**0.5)


def test_auto_guide_list_of_one(param_mode):
    mixture = fit_linear(0, 1)
    x, y = linear_data()
    guides = AutoGuideList(linear_model())
    guides.append(mixture)
    assert_close(guides.median(x, y)["w"], mixture.median()["w"])
    assert Predictive(linear_model(), guide=guides, num_samples=3)(x)["y"].shape == (3, len(x))
    assert math.isfinite(Trace_ELBO().loss(linear_model(), guides, x, y))


def test_draws_follow_the_seed():
    mixture = fit_linear(0, 1)
    pyro.set_rng_seed(4)
    first, second = mixture.sample_posterior(5), mixture.sample_posterior(5)
    pyro.set_rng_seed(4)
    assert_close(mixture.sample_posterior(5), first, rtol=0, atol=0)
    assert not torch.equal(first["w"], second["w"])


def via_torch_save(guide):
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, via_torch_save], ids=["deepcopy", "torch.save"])
def test_copies(copied, param_mode):
    mixture = fit_linear(0, 1)
    model = mixture.model
    twin = copied(mixture)
    pyro.set_rng_seed(3)
    expected = mixture.sample_posterior(4)
    pyro.set_rng_seed(3)
    assert_close(twin.sample_posterior(4), expected, rtol=0, atol=0)
    assert_close(twin.median(), mixture.median(), rtol=0, atol=0)
    assert_close(twin.weights, mixture.weights, rtol=0, atol=0)
    assert twin.log_evidence == mixture.log_evidence
    assert mixture.model is model
    assert twin.model is (model if copied is copy.deepcopy else None)
    component = twin.components[1]
    del twin
    x, y = linear_data()
    assert component(x, y)["w"].shape == (3,)


def test_a_saved_mixture_carries_no_training_data():
    x, y = linear_data(num_obs=5000)
    mixture = pl.fit_laplace(linear_model(), (x, y), [{"w": torch.zeros(3)}, {"w": torch.ones(3)}])
    buffer = io.BytesIO()
    torch.save(mixture, buffer)
    assert len(buffer.getvalue()) < 5000 * 8 / 2
    assert y[:8].numpy().tobytes() not in buffer.getvalue()


def test_nothing_of_the_users_is_changed(param_mode):
    case = pyro_module_classifier()
    model: Any = case.model
    model.train()
    given = [pl.fit_map(model, case.data, num_steps=3, progress=False) for _ in range(2)]
    before = [copy.deepcopy(guide.median()) for guide in given]
    state, stored = copy.deepcopy(model.state_dict()), set(pyro.get_param_store())
    random = torch.get_rng_state()
    mixture = pl.fit_laplace(model, case.data, given, polish=False, on_not_a_mode="ignore")
    points = pl.LaplaceMixture.of_modes(model, case.data, given)
    assert torch.equal(torch.get_rng_state(), random)
    for guide in (mixture, points):
        guide(*case.data)
    assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert model.training
    assert set(pyro.get_param_store()) == stored
    assert_close([guide.median() for guide in given], before, rtol=0, atol=0)
    assert mixture.fit_seconds > 0


# --- held sites -----------------------------------------------------------------------------------


def test_sites_outside_the_subset_are_at_their_own_components_mode(param_mode):
    case = mlp_classifier()
    mixture = fit_at(case, 0, 1, subset="last_layer", weights="equal")
    held = [component.median()["w1"] for component in mixture.components]
    draws = mixture.sample_posterior(50)
    which = [(draws["w1"] == value).flatten(1).all(1) for value in held]
    assert bool((which[0] ^ which[1]).all())
    assert 0 < int(which[0].sum()) < 50


def test_held_coordinates_tell_the_components_apart(param_mode):
    """The density of a draw is that of its own component: its held coordinates are nobody else's."""
    case = mlp_classifier()
    mixture = fit_at(case, 0, 1, subset="last_layer")
    posterior = mixture.get_posterior()
    for number, component in enumerate(mixture.components):
        theta = component.sample_theta(4)
        own = component.get_posterior().log_prob(theta[:, component.index]) + mixture.weights[number].log()
        assert_close(posterior.log_prob(theta), own, rtol=1e-10, atol=1e-10)
        assert posterior.component_of(theta + 1e-9).tolist() == [number] * 4
        assert_close(posterior.mode_of(theta), component.theta.expand(4, -1), rtol=0, atol=0)
        assert posterior.log_prob(theta + 1e-9).isneginf().all()
    trace: Any = poutine.trace(mixture).get_trace(*case.data)
    assert torch.isfinite(trace.log_prob_sum())
    assert_close(mixture.variance[case.flat.size - 1 :] > 0, torch.tensor([True]))


def test_components_of_overlapping_modes_are_told_apart_by_density():
    mixture = fit_linear(0, 1)
    posterior = mixture.get_posterior()
    theta = torch_mixture(mixture).sample((200,))
    terms = torch_mixture(mixture).component_distribution.log_prob(theta[:, None]) + mixture.weights.log()
    assert_close(posterior.component_of(theta), terms.argmax(-1))
    assert_close(torch.func.vmap(posterior.mode_of)(theta), posterior.modes[terms.argmax(-1)], rtol=0, atol=0)


# --- deep ensembles -------------------------------------------------------------------------------


def ensemble(case, *seeds: int) -> pl.LaplaceMixture:
    given = [case.flat.constrain(some_theta(case, seed))[0] for seed in seeds]
    return pl.LaplaceMixture.of_modes(case.model, case.data, given)


def predictive_of(case, mixture: pl.LaplaceMixture, **options: Any) -> MixturePredictive:
    parts = [pl.LinearizedPredictive(case.model, component, **options) for component in mixture.components]
    return MixturePredictive(mixture.weights, parts)


def test_an_ensembles_draws_are_the_modes(param_mode):
    case = mlp_classifier()
    points = ensemble(case, 0, 1, 2)
    modes = {tuple(some_theta(case, seed).tolist()) for seed in (0, 1, 2)}
    assert {tuple(theta) for theta in points.sample_theta(60).tolist()} == modes
    assert points.weights.tolist() == [1 / 3] * 3
    assert math.isnan(points.log_evidence)
    trace: Any = poutine.trace(points).get_trace(*case.data)
    assert_close(trace.log_prob_sum(), torch.tensor(1 / 3).log())
    assert_close(points.variance, torch.stack([some_theta(case, s) for s in (0, 1, 2)]).var(0, correction=0))
    ordered = torch.stack([some_theta(case, seed) for seed in (0, 1, 2)]).sort(0).values
    for level, row in ((0.2, 0), (0.5, 1), (0.9, 2)):
        values = case.flat.constrain(ordered[row])[0]
        assert_close({k: v[0] for k, v in points.quantiles([level]).items()}, values, rtol=1e-12, atol=1e-12)


def test_an_ensembles_elbo_is_its_modes_mean_log_joint_and_entropy():
    points = pl.LaplaceMixture.of_modes(bimodal, (Y,), starts(1.0, 1.0))
    log_joint = poutine.trace(poutine.condition(bimodal, starts(1.0)[0])).get_trace(Y).log_prob_sum()
    assert Trace_ELBO().loss(bimodal, points, Y) == pytest.approx(-float(log_joint), rel=1e-10)
    assert points.components[0].mode.log_joint == pytest.approx(float(log_joint), rel=1e-10)


@pytest.mark.parametrize("make", [mlp_classifier, pyro_module_classifier])
@pytest.mark.parametrize("link", ["probit", "bridge", "sample"])
def test_an_ensemble_averages_probabilities(make, link):
    case = make()
    points = ensemble(case, 0, 1, 2)
    expected = torch.stack([_probs(case, some_theta(case, seed)) for seed in (0, 1, 2)]).mean(0)
    found = predictive_of(case, points, link=link, num_samples=2)(*case.inputs)["y"]
    assert isinstance(found, dist.Categorical)
    assert_close(found.probs, expected, rtol=1e-12, atol=1e-12)


def _probs(case, theta: torch.Tensor) -> torch.Tensor:
    conditioned = poutine.condition(case.model, case.flat.constrain(theta)[0])
    trace: Any = poutine.trace(conditioned).get_trace(*case.inputs)
    return trace.nodes["y"]["fn"].probs


def test_an_ensemble_in_predictive():
    case = mlp_classifier()
    points = ensemble(case, 0, 1)
    draws = Predictive(case.model, guide=points, num_samples=20, return_sites=["w1", "y"])(*case.inputs)
    modes = torch.stack([component.median()["w1"] for component in points.components])
    assert all((draws["w1"].reshape(20, 1, 3, 4) == modes).flatten(2).all(-1).any(-1))


# --- predictives ----------------------------------------------------------------------------------


def linear_predictive(*seeds: int) -> tuple[pl.LaplaceMixture, MixturePredictive, torch.Tensor, MixtureSameFamily]:
    """The predictive of a mixture of linear regressions, inputs, and what it must be."""
    mixture = fit_linear(*seeds)
    x, _ = linear_data(num_obs=6, seed=9)
    parts = [pl.LinearizedPredictive(linear_model(), component) for component in mixture.components]
    exact = [linear_regression(*linear_data(num_obs=8, seed=seed), 0.7, 1.3) for seed in seeds]
    mean = torch.stack([x @ each.mean for each in exact], -1)
    std = torch.stack([((x @ each.cov * x).sum(-1) + 0.7**2).sqrt() for each in exact], -1)
    weights = torch.distributions.Categorical(mixture.weights.expand(6, -1))
    expected = MixtureSameFamily(weights, torch.distributions.Normal(mean, std))
    return mixture, MixturePredictive(mixture.weights, parts), x, expected


def test_the_predictive_of_normal_data_is_a_mixture_of_normals():
    _, predictive, x, expected = linear_predictive(0, 1, 2)
    found = predictive(x)["y"]
    y = torch.randn(4, 6)
    assert found.batch_shape == (6,)
    assert found.event_shape == ()
    assert_close(found.log_prob(y), expected.log_prob(y), rtol=1e-8, atol=1e-8)
    assert_close(found.mean, expected.mean, rtol=1e-8, atol=1e-8)
    assert_close(found.variance, expected.variance, rtol=1e-8, atol=1e-8)
    assert_close(found.expand((3, 6)).log_prob(y[:3]), expected.log_prob(y[:3]), rtol=1e-8, atol=1e-8)
    assert found.sample((2, 3)).shape == (2, 3, 6)
    assert found.sample().shape == (6,)
    assert found.support is torch.distributions.constraints.real


def test_the_linear_predictor_has_the_covariance_of_functions():
    """Total covariance: `sum_k w_k (x C_k x' + d_k d_k')`."""
    mixture, predictive, x, _ = linear_predictive(0, 1)
    exact = [linear_regression(*linear_data(num_obs=8, seed=seed), 0.7, 1.3) for seed in (0, 1)]
    mean = sum(w * (x @ each.mean) for w, each in zip(mixture.weights, exact, strict=True))
    covariance = torch.zeros(6, 6)
    for w, each in zip(mixture.weights, exact, strict=True):
        deviation = x @ each.mean - mean
        covariance += w * (x @ each.cov @ x.T + torch.outer(deviation, deviation))
    found_mean, found = predictive.latent(x, joint=True)["y"]
    assert_close(found_mean, mean, rtol=1e-8, atol=1e-8)
    assert_close(found, covariance, rtol=1e-8, atol=1e-8)
    marginal_mean, marginal = predictive.latent(x)["y"]
    assert_close(marginal_mean[:, 0], mean, rtol=1e-8, atol=1e-8)
    assert_close(marginal[:, 0, 0], covariance.diagonal(), rtol=1e-8, atol=1e-8)


@pytest.mark.statistical
def test_function_draws_are_of_one_component_at_all_inputs():
    _, predictive, x, _ = linear_predictive(0, 1)
    mean, covariance = predictive.latent(x, joint=True)["y"]
    draws = predictive.sample(20_000, latent=True)(x)["y"].reshape(20_000, 6)
    scale = covariance.diagonal().sqrt()
    assert_close((draws.mean(0) - mean) / scale, torch.zeros(6), rtol=0, atol=5 / 20_000**0.5)
    correlation = covariance / scale / scale[:, None]
    assert_close(draws.T.corrcoef(), correlation, rtol=0, atol=10 / 20_000**0.5)


@pytest.mark.statistical
def test_draws_of_y():
    _, predictive, x, expected = linear_predictive(0, 1)
    for draws in (predictive.sample(20_000)(x)["y"], predictive(x)["y"].sample((20_000,))):
        for level in (-1.0, 0.0, 1.0):
            at = torch.full((6,), level)
            assert_close((draws <= at).double().mean(0), expected.cdf(at), rtol=0, atol=5 * 0.5 / 20_000**0.5)


def test_decomposition_of_variance_adds_up():
    _, predictive, x, expected = linear_predictive(0, 1)
    parts = predictive.decompose(x)["y"]
    assert parts.kind == "variance"
    assert_close(parts.aleatoric, torch.full((6,), 0.7**2), rtol=1e-8, atol=0)
    assert_close(parts.total, expected.variance, rtol=1e-8, atol=0)


def test_decomposition_of_an_ensembles_entropy_is_exact():
    """Mutual information of the label and the member: entropy of the mean less the mean entropy."""
    case = mlp_classifier()
    probs = torch.stack([_probs(case, some_theta(case, seed)) for seed in (0, 1, 2)])
    parts = predictive_of(case, ensemble(case, 0, 1, 2), num_samples=3).decompose(*case.inputs)["y"]
    aleatoric = torch.distributions.Categorical(probs).entropy().mean(0)
    total = torch.distributions.Categorical(probs.mean(0)).entropy()
    assert parts.kind == "entropy"
    assert_close(parts.aleatoric, aleatoric, rtol=1e-10, atol=1e-10)
    assert_close(parts.total, total, rtol=1e-10, atol=1e-10)


def test_decomposition_sees_through_to_event():
    def model(x, y=None):
        w = pyro.sample("w", normal(1.0, 2, 3))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w).to_event(1), obs=y)

    x = torch.randn(5, 2)
    y = (torch.randn(5, 3) > 0).double()
    values = [torch.randn(2, 3) for _ in range(2)]
    points = pl.LaplaceMixture.of_modes(model, (x, y), [{"w": w} for w in values])
    parts = [pl.LinearizedPredictive(model, component, num_samples=2) for component in points.components]
    predictive = MixturePredictive(points.weights, parts)
    probs = torch.stack([(x @ w).sigmoid() for w in values])
    total = torch.distributions.Bernoulli(probs.mean(0)).entropy()
    assert_close(predictive.decompose(x)["y"].total, total, rtol=1e-10, atol=1e-10)
    log_prob = torch.distributions.Bernoulli(probs).log_prob(y).sum(-1)
    assert_close(predictive(x)["y"].log_prob(y), log_prob.logsumexp(0) - math.log(2), rtol=1e-10, atol=1e-10)


def test_gradients_reach_the_inputs_of_a_mixture():
    mixture = fit_linear(0, 1)
    x, _ = linear_data(num_obs=4, seed=9)
    x.requires_grad_()
    options: Any = {"differentiable": True}
    parts = [pl.LinearizedPredictive(linear_model(), component, **options) for component in mixture.components]
    found = MixturePredictive(mixture.weights, parts)(x)["y"]
    (gradient,) = torch.autograd.grad(found.mean.sum(), x, retain_graph=True)
    assert_close(gradient, torch_mixture(mixture).mean.expand(4, -1), rtol=1e-8, atol=1e-8)
    assert torch.autograd.grad(found.variance.sum(), x)[0].isfinite().all()


# --- mixing distributions -------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.2, 0.8]).double()


@pytest.mark.parametrize("kind", [dist.Categorical, dist.OneHotCategorical])
def test_classes_keep_their_kind(kind):
    logits = 3 * torch.randn(2, 5, 4)
    mixed = mix(WEIGHTS, [kind(logits=each) for each in logits])
    assert type(mixed) is kind
    assert_close(mixed.probs, torch.einsum("k,knc->nc", WEIGHTS, logits.softmax(-1)))


def test_bernoulli_keeps_its_kind_and_its_precision():
    logits = torch.tensor([[-800.0, 3.0, 60.0], [-700.0, -2.0, 50.0]])
    mixed = mix(WEIGHTS, [dist.Bernoulli(logits=each) for each in logits])
    assert type(mixed) is dist.Bernoulli
    assert_close(mixed.probs, WEIGHTS @ logits.sigmoid())
    expected = torch.tensor([-700.0 + math.log(0.8), math.log(float(mixed.probs[1] / (1 - mixed.probs[1])))])
    assert_close(mixed.logits[:2], expected)
    assert float(mixed.logits[2]) == pytest.approx(-math.log(0.2 * math.exp(-60) + 0.8 * math.exp(-50)))


def test_other_kinds_are_mixed_as_they_are():
    components = [dist.Poisson(torch.tensor([1.0, 5.0])), dist.Geometric(torch.tensor([0.3, 0.2]))]
    mixed = mix(WEIGHTS, components)
    assert isinstance(mixed, DistributionMixture)
    counts = torch.arange(2.0)
    expected = (0.2 * components[0].log_prob(counts).exp() + 0.8 * components[1].log_prob(counts).exp()).log()
    assert_close(mixed.log_prob(counts), expected)
    assert mixed.sample((7,)).shape == (7, 2)


# --- a network with several modes -----------------------------------------------------------------


def network(x, y=None):
    w1 = pyro.sample("w1", normal(3.0, 1, 2))
    b1 = pyro.sample("b1", normal(3.0, 2))
    w2 = pyro.sample("w2", normal(1.0, 2))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(torch.tanh(x @ w1 + b1) @ w2, 0.3), obs=y)


@pytest.mark.statistical
@pytest.mark.slow
def test_evidence_weighting_beats_single_modes_on_held_out_data():
    """Mean log density a datum over data sets of 8, each fitted from 6 random starts."""
    gains = []
    for seed in range(5):
        pyro.set_rng_seed(seed)
        x, test_x = torch.linspace(-2, 2, 8)[:, None], torch.linspace(-2.2, 2.2, 200)[:, None]
        y, test_y = (torch.sin(2 * each[:, 0]) + 0.3 * torch.randn(len(each)) for each in (x, test_x))
        given = [{"w1": 3 * torch.randn(1, 2), "b1": 3 * torch.randn(2), "w2": torch.randn(2)} for _ in range(6)]
        mixture = pl.fit_laplace(network, (x, y), given, on_not_a_mode="ignore")
        parts = [pl.LinearizedPredictive(network, component) for component in mixture.components]
        single = torch.stack([part(test_x)["y"].log_prob(test_y).mean() for part in parts])
        mixed = MixturePredictive(mixture.weights, parts)(test_x)["y"].log_prob(test_y).mean()
        gains.append(float(mixed - single.mean()))
    assert sum(gains) / len(gains) > 0.1
    assert min(gains) > -0.1


# --- errors ---------------------------------------------------------------------------------------


def refused(message: str, call, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(pl.InvalidOption, match=message):
        call(*args, **kwargs)


FIT: Any = pl.fit_laplace
MIXTURE: Any = pl.LaplaceMixture


def test_weights_need_several_starts():
    refused(
        "weights='equal' is for a mixture: give map_guide a list", FIT, bimodal, (Y,), starts(1.0)[0], weights="equal"
    )
    refused("weights='evidence' is for a mixture", FIT, bimodal, (Y,), weights="evidence")
    refused("weights='best' is not one of None, 'evidence', 'equal'", FIT, bimodal, (Y,), starts(1.0), weights="best")
    refused("weights='best' is not one of 'evidence', 'equal'", MIXTURE, [], weights="best")


@pytest.mark.parametrize(("call", "option"), [(FIT, "map_guide"), (pl.LaplaceMixture.of_modes, "map_guides")])
def test_starts_are_guides_or_mappings(call, option):
    refused(f"{option} is empty: give a list of AutoDelta guides", call, bimodal, (Y,), [])
    refused(rf"{option}\[1\] is a NoneType: .*fit_map", call, bimodal, (Y,), [*starts(1.0), None])
    refused("AutoDelta that has never been run", call, bimodal, (Y,), [AutoDelta(bimodal)])


def test_of_modes_takes_a_list():
    refused("map_guides is a dict: give a list", pl.LaplaceMixture.of_modes, bimodal, (Y,), starts(1.0)[0])


def test_guides_that_share_their_parameters():
    """Pyro's global param store keeps one set of parameters for all guides of a name."""
    case = mlp_classifier()
    given = [map_guide_at_theta(case, some_theta(case, seed)) for seed in (0, 1)]
    refused("map_guide: guides of the one name 'AutoDelta' share .*fit_map", FIT, case.model, case.data, given)
    refused("map_guides: guides of the one name", pl.LaplaceMixture.of_modes, case.model, case.data, given)


def test_guides_with_parameters_of_their_own():
    case = mlp_classifier()
    with pyro.settings.context(module_local_params=True):
        given = [map_guide_at_theta(case, some_theta(case, seed)) for seed in (0, 1)]
        points = pl.LaplaceMixture.of_modes(case.model, case.data, given)
    for component, seed in zip(points.components, (0, 1), strict=True):
        assert_close(component.theta, some_theta(case, seed))


def test_components_are_posteriors():
    guide = pl.fit_laplace(bimodal, (Y,), starts(6.0)[0])
    refused("components is empty: give a list of posteriors", MIXTURE, [])
    refused("components is a AutoLaplace: give a list of posteriors", MIXTURE, guide)
    refused(r"components\[1\] is a AutoDelta: .*of_modes", MIXTURE, [guide, AutoDelta(bimodal)])


def test_components_are_of_one_program():
    first, other = (pl.fit_laplace(linear_model(), linear_data(num_weights=size)) for size in (3, 2))
    refused(r"components\[1\] is of another program .*\{'w': \(2,\)\}.*\{'w': \(3,\)\}", MIXTURE, [first, other])


def test_components_have_the_same_random_coordinates():
    case = mlp_classifier()
    first, other = (fit_at(case, 0, subset=subset).components[0] for subset in ("last_layer", "all"))
    refused(r"components\[1\] has other random coordinates .*same subset", MIXTURE, [first, other])
    points = ensemble(case, 0)
    refused(r"components\[1\] has other random coordinates", MIXTURE, [other, points.components[0]])
    refused(r"Subnetwork\(mask=\.\.\.\)", fit_at, case, 0, 1, subset=pl.Subnetwork(size=3))


def test_a_mask_gives_every_component_the_same_coordinates():
    case = mlp_classifier()
    mask = {"w2": torch.arange(12).reshape(4, 3) % 2 == 0}
    mixture = fit_at(case, 0, 1, subset=pl.Subnetwork(mask=mask))
    assert int((mixture.get_posterior().std[0] > 0).sum()) == 6


def test_points_have_no_evidence():
    case = mlp_classifier()
    refused("log evidences .*nan.*weights='equal'", MIXTURE, list(ensemble(case, 0, 1).components))


@pytest.mark.parametrize("levels", [[1.5], [-0.1], 0.5, [float("nan")]])
def test_quantiles_are_of_probabilities(levels):
    refused("quantiles=.*between 0 and 1", fit_bimodal().quantiles, levels)


def test_an_error_says_which_start_it_is_of():
    with pytest.raises(pl.UnsupportedProgram) as error:
        pl.fit_laplace(bimodal, (Y,), [*starts(6.0), {"u": torch.tensor(1.0)}])
    assert error.value.__notes__ == ["raised for map_guide[1]"]
