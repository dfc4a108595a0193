"""Observed values that their distribution cannot have: refused with site, value, place, support and remedy."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_says
from pyro import poutine

import pyro_laplace as pl
from pyro_laplace.data import as_data
from pyro_laplace.program.program import Program

pytestmark = pytest.mark.usefixtures("float64")

SIZE = 8


def program(make, mask=None, name="seen"):
    """Data whose distribution has a parameter w."""

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)), poutine.mask(mask=True if mask is None else mask):
            pyro.sample(name, make(w), obs=y)

    return model


def rows(w):
    return w * torch.tensor([0.0, 1.0, 2.0])


def mixed(w):
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Poisson(torch.stack([w.exp(), w.exp() + 3])))


SHARES = torch.linspace(0.1, 0.9, SIZE, dtype=torch.float64)
COUNTS = torch.arange(SIZE, dtype=torch.float64)
LABELS = torch.arange(SIZE) % 3
EXP = dist.transforms.ExpTransform()

KINDS = {
    "count": (lambda w: dist.Poisson(w.exp()), COUNTS, 2.5, ["Poisson", "whole numbers"]),
    "negative count": (lambda w: dist.GammaPoisson(w.exp(), 1.0), COUNTS, -1.0, ["whole numbers"]),
    "count to a failure": (lambda w: dist.NegativeBinomial(3.0, logits=w), COUNTS, 0.5, ["counts"]),
    "trial": (lambda w: dist.Geometric(logits=w), COUNTS, -2.0, ["from 0 on"]),
    "zero-inflated": (lambda w: dist.ZeroInflatedPoisson(w.exp(), gate=torch.tensor(0.3)), COUNTS, 1.5, ["counts"]),
    "mixed": (lambda w: mixed(w), COUNTS, 0.5, ["whole numbers"]),
    "signs": (lambda w: dist.Bernoulli(logits=w), COUNTS % 2, -1.0, ["Bernoulli", r"\(y \+ 1\) / 2"]),
    "soft label": (lambda w: dist.Bernoulli(logits=w), COUNTS % 2, 0.3, ["0 and 1"]),
    "missing class": (lambda w: dist.Categorical(logits=rows(w)), LABELS, -100, ["labels start at 0", "mask"]),
    "class of an image": (lambda w: dist.Categorical(logits=rows(w)), LABELS.to(torch.uint8), 255, ["0 to 2", "mask"]),
    "class of a float": (lambda w: dist.Categorical(logits=rows(w)), LABELS.double(), 3.0, ["0 to 2"]),
    "level": (lambda w: dist.OrderedLogistic(w, torch.tensor([-1.0, 1.0])), LABELS, 3, ["0 to 2"]),
    "too many": (lambda w: dist.Binomial(5, logits=w), COUNTS % 6, 6.0, ["0 to 5", "total_count"]),
    "overdispersed": (lambda w: dist.BetaBinomial(w.exp(), 1.0, 5), COUNTS % 6, 6.0, ["0 to 5"]),
    "waiting time": (lambda w: dist.Gamma(3.0, w.exp()), COUNTS + 1.0, 0.0, ["Gamma", "above 0"]),
    "log": (lambda w: dist.LogNormal(w, 1.0), COUNTS + 1.0, 0.0, ["above 0", "hurdle"]),
    "transformed": (lambda w: dist.TransformedDistribution(dist.Normal(w, 1.0), EXP), COUNTS + 1.0, -3.0, ["above 0"]),
    "lifetime": (lambda w: dist.Weibull(w.exp(), 2.0), COUNTS + 1.0, -0.5, ["above 0"]),
    "scale": (lambda w: dist.HalfNormal(w.exp()), COUNTS, -0.5, ["HalfNormal"]),
    "share": (lambda w: dist.Beta(w.exp() + 1, 2.0), SHARES, 1.0, ["between 0 and 1"]),
    "percentage": (lambda w: dist.Beta(w.exp() + 1, 2.0), SHARES, 35.0, ["between 0 and 1"]),
    "number": (lambda w: dist.Normal(w, 1.0), COUNTS, float("nan"), ["not finite", "mask"]),
    "heavy tail": (lambda w: dist.StudentT(3.0, w), COUNTS, float("inf"), ["not finite"]),
}  # fmt: skip


@pytest.mark.parametrize("fit", [pl.fit_map, pl.fit_laplace, pl.maximize_evidence], ids=lambda fit: fit.__name__)
@pytest.mark.parametrize("kind", ["count", "missing class", "waiting time"])
def test_a_search_does_not_begin(fit, kind):
    make, y, bad, words = KINDS[kind]
    y = y.clone()
    y[5] = bad
    with pytest.raises(pl.InvalidData) as error:
        fit(program(make), (y,), progress=False)
    assert_says(error, "'seen'", f"{bad:g}", r"\[5\]", "support", *words)


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_outside_is_named_with_its_place_and_a_remedy(kind):
    make, y, bad, words = KINDS[kind]
    pl.fit_laplace(program(make), (y,), curvature="hessian", on_not_a_mode="ignore", progress=False)
    y = y.clone()
    y[3], y[6] = bad, bad
    with pytest.raises(pl.InvalidData) as error:
        pl.fit_laplace(program(make), (y,), progress=False)
    assert_says(error, "'seen'", rf"{bad:g} at \[3\]", "1 more", *words)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_masked_does_not_count(kind):
    make, y, bad, _ = KINDS[kind]
    keep = torch.arange(SIZE) != 3
    clean = pl.fit_laplace(program(make), (y[keep],), curvature="hessian", progress=False)
    y = y.clone()
    y[3] = bad
    models = {
        "poutine.mask": program(make, keep),
        "mask": program(lambda w: make(w).expand([SIZE]).mask(keep)),
    }
    for how, model in models.items():
        guide = pl.fit_laplace(model, (y,), curvature="hessian", progress=False)
        torch.testing.assert_close(guide.loc, clean.loc, rtol=1e-3, atol=1e-5, msg=how)
        torch.testing.assert_close(guide.precision.to_dense(), clean.precision.to_dense(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["count", "missing class", "waiting time", "number"])
def test_what_obs_mask_leaves_out_does_not_count(kind):
    make, y, bad, _ = KINDS[kind]
    keep = torch.arange(SIZE) != 3
    y = y.clone()
    y[3] = bad

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("seen", make(w), obs=y, obs_mask=keep)

    clean = pl.fit_laplace(program(make), (y[keep],), progress=False)
    torch.testing.assert_close(pl.fit_laplace(model, (y,), progress=False).loc, clean.loc, rtol=1e-3, atol=1e-5)


def test_entries_masked_within_an_event_do_not_count_and_others_do():
    y = torch.poisson(torch.full((6, 3), 3.0))
    keep = torch.ones(6, 3, dtype=torch.bool)
    keep[2, 1] = False
    y[2, 1] = -7.5
    model = program(lambda w: dist.Poisson(w.exp()).expand([6, 3]).mask(keep).to_event(1))
    guide = pl.fit_laplace(model, (y,), curvature="hessian", progress=False)

    def energy(w):
        return -(dist.Poisson(w.exp()).log_prob(y.clamp(min=0.0)) * keep).sum() + w.square() / 2

    torch.testing.assert_close(guide.precision.to_dense().squeeze(), torch.func.hessian(energy)(guide.loc[0]))
    y[4, 2] = 0.5
    with pytest.raises(pl.InvalidData) as error:
        pl.fit_laplace(model, (y,), progress=False)
    assert_says(error, r"0.5 at \[4, 2\]")


def test_data_of_scale_zero_do_not_count():
    y = torch.tensor([1.0, 2.0, 2.5])

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3), poutine.scale(scale=torch.tensor([1.0, 1.0, 0.0])):
            pyro.sample("seen", dist.Poisson(w.exp()), obs=y)

    with pyro.validation_enabled(False):  # Pyro's own refuses such a scale
        assert pl.fit_laplace(model, (y,), progress=False).loc.isfinite().all()


VECTORS = {
    "simplex": (lambda w: dist.Dirichlet(w.exp() * torch.ones(3)), [0.2, 0.3, 0.4], "sum to 1"),
    "zero share": (lambda w: dist.Dirichlet((w.exp() + 1) * torch.ones(3)), [0.0, 0.4, 0.6], "sum to 1"),
    "one-hot": (lambda w: dist.OneHotCategorical(logits=rows(w)), [0.0, 2.0, 0.0], "one_hot"),
    "counts": (lambda w: dist.Multinomial(4, logits=rows(w)), [1.0, 1.5, 2.0], "whole numbers"),
    "vector": (lambda w: dist.MultivariateNormal(w * torch.ones(3), torch.eye(3)), [0.0, math.nan, 1.0], "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("kind", VECTORS)
def test_rows_that_are_one_value(kind):
    make, bad, word = VECTORS[kind]
    y = make(torch.tensor(0.3)).sample((5,))
    pl.fit_laplace(program(make), (y,), progress=False)
    y[2] = torch.tensor(bad)
    with pytest.raises(pl.InvalidData) as error:
        pl.fit_laplace(program(make), (y,), progress=False)
    assert_says(error, "'seen'", r"\[2", word)


def test_multinomial_rows_may_have_any_total():
    y = torch.tensor([[3.0, 0.0, 9.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert pl.fit_laplace(program(VECTORS["counts"][0]), (y,), progress=False).loc.isfinite().all()


def test_single_precision_probabilities_are_a_simplex():
    y = torch.softmax(torch.randn(5, 3000, dtype=torch.float32) * 4, -1) + 1e-9
    y = (y / y.sum(-1, keepdim=True)) * (1 + 3e-6)

    def model(y):
        w = pyro.sample("w", dist.Normal(torch.tensor(0.0, dtype=torch.float32), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("seen", dist.Dirichlet(w.exp() * torch.ones(3000, dtype=torch.float32)), obs=y)

    assert pl.fit_map(model, (y,), progress=False).median()["w"].isfinite()


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.int32, torch.bool])
def test_whole_numbers_of_any_dtype_are_labels(dtype):
    y = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    model = program(lambda w: dist.Categorical(logits=rows(w)[:2]))
    assert pl.fit_laplace(model, (y,), progress=False).loc.isfinite().all()


def test_a_zero_is_allowed_where_its_density_is_finite():
    for make in (
        lambda w: dist.Exponential(w.exp()),
        lambda w: dist.HalfNormal(w.exp()),
        lambda w: dist.Gamma(1.0, w.exp()),
    ):
        assert pl.fit_laplace(program(make), (torch.tensor([0.0, 1.0, 2.0]),), progress=False).loc.isfinite().all()


def test_bounds_that_latent_values_move_are_not_believed():
    """At the start some data may lie outside."""

    def model(y):
        low = pyro.sample("low", dist.Normal(-9.0, 0.1))
        with pyro.plate("data", len(y)):
            pyro.sample("seen", dist.Uniform(low, 5.0), obs=y)

    assert Program.trace(model, as_data((torch.tensor([-20.0, 1.0]),))).observed == ("seen",)


def test_bounds_that_are_known_are():
    model = program(lambda w: dist.Uniform(0.0, 5.0))
    with pytest.raises(pl.InvalidData) as error:
        pl.fit_map(model, (torch.tensor([1.0, 5.5]),), progress=False)
    assert_says(error, r"5.5 at \[1\]", "0 and 5")


class Quasi(dist.Poisson):
    """A density of the user's own, of numbers that are not whole; its support is the one that it has inherited."""

    def log_prob(self, value):
        return value * self.rate.log() - self.rate


