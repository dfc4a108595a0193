"""`fit_svi` and `fit_nuts`: the same program and data, by other means."""

import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles.naive import linear_regression
from programs.zoo import (
    Case,
    dirichlet_categorical,
    gamma_poisson,
    generator,
    hierarchical,
    linear,
    linear_data,
    linear_unknown_noise,
    mlp_regression,
    multi_output,
    normal,
    split,
    two_likelihoods,
)
from pyro.infer import MCMC, Predictive
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, init_to_median
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.stats import effective_sample_size
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import pyro_laplace as pl
from pyro_laplace.data import as_data
from pyro_laplace.inference.mass import LaplaceMass
from pyro_laplace.inference.potential import Potential
from pyro_laplace.program.program import Program

pytestmark = pytest.mark.usefixtures("float64")

SHORT = {"num_samples": 10, "warmup_steps": 10, "progress": False}


def potential_of(model, data) -> Potential:
    program = Program.trace(model, as_data(data))
    return Potential(program, tuple(program.chunks(as_data(data))))


def at(potential: Potential, theta: torch.Tensor):
    """Value and gradient at theta."""
    theta = theta.clone().requires_grad_()
    latents = potential.program.latents
    value = potential({name: theta[s.slice].reshape(s.unconstrained_shape) for name, s in latents.items()})
    return value.detach(), torch.autograd.grad(value, theta)[0]


def badly_scaled() -> Case:
    """Weights of sizes 1e3 to 1e-3, two of them nearly collinear; sites in an order that is not alphabetical."""
    scale = torch.tensor([1e-3, 1.0, 30.0, 1e3])

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 10 / scale).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w + b, 0.5), obs=y)

    g = generator()
    x = torch.randn(60, 4, generator=g) * scale
    x[:, 1] += 0.1 * x[:, 2]
    return Case(model, (x, x @ (1 / scale) + 0.5 * torch.randn(60, generator=g)))


# --- the potential ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [linear, gamma_poisson, dirichlet_categorical, hierarchical, two_likelihoods])
def test_the_potential_is_minus_the_log_joint_as_pyro_computes_it(make):
    case = make()
    potential = potential_of(case.model, case.data)
    theta = 0.5 * torch.randn(potential.program.num_params)
    value, gradient = at(potential, theta)
    _, pyro_potential, _, _ = initialize_model(case.model, case.data)
    theta.requires_grad_()
    values = {n: theta[s.slice].reshape(s.unconstrained_shape) for n, s in potential.program.latents.items()}
    expected = pyro_potential(values)
    assert_close(value, expected.detach())
    assert_close(gradient, torch.autograd.grad(expected, theta)[0])


