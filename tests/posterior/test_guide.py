"""`AutoLaplace` wherever Pyro takes a guide."""

import copy
import gc
import io
import types
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles.naive import linear_regression
from programs.zoo import (
    Case,
    gamma_poisson,
    hierarchical,
    linear,
    linear_data,
    linear_model,
    linear_unknown_noise,
    logistic,
    map_guide_at_theta,
    mlp_classifier,
    pyro_module_classifier,
    softmax,
)
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoContinuous, AutoDelta, AutoGuideList, init_to_value
from pyro.infer.reparam import NeuTraReparam
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

assert_same = partial(assert_close, rtol=1e-8, atol=1e-8)
PROGRAMS = [linear, logistic, softmax, gamma_poisson, linear_unknown_noise, hierarchical, pyro_module_classifier]


def fit(case: Case, **options):
    """A guide fitted at a point that need not be the mode: these tests are about what a guide does, not where it is."""
    start = map_guide_at_theta(case, 0.1 * torch.ones(case.flat.size))
    return pl.fit_laplace(case.model, case.data, start, polish=False, on_not_a_mode="ignore", **options)


def fit_linear():
    """The guide that equals its posterior, and the posterior."""
    x, y = linear_data()
    return pl.fit_laplace(linear_model(), (x, y)), linear_regression(x, y, 0.7, 1.3)


def theta_of(guide, case: Case) -> torch.Tensor:
    return case.flat.unconstrain(guide.median())


def flat_draws(guide, case: Case, num_samples: int) -> torch.Tensor:
    """`sample_posterior`, back in theta: [num_samples, P]."""
    draws = guide.sample_posterior(num_samples)
    return torch.stack([case.flat.unconstrain({k: v[i] for k, v in draws.items()}) for i in range(num_samples)])


def assert_covariance(draws: torch.Tensor, mean: torch.Tensor, cov: torch.Tensor) -> None:
    """Draws whitened by the expected moments have mean 0 and covariance 1, to five standard errors."""
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (draws - mean).T, upper=False).T
    num_samples, size = white.shape
    five = 5 / num_samples**0.5
    assert_close(white.mean(0), torch.zeros(size), rtol=0, atol=five)
    assert_close(white.T @ white / num_samples, torch.eye(size), rtol=0, atol=five * 2**0.5)


# --- draws, medians, quantiles --------------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("make", PROGRAMS)
def test_sample_posterior(make, structure):
    case = make()
    guide = fit(case, structure=structure)
    draws = guide.sample_posterior(1000)
    median = guide.median()
    assert list(draws) == list(median)
    assert {name: draw.shape for name, draw in draws.items()} == {k: (1000, *v.shape) for k, v in median.items()}
    cov = torch.linalg.inv(guide.precision.to_dense())
    assert_covariance(flat_draws(guide, case, 1000), theta_of(guide, case), cov)


def test_sample_posterior_follows_the_seed():
    guide = fit(logistic())
    pyro.set_rng_seed(7)
    first = guide.sample_posterior(5)
    second = guide.sample_posterior(5)
    pyro.set_rng_seed(7)
    again = guide.sample_posterior(5)
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["w"], second["w"])


def test_draws_need_no_gradient():
    guide = fit(logistic())
    tensors = [*guide.sample_posterior(2).values(), *guide.median().values(), *guide.quantiles([0.1]).values()]
    assert not any(tensor.requires_grad for tensor in tensors)


@pytest.mark.parametrize("make", PROGRAMS)
def test_median_is_the_mode_in_the_sites_own_space(make):
    case = make()
    guide = fit(case)
    values, _ = case.flat.constrain(0.1 * torch.ones(case.flat.size))
    assert_close(guide.median(), values)