def test_a_density_of_the_users_own_has_the_last_word():
    y = torch.tensor([0.5, 1.5, 2.0])
    guide = pl.fit_laplace(program(lambda w: Quasi(w.exp())), (y,), curvature="hessian", progress=False)
    assert guide.loc.isfinite().all()
    y[1] = float("nan")
    with pytest.raises(pl.InvalidData, match="not finite"):
        pl.fit_laplace(program(lambda w: Quasi(w.exp())), (y,), curvature="hessian", progress=False)


def test_counts_that_depend_on_an_enumerated_site_are_not_refused():
    """At its first value, none trapped, no count is possible."""

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            most = pyro.sample("most", dist.Categorical(torch.ones(9)), infer={"enumerate": "parallel"})
            pyro.sample("seen", dist.Binomial(most.double(), logits=w), obs=y)

    assert pl.fit_laplace(model, (torch.tensor([1.0, 4.0, 2.0]),), progress=False).loc.isfinite().all()


def test_a_missing_entry_that_is_integrated_out_is_no_fault():
    y = torch.tensor([1.0, float("nan"), 2.0])
    model = program(lambda w: dist.NanMaskedNormal(w, torch.tensor(1.0)))
    assert pl.fit_laplace(model, (y,), progress=False).loc.isfinite().all()


