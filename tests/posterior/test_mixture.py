"""Mixtures of Laplace approximations as densities: masses, moments, quantiles, held sites, and what is no mixture."""

from typing import Any

import pyro
import pytest
import torch
from programs.mixtures import (
    Y,
    bimodal,
    ensemble,
    exact_bimodal,
    fit_at,
    fit_bimodal,
    fit_linear,
    starts,
    torch_mixture,
)
from programs.zoo import gamma_poisson, linear_data, linear_model, map_guide_at_theta, mlp_classifier, some_theta
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta
from scipy.optimize import brentq
from torch.distributions import MixtureSameFamily
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")


# --- a posterior with two modes, in closed form ---------------------------------------------------


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


def test_the_covariance_is_that_within_and_between_components():
    mass, mean, std = exact_bimodal()
    weights = mass / mass.sum()
    within, middle = (weights * std.square()).sum(), (weights * mean).sum()
    expected = within + (weights * (mean - middle).square()).sum()
    assert_close(fit_bimodal().covariance, expected.reshape(1, 1), rtol=1e-8, atol=0)


def test_a_value_that_the_program_computes_has_the_mixtures_mean_and_deviation():
    mass, mean, std = exact_bimodal()
    weights = mass / mass.sum()
    found = fit_bimodal().of("t")  # a latent site's value needs no run of the program, and no data
    middle = (weights * mean).sum()
    assert_close(found.mean, middle, rtol=1e-8, atol=0)
    spread = (weights * (std.square() + (mean - middle).square())).sum().sqrt()
    assert_close(found.std, spread, rtol=1e-8, atol=0)
