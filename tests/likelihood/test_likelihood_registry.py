"""Which of Pyro's distributions is measured how, what wrappers do, and how users add their own."""

import inspect
import math
import re
from dataclasses import replace
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import tensor
from torch.distributions import transforms

import pyro_laplace as pl
from pyro_laplace._autodiff import jacobian
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace.curvature.empirical_fisher import root as empirical_root
from pyro_laplace.curvature.ggn import root as ggn_root
from pyro_laplace.curvature.mc_fisher import root as mc_root
from pyro_laplace.data import as_data
from pyro_laplace.likelihood import (
    ABSTRACT,
    EXACT_HESSIAN,
    FAMILIES,
    MONTE_CARLO,
    REFUSED,
    family_of,
    likelihood_of,
    require_likelihood,
)
from pyro_laplace.program.program import Program
from pyro_laplace.program.run import Run

pytestmark = pytest.mark.usefixtures("float64")

DOCS = (Path(__file__).parents[2] / "docs" / "likelihoods.md").read_text()
THROUGH = {dist.Independent, dist.MaskedDistribution, dist.ExpandedDistribution, dist.LogNormal, dist.LogisticNormal}
PARTS = (-1.0, 0.3, 0.8)


def mvn(size):
    return dist.MultivariateNormal(torch.zeros(size), torch.eye(size))


def hmm(s):
    return dist.GaussianHMM(mvn(2), s * torch.eye(2), mvn(2), torch.ones(2, 1), mvn(1), duration=4)