@pytest.mark.parametrize("bad", [2.5, -1.0])
def test_the_batch_is_named(bad):
    batches = [(torch.arange(4.0),), (torch.tensor([0.0, 1.0, bad]),)]
    with pytest.raises(pl.InvalidData) as error:
        pl.fit_laplace(program(KINDS["count"][0]), batches, progress=False)
    assert_says(error, rf"{bad:g} at \[2\] of batch 1")


@pytest.mark.parametrize("curvature", ["ggn", "hessian", "empirical_fisher", "mc_fisher"])
def test_later_batches_are_seen_beside_a_point_that_is_given(curvature):
    batches = [(torch.arange(4.0),), (torch.tensor([0.0, 1.0, 2.5]),)]
    model, point = program(KINDS["count"][0]), {"w": torch.tensor(0.3)}
    with pytest.raises(pl.InvalidData) as error:
        pl.fit_laplace(model, batches, point, curvature=curvature, polish=False, progress=False)
    assert_says(error, "2.5", "'seen'")


def test_a_plate_that_subsamples_says_which_datum_of_all():
    y = torch.arange(10.0)
    y[8] = 0.5

    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=4) as index:
            pyro.sample("seen", dist.Poisson(w.exp()), obs=y[index])

    with pytest.raises(pl.InvalidData) as error:
        pl.fit_map(model, (y,), progress=False)
    assert_says(error, r"0.5 at \[8\]")