def test_quantiles_are_those_of_the_marginals():
    """Monotone maps carry quantiles along: exact for a site on the half line."""
    case = linear_unknown_noise()
    guide = fit(case)
    std = torch.linalg.inv(guide.precision.to_dense()).diagonal().sqrt()
    quantiles = guide.quantiles([0.05, 0.5, 0.95])
    probabilities = torch.tensor([0.05, 0.5, 0.95])
    z = torch.distributions.Normal(0.0, 1.0).icdf(probabilities)
    mode = theta_of(guide, case)
    assert quantiles["w"].shape == (3, 3)
    assert quantiles["sigma"].shape == (3,)
    assert_same(quantiles["w"], mode[:3] + z[:, None] * std[:3])
    assert_same(quantiles["sigma"], (mode[3] + z * std[3]).exp())
    assert_close(guide.quantiles(probabilities.tolist())["w"][1], guide.median()["w"])


def test_quantiles_keep_the_shapes_of_plated_sites():
    guide = fit(hierarchical())
    assert {k: v.shape for k, v in guide.quantiles([0.1, 0.9]).items()} == {"mu": (2,), "tau": (2,), "z": (2, 5)}


# --- the posterior as a distribution --------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("make", PROGRAMS)
def test_get_posterior(make, structure):
    case = make()
    guide = fit(case, structure=structure)
    mode, prec = theta_of(guide, case), guide.precision.to_dense()
    expected = torch.distributions.MultivariateNormal(mode, precision_matrix=prec)
    posterior = guide.get_posterior()
    theta = mode + torch.randn(4, len(mode)) * prec.diagonal().rsqrt()
    assert posterior.event_shape == mode.shape
    assert_same(posterior.log_prob(theta), expected.log_prob(theta))
    assert_covariance(posterior.sample((2000,)), mode, torch.linalg.inv(prec))


@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("make", PROGRAMS)
def test_get_transform(make, structure):
    """White noise to theta and back; `S S'` the covariance, `log |det S|` as slogdet has it."""
    case = make()
    guide = fit(case, structure=structure)
    transform: Any = guide.get_transform()
    base = guide.get_base_dist()
    white = base.sample((5,))
    theta = transform(white)
    jacobian = torch.func.jacfwd(lambda z: guide.get_transform()(z))(white[0])
    assert base.event_shape == (case.flat.size,)
    assert_close(base.log_prob(white), torch.distributions.Normal(0.0, 1.0).log_prob(white).sum(-1))
    assert_same(transform(torch.zeros_like(white[0])), theta_of(guide, case))
    assert_same(transform.inv(theta + 0.0), white)
    assert_same(jacobian @ jacobian.T, torch.linalg.inv(guide.precision.to_dense()))
    slogdet = torch.linalg.slogdet(jacobian).logabsdet
    assert_same(transform.log_abs_det_jacobian(white, theta), slogdet.expand(5))


# --- a guide among guides -------------------------------------------------------------------------


def test_is_an_autoguide_without_parameters(param_mode):
    guide, _ = fit_linear()
    x, y = linear_data()
    stored = set(pyro.get_param_store())
    guide(x, y)
    assert isinstance(guide, AutoContinuous)
    assert isinstance(guide, pl.AutoLaplace)
    assert list(guide.parameters()) == []
    assert set(pyro.get_param_store()) == stored


def test_elbo_of_an_exact_posterior_is_the_evidence(param_mode):
    """`log p(y, w) - log q(w)` is the same number at every draw."""
    guide, exact = fit_linear()
    x, y = linear_data()
    for elbo in (Trace_ELBO(), Trace_ELBO(num_particles=10, vectorize_particles=False), TraceMeanField_ELBO()):
        assert elbo.loss(linear_model(), guide, x, y) == pytest.approx(-exact.log_evidence, rel=1e-8)


@pytest.mark.parametrize("make", PROGRAMS)
def test_elbo_bounds_nothing_but_is_finite_and_counts_the_jacobian(make):
    """Per draw, the guide's log density is the Gaussian's less the log-Jacobian of the sites' transforms."""
    case = make()
    guide = fit(case)
    trace: Any = poutine.trace(guide).get_trace(*case.data)
    theta = case.flat.unconstrain({name: trace.nodes[name]["value"] for name in guide.median()})
    gaussian = guide.get_posterior().log_prob(theta)
    assert_same(trace.log_prob_sum(), gaussian - case.flat.constrain(theta)[1])

    replayed = poutine.trace(poutine.replay(case.model, trace=trace)).get_trace(*case.data)
    joint = case.flat.log_joint(theta, jacobian=False)
    assert_same(replayed.log_prob_sum(), joint)


