"""The precision `sum_n J_n' I_n J_n + H_prior` against dense references, and the mode it is measured at."""

import math
import warnings
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles.naive import pyro_laplace_at
from programs.zoo import (
    BETA,
    CANONICAL,
    GAMMA,
    OTHERS,
    Case,
    beta_bernoulli,
    dirichlet_categorical,
    gamma_poisson,
    heteroscedastic,
    hierarchical,
    hierarchical_centred,
    linear_unknown_noise,
    log_normal_observed,
    logistic,
    logistic_probs,
    map_guide_at,
    map_guide_at_theta,
    mlp_classifier,
    mlp_regression,
    multi_output,
    poisson,
    pyro_module_classifier,
    softmax,
    softmax_probs,
    some_theta,
    two_likelihoods,
)
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation
from pyro.optim import PyroOptim
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

assert_same = partial(assert_close, rtol=1e-8, atol=1e-8)


def measured_at(case: Case, theta: torch.Tensor, data=None, **options):
    """A guide at theta, wherever that is: neither moved nor complained about."""
    options = {"polish": False, "on_not_a_mode": "ignore"} | options
    return pl.fit_laplace(
        case.model,
        case.data if data is None else data,
        map_guide_at_theta(case, theta),
        **{"curvature": "ggn"} | options,
    )


def theta_of(guide, case: Case) -> torch.Tensor:
    return case.flat.unconstrain(guide.median())


# --- against the Hessian --------------------------------------------------------------------------


@pytest.mark.parametrize("make", CANONICAL)
def test_equals_the_hessian_of_canonical_likelihoods(make):
    case = make()
    guide = pl.fit_laplace(
        case.model, case.data, map_guide_at_theta(case, torch.zeros(case.flat.size)), curvature="ggn"
    )
    mode = theta_of(guide, case)
    prec = guide.precision.to_dense()
    gradient = case.flat.gradient(mode)
    assert (gradient @ torch.linalg.solve(prec, gradient)).sqrt() < 1e-6
    assert_same(prec, case.flat.hessian(mode))
    assert guide.log_evidence == pytest.approx(case.flat.laplace_evidence(mode, prec), rel=1e-9)


@pytest.mark.parametrize("make", CANONICAL)
def test_agrees_with_pyros_laplace_approximation(make):
    case = make()
    guide = pl.fit_laplace(
        case.model, case.data, map_guide_at_theta(case, torch.zeros(case.flat.size)), curvature="ggn"
    )
    loc, cov = pyro_laplace_at(case.model, case.flat.constrain(case.flat.mode())[0], *case.data)
    assert_close(theta_of(guide, case), loc, rtol=1e-6, atol=1e-6)
    assert_close(torch.linalg.inv(guide.precision.to_dense()), cov, rtol=1e-6, atol=1e-6)


def test_agrees_with_pyro_from_pyros_own_training():
    """Both trained by SVI with the same optimiser, each as its documentation says."""
    case = logistic()
    pyros, map_guide = AutoLaplaceApproximation(case.model), AutoDelta(case.model)
    for guide in (pyros, map_guide):
        svi = SVI(case.model, guide, PyroOptim(torch.optim.Adam, {"lr": 0.05}), Trace_ELBO())
        for _ in range(400):
            svi.step(*case.data)
    theirs: Any = pyros.laplace_approximation(*case.data)
    ours = pl.fit_laplace(case.model, case.data, map_guide, curvature="ggn")
    std = theirs.scale.detach()
    assert_close(theta_of(ours, case) / std, theirs.loc / std, rtol=0, atol=1e-2)
    assert_close(torch.linalg.inv(ours.precision.to_dense()).diagonal().sqrt(), std, rtol=1e-2, atol=0)


# --- against the naive GGN ------------------------------------------------------------------------


