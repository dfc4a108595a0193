"""What y is behind a linear predictor, where the distribution has a form of its own: against sums over posterior draws.

Every program here is linear in its weights, so that draws of the posterior through the program itself are the oracle.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.zoo import generator
from pyro import poutine
from torch import nn

import pyro_laplace as pl

DRAWS = 40_000
CUTS = torch.tensor([-1.0, 0.5], dtype=torch.float64)
X = torch.randn(12, 2, generator=generator(), dtype=torch.float64)
NEW = torch.randn(4, 2, generator=generator(1), dtype=torch.float64)


def regression(observe):
    """A program whose data are distributed as `observe` says of x @ w."""

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2).to(x), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", observe(x @ w), obs=y)

    return model


def fit(observe, x=X):
    model = regression(observe)
    y = poutine.condition(model, {"w": torch.tensor([1.5, -1.0], dtype=x.dtype)})(x)
    return model, pl.fit_laplace(model, (x, y))


def drawn(model, guide, observe):
    """The likelihood at many posterior draws, [draws, *batch]."""
    w = guide.sample_posterior(DRAWS)["w"]
    return observe(w @ NEW.mT)


def log_mean(fn, y):
    return fn.log_prob(y).logsumexp(0) - torch.tensor(float(DRAWS)).log()


# --- the family says which form, not the type -------------------------------------------------------


def ordered(f):
    return dist.OrderedLogistic(f, CUTS)


def test_ordered_classes_are_not_by_logits(float64):
    """`OrderedLogistic` is a `Categorical` to torch, and its eta are cutpoints."""
    model, guide = fit(ordered)
    predictive = pl.LinearizedPredictive(model, guide, num_samples=DRAWS)
    mean, _ = predictive.latent(NEW)["y"]
    torch.testing.assert_close(mean[:, 0], CUTS[0] - NEW @ guide.median()["w"])
    fn, oracle = predictive(NEW)["y"], drawn(model, guide, ordered)
    for label in range(3):
        y = torch.full((4,), label)
        torch.testing.assert_close(fn.log_prob(y).exp(), log_mean(oracle, y).exp(), atol=0.01, rtol=0)


def test_ordered_classes_have_probabilities_and_numbers(float64):
    """E p_j over the posterior, for one posterior and for a mixture of two, and the moments of j."""
    model, guide = fit(ordered)
    oracle = drawn(model, guide, ordered).probs.mean(0)
    numbers = torch.arange(3.0, dtype=torch.float64)
    mean = oracle @ numbers
    variance = (oracle * (numbers - mean[:, None]).square()).sum(-1)
    for posterior in (guide, pl.LaplaceMixture([guide, guide])):
        predictive = pl.LinearizedPredictive(model, posterior, num_samples=DRAWS)
        fn = predictive(NEW)["y"]
        for found, expected in ((fn.probs, oracle), (fn.mean, mean), (fn.variance, variance)):
            torch.testing.assert_close(found, expected, atol=0.01, rtol=0)
        assert predictive.decompose(NEW)["y"].kind == "entropy"


def test_ordered_classes_of_one_event_have_probabilities(float64):
    def observe(f):
        return dist.OrderedLogistic(torch.stack([f, -f], -1), CUTS).to_event(1)

    model, guide = fit(observe)
    fn = pl.LinearizedPredictive(model, guide, num_samples=DRAWS)(NEW)["y"]
    oracle = drawn(model, guide, observe).base_dist.probs.mean(0)
    torch.testing.assert_close(fn.probs, oracle, atol=0.01, rtol=0)
    torch.testing.assert_close(fn.mean, oracle @ torch.arange(3.0, dtype=torch.float64), atol=0.01, rtol=0)


# --- sums of several draws --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binomial", "multinomial"])
def test_a_sum_of_draws_is_more_spread_than_its_mean_probability(float64, kind):
    """Var y = E n p (1 - p) + n^2 Var p."""

    def observe(f, trials=20):
        if kind == "binomial":
            return dist.Binomial(trials, logits=f)
        return dist.Multinomial(trials, logits=torch.stack([f, -f, 0 * f], -1))

    model, guide = fit(observe, X[:3])
    predictive = pl.LinearizedPredictive(model, guide, link="sample", num_samples=DRAWS)
    fn, oracle = predictive(NEW)["y"], drawn(model, guide, observe)
    variance = oracle.variance.mean(0) + oracle.mean.var(0)
    assert (variance > 1.2 * oracle.variance.mean(0)).any()
    torch.testing.assert_close(fn.variance, variance, rtol=0.03, atol=0.01)
    torch.testing.assert_close(predictive.decompose(NEW)["y"].total, variance, rtol=0.03, atol=0.01)


def test_logits_of_one_event_depend_on_one_another(float64):
    """Bernoulli entries that share their weights, with `link="sample"`: the mixture, not a product of marginals."""

    def observe(f):
        return dist.Bernoulli(logits=torch.stack([f, 2 * f, -f], -1)).to_event(1)

    model, guide = fit(observe, X[:3])
    fn = pl.LinearizedPredictive(model, guide, link="sample", num_samples=DRAWS)(NEW)["y"]
    oracle, y = drawn(model, guide, observe), torch.tensor([1.0, 1.0, 0.0]).expand(4, 3)
    product = oracle.base_dist.probs.mean(0)
    apart = dist.Bernoulli(product).to_event(1).log_prob(y)
    torch.testing.assert_close(fn.log_prob(y), log_mean(oracle, y), atol=0.02, rtol=0)
    assert ((apart - log_mean(oracle, y)).abs() > 0.05).any()


def test_a_mixture_of_such_predictives_decomposes(float64):
    def observe(f):
        return dist.Bernoulli(logits=torch.stack([f, 2 * f], -1)).to_event(1)

    model, guide = fit(observe)
    mixture = pl.LaplaceMixture([guide, guide])
    options = {"link": "sample", "num_samples": 4000}
    alone = pl.LinearizedPredictive(model, guide, **options).decompose(NEW)["y"]
    mixed = pl.LinearizedPredictive(model, mixture, **options).decompose(NEW)["y"]
    torch.testing.assert_close(mixed.total, alone.total, atol=0.02, rtol=0)


# --- Normal data with several entries ---------------------------------------------------------------

SHAPES = {
    "event": lambda fn: fn.to_event(1),
    "masked event": lambda fn: fn.to_event(1).mask(True),
    "event in two steps": lambda fn: fn.to_event(1).to_event(0),
}


@pytest.mark.parametrize("name", [*SHAPES, "two event dims", "NaN for missing", "exponential"])
def test_entries_of_an_event_have_a_covariance(float64, name):
    """N(A w, 0.3^2) with w ~ N(m, S) is N(A m, A S A' + 0.3^2), whatever is around it."""
    rows = torch.tensor([1.0, -0.5, 2.0, 1.0])

    def observe(f):
        loc = f[..., None] * rows
        if name == "two event dims":
            return dist.Normal(loc.unflatten(-1, (2, 2)), 0.3).to_event(2)
        if name == "NaN for missing":
            return dist.NanMaskedNormal(loc, 0.3).to_event(1)
        if name == "exponential":
            return dist.LogNormal(loc, 0.3).to_event(1)
        return SHAPES[name](dist.Normal(loc, 0.3))

    model, guide = fit(observe, X[:3])
    fn = pl.LinearizedPredictive(model, guide)(NEW)["y"]
    design = NEW[:, None] * rows[:, None]  # n e i
    covariance = design @ torch.linalg.inv(guide.precision.to_dense()) @ design.mT + 0.09 * torch.eye(4)
    exact = dist.MultivariateNormal(design @ guide.median()["w"], covariance)
    z = exact.sample()
    y = z.exp() if name == "exponential" else z
    event = (2, 2) if name == "two event dims" else (4,)
    log_prob = exact.log_prob(z) - (z.sum(-1) if name == "exponential" else 0.0)
    assert fn.event_shape == event
    assert fn.batch_shape == (4,)
    torch.testing.assert_close(fn.log_prob(y.reshape(4, *event)), log_prob)
    assert fn.sample((3,)).shape == (3, 4, *event)
    if name == "exponential":
        return
    torch.testing.assert_close(fn.mean, exact.mean.reshape(4, *event))
    torch.testing.assert_close(fn.variance, exact.variance.reshape(4, *event))


def test_a_mask_within_an_event_keeps_the_entries_apart(float64):
    """There is no multivariate Normal of which some entries do not count: each has its own variance."""
    mask = torch.tensor([True, False])

    def observe(f):
        return dist.Normal(torch.stack([f, 2 * f], -1), 0.3).mask(mask).to_event(1)

    model, guide = fit(observe)
    fn = pl.LinearizedPredictive(model, guide)(NEW)["y"]
    spread = (NEW @ torch.linalg.inv(guide.precision.to_dense()) * NEW).sum(-1)
    exact = dist.Normal(NEW @ guide.median()["w"], (spread + 0.09).sqrt()).log_prob(torch.zeros(4))
    torch.testing.assert_close(fn.log_prob(torch.zeros(4, 2)), exact)


# --- parameters that are few ------------------------------------------------------------------------


def test_a_covariance_of_which_one_entry_is_random(float64):
    """Fewer random entries than the location has, and not of the location: a mixture over draws."""

    def observe(scale):
        diagonal = torch.stack([torch.ones_like(scale), scale.square()], -1)
        return dist.MultivariateNormal(NEW, diagonal.diag_embed())

    def model(x, y=None):
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            fn = dist.MultivariateNormal(x, torch.diag(torch.stack([torch.ones(()), scale.square()])))
            return pyro.sample("y", fn, obs=y)

    guide = pl.fit_laplace(model, (X, X + torch.randn(12, 2, generator=generator(2))))
    fn = pl.LinearizedPredictive(model, guide, num_samples=DRAWS)(NEW)["y"]
    scale = guide.sample_posterior(DRAWS)["scale"]
    y = NEW + 0.7
    torch.testing.assert_close(fn.log_prob(y), log_mean(observe(scale[:, None]), y), atol=0.02, rtol=0)


# --- moments ----------------------------------------------------------------------------------------


def test_a_lognormal_has_its_moments(float64):
    """E y = exp(m + v / 2)."""
    model, guide = fit(lambda f: dist.LogNormal(f, 0.3))
    fn = pl.LinearizedPredictive(model, guide)(NEW)["y"]
    variance = (NEW @ torch.linalg.inv(guide.precision.to_dense()) * NEW).sum(-1) + 0.09
    torch.testing.assert_close(fn.mean, (NEW @ guide.median()["w"] + variance / 2).exp())


def test_variances_without_closed_form_are_decomposed_by_draws(float64):
    """The sigmoid of a Normal: moments over draws of the weights, and within them over draws of y."""

    def observe(f):
        return dist.TransformedDistribution(dist.Normal(f, 0.5), [torch.distributions.SigmoidTransform()])

    model, guide = fit(observe, X[:3])
    parts = pl.LinearizedPredictive(model, guide, num_samples=DRAWS).decompose(NEW)["y"]
    w = guide.sample_posterior(2000)["w"]
    y = observe(w @ NEW.mT).sample((2000,))
    torch.testing.assert_close(parts.aleatoric, y.var(0).mean(0), atol=2e-3, rtol=0)
    torch.testing.assert_close(parts.epistemic, y.mean(0).var(0), atol=4e-3, rtol=0)


# --- what is refused --------------------------------------------------------------------------------


def test_dropout_in_training_mode_is_refused(float64):
    """Its predictor is another one at each call; the generator is left where it was."""
    net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    program = pl.bayesianize(net, prior=pl.nn.FanIn(), likelihood=pl.nn.Regression(noise=0.3)).eval()
    guide = pl.fit_laplace(program, (X, X[:, 0]))
    predictive = pl.LinearizedPredictive(program.train(), guide)
    before = torch.get_rng_state()
    with pytest.raises(pl.UnsupportedProgram, match=r"'\w+' is another one at each call.*\.eval\(\)"):
        predictive(NEW)
    assert torch.equal(before, torch.get_rng_state())
    program.eval()
    assert torch.equal(predictive(NEW)["y"].mean, predictive(NEW)["y"].mean)


@pytest.mark.parametrize("differentiable", [False, True])
def test_no_inputs_are_refused(float64, differentiable):
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return pyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)

    predictive = pl.LinearizedPredictive(model, pl.fit_laplace(model, (X, X[:, 0])), differentiable=differentiable)
    with pytest.raises(pl.UnsupportedProgram, match=r"'y' has no data on this call.*\(0,\): give at least one"):
        predictive(X[:0])


def test_a_linearised_predictive_is_no_program():
    model, guide = fit(lambda f: dist.Normal(f, 0.3), X.float())
    with pytest.raises(pl.InvalidOption, match=r"model=LinearizedPredictive: .* pl\.linearize\(model, guide\)"):
        pl.Predictive(pl.LinearizedPredictive(model, guide), num_samples=3)