@pytest.mark.parametrize("size", [7, 20])
def test_batches_of_a_loader_make_the_potential_of_all_data(size):
    case = linear_unknown_noise()
    whole = potential_of(case.model, case.data)
    theta = torch.randn(4)
    loader = DataLoader(TensorDataset(*case.data), batch_size=size)
    for batches in (case.batches(size), loader):
        potential = potential_of(case.model, batches)
        assert len(potential.chunks) > 1
        for parts, all_data in zip(at(potential, theta), at(whole, theta), strict=True):
            assert_close(parts, all_data, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("own", [True, False])
def test_subsampling_plates_count_each_datum_once(own):
    x, y = linear_data()

    def model(x, y=None):
        w = pyro.sample("w", normal(1.3, 3))
        with pyro.plate("data", 40, subsample_size=16) as index:
            rows = index if own else slice(None)
            return pyro.sample("y", dist.Normal(x[rows] @ w, 0.7), obs=y[rows])

    data = (x, y) if own else split((x[:32], y[:32]), 16)
    expected = linear_regression(*((x, y) if own else (x[:32], y[:32])), 0.7, 1.3)
    potential = potential_of(model, data)
    if own:
        _, gradient = at(potential, expected.mean)
        assert_close(gradient, torch.zeros(3), rtol=0, atol=1e-10)
    else:  # 32 of the plate's 40 data were brought: they count 40 / 32
        theta = torch.randn(3)
        lik = dist.Normal(x[:32] @ theta, 0.7).log_prob(y[:32]).sum() * 40 / 32
        assert_close(at(potential, theta)[0], -lik - dist.Normal(0.0, 1.3).log_prob(theta).sum())


# --- fit_nuts -----------------------------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize("preconditioned", [False, True])
def test_nuts_draws_from_the_posterior_of_a_linear_regression(preconditioned):
    """Mean and covariance within four Monte Carlo errors."""
    case = linear()
    guide = pl.fit_laplace(case.model, case.data, progress=False) if preconditioned else None
    mcmc = pl.fit_nuts(
        case.model, case.data, num_samples=250, warmup_steps=100, num_chains=2, precondition=guide, progress=False
    )
    draws = mcmc.get_samples(group_by_chain=True)["w"]
    assert isinstance(mcmc, MCMC)
    assert draws.shape == (2, 250, 3)
    exact = linear_regression(*case.data, 0.7, 1.3)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(exact.cov), (draws - exact.mean).mT, upper=False).mT
    for statistic, expected in ((white, torch.zeros(3)), (white**2, torch.ones(3))):
        ess = effective_sample_size(statistic, 0, 1)
        error = statistic.reshape(-1, 3).std(0) / ess.sqrt()
        assert (ess > 100).all()
        assert ((statistic.mean((0, 1)) - expected).abs() < 4 * error).all()
    cross = white.reshape(-1, 3).T @ white.reshape(-1, 3) / 500
    assert_close(cross, torch.eye(3), rtol=0, atol=0.3)


@pytest.mark.statistical
def test_a_constrained_site_is_drawn_in_its_own_space():
    """Gamma-Poisson: the posterior is a Gamma."""
    case = gamma_poisson()
    mcmc = pl.fit_nuts(case.model, case.data, num_samples=350, warmup_steps=100, progress=False)
    rate = mcmc.get_samples()["rate"]
    (y,) = case.data
    exact = dist.Gamma(3.0 + y.sum(), 2.0 + len(y))
    ess = effective_sample_size(rate[None], 0, 1)
    assert (rate > 0).all()
    assert ess > 40
    assert abs(rate.mean() - exact.mean) < 4 * exact.stddev / ess.sqrt()
    assert abs(rate.std() / exact.stddev - 1) < 0.25


def test_a_simplex_keeps_its_shape():
    case = dirichlet_categorical()
    mcmc = pl.fit_nuts(case.model, case.data, **SHORT)
    probs = mcmc.get_samples()["probs"]
    assert probs.shape == (10, 4)
    assert_close(probs.sum(-1), torch.ones(10))


@pytest.mark.statistical
def test_an_improper_prior_is_never_sampled():
    x, y = linear_data()

    def model(x, y=None):
        w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real_vector, (), (3,)))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)

    w = pl.fit_nuts(model, (x, y), num_samples=250, warmup_steps=80, progress=False).get_samples()["w"]
    exact = linear_regression(x, y, 0.7, 1e6)
    std = exact.cov.diagonal().sqrt()
    assert ((w.mean(0) - exact.mean).abs() < 0.4 * std).all()
    assert_close(w.std(0) / std, torch.ones(3), rtol=0, atol=0.25)


@pytest.mark.slow
@pytest.mark.statistical
def test_preconditioning_takes_fewer_steps_on_a_badly_scaled_posterior():
    """A quarter of the evaluations, a twentieth of them for each effective draw."""
    case = badly_scaled()
    guide = pl.fit_laplace(case.model, case.data, progress=False)
    evaluations, effective = [], []
    for precondition in (None, guide):
        mcmc = pl.fit_nuts(
            case.model,
            case.data,
            num_samples=20,
            warmup_steps=20,
            max_tree_depth=6,
            precondition=precondition,
            progress=False,
        )
        evaluations.append(mcmc.kernel.potential_fn.evaluations)
        effective.append(effective_sample_size(mcmc.get_samples(group_by_chain=True)["w"], 0, 1).min())
    assert evaluations[1] < evaluations[0] / 4
    assert evaluations[1] / effective[1] < evaluations[0] / effective[0] / 20