@pytest.mark.parametrize("make", CANONICAL + OTHERS)
def test_equals_the_naive_ggn_wherever_it_is_measured(make):
    case = make()
    theta = some_theta(case)
    guide = measured_at(case, theta)
    assert_close(theta_of(guide, case), theta)
    assert_same(guide.precision.to_dense(), case.flat.ggn(theta))


@pytest.mark.parametrize("make", CANONICAL + OTHERS)
def test_diag_is_the_diagonal_of_the_naive_ggn(make):
    case = make()
    theta = some_theta(case)
    guide = measured_at(case, theta, structure="diag")
    assert_same(guide.precision.to_dense(), torch.diag(case.flat.ggn(theta).diagonal()))


@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("make", CANONICAL + OTHERS)
def test_batch_size_changes_nothing(make, structure):
    case = make()
    theta = some_theta(case)
    whole = measured_at(case, theta, structure=structure)
    for size in (1, 7):
        batched = measured_at(case, theta, case.batches(size), structure=structure)
        assert_same(batched.precision.to_dense(), whole.precision.to_dense())
        assert batched.log_evidence == pytest.approx(whole.log_evidence, rel=1e-9)


@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("make", [logistic, mlp_regression, hierarchical, dirichlet_categorical])
def test_log_evidence_is_laplaces_formula(make, structure):
    case = make()
    theta = some_theta(case)
    guide = measured_at(case, theta, structure=structure)
    expected = case.flat.laplace_evidence(theta, guide.precision.to_dense())
    assert guide.log_evidence == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "other"), [(logistic, logistic_probs), (softmax, softmax_probs)], ids=["bernoulli", "categorical"]
)
def test_parametrisation_of_the_likelihood_does_not_matter(make, other):
    theta = some_theta(make())
    by_logits = measured_at(make(), theta).precision.to_dense()
    pyro.clear_param_store()
    by_probs = measured_at(other(), theta).precision.to_dense()
    assert_same(by_probs, by_logits)


def test_observing_the_exponential_changes_no_information():
    """`LogNormal(loc, scale)` tells of loc and scale what `Normal(loc, scale)` tells."""
    case = log_normal_observed()

    theta = some_theta(case)
    x, y = case.data

    def normal_model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand_by([3]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)

    observed = measured_at(case, theta).precision.to_dense()
    pyro.clear_param_store()
    assert_same(measured_at(Case(normal_model, (x, y.log())), theta).precision.to_dense(), observed)


def test_wrappers_of_the_likelihood_do_not_matter():
    """`expand` and `to_event` say nothing about the data."""
    g = torch.Generator().manual_seed(0)
    y = torch.randn(20, 2, generator=g)

    def plain(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("outputs", 2), pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, scale), obs=y)

    def wrapped(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, scale).expand_by([len(y), 2]).to_event(1), obs=y)

    theta = torch.tensor([0.3, -0.2])
    expected = 40 * torch.diag(torch.tensor([math.exp(0.4), 2.0])) + torch.diag(torch.tensor([1.0, 2 * math.exp(-0.4)]))
    for model in (plain, wrapped):
        pyro.clear_param_store()
        assert_same(measured_at(Case(model, (y,)), theta).precision.to_dense(), expected)


# --- closed forms of constrained sites ------------------------------------------------------------


def single_site_guide(case: Case, jacobian: bool):
    start = map_guide_at_theta(case, torch.zeros(1))
    return pl.fit_laplace(case.model, case.data, start, jacobian=jacobian, curvature="ggn")


@pytest.mark.parametrize("jacobian", [True, False])
def test_gamma_prior_of_a_poisson_rate(jacobian):
    """Density of `log rate`: `Gamma(a + sum y, b + N)`, times the rate if the Jacobian is in."""
    case = gamma_poisson()
    shape = GAMMA[0] + case.data[0].sum() - int(not jacobian)
    guide = single_site_guide(case, jacobian)
    assert_same(guide.median()["rate"], shape / (GAMMA[1] + 12))
    assert_same(guide.precision.to_dense(), shape.reshape(1, 1))


