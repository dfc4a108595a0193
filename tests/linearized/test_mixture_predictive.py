"""What mixtures and deep ensembles predict, and how their components' distributions are mixed."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles.naive import linear_regression
from programs.mixtures import Y, bimodal, ensemble, fit_linear, starts, torch_mixture
from programs.zoo import linear_data, linear_model, mlp_classifier, normal, pyro_module_classifier, some_theta
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from torch.distributions import MixtureSameFamily
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.likelihood.mixing import mix
from pyro_laplace.likelihood.mixture import DistributionMixture

pytestmark = pytest.mark.usefixtures("float64")


# --- deep ensembles -------------------------------------------------------------------------------


def predictive_of(case, mixture: pl.LaplaceMixture, **options: Any) -> pl.LinearizedPredictive:
    return pl.LinearizedPredictive(case.model, mixture, **options)


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


def linear_predictive(
    *seeds: int,
) -> tuple[pl.LaplaceMixture, pl.LinearizedPredictive, torch.Tensor, MixtureSameFamily]:
    """The predictive of a mixture of linear regressions, inputs, and what it must be."""
    mixture = fit_linear(*seeds)
    x, _ = linear_data(num_obs=6, seed=9)
    exact = [linear_regression(*linear_data(num_obs=8, seed=seed), 0.7, 1.3) for seed in seeds]
    mean = torch.stack([x @ each.mean for each in exact], -1)
    std = torch.stack([((x @ each.cov * x).sum(-1) + 0.7**2).sqrt() for each in exact], -1)
    weights = torch.distributions.Categorical(mixture.weights.expand(6, -1))
    expected = MixtureSameFamily(weights, torch.distributions.Normal(mean, std))
    return mixture, pl.LinearizedPredictive(linear_model(), mixture), x, expected


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
    predictive = pl.LinearizedPredictive(model, points, num_samples=2)
    probs = torch.stack([(x @ w).sigmoid() for w in values])
    total = torch.distributions.Bernoulli(probs.mean(0)).entropy()
    assert_close(predictive.decompose(x)["y"].total, total, rtol=1e-10, atol=1e-10)
    log_prob = torch.distributions.Bernoulli(probs).log_prob(y).sum(-1)
    assert_close(predictive(x)["y"].log_prob(y), log_prob.logsumexp(0) - math.log(2), rtol=1e-10, atol=1e-10)


def test_gradients_reach_the_inputs_of_a_mixture():
    mixture = fit_linear(0, 1)
    x, _ = linear_data(num_obs=4, seed=9)
    x.requires_grad_()
    found = pl.LinearizedPredictive(linear_model(), mixture, differentiable=True)(x)["y"]
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
    for seed in range(3):
        pyro.set_rng_seed(seed)
        x, test_x = torch.linspace(-2, 2, 8)[:, None], torch.linspace(-2.2, 2.2, 200)[:, None]
        y, test_y = (torch.sin(2 * each[:, 0]) + 0.3 * torch.randn(len(each)) for each in (x, test_x))
        given = [{"w1": 3 * torch.randn(1, 2), "b1": 3 * torch.randn(2), "w2": torch.randn(2)} for _ in range(6)]
        mixture = pl.fit_laplace(network, (x, y), given, on_not_a_mode="ignore")
        parts = [pl.LinearizedPredictive(network, component) for component in mixture.components]
        single = torch.stack([part(test_x)["y"].log_prob(test_y).mean() for part in parts])
        mixed = pl.LinearizedPredictive(network, mixture)(test_x)["y"].log_prob(test_y).mean()
        gains.append(float(mixed - single.mean()))
    assert sum(gains) / len(gains) > 0.1
    assert min(gains) > -0.1


# --- many components ------------------------------------------------------------------------------


def student(calls: list[int]):
    """A regression whose outputs are location, scale and degrees of freedom, of which the last is known."""

    def model(x, y=None):
        calls.append(1)
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.StudentT(5.0, slope * x, scale), obs=y)

    return model


def student_mixture(model, count: int) -> tuple[pl.LaplaceMixture, torch.Tensor]:
    x, y = torch.linspace(-2.0, 2.0, 15), torch.randn(15)
    given = [{"slope": torch.tensor(0.3 * k), "scale": torch.tensor(1.0 + 0.2 * k)} for k in range(count)]
    options = {"polish": False, "on_not_a_mode": "ignore", "progress": False}
    return pl.LaplaceMixture([pl.fit_laplace(model, (x, y), at, **options) for at in given], weights="equal"), x


def test_what_one_component_found_out_the_others_know():
    """One run of the program a component, and what comes out is what each component says by itself."""
    calls: list[int] = []
    mixture, x = student_mixture(student(calls), 6)
    runs = []
    for some in (mixture.components[:1], mixture.components):
        predictive = pl.LinearizedPredictive(student(calls), pl.LaplaceMixture(list(some), weights="equal"))
        calls.clear()
        predictive.latent(x)
        runs.append(len(calls))
    assert runs[1] == runs[0] + 5
    mean, covariance = predictive.latent(x)["y"]
    alone = [pl.LinearizedPredictive(student(calls), each).latent(x)["y"] for each in mixture.components]
    means = torch.stack([each[0] for each in alone])
    assert mean.shape == (15, 2)
    assert_close(mean, means.mean(0), rtol=1e-12, atol=1e-12)
    deviations = means - means.mean(0)
    between = (deviations.unsqueeze(-1) * deviations.unsqueeze(-2)).mean(0)
    assert_close(covariance, torch.stack([each[1] for each in alone]).mean(0) + between, rtol=1e-10, atol=1e-12)


def test_components_of_small_weight_have_fewer_draws():
    mixture, x = student_mixture(student([]), 3)
    mixture.weights = torch.tensor([0.945, 0.05, 0.005]).double()
    predictive = pl.LinearizedPredictive(student([]), mixture, num_samples=4000)
    assert [len(part.eta) for part in predictive(x)["y"].components] == [4000, 2000, 200]
    with pl.settings.using(component_draws=300):
        assert [len(part.eta) for part in predictive(x)["y"].components] == [4000, 2000, 300]
    few = pl.LinearizedPredictive(student([]), mixture, num_samples=50)
    assert [len(part.eta) for part in few(x)["y"].components] == [50, 50, 50]


def test_the_variance_of_a_mixture_asks_each_component_once():
    asked = []

    class Counted(dist.Normal):
        @property
        def mean(self):
            asked.append(1)
            return self.loc

    loc, scale, weights = torch.randn(7, 4), torch.rand(7, 4) + 0.5, torch.ones(7).softmax(0)
    mixture = DistributionMixture(weights, [Counted(m, s) for m, s in zip(loc, scale, strict=True)])
    expected = MixtureSameFamily(torch.distributions.Categorical(weights), torch.distributions.Normal(loc.T, scale.T))
    assert_close(mixture.variance, expected.variance, rtol=1e-12, atol=1e-12)
    assert len(asked) <= 2 * 7


def test_quantiles_of_a_mixture_are_where_its_distribution_function_says(float64):
    weights, loc, scale = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-2.0, 0.5, 4.0]), torch.tensor([0.5, 2.0, 0.1])
    mixture = DistributionMixture(weights, [dist.Normal(m.expand(2), s) for m, s in zip(loc, scale, strict=True)])
    fine = torch.linspace(-15, 15, 300_001)
    density = (weights * dist.Normal(loc, scale).log_prob(fine.unsqueeze(1)).exp()).sum(1)
    for level in (0.05, 0.2, 0.5, 0.9):
        by_sum = fine[torch.searchsorted(density.cumsum(0) * 1e-4, level)]
        found = mixture.icdf(torch.tensor(level))
        torch.testing.assert_close(found, by_sum.expand(2), rtol=0, atol=3e-4)
        torch.testing.assert_close(mixture.cdf(found), torch.full((2,), level))