@pytest.mark.statistical
def test_predictive(param_mode):
    """Draws of y: mean `x m`, variance `x cov x' + noise^2`."""
    guide, exact = fit_linear()
    x, _ = linear_data()
    draws = Predictive(linear_model(), guide=guide, num_samples=1000)(x[:5])
    mean, var = x[:5] @ exact.mean, (x[:5] @ exact.cov @ x[:5].T).diagonal() + 0.7**2
    assert draws["y"].shape == (1000, 5)
    assert_close(draws["y"].mean(0), mean, rtol=0, atol=float(5 * (var.max() / 1000) ** 0.5))
    assert_close(draws["y"].var(0), var, rtol=5 * (2 / 1000) ** 0.5, atol=0)


@pytest.mark.parametrize("make", PROGRAMS)
def test_predictive_returns_latents_and_observations(make):
    case = make()
    guide = fit(case)
    draws = Predictive(case.model, guide=guide, num_samples=3, return_sites=[*guide.median(), "y"])(*case.inputs)
    for name, value in guide.median().items():
        assert draws[name].numel() == 3 * value.numel()
        assert draws[name].isfinite().all()
    assert draws["y"].shape[0] == 3


def test_auto_guide_list_of_one(param_mode):
    guide, exact = fit_linear()
    x, y = linear_data()
    model = linear_model()
    guides = AutoGuideList(model)
    guides.append(guide)
    assert Trace_ELBO().loss(model, guides, x, y) == pytest.approx(-exact.log_evidence, rel=1e-8)
    assert_same(guides.median(x, y)["w"], exact.mean)
    assert guides.quantiles([0.1, 0.9], x, y)["w"].shape == (2, 3)
    assert Predictive(model, guide=guides, num_samples=3)(x)["y"].shape == (3, len(x))


@pytest.mark.statistical
def test_auto_guide_list_with_another_guide(param_mode):
    """Laplace over the weights at a given intercept, AutoDelta over the intercept."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.3).expand_by([3]).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w + b, 0.7), obs=y)

    x, y = linear_data()
    b = torch.tensor(0.4)
    exact = linear_regression(x, y - b, 0.7, 1.3)
    guides = AutoGuideList(model)
    guides.append(AutoDelta(poutine.block(model, expose=["b"]), init_loc_fn=init_to_value(values={"b": b})))
    laplace = pl.fit_laplace(poutine.condition(model, data={"b": b}), (x, y))
    guides.append(laplace)

    assert_same(laplace.median()["w"], exact.mean)
    assert_same(laplace.precision.to_dense(), exact.prec)
    draw = guides(x, y)
    assert set(draw) == {"w", "b"}
    assert_close(draw["b"].detach(), b)
    draws = torch.stack([guides(x, y)["w"] for _ in range(1000)])
    assert_covariance(draws.detach(), exact.mean, exact.cov)


@pytest.mark.statistical
def test_neutra_inside_nuts(param_mode):
    """A Gaussian posterior is white noise in the guide's coordinates."""
    guide, exact = fit_linear()
    x, y = linear_data()
    neutra = NeuTraReparam(guide)
    mcmc = MCMC(NUTS(neutra.reparam(linear_model())), num_samples=300, warmup_steps=100, disable_progbar=True)
    mcmc.run(x, y)
    white = mcmc.get_samples()["w_shared_latent"]
    draws = neutra.transform_sample(white)["w"]
    assert_close(white.mean(0), torch.zeros(3), rtol=0, atol=0.35)
    assert_close(white.std(0), torch.ones(3), rtol=0, atol=0.3)
    std = exact.cov.diagonal().sqrt()
    assert_close(draws.mean(0) / std, exact.mean / std, rtol=0, atol=0.35)


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
def test_neutra_with_constrained_and_plated_sites():
    case = hierarchical()
    guide = pl.fit_laplace(case.model, case.data)
    neutra = NeuTraReparam(guide)
    kernel = NUTS(neutra.reparam(case.model), max_tree_depth=5)
    mcmc = MCMC(kernel, num_samples=20, warmup_steps=20, disable_progbar=True)
    mcmc.run(*case.data)
    left_of_the_plates = mcmc.get_samples()["mu_shared_latent"][:, None]
    draws = neutra.transform_sample(left_of_the_plates)
    assert {name: draw.shape for name, draw in draws.items()} == {"mu": (20, 1), "tau": (20, 1), "z": (20, 5)}
    assert (draws["tau"] > 0).all()