@pytest.mark.parametrize("jacobian", [True, False])
def test_beta_prior_of_a_bernoulli_probability(jacobian):
    case = beta_bernoulli()
    heads, drop = case.data[0].sum(), int(not jacobian)
    a, b = BETA[0] + heads - drop, BETA[1] + 12 - heads - drop
    guide = single_site_guide(case, jacobian)
    assert_same(guide.median()["probs"], a / (a + b))
    assert_same(guide.precision.to_dense(), (a * b / (a + b)).reshape(1, 1))


def log_normal_site(y):
    """A site that the data say nothing about."""
    pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


@pytest.mark.parametrize(("jacobian", "mode"), [(True, 1.0), (False, math.exp(-1))])
@pytest.mark.parametrize("start", [None, 0.3, 5.0])
def test_log_normal_site(jacobian, mode, start):
    y = torch.tensor([0.5, -1.0, 2.0])
    map_guide = None if start is None else map_guide_at(log_normal_site, {"scale": torch.tensor(start)}, y)
    guide = pl.fit_laplace(log_normal_site, (y,), map_guide, jacobian=jacobian, curvature="ggn")
    assert_close(guide.median()["scale"], torch.tensor(mode), rtol=1e-6, atol=1e-6)
    assert_close(guide.precision.to_dense(), torch.ones(1, 1), rtol=1e-6, atol=1e-6)
    if jacobian:
        assert guide.log_evidence == pytest.approx(float(dist.Normal(0.0, 1.0).log_prob(y).sum()), rel=1e-8)


def test_fit_map_stays_where_autodelta_ends():
    """AutoDelta maximises the density of the constrained values."""
    map_guide = pl.fit_map(log_normal_site, (torch.tensor([0.5, -1.0, 2.0]),))
    assert_close(map_guide.median()["scale"], torch.tensor(math.exp(-1)), rtol=0.02, atol=0)


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
@pytest.mark.filterwarnings("ignore:curvature='ggn' is the information that data of this model hold")
@pytest.mark.parametrize("jacobian", [True, False])
@pytest.mark.parametrize("make", [linear_unknown_noise, hierarchical, dirichlet_categorical])
def test_mode_and_precision_with_and_without_the_jacobian(make, jacobian):
    case = make()
    start = map_guide_at_theta(case, torch.zeros(case.flat.size))
    guide = pl.fit_laplace(case.model, case.data, start, jacobian=jacobian, curvature="ggn")
    mode = theta_of(guide, case)
    prec = guide.precision.to_dense()
    gradient = case.flat.gradient(mode, jacobian)
    assert (gradient @ torch.linalg.solve(prec, gradient)).sqrt() < 1e-4
    assert_same(prec, case.flat.ggn(mode, jacobian))


# --- layout and subsets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [multi_output, logistic, hierarchical, two_likelihoods, mlp_regression, pyro_module_classifier]
)
def test_layout_is_in_trace_order(make):
    case = make()
    guide = measured_at(case, some_theta(case))
    assert list(guide.layout) == list(case.flat.layout)
    assert dict(guide.layout) == case.flat.layout


def test_layout_of_a_site_whose_unconstrained_dimension_differs():
    case = dirichlet_categorical()
    assert dict(measured_at(case, some_theta(case)).layout) == {"probs": slice(0, 3)}


@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("subset", ["last_layer", "*2", ["w2", "b2"], ["b2", "w2"], ("w2", "b[2-9]"), "callable"])
def test_subset_is_a_block_of_the_naive_ggn(subset, structure):
    """Only the chosen sites, in trace order whatever the order of the choice."""
    case = mlp_classifier()
    theta = some_theta(case)
    chosen = (lambda name: name.endswith("2")) if subset == "callable" else subset
    guide = measured_at(case, theta, subset=chosen, structure=structure)
    where = case.flat.indices("w2", "b2")
    expected = case.flat.ggn(theta)[where[:, None], where]
    expected = expected if structure == "full" else torch.diag(expected.diagonal())
    assert_same(guide.precision.to_dense(), expected)