def test_the_metric_is_the_laplace_covariance_in_the_order_of_pyros_block():
    """Sites of several outputs, named against the alphabet; the step size alone is adapted."""
    case = multi_output()
    guide = pl.fit_laplace(case.model, case.data, progress=False)
    mcmc = pl.fit_nuts(case.model, case.data, precondition=guide, **SHORT)
    ((names, inverse),) = mcmc.kernel.inverse_mass_matrix.items()
    assert names == ("w", "b")
    cov = torch.linalg.inv(case.flat.ggn(guide.theta))
    order = case.flat.indices(*names)
    assert_close(inverse, cov[order][:, order])


def test_sites_outside_the_subset_are_adapted_and_the_others_are_not():
    case = mlp_regression()
    guide = pl.fit_laplace(case.model, case.data, subset=["w2", "b2"], progress=False, on_not_a_mode="ignore")
    mcmc = pl.fit_nuts(
        case.model, case.data, precondition=guide, num_samples=3, warmup_steps=30, max_tree_depth=3, progress=False
    )
    blocks = mcmc.kernel.inverse_mass_matrix
    assert set(blocks) == {("w2", "b2"), ("b1", "sigma", "w1")}
    assert_close(blocks["w2", "b2"], guide.covariance)
    assert blocks["b1", "sigma", "w1"].shape == (21,)
    assert (blocks["b1", "sigma", "w1"] != 1).all()


@pytest.mark.parametrize("structure", ["diag", {"w": "diag", "*": "diag"}], ids=str)
def test_a_diagonal_guide_gives_a_diagonal_metric(structure):
    case = multi_output()
    guide = pl.fit_laplace(case.model, case.data, structure=structure, progress=False)
    mcmc = pl.fit_nuts(case.model, case.data, precondition=guide, **SHORT)
    ((names, inverse),) = mcmc.kernel.inverse_mass_matrix.items()
    variance = guide.precision.variance()
    assert_close(inverse, torch.cat([variance[guide.layout[name]] for name in names]))


def test_a_partly_diagonal_metric_keeps_what_the_guide_knows():
    case = multi_output()
    guide = pl.fit_laplace(case.model, case.data, structure="diag", subset=["w"], progress=False)
    program = Program.trace(case.model, as_data(case.data))
    mass = LaplaceMass(guide, program)
    mass.configure({("b", "w"): (9,)}, adapt_mass_matrix=True, options={"dtype": torch.float64})
    for _ in range(20):
        mass.update({"w": 5 * torch.randn(2, 3), "b": 5 * torch.randn(3)}, None)
    mass.end_adaptation()
    variance = mass.inverse_mass_matrix["b", "w"]
    assert_close(variance[3:], guide.precision.variance())
    assert (variance[:3] > 2).all()


@pytest.mark.parametrize("kind", ["guide", "mapping", "laplace"])
def test_chains_start_where_they_are_told(kind):
    case = linear()
    w = torch.tensor([0.3, -0.2, 0.9])
    initial = {"w": w}
    if kind == "guide":
        initial = pl.fit_map(case.model, case.data, progress=False)
        w = initial.median()["w"]
    elif kind == "laplace":
        initial = pl.fit_laplace(case.model, case.data, progress=False)
        w = initial.median()["w"]
    mcmc = pl.fit_nuts(case.model, case.data, initial=initial, num_chains=2, **SHORT)
    assert_close(mcmc.sampler.initial_params["w"], w.expand(2, 3))


def test_chains_start_apart_and_near_high_density():
    case = linear_unknown_noise()
    mcmc = pl.fit_nuts(case.model, case.data, num_chains=3, **SHORT)
    starts = mcmc.sampler.initial_params
    assert starts["w"].shape == (3, 3)
    theta = torch.stack([torch.cat([starts["w"][i], starts["sigma"][i, None]]) for i in range(3)])
    mode = case.flat.mode()
    std = torch.linalg.inv(case.flat.ggn(mode)).diagonal().sqrt()
    assert (((theta - mode) / std).abs() < 5).all()
    guide = pl.fit_laplace(case.model, case.data, progress=False)
    starts = pl.fit_nuts(case.model, case.data, num_chains=2, precondition=guide, **SHORT).sampler.initial_params
    assert_close(starts["w"][0], guide.median()["w"])
    assert not torch.allclose(starts["w"][0], starts["w"][1])


