"""Closed-form Fisher informations against quadrature, enumeration and draws, in the tails, and reparametrised."""

import math
from collections.abc import Callable
from typing import Any

import mpmath
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, tensor

from pyro_laplace.likelihood import likelihood_of

pytestmark = pytest.mark.usefixtures("float64")

SPD = tensor([[1.3, 0.4, -0.2], [0.4, 0.9, 0.1], [-0.2, 0.1, 0.6]], dtype=torch.float64)
LOC = tensor([0.3, -1.0, 2.0], dtype=torch.float64)
FACTOR = tensor([[0.5], [1.0], [-0.7]], dtype=torch.float64)


def t(*values: float) -> Tensor:
    return tensor(values if len(values) != 1 else values[0], dtype=torch.float64)


CONTINUOUS: dict[str, Callable[[], Any]] = {
    "normal": lambda: dist.Normal(t(0.7), t(0.3)),
    "nan_masked_normal": lambda: dist.NanMaskedNormal(t(0.7), t(0.3)),
    "laplace": lambda: dist.Laplace(t(0.7), t(1.3)),
    "cauchy": lambda: dist.Cauchy(t(0.7), t(1.3)),
    "logistic": lambda: dist.Logistic(t(0.7), t(1.3)),
    "soft_laplace": lambda: dist.SoftLaplace(t(0.7), t(1.3)),
    "gumbel": lambda: dist.Gumbel(t(0.7), t(1.3)),
    "student_t": lambda: dist.StudentT(t(3.5), t(0.7), t(1.3)),
    "student_t_of_one": lambda: dist.StudentT(t(1.0), t(0.7), t(0.2)),
    "log_normal": lambda: dist.LogNormal(t(0.2), t(0.6)),
    "half_normal": lambda: dist.HalfNormal(t(1.7)),
    "half_cauchy": lambda: dist.HalfCauchy(t(1.7)),
    "exponential": lambda: dist.Exponential(t(1.7)),
    "gamma": lambda: dist.Gamma(t(2.4), t(1.7)),
    "gamma_with_a_pole": lambda: dist.Gamma(t(0.6), t(1.7)),
    "chi2": lambda: dist.Chi2(t(3.0)),
    "inverse_gamma": lambda: dist.InverseGamma(t(2.4), t(1.7)),
    "weibull": lambda: dist.Weibull(t(1.7), t(2.4)),
    "beta": lambda: dist.Beta(t(2.4), t(1.7)),
    "von_mises": lambda: dist.VonMises(t(0.4), t(2.3)),
    "continuous_bernoulli": lambda: dist.ContinuousBernoulli(logits=t(1.4)),
    "continuous_bernoulli_near_half": lambda: dist.ContinuousBernoulli(logits=t(0.45)),
}
DISCRETE: dict[str, tuple[Callable[[], Any], int]] = {
    "bernoulli": (lambda: dist.Bernoulli(logits=t(0.8)), 2),
    "binomial": (lambda: dist.Binomial(7, logits=t(0.8)), 8),
    "extended_binomial": (lambda: dist.ExtendedBinomial(7, logits=t(0.8)), 8),
    "geometric": (lambda: dist.Geometric(logits=t(-0.5)), 200),
    "poisson": (lambda: dist.Poisson(t(3.4)), 80),
    "negative_binomial": (lambda: dist.NegativeBinomial(t(2.3), logits=t(0.4)), 400),
    "negative_binomial_of_few": (lambda: dist.NegativeBinomial(t(0.2), logits=t(-1.4)), 200),
    "gamma_poisson": (lambda: dist.GammaPoisson(t(2.3), t(0.8)), 300),
    "beta_binomial": (lambda: dist.BetaBinomial(t(2.3), t(0.8), t(9.0)), 10),
    "extended_beta_binomial": (lambda: dist.ExtendedBetaBinomial(t(2.3), t(0.8), t(9.0)), 10),
    "categorical": (lambda: dist.Categorical(logits=t(0.3, -1.0, 0.8, 0.0)), 4),
    "ordered_logistic": (lambda: dist.OrderedLogistic(t(0.4), t(-1.0, 0.2, 1.5)), 4),
    "zero_inflated_poisson": (lambda: dist.ZeroInflatedPoisson(t(2.4), gate=t(0.3)), 80),
    "zero_inflated_negative_binomial": (
        lambda: dist.ZeroInflatedNegativeBinomial(t(2.3), logits=t(0.1), gate_logits=t(-0.7)),
        300,
    ),
    "zero_inflated_binomial": (
        lambda: dist.ZeroInflatedDistribution(dist.Binomial(6, logits=t(0.1)), gate=t(0.3)),
        7,
    ),
}
VECTORS: dict[str, Callable[[], Any]] = {
    "one_hot_categorical": lambda: dist.OneHotCategorical(logits=t(0.3, -1.0, 0.8, 0.0)),
    "one_hot_categorical_straight_through": lambda: dist.OneHotCategoricalStraightThrough(logits=t(0.3, -1.0, 0.8)),
    "multinomial": lambda: dist.Multinomial(6, logits=t(0.3, -1.0, 0.8)),
    "dirichlet": lambda: dist.Dirichlet(t(2.4, 1.7, 0.9)),
    "logistic_normal": lambda: dist.LogisticNormal(LOC, SPD.diagonal()),
    "multivariate_normal": lambda: dist.MultivariateNormal(LOC, SPD),
    "multivariate_normal_by_precision": lambda: dist.MultivariateNormal(LOC, precision_matrix=SPD),
    "multivariate_normal_by_scale": lambda: dist.MultivariateNormal(LOC, scale_tril=torch.linalg.cholesky(SPD)),
    "low_rank_multivariate_normal": lambda: dist.LowRankMultivariateNormal(LOC, FACTOR, SPD.diagonal()),
    "omt_multivariate_normal": lambda: dist.OMTMultivariateNormal(LOC, torch.linalg.cholesky(SPD)),
    "avf_multivariate_normal": lambda: dist.AVFMultivariateNormal(
        LOC, torch.linalg.cholesky(SPD), torch.zeros(2, 1, 3, dtype=torch.float64)
    ),
}
ALL = {**CONTINUOUS, **{name: make for name, (make, _) in DISCRETE.items()}, **VECTORS}


