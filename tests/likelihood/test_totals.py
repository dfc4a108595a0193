"""Counts whose totals are not the declared `total_count`: the curvature of given data is that of their own totals."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl
from pyro_laplace.likelihood import likelihood_of
from pyro_laplace.likelihood.totals import MultinomialOfTotals, of_totals

pytestmark = pytest.mark.usefixtures("float64")


def counts(totals, num_classes=3):
    x = torch.randn(len(totals))
    f = torch.stack([k * 0.4 * x - 0.2 * k for k in range(num_classes)], -1)
    return x, torch.stack(
        [dist.Multinomial(max(int(n), 1), logits=row).sample() * (n > 0) for n, row in zip(totals, f, strict=True)]
    )


def logits(w, x):
    return torch.cat([torch.zeros(len(x), 1), w[:2] + x[:, None] * w[2:]], -1)


def program(wrap=lambda fn: fn, total_count=60):
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([4]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", wrap(dist.Multinomial(total_count, logits=logits(w, x))), obs=y)

    return model


def exact_precision(x, y, w, weight=1.0):
    """The Hessian of minus the log joint: of a canonical link it is the Fisher information."""

    def energy(w):
        return -(weight * (y * logits(w, x).log_softmax(-1)).sum(-1)).sum() + (w / 2).square().sum() / 2

    return torch.func.hessian(energy)(w)


@pytest.mark.parametrize("total_count", [60, 1], ids=["larger", "smaller"])
@pytest.mark.parametrize("structure", ["full", "block"])
def test_the_gauss_newton_matrix_is_the_exact_hessian(total_count, structure):
    x, y = counts(torch.cat([torch.zeros(1).long(), torch.randint(0, 21, (29,))]))
    guide = pl.fit_laplace(
        program(total_count=total_count), (x, y), curvature="ggn", structure=structure, progress=False
    )
    torch.testing.assert_close(guide.precision.to_dense(), exact_precision(x, y, guide.loc), rtol=1e-8, atol=1e-8)


def test_empty_rows_say_nothing():
    x, y = counts(torch.randint(1, 9, (12,)))
    more_x, more_y = torch.cat([x, torch.randn(5)]), torch.cat([y, torch.zeros(5, 3)])
    one, other = (
        pl.fit_laplace(program(), each, curvature="ggn", progress=False) for each in ((x, y), (more_x, more_y))
    )
    torch.testing.assert_close(one.precision.to_dense(), other.precision.to_dense())


def test_masked_rows_have_no_total():
    x, y = counts(torch.randint(1, 9, (20,)))
    seen = torch.arange(20) < 12
    y[~seen] = torch.nan
    model = program(lambda fn: fn.mask(seen))
    guide = pl.fit_laplace(model, (x, y), curvature="ggn", progress=False)
    expected = exact_precision(x[seen], y[seen], guide.loc)
    torch.testing.assert_close(guide.precision.to_dense(), expected, rtol=1e-8, atol=1e-8)


def test_several_rows_of_an_event_and_whole_numbers():
    x, y = counts(torch.randint(1, 9, (20,)))
    rows = y.reshape(10, 2, 3).long()

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([4]).to_event(1))
        with pyro.plate("data", 10):
            fn = dist.Multinomial(3, logits=logits(w, x).reshape(10, 2, 3))
            pyro.sample("y", fn.to_event(1), obs=y)

    guide = pl.fit_laplace(model, (rows,), curvature="ggn", progress=False)
    torch.testing.assert_close(guide.precision.to_dense(), exact_precision(x, y, guide.loc), rtol=1e-8, atol=1e-8)


def test_a_last_layer_has_the_same_information_in_its_closed_form():
    x, y = counts(torch.randint(0, 21, (30,)))
    inputs = torch.stack([torch.ones(30), x], -1)

    def model(inputs, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([2, 3]).to_event(2))
        with pyro.plate("data", len(inputs)):
            pyro.sample("y", dist.Multinomial(60, logits=inputs @ w), obs=y)

    guide = pl.fit_laplace(model, (inputs, y), curvature="ggn", progress=False)

    def energy(w):
        return -(y * (inputs @ w.reshape(2, 3)).log_softmax(-1)).sum() + (w / 2).square().sum() / 2

    expected = torch.func.hessian(energy)(guide.loc)
    torch.testing.assert_close(guide.precision.to_dense(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.statistical
def test_drawn_labels_have_the_totals_of_the_data():
    x, y = counts(torch.randint(0, 21, (30,)))
    with pl.settings.using(mc_labels=3000):
        guide = pl.fit_laplace(program(), (x, y), curvature="mc_fisher", progress=False)
    expected = exact_precision(x, y, guide.loc)
    assert (guide.precision.to_dense() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.statistical
def test_a_dirichlet_multinomial_has_the_information_of_its_own_totals():
    """Against a brute force sum over all counts of each total."""
    totals = torch.tensor([0, 1, 2, 4, 4])
    y = torch.stack([torch.tensor([float(n), 0.0, 0.0]) for n in totals])
    scale = torch.linspace(0.5, 2.0, 5)

    def concentration(w):
        return (w + scale[:, None] * torch.tensor([0.3, -0.2, 0.5])).exp()

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.DirichletMultinomial(concentration(w), total_count=50), obs=y)

    point = {"w": torch.tensor([0.1, 0.4, -0.3])}
    with pl.settings.using(fisher_labels=4000):
        guide = pl.fit_laplace(
            model, (y,), point, curvature="ggn", polish=False, on_not_a_mode="ignore", progress=False
        )
    expected = torch.eye(3)
    for n, total in enumerate(totals.tolist()):
        for i in range(total + 1):
            for j in range(total + 1 - i):
                row = torch.tensor([i, j, total - i - j], dtype=torch.float64)

                def log_prob(w, row=row, n=n):
                    return dist.DirichletMultinomial(concentration(w)[n], row.sum()).log_prob(row)

                score = torch.func.grad(log_prob)(point["w"])
                expected += log_prob(point["w"]).exp() * score[:, None] * score
    assert (guide.precision.to_dense() - expected).norm() < 0.03 * (expected - torch.eye(3)).norm()


@pytest.mark.statistical
def test_counts_of_given_totals_have_their_moments():
    probs = torch.tensor([[0.2, 0.0, 0.5, 0.3], [0.7, 0.1, 0.2, 0.0]])
    totals = torch.tensor([6.0, 0.0])
    draws = MultinomialOfTotals(totals, probs.log()).sample((20_000,))
    assert (draws.sum(-1) == totals).all()
    assert (draws[:, 0, 1] == 0).all()
    covariance = 6 * (probs[0].diag() - probs[0][:, None] * probs[0])
    torch.testing.assert_close(draws[:, 0].mean(0), 6 * probs[0], rtol=0, atol=0.05)
    torch.testing.assert_close(draws[:, 0].T.cov(), covariance, rtol=0, atol=0.06)


def test_chunks_do_not_change_what_is_drawn():
    x, y = counts(torch.randint(0, 21, (40,)))
    found = []
    for batches in ((x, y), [(x[:15], y[:15]), (x[15:], y[15:])]):
        pyro.set_rng_seed(3)
        guide = pl.fit_laplace(
            program(),
            batches,
            {"w": torch.zeros(4)},
            curvature="mc_fisher",
            polish=False,
            on_not_a_mode="ignore",
            progress=False,
        )
        found.append(guide.precision.to_dense())
    torch.testing.assert_close(*found)


def test_a_prediction_has_the_declared_total():
    x, y = counts(torch.randint(1, 9, (20,)))
    guide = pl.fit_laplace(program(), (x, y), progress=False)
    torch.testing.assert_close(pl.LinearizedPredictive(program(), guide)(x)["y"].mean.sum(-1), torch.full((20,), 60.0))


def test_wrappers_stay_around_the_counts():
    fn = dist.Multinomial(9, logits=torch.randn(4, 2, 3)).mask(torch.rand(4, 2) < 0.5).to_event(1)
    seen = of_totals(fn, torch.randint(0, 5, (4, 2, 3)))
    assert seen.batch_shape == (4,)
    assert seen.event_shape == (2, 3)
    likelihood = likelihood_of(seen)
    torch.testing.assert_close(likelihood.link(), likelihood_of(fn).link())


@pytest.mark.parametrize(
    "fn", [dist.Normal(0.0, 1.0), dist.Binomial(5, torch.tensor(0.5)), dist.Categorical(torch.ones(3))]
)
def test_nothing_else_is_changed(fn):
    assert of_totals(fn, fn.sample()) is fn