def test_draws_follow_the_seed_and_go_into_predictive():
    case = linear_unknown_noise()
    draws = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        draws.append(pl.fit_nuts(case.model, case.data, **SHORT).get_samples())
    assert_close(draws[0], draws[1])
    again = pl.fit_nuts(case.model, case.data, **SHORT)
    assert not torch.equal(again.get_samples()["w"], draws[0]["w"])
    assert Predictive(case.model, posterior_samples=draws[0])(*case.inputs)["y"].shape == (10, 40)
    assert again.fit_seconds > 0
    assert set(again.diagnostics()) >= {"w", "sigma", "divergences"}


def test_a_float32_program_is_drawn_in_float32():
    x, y = (tensor.float() for tensor in linear_data())
    case = Case(linear().model, (x, y))
    torch.set_default_dtype(torch.float32)
    try:
        guide = pl.fit_laplace(case.model, case.data, progress=False)
        mcmc = pl.fit_nuts(case.model, case.data, precondition=guide, **SHORT)
    finally:
        torch.set_default_dtype(torch.float64)
    assert mcmc.get_samples()["w"].dtype == torch.float32
    assert mcmc.kernel.inverse_mass_matrix[("w",)].dtype == torch.float64


def test_nuts_leaves_params_and_store_as_they_are(param_mode):
    x, y = linear_data()

    def model(x, y=None):
        scale = pyro.param("scale", torch.tensor(1.3), constraint=dist.constraints.positive)
        w = pyro.sample("w", dist.Normal(0.0, scale).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)

    pl.fit_nuts(model, (x, y), **SHORT)
    assert list(pyro.get_param_store().keys()) == []
    pyro.param("scale", torch.tensor(0.2), constraint=dist.constraints.positive)
    pl.fit_nuts(model, (x, y), **SHORT)
    assert list(pyro.get_param_store().keys()) == ["scale"]
    assert_close(pyro.param("scale").detach(), torch.tensor(0.2))
    with torch.no_grad():
        pl.fit_nuts(model, (x, y), **SHORT)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"num_chains": 0}, "num_chains=0"),
        ({"max_tree_depth": 0}, "max_tree_depth=0"),
        ({"target_accept_prob": 1.0}, r"target_accept_prob=1\.0"),
    ],
)
def test_options_out_of_range_are_refused(option, message):
    case = linear()
    with pytest.raises(pl.InvalidOption, match=message):
        pl.fit_nuts(case.model, case.data, progress=False, **option)


def test_what_does_not_fit_the_model_is_refused_by_name():
    case = linear()
    other = pl.fit_laplace(linear().model, linear_data(num_weights=2), progress=False)
    with pytest.raises(pl.InvalidOption, match=r"posterior over \{'w': 2\}.*\{'w': 3\}"):
        pl.fit_nuts(case.model, case.data, precondition=other, initial={"w": torch.zeros(3)}, progress=False)
    with pytest.raises(pl.InvalidOption, match="never been run"):
        pl.fit_nuts(case.model, case.data, initial=AutoDelta(case.model), progress=False)
    with pytest.raises(pl.InvalidOption, match="not finite where the chains start"):
        pl.fit_nuts(case.model, case.data, initial={"w": torch.full((3,), 1e200)}, progress=False)


# --- fit_svi ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
def test_a_mean_field_guide_reaches_its_known_optimum(batched, param_mode):
    """Linear-Gaussian: the best factorised Gaussian has the exact mean, and variances 1 / diag(precision)."""
    case = linear()
    guide = AutoNormal(case.model)
    data = case.batches(20) if batched else case.data
    optim = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.05 ** (1 / 1500)})
    trained = pl.fit_svi(case.model, data, guide, optim=optim, num_steps=1500, tolerance=-1e3, progress=False)
    assert trained is guide
    assert guide.fit_seconds > 0
    exact = linear_regression(*case.data, 0.7, 1.3)
    low, mid, high = guide.quantiles([0.1586553, 0.5, 0.8413447], *case.data)["w"]
    std = exact.prec.diagonal().rsqrt()
    assert_close((mid - exact.mean) / std, torch.zeros(3), rtol=0, atol=0.15)
    assert_close((high - low) / 2 / std, torch.ones(3), rtol=0, atol=0.1)


