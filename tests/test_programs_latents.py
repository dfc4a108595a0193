"""Latent sites of any kind: each program against the Hessian of its log joint, or against a closed form."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import FlatProgram
from programs import hierarchical, linear_data, normal
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.reparam import HaarReparam, LocScaleReparam, ProjectedNormalReparam, TransformReparam
from torch.distributions import biject_to
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")


def data(num_obs: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = linear_data(num_obs, 2)
    return x.double(), y.double()


def fitted(model: Callable, batch: tuple, **options) -> pl.AutoLaplace:
    """The posterior from a start near the origin, which needs no training."""
    flat = FlatProgram(model, *batch)
    start = flat.constrain(0.1 * torch.randn(flat.size, generator=torch.Generator().manual_seed(1)))[0]
    return pl.fit_laplace(model, batch, start, on_not_a_mode="raise", **options)


# --- supports -------------------------------------------------------------------------------------


def model_with(prior: Callable, mean: Callable) -> Callable:
    """A site with a prior, and data whose mean is a function of its value."""

    def model(x, y):
        value = pyro.sample("v", prior())
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean(x, value), 0.4), obs=y)

    return model


def two() -> torch.Tensor:
    return torch.ones(2)


SITES = {
    "positive": (lambda: dist.Gamma(2.0 * two(), 1.0).to_event(1), lambda x, v: x @ v),
    "nonnegative": (lambda: dist.HalfNormal(two()).to_event(1), lambda x, v: x @ v),
    "interval": (lambda: dist.Uniform(-3.0 * two(), 2.0).to_event(1), lambda x, v: x @ v),
    "unit interval": (lambda: dist.Beta(2.0 * two(), 3.0).to_event(1), lambda x, v: x @ v),
    "greater than": (lambda: dist.Pareto(0.3 * two(), 3.0).to_event(1), lambda x, v: x @ v),
    "simplex": (lambda: dist.Dirichlet(2 * torch.ones(3)), lambda x, v: x @ v[:2]),
    "ordered": (
        lambda: dist.TransformedDistribution(normal(1.0, 2), dist.transforms.OrderedTransform()),
        lambda x, v: x @ v,
    ),
    "correlation Cholesky": (lambda: dist.LKJCholesky(3, 2.0), lambda x, v: x @ v[2, :2]),
    "correlation": (lambda: dist.LKJ(3, 2.0), lambda x, v: x @ v[2, :2]),
    "StudentT": (lambda: dist.StudentT(4.0 * two(), 0.0, 1.0).to_event(1), lambda x, v: x @ v),
    "improper": (lambda: dist.ImproperUniform(constraints.real_vector, (), (2,)), lambda x, v: x @ v),
    "improper positive": (
        lambda: dist.ImproperUniform(constraints.independent(constraints.positive, 1), (), (2,)),
        lambda x, v: x @ v,
    ),
    "mixture": (
        lambda: dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2, 2)), dist.Normal(torch.zeros(2, 2), torch.tensor([0.5, 2.0]))
        ).to_event(1),
        lambda x, v: x @ v,
    ),
}


@pytest.mark.parametrize("support", SITES)
def test_a_constrained_site(support):
    model, batch = model_with(*SITES[support]), data()
    guide = pl.fit_laplace(model, batch, curvature="hessian", progress=False, on_not_a_mode="raise")
    flat = FlatProgram(model, *batch)
    theta = flat.unconstrain(guide.median())
    assert_close(guide.precision.to_dense(), flat.hessian(theta), rtol=1e-7, atol=1e-7)
    draws = guide.sample_posterior(20)["v"]
    assert bool(SITES[support][0]().support.check(draws).all())


@pytest.mark.parametrize("support", [constraints.lower_cholesky, constraints.positive_definite])
def test_bijections_to_triangles(support):
    """One to one, with the log-determinant of the dense Jacobian of the entries that vary."""
    transform, size = biject_to(support), 3
    theta = torch.randn(6, generator=torch.Generator().manual_seed(0))
    value = transform(theta)
    row, column = torch.tril_indices(size, size)
    jacobian = torch.func.jacrev(lambda t: biject_to(support)(t)[row, column])(theta)
    assert bool(support.check(value).all())
    assert_close(transform.inv(value), theta, rtol=1e-10, atol=1e-10)
    assert_close(transform.log_abs_det_jacobian(theta, value), torch.linalg.slogdet(jacobian).logabsdet)
    assert transform.forward_shape((4, 6)) == (4, 3, 3)
    assert transform.inverse_shape((4, 3, 3)) == (4, 6)


def wishart_precision(y):
    """Known mean: a Wishart prior of the precision is conjugate."""
    prec = pyro.sample("prec", dist.Wishart(torch.tensor(6.0), precision_matrix=torch.eye(2)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), precision_matrix=prec), obs=y)


def test_a_positive_definite_site():
    """The posterior is a Wishart again, and with 200 data its mean is close to the approximation's."""
    y = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).double()
    guide = pl.fit_laplace(wishart_precision, (y,), curvature="hessian", progress=False)
    exact = (6 + len(y)) * torch.linalg.inv(torch.eye(2) + y.mT @ y)  # the posterior mean
    draws = guide.sample_posterior(4000)["prec"]
    assert bool(constraints.positive_definite.check(draws).all())
    assert_close(draws.mean(0), exact, rtol=0.03, atol=0.03)