def information(fn: Any) -> Tensor:
    """I in eta `[joint outputs, joint outputs]`; the entries of an event are independent of one another."""
    likelihood = likelihood_of(fn)
    assert likelihood is not None
    root = likelihood.fisher_root(likelihood.link())
    info = root @ root.mT
    return torch.block_diag(*info.reshape(-1, *info.shape[-2:]))


def log_prob_fn(fn: Any) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """log p(y; eta) of one y as a function of flat eta, and eta."""
    likelihood = likelihood_of(fn)
    assert likelihood is not None
    eta = likelihood.link().detach()
    return lambda flat, y: likelihood.distribution(flat.reshape(eta.shape)).log_prob(y).reshape(()), eta.flatten()


def scores(fn: Any, values: Tensor) -> Tensor:
    log_prob, eta = log_prob_fn(fn)
    return torch.stack([torch.func.grad(log_prob)(eta, y) for y in values])


def hessians(fn: Any, values: Tensor) -> Tensor:
    """-d2 log p / d eta2 `[values, outputs, outputs]`."""
    log_prob, eta = log_prob_fn(fn)
    return -torch.stack([torch.autograd.functional.hessian(lambda e, y=y: log_prob(e, y), eta) for y in values])


def quadrature(fn: Any, points: int = 601) -> tuple[Tensor, Tensor]:
    """Values and weights of the tanh-sinh rule for expectations, on both sides of a kink that the density may have."""
    u = torch.linspace(-4.3, 4.3, points, dtype=torch.float64)
    if fn.support is torch.distributions.constraints.unit_interval:
        nodes = (math.pi * u.sinh()).sigmoid()
        slope = math.pi * u.cosh() * (math.pi * u.sinh()).sigmoid() * (-math.pi * u.sinh()).sigmoid()
    elif isinstance(fn, torch.distributions.VonMises):
        nodes = torch.linspace(-math.pi, math.pi, points, dtype=torch.float64)[:-1]
        slope = torch.full_like(nodes, float((nodes[1] - nodes[0]) / (u[1] - u[0])))
    else:  # half lines: y = exp(pi / 2 sinh u)
        nodes = (math.pi / 2 * u.sinh()).exp()
        slope = math.pi / 2 * u.cosh() * nodes
        if bool(fn.support.check(t(-1.0))):
            nodes, slope = torch.cat([-nodes.flip(0), nodes]) + fn.loc, torch.cat([slope.flip(0), slope])
    keep = fn.support.check(nodes) & (slope > 0) & nodes.isfinite()
    nodes, slope = nodes[keep], slope[keep]
    weight = fn.log_prob(nodes).exp() * slope * (u[1] - u[0])
    keep = weight > 1e-14
    return nodes[keep], weight[keep]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_information_by_quadrature(name):
    fn = CONTINUOUS[name]()
    values, weight = quadrature(fn)
    assert abs(weight.sum() - 1) < 1e-7
    found = information(fn)
    g = scores(fn, values)
    torch.testing.assert_close(found, torch.einsum("y,yi,yj->ij", weight, g, g), rtol=1e-6, atol=1e-6)
    if name != "laplace":  # whose second derivative at the kink a rule cannot see
        torch.testing.assert_close(found, torch.einsum("y,yij->ij", weight, hessians(fn, values)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", DISCRETE)
def test_information_by_enumeration(name):
    make, count = DISCRETE[name]
    fn = make()
    values = torch.arange(count, dtype=torch.float64)
    weight = fn.log_prob(values).exp()
    assert abs(weight.sum() - 1) < 1e-12
    found = information(fn)
    g = scores(fn, values)
    torch.testing.assert_close(found, torch.einsum("y,yi,yj->ij", weight, g, g), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found, torch.einsum("y,yij->ij", weight, hessians(fn, values)), rtol=1e-9, atol=1e-10)


def test_information_of_a_multinomial_by_enumeration():
    fn = VECTORS["multinomial"]()
    values = torch.tensor([[i, j, 6 - i - j] for i in range(7) for j in range(7 - i)], dtype=torch.float64)
    weight = fn.log_prob(values).exp()
    g = scores(fn, values)
    torch.testing.assert_close(information(fn), torch.einsum("y,yi,yj->ij", weight, g, g), rtol=1e-10, atol=1e-12)


def test_information_of_a_dirichlet_by_its_log_partition():
    """An exponential family: I is the Hessian of the log partition, in the concentrations."""
    a = t(2.4, 1.7, 0.9)
    hessian = torch.polygamma(1, a).diag() - torch.polygamma(1, a.sum())
    torch.testing.assert_close(information(dist.Dirichlet(a)), a[:, None] * hessian * a, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in VECTORS if "normal" in name and name != "logistic_normal"])
def test_information_of_a_multivariate_normal_by_slepian_and_bangs(name):
    """dm' P dm + tr(P dC P dC) / 2, with P the inverse of the covariance C."""
    fn = VECTORS[name]()
    likelihood = likelihood_of(fn)
    eta = likelihood.link()
    mean, cov = torch.func.jacrev(lambda eta: (lambda d: (d.loc, d.covariance_matrix))(likelihood.distribution(eta)))(
        eta
    )
    prec = torch.linalg.inv(fn.covariance_matrix)
    moved = torch.einsum("ab,bcp->acp", prec, cov)
    expected = mean.T @ prec @ mean + torch.einsum("abp,baq->pq", moved, moved) / 2
    torch.testing.assert_close(information(fn), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.statistical
@pytest.mark.parametrize("name", ALL)
def test_information_by_draws(name):
    fn = ALL[name]()
    draws = 20_000
    with torch.no_grad():
        values = fn.sample((draws,))
    likelihood = likelihood_of(fn)
    eta = likelihood.link().detach().expand(draws, *likelihood.link().shape).clone().requires_grad_()
    (g,) = torch.autograd.grad(likelihood.distribution(eta).log_prob(values).sum(), eta)
    products = g.flatten(1).unsqueeze(1) * g.flatten(1).unsqueeze(2)
    error = products.std(0) / draws**0.5
    assert ((products.mean(0) - information(fn)).abs() <= 5 * error + 1e-9).all()


@pytest.mark.parametrize("name", ALL)
def test_link_and_back_and_its_derivatives(name):
    """The distribution comes back; the link has reverse- and forward-mode derivatives, also under vmap."""
    fn = ALL[name]()
    likelihood = likelihood_of(fn)
    eta = likelihood.link()
    again = likelihood_of(likelihood.distribution(eta))
    assert again is not None
    torch.testing.assert_close(again.link(), eta, rtol=1e-12, atol=1e-12)
    value = fn.sample()
    torch.testing.assert_close(likelihood.distribution(eta).log_prob(value), fn.log_prob(value), rtol=1e-9, atol=1e-9)

    def through(eta):
        return likelihood_of(likelihood.distribution(eta)).link()

    flat = eta.numel()
    for jacobian in (torch.func.jacrev(through)(eta), torch.func.jacfwd(through)(eta)):
        back = jacobian.reshape(flat, flat)
        centred = torch.eye(flat).to(back)
        if "ategorical" in name or name == "multinomial":  # normalised logits: a common shift is taken away
            centred = centred - eta.softmax(-1)
        torch.testing.assert_close(back, centred, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ALL)
def test_information_without_autograd(name, mode):
    """A prediction is made without gradients."""
    likelihood = likelihood_of(ALL[name]())
    expected = likelihood.fisher_root(likelihood.link())
    with mode():
        likelihood = likelihood_of(ALL[name]())
        found = likelihood.fisher_root(likelihood.link())
    torch.testing.assert_close(found.clone(), expected, rtol=0, atol=0)


# --- parametrisations ----------------------------------------------------------------------------


def pulled_back(make: Callable[[Tensor], Any], theta: Tensor) -> Tensor:
    """J' I J of a distribution made from theta."""
    jacobian = torch.func.jacrev(lambda theta: likelihood_of(make(theta)).link())(theta).reshape(-1, theta.numel())
    return jacobian.T @ information(make(theta)) @ jacobian


def cov_of(theta: Tensor) -> Tensor:
    return SPD + theta[3].exp() * FACTOR @ FACTOR.T + theta[4] ** 2 * torch.eye(3).to(SPD)


SAME = {
    "bernoulli": [lambda s: dist.Bernoulli(logits=s), lambda s: dist.Bernoulli(s.sigmoid())],
    "binomial": [lambda s: dist.Binomial(5, logits=s), lambda s: dist.Binomial(5, s.sigmoid())],
    "geometric": [lambda s: dist.Geometric(logits=s), lambda s: dist.Geometric(s.sigmoid())],
    "categorical": [
        lambda s: dist.Categorical(logits=s),
        lambda s: dist.Categorical(s.softmax(-1)),
        lambda s: dist.OneHotCategorical(s.softmax(-1)),
        lambda s: dist.Multinomial(1, s.softmax(-1)),
    ],
    "negative_binomial": [
        lambda s: dist.NegativeBinomial(s[0].exp(), logits=s[1]),
        lambda s: dist.NegativeBinomial(s[0].exp(), s[1].sigmoid()),
        lambda s: dist.GammaPoisson(s[0].exp(), (-s[1]).exp()),
    ],
    "zero_inflated": [
        lambda s: dist.ZeroInflatedPoisson(s[0].exp(), gate_logits=s[1]),
        lambda s: dist.ZeroInflatedPoisson(s[0].exp(), gate=s[1].sigmoid()),
    ],
    "multivariate_normal": [
        lambda s: dist.MultivariateNormal(s[:3], cov_of(s)),
        lambda s: dist.MultivariateNormal(s[:3], precision_matrix=torch.linalg.inv(cov_of(s))),
        lambda s: dist.MultivariateNormal(s[:3], scale_tril=torch.linalg.cholesky(cov_of(s))),
        lambda s: dist.OMTMultivariateNormal(s[:3], torch.linalg.cholesky(cov_of(s))),
        lambda s: dist.TransformedDistribution(
            dist.MultivariateNormal(s[:3], cov_of(s)), torch.distributions.transforms.SoftplusTransform()
        ),
    ],
    "low_rank_multivariate_normal": [
        lambda s: dist.LowRankMultivariateNormal(s[:3], s[3] * FACTOR, s[4].exp() * SPD.diagonal()),
        lambda s: dist.MultivariateNormal(s[:3], s[3] ** 2 * FACTOR @ FACTOR.T + s[4].exp() * SPD.diagonal().diag()),
    ],
    "diagonal_multivariate_normal": [
        lambda s: dist.MultivariateNormal(s[:3], (2 * s[3:]).exp().diag()),
        lambda s: dist.Normal(s[:3], s[3:].exp()).to_event(1),
    ],
    "moved_normal": [
        lambda s: dist.Normal(s[0] + s[1] * s[2], s[3].exp() * s[1].abs()),
        lambda s: dist.TransformedDistribution(
            dist.Normal(s[2], s[3].exp()), torch.distributions.transforms.AffineTransform(s[0], s[1])
        ),
    ],
    "moved_student_t_in_an_event": [
        lambda s: dist.StudentT(s[3].exp(), s[:1] + s[1] * s[2], s[1].abs()).to_event(1),
        lambda s: dist.TransformedDistribution(
            dist.StudentT(s[3].exp(), s[2:3], 1.0).to_event(1),
            torch.distributions.transforms.AffineTransform(s[:1], s[1], event_dim=1),
        ),
    ],
    "log_normal": [
        lambda s: dist.LogNormal(s[0] + s[2], (s[1] + s[3]).exp()),
        lambda s: dist.TransformedDistribution(
            dist.Normal(torch.zeros(()).to(s), 1.0),
            [
                torch.distributions.transforms.AffineTransform(s[0] + s[2], (s[1] + s[3]).exp()),
                torch.distributions.transforms.ExpTransform(),
            ],
        ),
    ],
    "weibull": [
        lambda s: dist.Weibull(s[0].exp(), s[1].exp()),
        lambda s: dist.TransformedDistribution(
            dist.Gumbel(-s[0], (-s[1]).exp()),
            [
                torch.distributions.transforms.AffineTransform(0.0, -1.0),
                torch.distributions.transforms.ExpTransform(),
            ],
        ),
    ],
    "beta": [lambda s: dist.Beta(s[0].exp(), s[1].exp()), lambda s: dist.Dirichlet(s[:2].exp())],
    "chi2": [lambda s: dist.Chi2(s[0].exp()), lambda s: dist.Gamma(0.5 * s[0].exp(), 0.5 * torch.ones(()).to(s))],
    "half_cauchy": [
        lambda s: dist.HalfCauchy(s[0].exp()),
        lambda s: dist.Cauchy(torch.zeros(()).to(s), s[0].exp()),
    ],
}
SHAPES = {"multivariate_normal": 5, "low_rank_multivariate_normal": 5, "diagonal_multivariate_normal": 6}


@pytest.mark.parametrize("name", SAME)
def test_curvature_does_not_see_the_parametrisation(name):
    scalar = name in ("bernoulli", "binomial", "geometric")
    size = () if scalar else (SHAPES.get(name, 4),)
    theta = 0.6 * torch.randn(size)
    first, *others = (pulled_back(make, theta) for make in SAME[name])
    assert first.abs().max() > 1e-2
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-8, atol=1e-9)


# --- tails -----------------------------------------------------------------------------------------

SATURATED = {
    "bernoulli": lambda s: dist.Bernoulli(logits=t(s)),
    "binomial": lambda s: dist.Binomial(9, logits=t(s)),
    "geometric": lambda s: dist.Geometric(logits=t(s)),
    "continuous_bernoulli": lambda s: dist.ContinuousBernoulli(logits=t(s)),
    "categorical": lambda s: dist.Categorical(logits=t(s, 0.0, -s)),
    "multinomial": lambda s: dist.Multinomial(4, logits=t(s, 0.0, -s)),
    "ordered_logistic": lambda s: dist.OrderedLogistic(t(s), t(-1.0, 0.2, 1.5)),
    "poisson": lambda s: dist.Poisson(t(s).exp()),
    "negative_binomial": lambda s: dist.NegativeBinomial(t(2.0), logits=t(s)),
    "negative_binomial_count": lambda s: dist.NegativeBinomial(t(s / 2).exp(), logits=t(-s / 2)),
    "zero_inflated_poisson": lambda s: dist.ZeroInflatedPoisson(t(2.0), gate_logits=t(s)),
    "zero_inflated_rate": lambda s: dist.ZeroInflatedPoisson(t(s / 4).exp(), gate_logits=t(0.0)),
    "normal": lambda s: dist.Normal(t(0.0), t(s).exp()),
    "student_t": lambda s: dist.StudentT(t(s / 2).exp(), t(0.0), t(s).exp()),
    "gamma": lambda s: dist.Gamma(t(s).exp(), t(-s).exp()),
    "beta": lambda s: dist.Beta(t(s).exp(), t(1.0)),
    "dirichlet": lambda s: dist.Dirichlet(t(s / 2, s / 2, 0.0).exp()),
    "von_mises": lambda s: dist.VonMises(t(0.0), t(s / 2).exp()),
    "weibull": lambda s: dist.Weibull(t(s).exp(), t(2.0)),
    "gumbel": lambda s: dist.Gumbel(t(0.0), t(s).exp()),
    "multivariate_normal": lambda s: dist.MultivariateNormal(LOC, scale_tril=t(s / 4).exp() * SPD.tril()),
    "beta_binomial": lambda s: dist.BetaBinomial(t(s / 4).exp(), t(1.0), t(7.0)),
}


@pytest.mark.parametrize("s", [-50.0, -20.0, 20.0, 50.0])
@pytest.mark.parametrize("name", SATURATED)
def test_tails_are_finite(name, s):
    found = information(SATURATED[name](s))
    assert found.isfinite().all()
    assert (found.diagonal() >= 0).all()
    assert (torch.linalg.eigvalsh(found) >= -1e-12 * found.abs().max()).all()


@pytest.mark.parametrize("s", [-40.0, 40.0])
def test_a_saturated_class_keeps_its_digits(s):
    p = math.exp(-abs(s)) / (1 + math.exp(-abs(s)))
    for fn in (dist.Bernoulli(logits=t(s)), dist.Categorical(logits=t(s, 0.0)), dist.Categorical(logits=t(0.0, s))):
        torch.testing.assert_close(information(fn).abs(), torch.full_like(information(fn), p), rtol=1e-12, atol=0.0)


def test_an_impossible_class_has_no_curvature():
    found = information(dist.Categorical(logits=t(0.3, -math.inf, 0.8, -math.inf)))
    expected = information(dist.Categorical(logits=t(0.3, 0.8)))
    torch.testing.assert_close(found[[0, 2]][:, [0, 2]], expected, rtol=1e-12, atol=0.0)
    assert not found[[1, 3]].any()


@pytest.mark.parametrize("s", [-45.0, 45.0])
def test_ordered_classes_keep_their_digits(s):
    """Far out only the nearest class and the one beside it matter: p (1 - p) of a Bernoulli at the nearest cutpoint."""
    fn = dist.OrderedLogistic(t(s), t(-1.0, 0.2, 1.5))
    nearest = t(1.5 - s if s > 0 else -1.0 - s)
    expected = nearest.sigmoid() * (-nearest).sigmoid()
    torch.testing.assert_close(information(fn)[0, 0], expected, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("a", [1e-3, 0.5, 15.9, 16.1, 300.0, 1e6])
def test_the_gammas_series_joins(a):
    """What is left of log a beside the log rate, a (a psi'(a) - 1), by mpmath."""
    with mpmath.workdps(40):
        exact = float(mpmath.mpf(a) * (mpmath.mpf(a) * mpmath.psi(1, mpmath.mpf(a)) - 1))
    root = likelihood_of(dist.Gamma(t(a), t(1.0))).fisher_root(t(math.log(a), 0.0))
    left = root @ root.T
    assert abs(float(root[0, 1] ** 2) / exact - 1) < 1e-11
    assert abs(float(left[0, 0] - left[0, 1] ** 2 / left[1, 1]) - exact) < 1e-9 * max(exact, a)


@pytest.mark.parametrize("df", [999.0, 1001.0])
def test_the_students_series_joins(df):
    with mpmath.workdps(40):
        v = mpmath.mpf(df)
        slopes = mpmath.psi(1, v / 2) - mpmath.psi(1, (v + 1) / 2)
        exact = float(v**2 * slopes / 4 - v * (v + 5) / (2 * (v + 1) * (v + 3)))
    assert abs(float(information(dist.StudentT(t(df), t(0.0), t(1.0)))[2, 2]) / exact - 1) < 1e-7


@pytest.mark.parametrize("k", [1e-3, 299.0, 301.0, 1e4])
def test_the_von_mises_series_joins(k):
    with mpmath.workdps(40):
        ratio = mpmath.besseli(1, k) / mpmath.besseli(0, k)
        exact = float(mpmath.mpf(k) ** 2 * (1 - ratio / k - ratio**2))
    assert abs(float(information(dist.VonMises(t(0.0), t(k)))[1, 1]) / exact - 1) < 1e-9


def test_large_concentrations_keep_the_digits_of_a_simplex():
    """The information about the sum of the concentrations, (K - 1) / 2, beside the concentrations' own."""
    a = t(1e9, 2e9, 3e9)
    root = likelihood_of(dist.Dirichlet(a)).fisher_root(a.log())
    along = root.mT @ torch.ones(3).to(a)
    assert abs(float(along.square().sum()) - 1.0) < 1e-6


@pytest.mark.parametrize("count", [1e-2, 0.5, 3.0, 40.0, 1e3])
@pytest.mark.parametrize("logit", [-3.0, 0.0])
def test_the_quadrature_of_a_negative_binomial_at_its_limits(count, logit):
    fn = dist.NegativeBinomial(t(count), logits=t(logit))
    y = torch.arange(20_000, dtype=torch.float64)
    two = torch.full_like(y, 2.0)
    fall = torch.special.zeta(two, t(count).expand_as(y)) - torch.special.zeta(two, t(count) + y)
    expected = count**2 * (fn.log_prob(y).exp() * fall).sum()
    torch.testing.assert_close(information(fn)[1, 1], expected, rtol=1e-9, atol=0.0)


# --- shapes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ALL if name[:3] not in ("omt", "avf")])  # which do not expand
def test_batches_are_stacks(name):
    fn = ALL[name]().expand([2, 3])
    likelihood = likelihood_of(fn)
    root = likelihood.fisher_root(likelihood.link())
    single = likelihood_of(ALL[name]())
    expected = single.fisher_root(single.link())
    torch.testing.assert_close(root, expected.expand(2, 3, *expected.shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("columns", [2, 3, 10])
def test_classes_less_one_columns(columns):
    eta = torch.randn(4, columns)
    assert likelihood_of(dist.Categorical(logits=eta)).fisher_root(eta).shape == (4, columns, columns - 1)


def test_each_count_of_trials_is_its_own():
    fn = dist.BetaBinomial(t(2.0, 2.0), t(1.0, 1.0), t(3.0, 8.0))
    likelihood = likelihood_of(fn)
    roots = likelihood.fisher_root(likelihood.link())
    for root, trials in zip(roots, (3.0, 8.0), strict=True):
        torch.testing.assert_close(root @ root.T, information(dist.BetaBinomial(t(2.0), t(1.0), t(trials))))
    binomial = dist.Binomial(t(3.0, 8.0), logits=t(0.3, 0.3))
    likelihood = likelihood_of(binomial)
    found = likelihood.fisher_root(likelihood.link()).flatten().square()
    torch.testing.assert_close(found, t(3.0, 8.0) * information(dist.Bernoulli(logits=t(0.3))).flatten())
