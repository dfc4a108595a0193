"""Latent sites of any kind: each program against the Hessian of its log joint, or against a closed form."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles.naive import FlatProgram
from programs.zoo import hierarchical, linear_data, normal
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoMultivariateNormal, AutoStructured
from pyro.infer.reparam import (
    AutoReparam,
    DiscreteCosineReparam,
    HaarReparam,
    LatentStableReparam,
    LocScaleReparam,
    NeuTraReparam,
    ProjectedNormalReparam,
    SplitReparam,
    StableReparam,
    StructuredReparam,
    SymmetricStableReparam,
    TransformReparam,
    UnitJacobianReparam,
)
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


# every constraint there is: handled, with the entries of its values that are free, or refused

SCALARS = {
    "real": constraints.real,
    "positive": constraints.positive,
    "nonnegative": constraints.nonnegative,
    "softplus_positive": constraints.softplus_positive,
    "unit_interval": constraints.unit_interval,
    "greater_than": constraints.greater_than(1.0),
    "greater_than_eq": constraints.greater_than_eq(1.0),
    "less_than": constraints.less_than(1.0),
    "interval": constraints.interval(-1.0, 2.0),
    "half_open_interval": constraints.half_open_interval(-1.0, 2.0),
}
VECTORS = {
    "real_vector": constraints.real_vector,
    "simplex": constraints.simplex,
    "ordered_vector": constraints.ordered_vector,
    "positive_ordered_vector": constraints.positive_ordered_vector,
    "cat": constraints.cat([constraints.real, constraints.positive], dim=-1, lengths=[1, 2]),
    "stack": constraints.stack([constraints.real, constraints.positive, constraints.unit_interval], dim=-1),
}
MATRICES = {
    "lower_cholesky": constraints.lower_cholesky,
    "positive_definite": constraints.positive_definite,
    "corr_cholesky": constraints.corr_cholesky,
    "corr_matrix": constraints.corr_matrix,
}
HANDLED = {name: (constraint, ()) for name, constraint in SCALARS.items()}
HANDLED |= {name: (constraint, (3,)) for name, constraint in VECTORS.items()}
HANDLED |= {name: (constraint, (3, 3)) for name, constraint in MATRICES.items()}
UNHANDLED = {name: (getattr(constraints, name), (3, 3)) for name in (
    "lower_triangular", "positive_semidefinite", "square", "symmetric",
    "softplus_lower_cholesky", "unit_lower_cholesky",
)}  # fmt: skip
UNHANDLED |= {
    "sphere": (constraints.sphere, (3,)),
    "cat of simplexes": (constraints.cat([constraints.simplex] * 2, dim=-1, lengths=[3, 3]), (6,)),
    "stack of ordered vectors": (constraints.stack([constraints.ordered_vector] * 2, dim=-2), (2, 3)),
}
DISCRETE = {name: (getattr(constraints, name), (3,)) for name in (
    "boolean", "one_hot", "integer", "nonnegative_integer", "positive_integer",
)}  # fmt: skip
DISCRETE |= {
    "integer_interval": (constraints.integer_interval(0, 3), ()),
    "multinomial": (constraints.multinomial(3), (3,)),
}
NO_CONSTRAINTS_OF_VALUES = {
    "Constraint", "independent", "dependent", "dependent_property", "is_dependent", "MixtureSameFamilyConstraint",
    "corr_cholesky_constraint",
}  # fmt: skip


def free_entries(name: str, value: torch.Tensor) -> torch.Tensor:
    """The entries of a value that determine the others."""
    if name == "simplex":
        return value[..., :-1]
    if name in MATRICES:
        row, column = torch.tril_indices(3, 3, -1 if name.startswith("corr") else 0)
        return value[..., row, column]
    return value


def test_every_constraint_is_known():
    known = HANDLED.keys() | UNHANDLED.keys() | DISCRETE.keys() | NO_CONSTRAINTS_OF_VALUES
    assert {*constraints.__all__, *torch.distributions.constraints.__all__} <= known


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("name", HANDLED)
def test_a_bijection_to_every_support(name, several):
    """One to one, with the log-determinant of the dense Jacobian of the entries that are free."""
    support, shape = HANDLED[name]
    if several:
        support, shape = constraints.independent(support, 1), (2, *shape)
    transform = biject_to(support)
    theta = torch.randn(transform.inverse_shape(shape), generator=torch.Generator().manual_seed(0))
    value = transform(theta)
    jacobian = torch.func.jacrev(lambda t: free_entries(name, biject_to(support)(t)))(theta)
    jacobian = jacobian.reshape(theta.numel(), theta.numel())
    assert bool(support.check(value).all())
    assert value.shape == shape
    assert transform.forward_shape(theta.shape) == shape
    assert_close(transform.inv(value), theta, rtol=1e-9, atol=1e-9)
    log_det = transform.log_abs_det_jacobian(theta, value).sum()
    assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("name", [*UNHANDLED, *DISCRETE])
def test_a_support_without_a_bijection(name, several):
    support, shape = (UNHANDLED | DISCRETE)[name]
    if several:
        support, shape = constraints.independent(support, 1), (2, *shape)

    def model(y):
        value = pyro.sample("v", dist.ImproperUniform(support, (), shape))
        pyro.sample("y", dist.Normal(value.sum(), 1.0), obs=y)

    with pytest.raises(pl.UnsupportedProgram, match=r"latent site 'v' (has support|is discrete)"):
        pl.fit_laplace(model, (torch.tensor(0.0),), progress=False)


class Unknown(dist.Normal):
    """Says no more of its support than that it depends on something."""

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self):
        """Not known."""
        return constraints.dependent


@pytest.mark.parametrize(
    ("prior", "says"),
    [
        (Unknown(0.0, 1.0), "has no bijection to unconstrained space"),
        (
            dist.ImproperUniform(constraints.independent(constraints.positive_ordered_vector, 1), (), (3,)),
            r"values of shape \[3\], and its support .* at least 2 axes: take constraints.independent away",
        ),
    ],
    ids=["dependent", "too many axes"],
)
def test_a_support_that_says_too_little_or_too_much(prior, says):
    def model(y):
        value = pyro.sample("v", prior)
        pyro.sample("y", dist.Normal(value.sum(), 1.0), obs=y)

    with pytest.raises(pl.UnsupportedProgram, match=f"latent site 'v' .*{says}"):
        pl.fit_laplace(model, (torch.tensor(0.0),), progress=False)


@pytest.mark.parametrize("values", [None, {"w": torch.tensor(1), "v": torch.tensor(0.5)}], ids=["searched", "given"])
def test_a_latent_delta(values):
    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        v = pyro.sample("v", dist.Delta(w / 2, log_density=-w.square()))
        pyro.sample("y", dist.Normal(v, 1.0), obs=y)

    with pytest.raises(pl.UnsupportedProgram, match=r"latent site 'v' is a Delta.*pyro.deterministic.*pyro.factor"):
        pl.fit_laplace(model, (torch.tensor(0.0),), values, progress=False)


def test_a_point_of_integers():
    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    guide = pl.fit_laplace(model, (torch.tensor(2.0),), {"w": torch.tensor(3)})
    assert float(guide.median()["w"]) == pytest.approx(1.0)


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


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
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


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
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


def stable_weights(skew: float) -> Callable:
    return model_with(lambda: dist.Stable(1.7, skew, 1.0, 0.0).expand([2]).to_event(1), lambda x, v: x @ v)


def random_walk(x, y):
    walk = pyro.sample("walk", normal(1.0, len(y)))
    pyro.sample("y", dist.Normal(walk, 0.5).to_event(1), obs=y)


def stable_noise(x, y):
    w = pyro.sample("w", normal(1.0, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Stable(1.7, 0.0, 0.4, x @ w), obs=y)


REPARAMETRISED = {
    "learnt centring": (prior_depends_on_site, {"w": LocScaleReparam()}),
    "discrete cosine": (random_walk, {"walk": DiscreteCosineReparam(dim=-1)}),
    "unit Jacobian": (random_walk, {"walk": UnitJacobianReparam(dist.transforms.HaarTransform(dim=-1), suffix="haar")}),
    "stable": (stable_weights(0.3), {"v": StableReparam()}),
    "latent stable": (stable_weights(0.3), {"v": LatentStableReparam()}),
    "symmetric stable": (stable_weights(0.0), {"v": SymmetricStableReparam()}),
    "stable noise": (stable_noise, {"y": SymmetricStableReparam()}),
    "automatic": (groups, AutoReparam()),
}


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
@pytest.mark.filterwarnings("ignore:.*does not commute with initialization:RuntimeWarning")
@pytest.mark.parametrize("name", REPARAMETRISED)
def test_reparametrisations(name):
    model, config = REPARAMETRISED[name]
    model, batch = poutine.reparam(model, config=config), data()
    guide = pl.fit_laplace(model, batch, curvature="hessian", progress=False, on_not_a_mode="raise")
    flat = FlatProgram(model, *batch)
    expected = flat.hessian(flat.unconstrain(guide.median())).detach()
    assert_close(guide.precision.to_dense(), expected, rtol=1e-7, atol=1e-7)


def with_structured(model, batch):
    guide = AutoStructured(model, conditionals="normal", dependencies="linear")
    guide(*batch)
    return StructuredReparam(guide.requires_grad_(False)).reparam(model)


def with_neural_transport(model, batch):
    guide = AutoMultivariateNormal(model)
    guide(*batch)
    return NeuTraReparam(guide.requires_grad_(False)).reparam(model)


def with_split(model, batch):
    return poutine.reparam(model, config={"w": SplitReparam([1, 1], -1)})


@pytest.mark.filterwarnings("ignore:.*does not commute with initialization:RuntimeWarning")
@pytest.mark.parametrize("reparametrised", [with_structured, with_neural_transport, with_split])
def test_the_prior_of_a_computed_value_counts(reparametrised):
    """These put it into the density of a Delta."""
    batch = data()
    model = reparametrised(prior_depends_on_site, batch)
    flat = FlatProgram(model, *batch)
    whole = pl.fit_laplace(model, batch, curvature="hessian", progress=False, on_not_a_mode="raise")
    expected = flat.hessian(flat.unconstrain(whole.median())).detach()
    assert_close(whole.precision.to_dense(), expected, rtol=1e-7, atol=1e-7)
    x, y = batch
    parts = pl.fit_laplace(model, [(x[:5], y[:5]), (x[5:], y[5:])], whole.median(), curvature="hessian", polish=False)
    assert_close(parts.precision.to_dense(), expected, rtol=1e-7, atol=1e-7)
    assert parts.log_evidence == pytest.approx(whole.log_evidence, rel=1e-9)
