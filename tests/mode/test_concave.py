"""Which programs are known to have a concave log joint, and that one search does for these."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import as_data
from pyro_laplace.likelihood import FAMILIES
from pyro_laplace.mode import starts
from pyro_laplace.mode.concave import is_concave
from pyro_laplace.program.program import Program


@pytest.fixture(params=[torch.float64, torch.float32], autouse=True)
def dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def normal(size: int = 3):
    return dist.Normal(torch.zeros(size), 1.0).to_event(1)


def regression(data, prior=normal):
    def model(x, y):
        w = pyro.sample("w", prior())
        with pyro.plate("data", len(x)):
            pyro.sample("y", data(x @ w), obs=y)

    return model


def classes(family, event_dims: int = 2):
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3, 4), 1.0).to_event(event_dims))
        with pyro.plate("data", len(x)):
            pyro.sample("y", family(x @ w), obs=y)

    return model


def hierarchy(x, y):
    centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 3):
        w = pyro.sample("w", dist.Normal(centre, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def latent_scale(x, y):
    w, scale = pyro.sample("w", normal()), pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, scale), obs=y)


def latent_log_scale(x, y):
    w, log_scale = pyro.sample("w", normal()), pyro.sample("log_scale", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, log_scale.exp()), obs=y)


def latent_prior_scale(x, y):
    log_scale = pyro.sample("log_scale", dist.Normal(0.0, 1.0))
    w = pyro.sample("w", dist.Normal(torch.zeros(3), log_scale.exp()).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def network(x, y):
    w, v = pyro.sample("w", dist.Normal(torch.zeros(3, 4), 1.0).to_event(2)), pyro.sample("v", normal(4))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x @ w).relu() @ v, 1.0), obs=y)


def with_factor(x, y):
    w = pyro.sample("w", normal())
    pyro.factor("bonus", w.square().sum())
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def logits(eta):
    return dist.Bernoulli(logits=eta)


CONCAVE = {
    "Normal": regression(lambda f: dist.Normal(f, 2.0)),
    "masked Normal": regression(lambda f: dist.Normal(f, 2.0).mask(torch.arange(len(f)) % 2 == 0)),
    "Laplace": regression(lambda f: dist.Laplace(f, 2.0)),
    "Logistic": regression(lambda f: dist.Logistic(f, 2.0)),
    "LogNormal": regression(lambda f: dist.LogNormal(f, 2.0)),
    "MultivariateNormal": classes(lambda f: dist.MultivariateNormal(f, torch.eye(4) + 0.5)),
    "Bernoulli": regression(logits),
    "Binomial": regression(lambda f: dist.Binomial(5, logits=f)),
    "Geometric": regression(lambda f: dist.Geometric(logits=f)),
    "Poisson": regression(lambda f: dist.Poisson(f.exp())),
    "Poisson that overflows": regression(lambda f: dist.Poisson((30 * f).exp())),
    "NegativeBinomial": regression(lambda f: dist.NegativeBinomial(5.0, logits=f)),
    "Exponential": regression(lambda f: dist.Exponential(f.exp())),
    "Gamma": regression(lambda f: dist.Gamma(2.0, f.exp())),
    "Weibull": regression(lambda f: dist.Weibull(f.exp(), 2.0)),
    "Categorical": classes(lambda f: dist.Categorical(logits=f)),
    "OneHotCategorical": classes(lambda f: dist.OneHotCategorical(logits=f)),
    "Multinomial": classes(lambda f: dist.Multinomial(5, logits=f)),
    "Laplace prior": regression(logits, lambda: dist.Laplace(torch.zeros(3), 1.0).to_event(1)),
    "joint prior": regression(logits, lambda: dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 0.5)),
    "hierarchy of locations": hierarchy,
}
OTHERS = {
    "StudentT": regression(lambda f: dist.StudentT(3.0, f, 1.0)),
    "Cauchy": regression(lambda f: dist.Cauchy(f, 1.0)),
    "Cauchy prior": regression(lambda f: dist.Normal(f, 1.0), lambda: dist.Cauchy(torch.zeros(3), 1.0).to_event(1)),
    "probit": regression(lambda f: dist.Bernoulli(probs=torch.special.ndtr(f))),
    "log link": regression(lambda f: dist.Normal(f.exp(), 1.0)),
    "squared predictor": regression(lambda f: dist.Normal(f.square(), 1.0)),
    "a kink": regression(lambda f: dist.Normal(f.abs(), 1.0)),
    "softplus rate": regression(lambda f: dist.Poisson(torch.nn.functional.softplus(f))),
    "latent shape": regression(lambda f: dist.Gamma(f.exp(), 1.0)),
    "scale of data": regression(lambda f: dist.Normal(0.0, f.exp())),
    "scale site": latent_scale,
    "log of a scale": latent_log_scale,
    "log of a prior's scale": latent_prior_scale,
    "network": network,
    "factor": with_factor,
}


def drawn(model, rows: int = 40):
    torch.manual_seed(1)
    x = torch.randn(rows, 3)
    with pyro.poutine.trace() as trace:
        model(0.01 * x, None)  # no rate overflows
    return x, trace.trace.nodes["y"]["value"]


def asked(model, rows: int = 40, given=None) -> bool:
    data = as_data(drawn(model, rows) if given is None else given)
    program = Program.trace(model, data)
    return is_concave(Loop(program, data), program.start)


@pytest.mark.parametrize("name", CONCAVE)
def test_a_concave_program_is_known(name):
    assert asked(CONCAVE[name])


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_program_is_taken_for_one(name):
    assert not asked(OTHERS[name])


def test_a_flat_prior_is_concave():
    flat = regression(logits, lambda: dist.ImproperUniform(constraints.real_vector, (), (3,)))
    assert asked(flat, given=drawn(CONCAVE["Bernoulli"]))


@pytest.mark.parametrize("name", ["Bernoulli", "Categorical"])
def test_many_rows_are_asked_by_a_few(name):
    assert asked(CONCAVE[name], rows=20_000)


def test_the_log_joint_does_not_lie_above_its_tangents_where_it_is_called_concave(dtype):
    for name, model in CONCAVE.items():
        data = as_data(drawn(model))
        program = Program.trace(model, data)
        (chunk,) = Loop(program, data).chunks()
        one, other = 0.3 * torch.randn(2, program.num_params)
        if name == "Poisson that overflows":
            one, other = 0.1 * one, 0.1 * other
        ends = [float(program.log_joint(at, chunk)) for at in (one, 0.5 * (one + other), other)]
        assert ends[1] >= 0.5 * (ends[0] + ends[2]) - 1e-4 * abs(ends[1]), name


@pytest.mark.parametrize("family", sorted({type(each) for each in FAMILIES.values() if each.concave}, key=repr))
def test_concave_outputs_are_outputs(family):
    assert set(family.concave) <= set(family.outputs)


def count_searches(monkeypatch, model, data) -> int:
    searches, by = [], starts._search_from
    monkeypatch.setattr(starts, "_search_from", lambda *args: searches.append(args) or by(*args))
    pl.fit_map(model, data, progress=False)
    return len(searches)


def test_a_concave_program_is_searched_once(monkeypatch):
    model = CONCAVE["Bernoulli"]
    assert count_searches(monkeypatch, model, drawn(model)) == 1


def test_another_program_is_searched_from_elsewhere_too(monkeypatch):
    model = OTHERS["StudentT"]
    assert count_searches(monkeypatch, model, drawn(model)) > 1


def test_one_search_finds_the_mode_that_more_would_have_found(monkeypatch, dtype):
    model = CONCAVE["Poisson"]
    data = drawn(model)
    one = pl.fit_map(model, data, progress=False).median(*data)["w"]
    monkeypatch.setattr(starts, "is_concave", lambda *_: False)
    more = pl.fit_map(model, data, progress=False).median(*data)["w"]
    assert_close(one, more, rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 1e-7)
