"""What is made of a mixture wherever a posterior is taken: `linearize`, predictives, trees and tables."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.zoo import mlp_classifier, mlp_regression, some_theta
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")


def fit_at(case, *seeds: int, **options: Any) -> pl.LaplaceMixture:
    given = [case.flat.constrain(some_theta(case, seed))[0] for seed in seeds]
    options = {"weights": "equal"} | options
    return pl.fit_laplace(case.model, case.data, given, polish=False, on_not_a_mode="ignore", **options)


def eta_at(program, case, values) -> torch.Tensor:
    trace: Any = poutine.trace(poutine.condition(program, values)).get_trace(*case.inputs)
    fn = trace.nodes["y"]["fn"]
    return torch.cat([fn.loc, fn.scale.log().expand_as(fn.loc)], -1) if hasattr(fn, "loc") else fn.logits


@pytest.mark.parametrize("make", [mlp_classifier, mlp_regression])
@pytest.mark.parametrize("subset", ["all", "last_layer"])
def test_a_draw_is_linearised_at_its_own_components_mode(make, subset):
    case = make()
    mixture = fit_at(case, 0, 1, 2, subset=subset)
    linear = pl.linearize(case.model, mixture)
    for component in mixture.components:
        alone = pl.linearize(case.model, component)
        draws = component.sample_posterior(3)
        for i in range(3):
            values = {name: value[i] for name, value in draws.items()}
            theta = case.flat.unconstrain(values)
            if torch.equal(mixture.get_posterior().mode_of(theta), component.theta):
                assert_close(eta_at(linear, case, values), eta_at(alone, case, values), rtol=1e-10, atol=1e-10)
    values = mixture.components[1].median()
    assert_close(eta_at(linear, case, values), eta_at(case.model, case, values), rtol=1e-10, atol=1e-10)


@pytest.mark.statistical
@pytest.mark.parametrize(("predictive", "num_samples"), [(Predictive, 400), (pl.Predictive, 2000)])
def test_draws_through_the_linearised_program_are_the_linearised_predictive(predictive, num_samples):
    case = mlp_classifier()
    mixture = fit_at(case, 0, 1)
    pyro.set_rng_seed(1)
    draws = predictive(pl.linearize(case.model, mixture), guide=mixture, num_samples=num_samples)(*case.inputs)["y"]
    probs = pl.LinearizedPredictive(case.model, mixture, link="sample", num_samples=10_000)(*case.inputs)["y"].probs
    for label in range(3):
        share = (draws.reshape(num_samples, -1) == label).double().mean(0)
        assert_close(share, probs[:, label], rtol=0, atol=5 * 0.5 / num_samples**0.5)


def test_linearized_predictive_of_a_mixture_mixes_those_of_its_components():
    case = mlp_classifier()
    mixture = fit_at(case, 0, 1)
    predictive: Any = pl.LinearizedPredictive(case.model, mixture, link="bridge")
    assert type(predictive) is pl.LinearizedPredictive
    parts = [pl.LinearizedPredictive(case.model, component, link="bridge") for component in mixture.components]
    expected = sum(0.5 * part(*case.inputs)["y"].probs for part in parts)
    assert_close(predictive(*case.inputs)["y"].probs, expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(pl.InvalidOption, match="link='probits'"):
        pl.LinearizedPredictive(case.model, mixture, link="probits")
    with pytest.raises(pl.InvalidOption, match="num_samples=0"):
        predictive.sample(0)


def test_the_program_of_a_mixture_in_an_elbo():
    case = mlp_regression()
    mixture = fit_at(case, 0, 1)
    assert math.isfinite(Trace_ELBO().loss(pl.linearize(case.model, mixture), mixture, *case.data))


def test_draws_of_all_weights_through_the_network_are_warned_of():
    case = mlp_regression()
    mixture = fit_at(case, 0, 1)
    with pytest.warns(pl.LaplaceWarning, match="not linear within the posterior"):
        pl.Predictive(case.model, guide=mixture, num_samples=3)(*case.inputs)


def test_a_tree_of_a_mixture():
    case = mlp_regression()
    mixture = fit_at(case, 0, 1)
    tree = pl.to_datatree(case.model, mixture, case.data, num_samples=40)
    assert tree.attrs["posterior"] == "LaplaceMixture"
    assert tree.attrs["structure"] == "full"
    assert tree.attrs["linearized"] == 1
    values = {name: torch.as_tensor(tree.posterior[name].values[0]) for name in mixture.layout}
    theta = torch.stack([case.flat.unconstrain({k: v[i] for k, v in values.items()}) for i in range(40)])
    expected = mixture.get_posterior().log_prob(theta)
    assert_close(torch.as_tensor(tree.sample_stats.lp_approx.values[0]), expected, rtol=1e-6, atol=1e-6)


def test_a_table_with_a_mixture_and_an_ensemble():
    case = mlp_classifier()
    mixture = fit_at(case, 0, 1)
    points = pl.LaplaceMixture.of_modes(case.model, case.data, [c.median() for c in mixture.components])
    table = pl.compare(case.model, {"mixture": mixture, "ensemble": points}, case.data, case.data, num_samples=200)
    assert list(table.index) == ["mixture", "mixture (sampled)", "ensemble"]
    probs = pl.LinearizedPredictive(case.model, points)(*case.inputs)["y"]
    assert table.test_lpd["ensemble"] == pytest.approx(float(probs.log_prob(case.data[-1]).mean()), abs=0.05)


def test_a_mixture_is_not_trained():
    case = mlp_classifier()
    with pytest.raises(pl.InvalidOption, match="LaplaceMixture is fitted already"):
        pl.fit_svi(case.model, case.data, fit_at(case, 0, 1))


def test_other_data_of_a_batch_of_entries():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson((x @ w).exp()).to_event(1), obs=y)

    x = torch.randn(6, 2)
    y = torch.ones(6, 3)
    values = [{"w": torch.randn(2, 3)} for _ in range(2)]
    points = pl.LaplaceMixture.of_modes(model, (x, y), values)
    found = pl.LinearizedPredictive(model, points, num_samples=5)(x)["y"]
    log_prob = torch.stack([torch.distributions.Poisson((x @ v["w"]).exp()).log_prob(y).sum(-1) for v in values])
    assert_close(found.log_prob(y), log_prob.logsumexp(0) - math.log(2), rtol=1e-10, atol=1e-10)