def test_a_second_guide_does_not_go_on_from_the_first(param_mode):
    case = linear()
    first = pl.fit_svi(case.model, case.data, AutoNormal(case.model), num_steps=20, learning_rate=0.1, progress=False)
    before = first.median()["w"].clone()
    second = pl.fit_svi(case.model, case.data, AutoNormal(case.model), num_steps=1, learning_rate=1e-9, progress=False)
    assert_close(first.median()["w"], before)
    assert not torch.allclose(second.median()["w"], before, atol=1e-3)


def test_a_guide_that_was_run_before_goes_on():
    case = linear()
    guide = AutoDelta(case.model)
    guide(*case.data)
    for _ in range(2):
        before = guide.median()["w"].clone()
        pl.fit_svi(case.model, case.data, guide, num_steps=1, learning_rate=0.01, progress=False)
        assert_close((guide.median()["w"] - before).abs(), torch.full((3,), 0.01), rtol=1e-3, atol=0)


def test_any_callable_is_a_guide():
    case = linear()

    def guide(x, y=None):
        loc = pyro.param("loc", torch.zeros(3))
        pyro.sample("w", dist.Normal(loc, 0.1).to_event(1))

    pl.fit_svi(case.model, case.data, guide, num_steps=300, learning_rate=0.05, progress=False)
    exact = linear_regression(*case.data, 0.7, 1.3)
    assert guide.fit_seconds > 0
    assert_close(pyro.param("loc").detach(), exact.mean, rtol=0, atol=0.1)


def test_svi_trains_hyperparameters():
    x, y = linear_data()

    def model(x, y=None):
        scale = pyro.param("scale", torch.tensor(50.0), constraint=dist.constraints.positive)
        w = pyro.sample("w", dist.Normal(0.0, scale).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)

    pl.fit_svi(model, (x, y), AutoMultivariateNormal(model), num_steps=50, learning_rate=0.05, progress=False)
    assert pyro.param("scale").item() < 40


def test_an_improper_prior_that_a_guide_would_draw_from_is_named_with_the_remedy():
    x, y = linear_data()

    def model(x, y=None):
        w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real_vector, (), (3,)))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)

    with pytest.raises(pl.InvalidOption, match=r"'w'.*AutoNormal\(model, init_loc_fn=pyro_laplace.init_to_start\)"):
        pl.fit_svi(model, (x, y), AutoNormal(model, init_loc_fn=init_to_median), num_steps=1, progress=False)
    guide = AutoNormal(model, init_loc_fn=pl.init_to_start)
    pl.fit_svi(model, (x, y), guide, num_steps=2, progress=False)
    assert guide.median()["w"].shape == (3,)


def test_what_is_no_guide_for_the_model_is_refused():
    case = linear()
    guide = AutoNormal(case.model)
    guide(case.data[0])  # without y: takes it for a latent site
    with pytest.raises(pl.InvalidOption, match=r"\['w', 'y'\].*\['w'\].*AutoNormal\(model\)"):
        pl.fit_svi(case.model, case.data, guide, progress=False)
    with pytest.raises(pl.InvalidOption, match="is not a guide"):
        pl.fit_svi(case.model, case.data, AutoNormal, progress=False)
    laplace = pl.fit_laplace(case.model, case.data, progress=False)
    with pytest.raises(pl.InvalidOption, match="fitted already"):
        pl.fit_svi(case.model, case.data, laplace, progress=False)


def test_options_are_keyword_only_and_share_their_names_with_fit_map():
    options = list(inspect.signature(pl.fit_svi).parameters)[3:]
    assert options == list(inspect.signature(pl.fit_map).parameters)[2:]
