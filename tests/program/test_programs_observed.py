"""Observed sites of any kind: each program against the Hessian of its log joint, or against the same said otherwise."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles.naive import FlatProgram, linear_regression
from programs.zoo import linear_data, normal, split
from pyro import poutine
from torch.distributions import transforms
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

X, Y, COUNTS, KEEP, GROUP = "x", "y", "counts", "keep", "group"


def data(*names: str) -> tuple:
    """Tensors of 24 data, row n of each datum n."""
    x, y = linear_data(24, 2)
    g = torch.Generator().manual_seed(3)
    all_of_them = {
        X: x,
        Y: y,
        COUNTS: torch.poisson((0.4 * x.sum(-1)).exp(), generator=g),
        KEEP: torch.arange(24) % 3 != 0,
        GROUP: torch.arange(24) % 4,
    }
    return tuple(all_of_them[name] for name in names)


def fitted(model: Callable, batch, **options) -> pl.AutoLaplace:
    """The posterior from a start near the origin, which needs no training."""
    arguments = batch if isinstance(batch, tuple) else batch[0]
    flat = FlatProgram(model, *arguments)
    start = flat.constrain(0.1 * torch.randn(flat.size, generator=torch.Generator().manual_seed(1)))[0]
    return pl.fit_laplace(model, batch, start, on_not_a_mode="raise", **options)


def assert_same_posterior(one: pl.AutoLaplace, other: pl.AutoLaplace) -> None:
    assert_close(dict(one.median()), dict(other.median()), rtol=1e-6, atol=1e-7)
    assert_close(one.precision.to_dense(), other.precision.to_dense(), rtol=1e-6, atol=1e-7)
    assert one.log_evidence == pytest.approx(other.log_evidence, rel=1e-8)


# --- against the Hessian of the log joint ---------------------------------------------------------


def several_sites(x, counts, y):
    """Two heads and a shared weight; an exposure and an offset."""
    w = pyro.sample("w", normal(1.0, 2))
    v = pyro.sample("v", normal(1.0, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("count", dist.Poisson((x @ w + torch.log(1.0 + x[:, 0] ** 2)).exp()), obs=counts)
        pyro.sample("y", dist.Normal(x @ (w + v) + 0.3, 0.5 + x[:, 1] ** 2), obs=y)


def factor_in_a_plate(x, y):
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("data", len(x)):
        pyro.factor("y", -torch.cosh(0.3 * (y - x @ w)))


def factor_outside(x, y):
    w = pyro.sample("w", normal(1.0, 2))
    pyro.factor("tie", -2.0 * (w[0] - w[1]) ** 2)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def masked_and_scaled(x, keep, y):
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("data", len(x)), poutine.mask(mask=keep), poutine.scale(scale=0.25):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=(y > 0).double())


def masked_latent(x, y):
    """A mask on a prior as well."""
    with poutine.mask(mask=torch.tensor([True, False])):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def nested_plates(x, y):
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("blocks", 4, dim=-2):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 6, dim=-1):
            pyro.sample("y", dist.Normal((x @ w).reshape(4, 6) + shift, 0.5), obs=y.reshape(4, 6))


def crossed_plates(counts):
    rows, columns = pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 6, dim=-1)
    with rows:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with columns:
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with rows, columns:
        pyro.sample("y", dist.Poisson((a + b).exp()), obs=counts.reshape(4, 6))


def plate_to_the_left(x, y):
    """Data along the last but one axis, three outputs each along the last."""
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("outputs", 3, dim=-1), pyro.plate("data", len(x), dim=-2):
        pyro.sample("y", dist.StudentT(4.0, (x @ w)[:, None], 0.5), obs=torch.stack([y, y + 0.1, -y], -1))


def full_noise_covariance(x, y):
    w = pyro.sample("w", normal(1.0, 2, 2))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    corr = pyro.sample("corr", dist.LKJCholesky(2, 2.0))
    with pyro.plate("data", len(x)):
        noise = dist.MultivariateNormal(x @ w, scale_tril=scale[:, None] * corr)
        pyro.sample("y", noise, obs=torch.stack([y, 0.5 * y.abs()], -1))


def per_datum_noise(x, y):
    w = pyro.sample("w", normal(1.0, 2))
    v = pyro.sample("v", normal(0.5, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, (0.3 * x @ v).exp()), obs=y)


def no_plate(x, y):
    w = pyro.sample("w", normal(1.0, 2))
    pyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)


HESSIANS = {
    several_sites: data(X, COUNTS, Y),
    factor_in_a_plate: data(X, Y),
    factor_outside: data(X, Y),
    masked_and_scaled: data(X, KEEP, Y),
    masked_latent: data(X, Y),
    nested_plates: data(X, Y),
    crossed_plates: data(COUNTS),
    plate_to_the_left: data(X, Y),
    full_noise_covariance: data(X, Y),
    per_datum_noise: data(X, Y),
    no_plate: data(X, Y),
}


@pytest.mark.parametrize("model", HESSIANS, ids=lambda model: model.__name__)
def test_the_hessian_of_the_log_joint(model):
    batch = tuple(each.double() if each.is_floating_point() else each for each in HESSIANS[model])
    guide = fitted(model, batch, curvature="hessian")
    flat = FlatProgram(model, *batch)
    theta = flat.unconstrain(guide.median())
    assert_close(guide.precision.to_dense(), flat.hessian(theta), rtol=1e-8, atol=1e-8)
    assert guide.log_evidence == pytest.approx(flat.laplace_evidence(theta, guide.precision.to_dense()), rel=1e-9)


GAUSS_NEWTON = [several_sites, masked_and_scaled, nested_plates, crossed_plates, per_datum_noise, no_plate]


@pytest.mark.filterwarnings("ignore:curvature='ggn' is the information that data of this model hold")
@pytest.mark.parametrize("model", GAUSS_NEWTON, ids=lambda model: model.__name__)
def test_the_gauss_newton_matrix(model):
    batch = tuple(each.double() if each.is_floating_point() else each for each in HESSIANS[model])
    guide = fitted(model, batch, curvature="ggn")
    flat = FlatProgram(model, *batch)
    theta = flat.unconstrain(guide.median())
    assert_close(guide.precision.to_dense(), flat.ggn(theta), rtol=1e-8, atol=1e-8)


# --- missing data ---------------------------------------------------------------------------------


def complete(x, y):
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def with_obs_mask(x, keep, y):
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y, obs_mask=keep)


@pytest.mark.parametrize("missing", [0.0, float("nan")])
def test_obs_mask_integrates_what_is_missing(missing):
    """The marginal of what is unobserved is 1: the posterior is that of the other data."""
    x, y, keep = data(X, Y, KEEP)
    batch = (x.double(), keep, torch.where(keep, y, missing).double())
    whole = fitted(complete, (batch[0][keep], batch[2][keep]))
    assert_same_posterior(pl.fit_laplace(with_obs_mask, batch, dict(whole.median()), on_not_a_mode="raise"), whole)
    trained = pl.fit_laplace(with_obs_mask, batch, progress=False)
    assert_same_posterior(trained, whole)
    assert list(trained.median()) == ["w"]


def test_obs_mask_keeps_the_name_of_its_site():
    """Pyro has three sites of it, and every predictive, draw and tree of ours the one that was written."""
    pyro.set_rng_seed(0)
    x, keep = torch.randn(20, 2), torch.arange(20) % 3 != 0
    y = x.sum(1) + 0.5 * torch.randn(20)
    guide = pl.fit_laplace(with_obs_mask, (x, keep, y))
    assert guide.observed == ("y",)
    predictive = pl.LinearizedPredictive(with_obs_mask, guide)
    assert [*predictive(x, keep, y)] == [*predictive.latent(x, keep, y)] == [*predictive.sample(2)(x, keep, y)] == ["y"]
    tree = pl.to_datatree(with_obs_mask, guide, (x, keep, y), num_samples=3, progress=False)
    for group in ("observed_data", "log_likelihood", "posterior_predictive", "prior_predictive"):
        assert list(tree[group].data_vars) == ["y"]
    assert list(tree["posterior"].data_vars) == ["w"]
    linear = pl.linearize(with_obs_mask, guide)
    for draw in (pl.Predictive, pyro.infer.Predictive):
        for program in (with_obs_mask, linear):
            drawn = draw(program, guide=guide, num_samples=3)(x, keep, y)["y"]
            assert drawn.shape == (3, 20)
            assert_close(drawn[:, keep], y[keep].expand(3, -1))
            assert (drawn[:, ~keep] != y[~keep]).all()


def test_obs_mask_of_discrete_data():
    x, counts, keep = data(X, COUNTS, KEEP)

    def model(x, counts, keep=None):
        w = pyro.sample("w", normal(1.0, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson((x @ w).exp()), obs=counts, obs_mask=keep)

    def whole(x, counts):
        w = pyro.sample("w", normal(1.0, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson((x @ w).exp()), obs=counts)

    x, counts = x.double(), counts.double()
    start = {"w": torch.zeros(2)}
    assert_same_posterior(
        pl.fit_laplace(model, (x, counts, keep), start), pl.fit_laplace(whole, (x[keep], counts[keep]), start)
    )


def test_obs_mask_in_batches():
    batch = tuple(each.double() if each.is_floating_point() else each for each in data(X, KEEP, Y))
    start = {"w": torch.zeros(2)}
    assert_same_posterior(
        pl.fit_laplace(with_obs_mask, split(batch, 7), start, polish=True),
        pl.fit_laplace(with_obs_mask, batch, start, polish=True),
    )


@pytest.mark.parametrize("curvature", ["ggn", "hessian", "empirical_fisher"])
def test_missing_as_nan(curvature):
    x, y, keep = data(X, Y, KEEP)
    x, y = x.double(), y.double()

    def model(x, y):
        w = pyro.sample("w", normal(1.0, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.NanMaskedNormal(x @ w, 0.5), obs=y)

    start = {"w": torch.zeros(2)}
    with_nan = pl.fit_laplace(model, (x, torch.where(keep, y, torch.nan)), start, curvature=curvature)
    assert_same_posterior(with_nan, pl.fit_laplace(complete, (x[keep], y[keep]), start, curvature=curvature))


# --- plates that subsample ------------------------------------------------------------------------


def given_subsample(x, y, index, size):
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("data", size, subsample=index):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def batch_of_a_larger_plate(x, y):
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("data", 24, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def own_indices(x, y):
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("data", len(x), subsample_size=5) as index:
        pyro.sample("y", dist.Normal(x[index] @ w, 0.5), obs=y[index])


def pyro_subsample(x, y):
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("data", len(x), subsample_size=5):
        x, y = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


SUBSAMPLING = {
    "subsample=": (given_subsample, lambda x, y: [(x[i], y[i], i, 24) for i in torch.arange(24).split(7)]),
    "subsample_size=": (batch_of_a_larger_plate, lambda x, y: split((x, y), 7)),
    "own indices": (own_indices, lambda x, y: (x, y)),
    "pyro.subsample": (pyro_subsample, lambda x, y: (x, y)),
}


@pytest.mark.parametrize("form", SUBSAMPLING)
def test_every_datum_is_visited_once(form):
    x, y = (each.double() for each in data(X, Y))
    model, batches = SUBSAMPLING[form]
    guide = pl.fit_laplace(model, batches(x, y), {"w": torch.zeros(2)})
    exact = linear_regression(x, y, 0.5, 1.0)
    assert_close(guide.median()["w"], exact.mean, rtol=1e-8, atol=1e-8)
    assert_close(guide.precision.to_dense(), exact.prec, rtol=1e-8, atol=1e-8)
    assert guide.log_evidence == pytest.approx(exact.log_evidence, rel=1e-9)


def test_a_model_that_closes_over_its_data():
    x, y = (each.double() for each in data(X, Y))

    def model():
        return complete(x, y)

    guide = pl.fit_laplace(model, (), progress=False)
    exact = linear_regression(x, y, 0.5, 1.0)
    assert_close(guide.median()["w"], exact.mean, rtol=1e-8, atol=1e-8)
    assert_close(guide.precision.to_dense(), exact.prec, rtol=1e-8, atol=1e-8)


TRANSFORMED = {
    dist.LogNormal: transforms.ExpTransform(),
    dist.LogisticNormal: transforms.StickBreakingTransform(),
}


@pytest.mark.parametrize("family", TRANSFORMED)
def test_a_transformed_normal_is_a_regression_of_the_untransformed_data(family):
    """u = T^-1(y) of either sign of x'w: as many data again, whose log density is less the log Jacobian of T."""
    x, y = data(X, Y)
    u, transform = torch.stack([y, 0.3 - y], -1), TRANSFORMED[family]

    def model(x, y):
        w = pyro.sample("w", normal(1.0, 2))
        mean = torch.stack([x @ w, -x @ w], -1)
        fn = family(mean, torch.full_like(mean, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("y", fn if fn.event_shape else fn.to_event(1), obs=y)

    guide = pl.fit_laplace(model, (x, transform(u)), progress=False)
    exact = linear_regression(torch.cat([x, -x]), u.mT.flatten(), 0.5, 1.0)
    log_jacobian = transform.log_abs_det_jacobian(u, transform(u)).sum()
    assert_close(guide.median()["w"], exact.mean, rtol=1e-7, atol=1e-7)
    assert_close(guide.precision.to_dense(), exact.prec, rtol=1e-7, atol=1e-7)
    assert guide.log_evidence == pytest.approx(float(exact.log_evidence - log_jacobian), rel=1e-8)


def test_predictions_of_zero_inflated_data():
    x, counts = data(X, COUNTS)

    def model(x, counts=None):
        w = pyro.sample("w", normal(1.0, 2))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.ZeroInflatedPoisson((x @ w).exp(), gate=torch.tensor(0.3)), obs=counts)

    guide = pl.fit_laplace(model, (x, counts), progress=False)
    draws = pl.Predictive(model, guide=guide, num_samples=2000)(x)["y"]
    rate = (x @ guide.sample_posterior(2000)["w"].mT).exp().mean(-1)
    assert_close(draws.mean(0), 0.7 * rate, rtol=0.2, atol=0.1)