@pytest.mark.parametrize("make", [mlp_classifier, pyro_module_classifier])
def test_last_layer_is_found(make):
    case = make()
    theta = some_theta(case)
    guide = measured_at(case, theta, subset="last_layer")
    where = case.flat.indices(*case.last_layer)
    assert_same(guide.precision.to_dense(), case.flat.ggn(theta)[where[:, None], where])


def test_a_first_layer_may_be_chosen():
    """Not a suffix of theta, and not contiguous."""
    case = mlp_classifier()
    theta = some_theta(case)
    guide = measured_at(case, theta, subset=["w1", "b2"])
    where = case.flat.indices("w1", "b2")
    assert_same(guide.precision.to_dense(), case.flat.ggn(theta)[where[:, None], where])


# --- a prior that is not log-concave --------------------------------------------------------------


def test_indefinite_prior_is_projected_and_said_so():
    case = hierarchical_centred()
    theta = torch.tensor([0.0, -3.0, 1.0, -1.0, 0.5, 0.0, -0.5])  # mu, log tau, effects that are far apart for that tau
    h_prior = case.flat.prior_precision(theta)
    likelihood = case.flat.likelihood_ggn(theta, "y")
    assert torch.linalg.eigvalsh(h_prior + likelihood).min() < -1

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prior_part = measured_at(case, theta).precision.to_dense() - likelihood
    assert any("prior" in str(warning.message) for warning in caught)
    eigenvalues, basis = torch.linalg.eigh(h_prior)
    assert_same(prior_part, basis @ torch.diag(eigenvalues.clamp(min=0)) @ basis.T)


def test_indefinite_prior_is_not_dropped_where_the_data_make_up_for_it():
    """With and without its directions of negative curvature, the posterior is proper: either will do, nothing else."""
    case = hierarchical_centred()
    theta = 3 * some_theta(case)
    h_prior = case.flat.prior_precision(theta)
    eigenvalues, basis = torch.linalg.eigh(h_prior)
    projected = basis @ torch.diag(eigenvalues.clamp(min=0)) @ basis.T
    likelihood = case.flat.likelihood_ggn(theta, "y")
    assert eigenvalues.min() < -0.1
    assert torch.linalg.eigvalsh(h_prior + likelihood).min() > 0.1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prior_part = measured_at(case, theta).precision.to_dense() - likelihood
    assert min((prior_part - h_prior).abs().max(), (prior_part - projected).abs().max()) < 1e-8


# --- dtype ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [logistic, gamma_poisson, heteroscedastic, poisson])
def test_dtype_is_that_of_the_sites_not_the_default(make):
    """A float64 program under a float32 default: nothing falls to single precision on the way."""
    case = make()
    theta = some_theta(case)
    expected, values = case.flat.ggn(theta), case.flat.constrain(theta)[0]
    doubles = in_double_whatever_the_default(case)
    torch.set_default_dtype(torch.float32)
    try:
        start = map_guide_at(doubles, values, *case.data)
        guide = pl.fit_laplace(doubles, case.data, start, polish=False, on_not_a_mode="ignore", curvature="ggn")
        prec, draws = guide.precision.to_dense(), guide.sample_posterior(3)
    finally:
        torch.set_default_dtype(torch.float64)
    assert prec.dtype == torch.float64
    assert all(draw.dtype == torch.float64 for draw in draws.values())
    assert_same(prec, expected)


def in_double_whatever_the_default(case: Case):
    """The program, its constants built in double precision at each call."""

    def model(*args, **kwargs):
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return case.model(*args, **kwargs)
        finally:
            torch.set_default_dtype(default)

    return model