def test_two_guides_side_by_side(param_mode):
    """Programs that share a site's name, in one process: neither sees the other's point."""
    x, y = linear_data()
    first = pl.fit_laplace(linear_model(), (x, y))
    second = pl.fit_laplace(linear_model(), (x, -y))
    wider = pl.fit_laplace(linear_model(), linear_data(num_weights=5))
    exact = linear_regression(x, y, 0.7, 1.3)
    assert_same(first.median()["w"], exact.mean)
    assert_same(second.median()["w"], -exact.mean)
    assert wider.median()["w"].shape == (5,)
    assert_close(first(x, y)["w"].shape, second(x, y)["w"].shape)


def test_two_map_guides_side_by_side(param_mode):
    x, y = linear_data()
    first = pl.fit_map(linear_model(), (x, y))
    before = first.median()["w"].clone()
    second = pl.fit_map(linear_model(), (x, -y))
    assert_close(first.median()["w"], before, rtol=0, atol=0)
    assert_close(second.median()["w"], -before, rtol=0, atol=0.05)


# --- copies ---------------------------------------------------------------------------------------

NUM_TRAINING, NUM_FEATURES = 10_000, 3
TRAINING_BYTES = NUM_TRAINING * 8  # the smaller of x and y, in double precision


def fit_many():
    x, y = linear_data(NUM_TRAINING, NUM_FEATURES)
    return pl.fit_laplace(linear_model(), (x, y)), x, y


def via_torch_save(guide):
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = pytest.mark.parametrize("copied", [copy.deepcopy, via_torch_save], ids=["deepcopy", "torch.save"])


@COPIES
def test_copy_draws_as_the_original(copied, param_mode):
    guide, exact = fit_linear()
    twin = copied(guide)
    assert_close(twin.median(), guide.median(), rtol=0, atol=0)
    assert_close(twin.precision.to_dense(), guide.precision.to_dense(), rtol=0, atol=0)
    assert twin.log_evidence == guide.log_evidence
    assert dict(twin.layout) == dict(guide.layout)
    pyro.set_rng_seed(3)
    expected = guide.sample_posterior(4)
    pyro.set_rng_seed(3)
    assert_close(twin.sample_posterior(4), expected, rtol=0, atol=0)
    x, y = linear_data()
    assert Trace_ELBO().loss(linear_model(), twin, x, y) == pytest.approx(-exact.log_evidence, rel=1e-8)
    assert Predictive(linear_model(), guide=twin, num_samples=2)(x)["y"].shape == (2, len(x))


@COPIES
def test_copy_leaves_the_original_whole(copied, param_mode):
    guide, exact = fit_linear()
    model = guide.model
    copied(guide)
    x, y = linear_data()
    assert model is not None
    assert guide.model is model
    assert Trace_ELBO().loss(linear_model(), guide, x, y) == pytest.approx(-exact.log_evidence, rel=1e-8)
    assert Predictive(linear_model(), guide=guide, num_samples=2)(x)["y"].shape == (2, len(x))
    assert guide.quantiles([0.5])["w"].shape == (1, 3)


@COPIES
def test_copy_of_a_guide_of_a_module(copied):
    """Sites named by a path through modules."""
    case = pyro_module_classifier()
    guide = fit(case)
    twin = copied(guide)
    assert_close(twin.median(), guide.median(), rtol=0, atol=0)
    assert guide(*case.data).keys() == twin(*case.data).keys()
    assert Predictive(case.model, guide=guide, num_samples=2)(*case.inputs)["y"].shape[0] == 2