MEASURED = {
    dist.MixtureSameFamily: lambda s: dist.MixtureSameFamily(
        dist.Categorical(logits=tensor(PARTS)), dist.Normal(s * tensor(PARTS), 0.3)
    ),
    dist.MaskedMixture: lambda s: dist.MaskedMixture(
        tensor([True, False]), dist.Normal(s.expand(2), 1.0), dist.Normal(s.expand(2), 3.0)
    ),
    dist.MixtureOfDiagNormals: lambda s: dist.MixtureOfDiagNormals(
        s * tensor([[1.0, 0.0], [0.0, 2.0]]), torch.ones(2, 2), torch.zeros(2)
    ),
    dist.MixtureOfDiagNormalsSharedCovariance: lambda s: dist.MixtureOfDiagNormalsSharedCovariance(
        s * tensor([[1.0, 0.0], [0.0, 2.0]]), torch.ones(2), torch.zeros(2)
    ),
    dist.AffineBeta: lambda s: dist.AffineBeta(s, tensor(2.0), tensor(-1.0), tensor(2.0)),
    dist.FoldedDistribution: lambda s: dist.FoldedDistribution(dist.Normal(s, 1.0)),
    dist.Kumaraswamy: lambda s: dist.Kumaraswamy(s, tensor(2.0)),
    dist.FisherSnedecor: lambda s: dist.FisherSnedecor(s, tensor(3.0)),
    dist.SkewLogistic: lambda s: dist.SkewLogistic(tensor(0.0), tensor(1.0), s),
    dist.AsymmetricLaplace: lambda s: dist.AsymmetricLaplace(tensor(0.0), tensor(1.0), s),
    dist.SoftAsymmetricLaplace: lambda s: dist.SoftAsymmetricLaplace(tensor(0.0), tensor(1.0), s, tensor(1.0)),
    dist.StableWithLogProb: lambda s: dist.StableWithLogProb(tensor(1.5), tensor(0.3), tensor(1.0), s),
    dist.TruncatedPolyaGamma: lambda s: dist.TruncatedPolyaGamma(torch.zeros(2)),
    dist.RelaxedBernoulli: lambda s: dist.RelaxedBernoulli(tensor(0.7), logits=s),
    dist.RelaxedBernoulliStraightThrough: lambda s: dist.RelaxedBernoulliStraightThrough(tensor(0.7), logits=s),
    dist.RelaxedOneHotCategorical: lambda s: dist.RelaxedOneHotCategorical(tensor(0.7), logits=s * tensor(PARTS)),
    dist.RelaxedOneHotCategoricalStraightThrough: lambda s: dist.RelaxedOneHotCategoricalStraightThrough(
        tensor(0.7), logits=s * tensor(PARTS)
    ),
    dist.SineSkewed: lambda s: dist.SineSkewed(dist.VonMises(s.expand(1), torch.ones(1)).to_event(1), tensor([0.3])),
    dist.ProjectedNormal: lambda s: dist.ProjectedNormal(s * tensor(PARTS)),
    dist.MultivariateStudentT: lambda s: dist.MultivariateStudentT(tensor(5.0), s * tensor(PARTS), torch.eye(3)),
    dist.Wishart: lambda s: dist.Wishart(tensor(5.0), s * torch.eye(2)),
    dist.LKJ: lambda s: dist.LKJ(3, s),
    dist.LKJCholesky: lambda s: dist.LKJCholesky(3, s),
    dist.LKJCorrCholesky: lambda s: dist.LKJCorrCholesky(3, s),
    dist.NanMaskedMultivariateNormal: lambda s: dist.NanMaskedMultivariateNormal(s * tensor(PARTS), torch.eye(3)),
    dist.DirichletMultinomial: lambda s: dist.DirichletMultinomial((s * tensor(PARTS)).exp(), tensor(4.0)),
    dist.GaussianHMM: hmm,
    dist.IndependentHMM: lambda s: dist.IndependentHMM(hmm(s).expand([1])),
    dist.Rejector: lambda s: dist.Rejector(dist.Exponential(s), lambda x: -0.1 * x, (s / (s + 0.1)).log()),
    dist.TransformedDistribution: lambda s: dist.TransformedDistribution(
        dist.Gamma(tensor(2.0), tensor(1.0)), [transforms.PowerTransform(s)]
    ),
    dist.CoalescentTimes: lambda s: dist.CoalescentTimes(tensor([0.0, 0.1, 0.2, 0.3]), s),
    dist.SpanningTree: lambda s: dist.SpanningTree(s * torch.arange(6.0)),
    dist.OneOneMatching: lambda s: dist.OneOneMatching(s * torch.arange(9.0).reshape(3, 3) ** 0.5),
    dist.OneTwoMatching: lambda s: dist.OneTwoMatching(s * torch.arange(8.0).reshape(4, 2) ** 0.5),
}
UNDRAWN = {
    dist.DiscreteHMM: lambda s: dist.DiscreteHMM(
        torch.zeros(2), torch.zeros(2, 2), dist.Normal(s * torch.arange(2.0), 1.0), duration=4
    ),
    dist.GammaGaussianHMM: lambda s: dist.GammaGaussianHMM(
        dist.Gamma(s, tensor(1.0)), mvn(2), 0.5 * torch.eye(2), mvn(2), torch.ones(2, 1), mvn(1), duration=4
    ),
    dist.GaussianMRF: lambda s: dist.GaussianMRF(
        dist.MultivariateNormal(s.expand(2), torch.eye(2)),
        dist.MultivariateNormal(torch.zeros(4, 4), torch.eye(4)),
        dist.MultivariateNormal(torch.zeros(4, 3), torch.eye(3)),
    ),
    dist.CoalescentTimesWithRate: lambda s: dist.CoalescentTimesWithRate(tensor([0.0, 0.0, 0.0]), s.expand(3)),
    dist.VonMises3D: lambda s: dist.VonMises3D(s * tensor([1.0, 0.0, 0.0])),
    dist.ImproperUniform: lambda s: dist.ImproperUniform(dist.constraints.real, (), ()),
    dist.GroupedNormalNormal: lambda s: dist.GroupedNormalNormal(
        s.expand(2), torch.ones(2), torch.ones(3), tensor([0, 1, 1])
    ),
    dist.LogNormalNegativeBinomial: lambda s: dist.LogNormalNegativeBinomial(tensor(2.0), s, tensor(0.5)),
    dist.SineBivariateVonMises: lambda s: dist.SineBivariateVonMises(
        s, tensor(0.0), tensor(3.0), tensor(3.0), correlation=tensor(0.3)
    ),
    dist.GaussianScaleMixture: lambda s: dist.GaussianScaleMixture(s.expand(2), torch.zeros(2), tensor([1.0, 2.0])),
}
DATA_OF_UNDRAWN = {
    dist.DiscreteHMM: torch.ones(4),
    dist.GammaGaussianHMM: torch.ones(4, 1),
    dist.GaussianMRF: torch.ones(4, 1),
    dist.CoalescentTimesWithRate: tensor([-1.0, -0.5]),
    dist.VonMises3D: tensor([1.0, 0.0, 0.0]),
    dist.ImproperUniform: tensor(0.0),
    dist.GroupedNormalNormal: torch.ones(3),
    dist.LogNormalNegativeBinomial: tensor(2.0),
    dist.SineBivariateVonMises: torch.ones(2),
    dist.GaussianScaleMixture: torch.ones(2),
}