def test_new_data_and_test_data_are_looked_at_too():
    model, y = program(KINDS["count"][0]), torch.arange(6.0)
    guide = pl.fit_laplace(model, (y,), progress=False)
    bad = (torch.tensor([1.0, 2.5]),)
    calls = {
        "update": lambda: pl.update(guide, bad),
        "log_evidence": lambda: pl.log_evidence(model, guide, bad),
        "compare": lambda: pl.compare(model, {"laplace": guide}, (y,), bad, progress=False),
        "to_datatree": lambda: pl.to_datatree(model, guide, bad, num_samples=20, progress=False),
        "scores": lambda: pl.scores(pl.LinearizedPredictive(model, guide), bad),
        "scores of draws": lambda: pl.scores(pl.Predictive(model, guide=guide, num_samples=10), bad),
        "tune": lambda: pl.tune(model, bad, (y,), progress=False),
    }
    for name, call in calls.items():
        with pytest.raises(pl.InvalidData) as error:
            call()
        assert "2.5 at [1]" in str(error.value), name


# --- data that do not go with their distribution ------------------------------------------------------


def line(x, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(b * x, 1.0), obs=y)


def labelled(x, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=b * x), obs=y)


@pytest.mark.parametrize("turned", ["data", "predictor"])
def test_a_column_beside_a_row_is_refused(turned):
    """Broadcast together, 20 data would be 400."""
    x = torch.linspace(-1.0, 1.0, 20)
    data = (x, x[:, None]) if turned == "data" else (x[:, None], x)
    with pytest.raises(pl.InvalidData, match=r"'y'.*\[20, 20\] data.*same shape"):
        pl.fit_laplace(line, data, progress=False)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_labels_of_another_dtype_are_refused(dtype):
    x = torch.linspace(-1.0, 1.0, 20)
    with pytest.raises(pl.InvalidData, match=r"'y'.*Bernoulli.*y.float\(\)"):
        pl.fit_laplace(labelled, (x, (x > 0).to(dtype)), progress=False)
