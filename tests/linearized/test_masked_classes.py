"""Classes that a mask of minus infinity leaves out: every link is that of the classes that there are, and 0."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl
from pyro_laplace.data import as_data
from pyro_laplace.likelihood.links import laplace_bridge, probit
from pyro_laplace.linearized.choose import nonlinearity

pytestmark = pytest.mark.usefixtures("float64")

NUM_OBS, NEW = 40, 6


def constant(num_rows):
    """The third class is never there."""
    return torch.tensor([0.0, 0.0, -torch.inf, 0.0]).expand(num_rows, 4)


def of_each(num_rows):
    """Each datum lacks one class or two."""
    rows = torch.arange(num_rows)
    mask = torch.zeros(num_rows, 4)
    mask[rows, rows % 4] = -torch.inf
    mask[rows[::3], (rows[::3] + 1) % 4] = -torch.inf
    return mask


FORMS = {
    "added": lambda f, mask: f + mask,
    "filled": lambda f, mask: f.masked_fill(mask.isneginf(), -torch.inf),
    "chosen": lambda f, mask: torch.where(mask.isneginf(), mask, f),
}


def program(form="added", family=dist.Categorical):
    def model(x, mask, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 4]).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", family(logits=FORMS[form](x @ w, mask)), obs=y)

    return model


def some_data(masks):
    x, new, mask = torch.randn(NUM_OBS, 2), torch.randn(NEW, 2), masks(NUM_OBS)
    y = dist.Categorical(logits=torch.randn(NUM_OBS, 4) + mask).sample()
    return (x, mask, y), (new, masks(NEW))


def exact_covariance(x, mask, y, loc):
    """The inverse of the Hessian of minus the log joint, that of the GGN of a canonical link."""
    there = torch.where(mask.isneginf(), 0.0, 1.0)

    def energy(w):
        f = torch.where(there > 0, x @ w.reshape(2, 4), -1e9)
        return -f.log_softmax(-1)[torch.arange(len(x)), y].sum() + w.square().sum() / 2

    return torch.func.hessian(energy)(loc).inverse()


def bridge(f, covariance, normalised):
    """Hobbhahn et al. 2022, of K classes that are all there."""
    k, rows = len(f), covariance.sum(-1)
    f, v = f - rows / rows.sum() * f.sum(), covariance.diagonal() - rows.square() / rows.sum()
    if normalised:
        scale = v.mean() / (k / 2) ** 0.5
        f, v = f / scale.sqrt(), v / scale
    alpha = (1 - 2 / k + f.exp() / k**2 * (-f).exp().sum()) / v
    return alpha / alpha.sum()


def averaged(f, covariance):
    draws = dist.MultivariateNormal(f, covariance).sample((40_000,))
    return draws.softmax(-1).mean(0)


OF_LINK = {
    "probit": lambda f, covariance: (f / (1 + torch.pi / 8 * covariance.diagonal()).sqrt()).softmax(-1),
    "bridge": lambda f, covariance: bridge(f, covariance, False),
    "bridge_norm": lambda f, covariance: bridge(f, covariance, True),
    "sample": averaged,
}


@pytest.mark.parametrize(("form", "subset"), [*((form, "all") for form in FORMS), ("added", "last_layer")])
@pytest.mark.parametrize("masks", [constant, of_each])
def test_a_predictive_is_that_of_the_classes_that_are_there(masks, form, subset):
    data, (new, mask) = some_data(masks)
    model = program(form)
    guide = pl.fit_laplace(model, data, subset=subset, progress=False)
    covariance = exact_covariance(*data, guide.loc)
    for link, of_link in OF_LINK.items():
        seen = pl.LinearizedPredictive(model, guide, link=link, num_samples=20_000)(new, mask)["y"].probs
        for row, gone, probs in zip(new, mask, seen, strict=True):
            there = ~gone.isneginf()
            jac = torch.einsum("d,kc->kdc", row, torch.eye(4))[there].reshape(int(there.sum()), 8)
            right = of_link((row @ guide.loc.reshape(2, 4))[there], jac @ covariance @ jac.T)
            torch.testing.assert_close(probs[there], right, rtol=0, atol=0.01 if link == "sample" else 1e-6)
            assert (probs[~there] == 0).all()


@pytest.mark.parametrize("structure", ["kron", "diag", pl.LowRank(4)])
@pytest.mark.parametrize("masks", [constant, of_each])
def test_every_structure_predicts_probabilities(masks, structure):
    data, (new, mask) = some_data(masks)
    guide = pl.fit_laplace(program(), data, structure=structure, progress=False)
    for link in OF_LINK:
        probs = pl.LinearizedPredictive(program(), guide, link=link)(new, mask)["y"].probs
        torch.testing.assert_close(probs.sum(-1), torch.ones(NEW))
        assert (probs[mask.isneginf()] == 0).all()


def test_what_else_is_said_of_the_logits_is_finite():
    data, (new, mask) = some_data(of_each)
    guide = pl.fit_laplace(program(), data, progress=False)
    predictive = pl.LinearizedPredictive(program(), guide)
    _, covariance = predictive.latent(new, mask)["y"]
    assert covariance.isfinite().all()
    parts = predictive.decompose(new, mask)["y"]
    assert parts.total.isfinite().all()
    assert nonlinearity(program(), guide, as_data(data)) < 1e-8
    tree = pl.compare(program(), {"laplace": guide}, data, data, num_samples=50, progress=False)
    assert list(tree.index) == ["laplace"], "a linear program predicts itself"


def test_normalised_logits_are_centred_over_the_classes_that_are_there():
    def model(x, mask, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 4]).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=(x @ w + mask).log_softmax(-1)), obs=y)

    data, (new, mask) = some_data(constant)
    guide = pl.fit_laplace(model, data, progress=False)
    covariance = exact_covariance(*data, guide.loc)
    there = ~mask[0].isneginf()
    centre = torch.eye(3) - 1 / 3
    seen = pl.LinearizedPredictive(model, guide)(new, mask)["y"].probs
    for row, probs in zip(new, seen, strict=True):
        jac = centre @ torch.einsum("d,kc->kdc", row, torch.eye(4))[there].reshape(3, 8)
        f = centre @ (row @ guide.loc.reshape(2, 4))[there]
        torch.testing.assert_close(probs[there], OF_LINK["probit"](f, jac @ covariance @ jac.T), rtol=0, atol=1e-6)


@pytest.mark.parametrize("link", ["probit", "bridge", "bridge_norm"])
def test_gradients_reach_the_inputs(link):
    data, (new, mask) = some_data(of_each)
    guide = pl.fit_laplace(program(), data, progress=False)
    predictive = pl.LinearizedPredictive(program(), guide, link=link, differentiable=True)

    def probs(new):
        return predictive(new, mask)["y"].probs[~mask.isneginf()].square().sum()

    moved = new.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(probs(moved), moved)
    step = torch.zeros_like(new)
    step[1, 0] = 1e-5
    quotient = (probs(new + step) - probs(new - step)) / 2e-5
    assert gradient.isfinite().all()
    assert float(gradient[1, 0]) == pytest.approx(float(quotient), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("normalised", [False, True])
def test_a_bridge_does_not_see_what_a_class_that_is_gone_covaries_with(normalised):
    root = torch.randn(4, 5)
    covariance, f = root @ root.T, torch.randn(4)
    f[2], there = -torch.inf, torch.tensor([0, 1, 3])
    right = bridge(f[there], covariance[there][:, there], normalised)
    for junk in (0.0, 7.0, torch.nan, torch.inf):
        covariance[2], covariance[:, 2] = junk, junk
        seen = laplace_bridge(f, covariance, normalised)
        torch.testing.assert_close(seen[there], right)
        assert seen[2] == 0


def test_one_class_alone_is_certain():
    f = torch.tensor([-torch.inf, 0.3, -torch.inf])
    for normalised in (False, True):
        torch.testing.assert_close(laplace_bridge(f, torch.eye(3), normalised), torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(probit(f, torch.full((3,), torch.nan)).isneginf(), torch.tensor([True, False, True]))


@pytest.mark.parametrize("family", [dist.OneHotCategorical, lambda logits: dist.Multinomial(5, logits=logits)])
def test_other_families_of_classes(family):
    (x, mask, y), (new, gone) = some_data(of_each)
    rows = torch.nn.functional.one_hot(y, 4).double()
    model = program(family=family)
    guide = pl.fit_laplace(model, (x, mask, rows), progress=False)
    torch.testing.assert_close(guide.precision.to_dense().inverse(), exact_covariance(x, mask, y, guide.loc))
    for link in ("probit", "bridge", "sample"):
        mean = pl.LinearizedPredictive(model, guide, link=link)(new, gone)["y"].mean
        assert mean.isfinite().all()
        assert (mean[gone.isneginf()] == 0).all()