def classes():
    """Every distribution class of `pyro.distributions`."""
    found = [each for _, each in sorted(vars(dist).items()) if inspect.isclass(each)]
    return [each for each in found if issubclass(each, torch.distributions.Distribution | dist.Distribution)]


def kinds_of(cls):
    """What is done with a class, and why, in every table that has it."""
    known = (family_of(cls) is not None or cls in THROUGH) and cls not in MONTE_CARLO
    refused = any(base in REFUSED for base in cls.__mro__) and cls not in MONTE_CARLO
    found = {"known": known, "refused": refused, "abstract": cls in ABSTRACT}
    found |= {"draws": cls in MONTE_CARLO, "hessian": cls in EXACT_HESSIAN}
    return [kind for kind, holds in found.items() if holds]


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_every_distribution_of_pyros_is_classified_once(cls):
    kinds = kinds_of(cls)
    assert len(kinds) == 1, f"{cls.__name__} is {kinds or 'in no table of pyro_laplace.likelihood'}"
    if kinds != ["abstract"]:
        section = {
            "known": "In closed form",
            "draws": "By Monte Carlo",
            "hessian": "By the exact",
            "refused": "Refused",
        }
        text = DOCS.split(f"## {section[kinds[0]]}")[1].split("\n## ")[0] + DOCS.split("## In closed form")[0] * (
            kinds == ["known"]
        )
        assert f"`{cls.__name__}`" in text, f"docs/likelihoods.md does not name {cls.__name__} where it belongs"


def test_the_tables_are_tested():
    assert MEASURED.keys() == MONTE_CARLO.keys()
    assert UNDRAWN.keys() == EXACT_HESSIAN.keys()


# --- Monte Carlo ------------------------------------------------------------------------------------