def test_saved_guide_carries_no_training_data():
    guide, x, y = fit_many()
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    saved = buffer.getvalue()
    assert len(saved) < TRAINING_BYTES / 2
    assert y[:8].numpy().tobytes() not in saved
    assert x[:3].numpy().tobytes() not in saved


def test_copied_guide_carries_no_training_data():
    guide, *_ = fit_many()
    assert largest_storage(copy.deepcopy(guide)) < TRAINING_BYTES / 2


def test_guide_itself_keeps_no_training_data():
    """Nor does the live guide; what its model closes over is the model's."""
    guide, *_ = fit_many()
    assert largest_storage(guide) < TRAINING_BYTES / 2


def test_the_search_for_training_data_finds_some():
    """The two tests above can fail."""
    guide, x, _ = fit_many()
    guide.somewhere = {"deep": [(x,)]}
    assert largest_storage(guide) >= TRAINING_BYTES


def largest_storage(root) -> int:
    """Bytes of the largest tensor storage that can be reached from `root`, functions and modules not entered."""
    seen, queue, largest = set(), [root], 0
    while queue:
        item = queue.pop()
        closed = types.FunctionType | types.MethodType | types.ModuleType | type
        if id(item) in seen or isinstance(item, closed):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            largest = max(largest, item.untyped_storage().nbytes())
        queue += gc.get_referents(item)
    return largest


# --- subsets --------------------------------------------------------------------------------------


def test_subset_guide_emits_the_rest_at_the_mode(param_mode):
    case = mlp_classifier()
    guide = fit(case, subset="last_layer")
    values, _ = case.flat.constrain(0.1 * torch.ones(case.flat.size))
    draws = [guide(*case.data) for _ in range(2)]
    assert list(guide.median()) == list(values)
    assert_close(guide.median(), values)
    for name in ("w1", "b1"):
        assert_close(draws[0][name], values[name])
        assert_close(draws[1][name], values[name])
    for name in ("w2", "b2"):
        assert not torch.equal(draws[0][name], draws[1][name])


@pytest.mark.statistical
def test_subset_guide_draws(param_mode):
    case = mlp_classifier()
    guide = fit(case, subset="last_layer")
    values, _ = case.flat.constrain(0.1 * torch.ones(case.flat.size))
    draws = guide.sample_posterior(1000)
    assert set(draws) == set(values)
    assert_close(draws["w1"], values["w1"].expand(1000, *values["w1"].shape))
    flat = torch.cat([draws["w2"].reshape(1000, -1), draws["b2"]], -1)
    mode = torch.cat([values["w2"].reshape(-1), values["b2"]])
    assert_covariance(flat, mode, torch.linalg.inv(guide.precision.to_dense()))
    quantiles = guide.quantiles([0.05, 0.95])
    assert_close(quantiles["w1"][0], quantiles["w1"][1])
    assert (quantiles["w2"][0] < quantiles["w2"][1]).all()


def test_subset_guide_in_predictive_and_elbo(param_mode):
    case = mlp_classifier()
    guide = fit(case, subset=["w2", "b2"])
    values, _ = case.flat.constrain(0.1 * torch.ones(case.flat.size))
    draws = Predictive(case.model, guide=guide, num_samples=4, return_sites=["w1", "w2", "y"])(*case.inputs)
    assert_close(draws["w1"].reshape(4, 3, 4), values["w1"].expand(4, 3, 4))
    assert len(draws["w2"].reshape(4, -1).unique(dim=0)) == 4
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(case.model, guide, *case.data)))


@COPIES
def test_copy_of_a_subset_guide(copied, param_mode):
    case = mlp_classifier()
    guide = fit(case, subset="last_layer")
    twin = copied(guide)
    assert_close(twin.median(), guide.median(), rtol=0, atol=0)
    assert_close(twin(*case.data)["w1"], guide.median()["w1"])