def lower_cholesky_site(y):
    tril = pyro.sample("tril", dist.ImproperUniform(constraints.lower_cholesky, (), (2, 2)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril), obs=y)


def test_a_lower_cholesky_site():
    """Under a flat prior the mode of the density of the constrained values is that of the likelihood."""
    y = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    guide = pl.fit_laplace(lower_cholesky_site, (y,), jacobian=False, progress=False)
    assert_close(guide.median()["tril"], torch.linalg.cholesky(y.mT @ y / len(y)), rtol=1e-7, atol=1e-7)


# --- priors and hierarchies -----------------------------------------------------------------------


def horseshoe(x, y):
    tau = pyro.sample("tau", dist.HalfCauchy(0.5))
    lam = pyro.sample("lam", dist.HalfCauchy(two()).to_event(1))
    z = pyro.sample("z", normal(1.0, 2))
    w = pyro.deterministic("w", z * lam * tau)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def groups(x, y):
    """Varying intercepts and slopes with a correlation, non-centred; groups indexed by an integer."""
    group = torch.arange(len(x)) % 4
    mu = pyro.sample("mu", normal(1.0, 2))
    sd = pyro.sample("sd", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    corr = pyro.sample("corr", dist.LKJCholesky(2, 2.0))
    with pyro.plate("groups", 4):
        z = pyro.sample("z", normal(1.0, 2))
    effect = mu + z @ (sd[:, None] * corr).mT
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((effect[group] * x).sum(-1), 0.5), obs=y)


def prior_depends_on_site(x, y):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.2))
    w = pyro.sample("w", dist.Normal(loc, scale).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def local_to_rows(x, y):
    """A latent of each datum: an overdispersed count."""
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("data", len(x)):
        e = pyro.sample("e", dist.Normal(0.0, 0.7))
        pyro.sample("y", dist.Poisson((x @ w + e).exp()), obs=y.abs().round())


@pytest.mark.parametrize("model", [horseshoe, groups, prior_depends_on_site, local_to_rows], ids=lambda m: m.__name__)
def test_priors_and_hierarchies(model):
    batch = data()
    guide = fitted(model, batch, curvature="hessian")
    flat = FlatProgram(model, *batch)
    assert_close(guide.precision.to_dense(), flat.hessian(flat.unconstrain(guide.median())), rtol=1e-7, atol=1e-7)


# --- reparametrised programs ----------------------------------------------------------------------


def centred(group, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", 5):
        effect = pyro.sample("effect", dist.Normal(mu, tau))
    with pyro.plate("data", len(group)):
        return pyro.sample("y", dist.Normal(effect[group], 0.5), obs=y)


def test_loc_scale_reparam_is_the_non_centred_form():
    case = hierarchical()
    other = pl.fit_laplace(case.model, case.data, progress=False)
    model = poutine.reparam(centred, config={"effect": LocScaleReparam(0.0)})
    guide = pl.fit_laplace(model, case.data, progress=False)
    assert list(guide.median()) == ["mu", "tau", "effect_decentered"]
    assert_close(guide.median()["effect_decentered"], other.median()["z"], rtol=1e-6, atol=1e-6)
    assert_close(guide.precision.to_dense(), other.precision.to_dense(), rtol=1e-6, atol=1e-6)
    draws = pyro.infer.Predictive(model, guide=guide, num_samples=7)(case.data[0])
    assert draws["effect"].shape[0] == 7


@poutine.reparam(config={"w": TransformReparam()})
def decorated(x, y):
    w = pyro.sample("w", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def haar(y):
    with poutine.reparam(config={"walk": HaarReparam(dim=-1)}):
        walk = pyro.sample("walk", normal(1.0, len(y)))
    pyro.sample("y", dist.Normal(walk, 0.5).to_event(1), obs=y)


def test_transform_reparam_of_a_decorated_model():
    """LogNormal becomes exp of a Normal base: the same posterior of log w."""
    batch = data()
    flat = FlatProgram(decorated, *batch)
    guide = fitted(decorated, batch, curvature="hessian")
    assert list(guide.median()) == ["w_base"]
    assert_close(guide.precision.to_dense(), flat.hessian(flat.unconstrain(guide.median())), rtol=1e-8, atol=1e-8)


def test_haar_reparam():
    """An orthogonal change of basis: the precision stays ``1 + 1 / 0.25``."""
    y = data(8)[1]
    guide = pl.fit_laplace(haar, (y,), {"walk_haar": torch.zeros(8)})
    assert_close(guide.precision.to_dense(), 5.0 * torch.eye(8), rtol=1e-8, atol=1e-8)


def test_projected_normal_reparam():
    """The remedy that the refusal of a sphere names."""

    def model(x, y):
        v = pyro.sample("v", dist.ProjectedNormal(torch.ones(2)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ v, 0.5), obs=y)

    guide = pl.fit_laplace(poutine.reparam(model, config={"v": ProjectedNormalReparam()}), data(), progress=False)
    assert list(guide.median()) == ["v_normal"]
    assert math.isfinite(guide.log_evidence)