def traced(make, value, s=0.8, size=1):
    """A program with one latent s, that observes `make(s)`."""

    def model(y):
        scale = pyro.sample("s", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        pyro.sample("y", make(scale[0] if size == 1 else scale), obs=y)

    with pyro.validation_enabled(False):
        data = as_data((value.double() if value.is_floating_point() else value,))
        program = Program.trace(model, data, {"s": torch.full((size,), s)})
        (chunk,) = program.chunks(data)
    return program, torch.full((size,), s), chunk


def curvature(root, program, theta, chunk):
    """A'A, and the root."""
    with undisturbed(), torch.no_grad():
        found = root(replace(program, derived=frozenset()), program.run(theta, chunk), chunk)
        rows = jacobian(found, theta)
    return rows.T @ rows, found


def drawn(make, s, draws):
    with undisturbed():
        fn = make(tensor(s))
        return torch.stack([fn.sample() for _ in range(draws)])


SLOW = {dist.SpanningTree, dist.StableWithLogProb}  # a sampler by MCMC, and a density by integration for each label


@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore:Singular sample detected", "ignore:class LKJCorrCholesky")  # torch's, Pyro's
@pytest.mark.parametrize("cls", [cls for cls in MEASURED if cls not in SLOW], ids=lambda cls: cls.__name__)
def test_information_from_draws(cls):
    """Against the mean of squared scores in s over other draws, each by a differentiation of its own."""
    make, draws = MEASURED[cls], 150
    assert likelihood_of(make(tensor(0.8))) is None
    values = drawn(make, 0.8, draws)
    with undisturbed():
        scores = [
            torch.autograd.functional.jacobian(lambda s, y=y: make(s).log_prob(y).sum(), tensor(0.8)) for y in values
        ]
    squares = torch.stack(scores).square()
    found, _ = curvature(ggn_root, *traced(make, values[0]))
    assert abs(float(found) - float(squares.mean())) < 5 * float(squares.std()) / draws**0.5 + 1e-9
    assert (float(found) > 0.01) == (cls is not dist.TruncatedPolyaGamma)  # which has no parameters


@pytest.mark.parametrize("cls", [dist.SpanningTree, dist.OneOneMatching, dist.OneTwoMatching])
def test_information_by_enumeration_of_a_small_support(cls):
    """An exponential family in s: the variance of its statistic."""
    fn = MEASURED[cls](tensor(0.8))
    support = fn.enumerate_support()
    probs = fn.log_prob(support).exp()
    statistic = MEASURED[cls](tensor(1.8)).log_prob(support) - fn.log_prob(support)
    expected = (probs * statistic.square()).sum() - (probs * statistic).sum() ** 2
    found, _ = curvature(ggn_root, *traced(MEASURED[cls], support[0]))
    torch.testing.assert_close(found.reshape(()), expected, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("cls", UNDRAWN, ids=lambda cls: cls.__name__)
def test_what_cannot_be_drawn_is_left_to_the_hessian(cls):
    program, theta, chunk = traced(UNDRAWN[cls], DATA_OF_UNDRAWN[cls])
    with undisturbed():
        assert not ggn_root(program, program.run(theta, chunk), chunk).sites


def test_a_hidden_markov_model_has_the_hessian_of_the_forward_algorithm():
    y = torch.cat([torch.randn(15) + 3, torch.randn(15) + 8])
    transition = tensor([[0.9, 0.1], [0.2, 0.8]])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(tensor([3.0, 8.0]), 1.0).to_event(1))
        pyro.sample("y", dist.DiscreteHMM(torch.zeros(2), transition.log(), dist.Normal(mu, 1.0), len(y)), obs=y)

    def log_joint(mu):
        emission = torch.distributions.Normal(mu, 1.0).log_prob(y[:, None])
        alpha = torch.zeros(2)  # Pyro moves before the first observation, from logits
        for each in emission:
            alpha = (alpha.unsqueeze(-1) + transition.log()).logsumexp(0) + each
        return alpha.logsumexp(0) - 0.5 * (mu - tensor([3.0, 8.0])).square().sum()

    guide = pl.fit_laplace(model, (y,), progress=False)
    expected = -torch.autograd.functional.hessian(log_joint, guide.median()["mu"])
    torch.testing.assert_close(guide.precision.to_dense(), expected, rtol=1e-8, atol=1e-8)


def skewed(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.SkewLogistic(x @ w, torch.tensor(0.7), torch.tensor(1.5)), obs=y)


def test_the_labels_of_a_site_are_drawn_once_and_disturb_nothing():
    x, y = torch.randn(6, 2), torch.randn(6)
    data = as_data([(x[:3], y[:3]), (x[3:], y[3:])])
    program = Program.trace(skewed, data)
    theta = tensor([0.3, -0.2])
    before = torch.random.get_rng_state()
    roots = [[curvature(ggn_root, program, theta, chunk)[1] for chunk in program.chunks(data)] for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    with undisturbed():
        (a, b), (again, _) = ([root(theta) for root in each] for each in roots)
    assert torch.equal(a, again)
    assert not torch.equal(a[: len(b)], b)


def test_monte_carlo_takes_the_memory_of_its_labels_and_no_more():
    x, y = torch.randn(50, 2), torch.randn(50)
    program = Program.trace(skewed, as_data((x, y)))
    (chunk,) = program.chunks(as_data((x, y)))
    found, root = curvature(ggn_root, program, tensor([0.3, -0.2]), chunk)
    assert root.sites["y"].vectors.shape == (50, 100, 1, 1)
    # the score of the loc is (1 - (a + 1) (1 - z)) / scale, with z the sigmoid of the residual and density a z^(a - 1)
    a = 1.5
    z = torch.linspace(0, 1, 200_001)
    information = torch.trapezoid(a * z ** (a - 1) * (1 - (a + 1) * (1 - z)) ** 2, z) / 0.49
    torch.testing.assert_close(found, information * x.T @ x, rtol=0.1, atol=0.1 * float(found.max()))


def test_a_fit_takes_any_likelihood():
    x = torch.randn(80, 2)
    y = x @ tensor([0.5, -1.0]) + torch.randn(80)
    guide = pl.fit_laplace(skewed, (x, y), progress=False)
    exact = pl.fit_laplace(skewed, (x, y), progress=False, curvature="hessian")
    torch.testing.assert_close(
        guide.precision.to_dense(),
        exact.precision.to_dense(),
        rtol=0.3,
        atol=0.1 * float(exact.precision.to_dense().max()),
    )


# --- refused ----------------------------------------------------------------------------------------

REFUSALS = {
    "Delta": (lambda s: dist.Delta(s), tensor(0.8), "point mass"),
    "Empirical": (lambda s: dist.Empirical(s.expand(2), torch.zeros(2)), tensor(0.8), "atoms are data"),
    "Uniform": (lambda s: dist.Uniform(s, s + 1.0), tensor(1.0), "support depends on the parameters"),
    "Pareto": (lambda s: dist.Pareto(s, tensor(1.0)), tensor(1.0), r"log\(y / scale\) is Exponential"),
    "GeneralizedPareto": (
        lambda s: dist.GeneralizedPareto(s, tensor(1.0), tensor(0.5)), tensor(1.0), "support depends"
    ),
    "Stable": (lambda s: dist.Stable(tensor(1.5), tensor(0.0), tensor(1.0), s), tensor(1.0), "use StableWithLogProb"),
    "LinearHMM": (
        lambda s: dist.LinearHMM(mvn(2), s * torch.eye(2), mvn(2), torch.ones(2, 1), mvn(1), duration=4),
        torch.ones(4, 1),
        "LinearHMMReparam",
    ),
    "Unit": (lambda s: dist.Unit(s), torch.zeros(0), r"pyro\.factor"),
}  # fmt: skip


def test_every_refusal_is_tested():
    assert set(REFUSALS) == {cls.__name__ for cls in REFUSED}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_has_no_information_is_refused_by_name(name):
    make, value, reason = REFUSALS[name]
    program, theta, chunk = traced(lambda s: dist.Normal(s, 1.0), tensor(0.3))
    site = program.run(theta, chunk).observed["y"]
    run = Run(observed={"y": replace(site, fn=make(tensor(0.8)), value=value)})
    for root in (ggn_root, mc_root):
        with pytest.raises(pl.UnsupportedProgram, match=f"'y' has a {name} .*{reason}"):
            root(program, run, chunk)


def test_an_unknown_link_is_refused_by_the_innermost_name():
    fn = dist.Kumaraswamy(tensor([1.0]), tensor([1.0])).to_event(1).mask(True)
    with pytest.raises(pl.UnsupportedProgram, match=r"'y' has a Kumaraswamy .* register"):
        require_likelihood("y", fn)


# --- wrappers ---------------------------------------------------------------------------------------


def test_wrappers_come_back():
    mask = tensor([True, False])
    fn = dist.Normal(torch.randn(2, 3), 0.5).to_event(1).mask(mask)
    fn = dist.TransformedDistribution(fn, [transforms.ExpTransform()])
    likelihood = likelihood_of(fn)
    value = fn.sample()
    torch.testing.assert_close(likelihood.distribution(likelihood.link()).log_prob(value), fn.log_prob(value))
    assert torch.equal(likelihood.weight(torch.ones(2), value), tensor([[1.0], [0.0]]).expand(2, 1))


def test_expanded_events_are_seen():
    fn = dist.Normal(tensor(0.3), 0.5).expand([4, 3]).to_event(1)
    assert likelihood_of(fn).link().shape == (4, 3, 2)
    fn = dist.ExpandedDistribution(dist.Normal(torch.zeros(3), 0.5).to_event(1), torch.Size([4]))
    assert likelihood_of(fn).link().shape == (4, 3, 2)
    assert likelihood_of(dist.LogisticNormal(torch.zeros(4, 3), torch.ones(3))).link().shape == (4, 3, 2)


@pytest.mark.parametrize("shift", [2.0, tensor(2.0)])
def test_a_number_shifts_any_distribution_and_a_tensor_only_location_and_scale(shift):
    fn = dist.TransformedDistribution(dist.Gamma(tensor(2.0), tensor(1.0)), transforms.AffineTransform(shift, 3.0))
    assert (likelihood_of(fn) is not None) == isinstance(shift, float)
    fn = dist.TransformedDistribution(dist.Normal(tensor(1.0), 1.0), transforms.AffineTransform(shift, -3.0))
    torch.testing.assert_close(likelihood_of(fn).link(), tensor([-1.0, math.log(3.0)]))


def test_a_map_that_is_not_one_to_one_is_not_seen_through():
    fn = dist.TransformedDistribution(dist.Normal(tensor([1.0, 0.0]), 1.0), transforms.SoftmaxTransform())
    assert likelihood_of(fn) is None


def test_zeros_added_to_a_density_have_no_family():
    assert likelihood_of(dist.ZeroInflatedDistribution(dist.Normal(tensor(0.0), 1.0), gate=tensor(0.2))) is None


def test_a_subclass_with_a_density_of_its_own_is_not_its_base():
    class Capped(dist.Normal):
        def log_prob(self, value):
            return super().log_prob(value).clamp(min=-3.0)

    class Renamed(dist.Normal):
        pass

    assert likelihood_of(Capped(tensor(0.0), 1.0)) is None
    assert likelihood_of(Renamed(tensor(0.0), 1.0)) is not None


def missing(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.NanMaskedNormal(x @ w, 0.5), obs=y)


@pytest.mark.parametrize("root", [ggn_root, mc_root, empirical_root])
def test_missing_entries_count_for_nothing(root):
    x, y = torch.randn(40, 2), torch.randn(40)
    y[::3] = math.nan
    kept = y.isfinite()
    data = as_data((x, y))
    program = Program.trace(missing, data)
    (chunk,) = program.chunks(data)
    found, site_root = curvature(root, program, torch.zeros(2), chunk)
    assert not site_root.sites["y"].vectors[~kept].any()
    assert site_root.sites["y"].vectors[kept].any((1, 2)).all()
    if root is ggn_root:
        torch.testing.assert_close(found, 4 * x[kept].T @ x[kept])


def test_missing_entries_of_a_vector_are_integrated_out():
    """By draws that are missing where the data are: I is the precision of what is there."""
    cov = tensor([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]])
    make = lambda s: dist.NanMaskedMultivariateNormal(s, cov)  # noqa: E731
    found, _ = curvature(ggn_root, *traced(make, tensor([0.3, math.nan, 0.1]), size=3))
    expected = torch.diag(tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.12)
    assert not found[1].any()


# --- what moves -------------------------------------------------------------------------------------


def test_what_is_constant_is_known_without_differentiation():
    a, b = torch.ones(3, requires_grad=True), torch.ones(3)
    cases = [
        (dist.Normal(a, 0.5), [True, False]),
        (dist.Normal(b, a).to_event(1).mask(True), [False, True]),
        (dist.LogNormal(a, b), [True, False]),
        (dist.StudentT(4.0, a, b), [True, False, False]),
        (dist.Gamma(b, a), [False, True]),
        (dist.Weibull(a, b), [True, False]),
        (dist.VonMises(a, b), [True, False]),
        (dist.NegativeBinomial(b, logits=a), [True, False]),
        (dist.GammaPoisson(a, b), [True, False]),
        (dist.MultivariateNormal(a, torch.eye(3)), [True] * 3 + [False] * 6),
        (dist.MultivariateNormal(b, (2 * a).diag()), [False] * 3 + [True] * 6),
        (dist.LowRankMultivariateNormal(a, torch.ones(3, 1), b), [True] * 3 + [False] * 6),
        (dist.OrderedLogistic(a, tensor([-1.0, 0.2, 1.5])), [True, False, False]),
        (dist.ZeroInflatedNegativeBinomial(b, logits=a, gate=b / 2), [False, True, False]),
        (dist.TransformedDistribution(dist.Normal(b, b), transforms.AffineTransform(a, 2.0)), [True, False]),
    ]
    for fn, expected in cases:
        assert likelihood_of(fn).moving().tolist() == expected, fn
    assert likelihood_of(dist.Poisson(a)).moving() is None


# --- the user's own ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:curvature='ggn' is the information that data of this model hold")
def test_the_docs_family_is_exact_and_can_be_linearised():
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)
    names = {}
    known = dict(FAMILIES)
    try:
        exec(code, names)  # the docs' own lines
        rayleigh = names["Rayleigh"]

        def model(x, y=None):
            w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("y", rayleigh((x @ w).exp()), obs=y)

        x = torch.randn(30, 2)
        y = rayleigh((x @ tensor([0.3, -0.6])).exp()).sample()
        guide = pl.fit_laplace(model, (x, y), curvature="ggn", progress=False)
        torch.testing.assert_close(guide.precision.to_dense(), 4 * x.T @ x + torch.eye(2))
        linear = poutine.trace(pl.linearize(model, guide)).get_trace(x, y)
        assert type(linear.nodes["y"]["fn"]) is rayleigh
    finally:
        FAMILIES.clear()
        FAMILIES.update(known)
