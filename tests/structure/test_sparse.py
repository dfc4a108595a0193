"""`structure="sparse"`: hierarchies by their own sparse precision, against dense curvature written by hand."""

import copy
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_says
from torch.distributions import constraints
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.structure.sparse_block import SparseBlock

pytestmark = pytest.mark.usefixtures("float64")

GROUPS, ITEMS, ROWS = 40, 6, 150
assert_same = partial(assert_close, rtol=1e-9, atol=1e-9)


def data():
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(0, GROUPS, (ROWS,), generator=generator)
    item = torch.randint(0, ITEMS, (ROWS,), generator=generator)
    x = torch.randn(ROWS, 3, generator=generator)
    y = torch.randn(ROWS, generator=generator)
    return x, group, item, y


def point(*names):
    generator = torch.Generator().manual_seed(1)
    values = {
        "tau": torch.tensor(0.4), "beta": torch.tensor([0.1, -0.2, 0.3]),
        "u": torch.randn(GROUPS, generator=generator) / 3, "v": torch.randn(ITEMS, generator=generator),
        "s": torch.randn(GROUPS, 2, generator=generator) / 2,
        "w": torch.randn(4, generator=generator), "x": torch.randn(60, generator=generator).cumsum(0) / 5,
        "noise": torch.tensor(0.7),
    }  # fmt: skip
    return {name: values[name] for name in names}


LOOKUPS = {
    "u[group]": lambda u, group: u[group],
    "u[..., group]": lambda u, group: u[..., group],
    "index_select": lambda u, group: u.index_select(0, group),
    "embedding": lambda u, group: torch.nn.functional.embedding(group, u.unsqueeze(1)).squeeze(1),
    "gather": lambda u, group: u.gather(0, group),
    "one-hot": lambda u, group: torch.nn.functional.one_hot(group, GROUPS).double() @ u,
}


def intercepts(x, group, item, y, lookup="u[group]", centred=True):
    """Of Bernoulli data, around fixed effects; tau couples with all of them."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.1))
    with pyro.plate("groups", GROUPS):
        u = pyro.sample("u", dist.Normal(0.0, tau if centred else 1.0))
    eta = x @ beta + LOOKUPS[lookup](u if centred else tau * u, group)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=eta), obs=(y > 0).double())


def crossed_slopes(x, group, item, y):
    """Crossed intercepts, slopes of groups, an unknown noise."""
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("items", ITEMS):
        v = pyro.sample("v", dist.Normal(0.0, 0.7))
    with pyro.plate("groups", GROUPS):
        u = pyro.sample("u", dist.Normal(0.0, 0.6))
        s = pyro.sample("s", dist.Normal(torch.zeros(2), 0.5).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(u[group] + v[item] + (s[group] * x[:, :2]).sum(-1), noise), obs=y)


def nested(x, group, item, y):
    """Groups within four regions, each group's effect around its region's; counts and reals observed."""
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    with pyro.plate("regions", 4):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", GROUPS):
        u = pyro.sample("u", dist.Normal(w[torch.arange(GROUPS) % 4], 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("counts", dist.Poisson(u[group].exp()), obs=y.abs().round())
        pyro.sample("y", dist.Normal(u[group] * x[:, 0], tau), obs=y)


def walk(x, group, item, y):
    """A random walk in time, observed twice a step, with unknown size of its steps."""
    tau = pyro.sample("tau", dist.LogNormal(-1.0, 0.1))
    path = pyro.sample("x", dist.ImproperUniform(constraints.real, (), (60,)))
    pyro.factor("steps", dist.Normal(0.9 * path[:-1], tau).log_prob(path[1:]).sum())
    pyro.factor("first", dist.Normal(0.0, 1.0).log_prob(path[0]))
    with pyro.plate("data", 120):
        pyro.sample("y", dist.Normal(path[torch.arange(120) // 2], 0.5), obs=y[:120])


def compared(x, group, item, y):
    """Two effects of one site in each row."""
    with pyro.plate("groups", GROUPS):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=u[group] - u[group.flip(0)]), obs=(y > 0).double())


SITES = {
    intercepts: ("beta", "tau", "u"), crossed_slopes: ("noise", "v", "u", "s"), nested: ("tau", "w", "u"),
    walk: ("tau", "x"), compared: ("u",),
}  # fmt: skip


def fit(model, structure="sparse", given=None, at=None, **options):
    options = {"curvature": "ggn", "polish": False, "on_not_a_mode": "ignore"} | options
    with pl.settings.using(small=20):  # the prior by its entries
        values = point(*SITES[model]) if at is None else at
        return pl.fit_laplace(model, given or data(), values, structure=structure, progress=False, **options)


def assert_equal_precision(found, expected):
    scale = expected.precision.to_dense().diagonal().sqrt()
    assert_same(
        found.precision.to_dense() / scale / scale[:, None], expected.precision.to_dense() / scale / scale[:, None]
    )
    assert_same(found.precision.log_det(), expected.precision.log_det())
    assert_same(found.precision.variance() * scale**2, expected.precision.variance() * scale**2)
    assert found.log_evidence == pytest.approx(expected.log_evidence, rel=1e-9)


# --- the precision --------------------------------------------------------------------------------


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_intercepts_equal_the_curvature_written_by_hand(lookup):
    x, group, _, _ = data()
    values = point("beta", "tau", "u")
    guide = fit(partial(intercepts, lookup=lookup), at=values)
    onehot = torch.nn.functional.one_hot(group, GROUPS).double()
    rows = torch.cat([x, torch.zeros(ROWS, 1), onehot], 1)  # beta, tau, u
    eta = x @ values["beta"] + values["u"][group]
    expected = rows.mT @ (rows * (eta.sigmoid() * (-eta).sigmoid())[:, None])

    def negative_log_prior(theta):
        tau = theta[3].exp()
        normal = dist.Normal(0.0, 2.0).log_prob(theta[:3]).sum() + dist.Normal(0.0, tau).log_prob(theta[4:]).sum()
        return -normal - dist.Normal(0.0, 0.1).log_prob(theta[3])

    theta = torch.cat([values["beta"], values["tau"].log()[None], values["u"]])
    expected += torch.func.hessian(negative_log_prior)(theta)
    assert_same(guide.precision.to_dense(), expected)
    assert [type(block) for block in guide.precision.blocks] == [SparseBlock]
    assert_same(guide.precision.variance(), expected.inverse().diagonal())
    entries = guide.likelihood_sum.sums["y",].total.entries
    assert entries <= 9 + 7 * GROUPS  # of 44^2


@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher"])
@pytest.mark.parametrize("model", SITES)
def test_every_hierarchy_is_that_of_full(model, curvature):
    sparse, full = (fit(model, structure, curvature=curvature) for structure in ("sparse", "full"))
    assert_equal_precision(sparse, full)
    share = sum(each.total.entries for each in sparse.likelihood_sum.sums.values()) / sparse.latent_dim**2
    assert share < 0.5


@pytest.mark.filterwarnings("ignore::pyro_laplace.LaplaceWarning")  # a joint mode of a hierarchy is where it is
@pytest.mark.parametrize("model", SITES)
def test_the_exact_hessian_at_the_mode(model):
    """Of the program's own density, whatever the root would have been."""
    mode = pl.fit_laplace(model, data(), point(*SITES[model]), curvature="ggn", polish=True, on_not_a_mode="ignore")
    hessians = [fit(model, each, curvature="hessian", at=mode.median()) for each in ("sparse", "full")]
    assert_equal_precision(*hessians)


def test_scales_outside_of_the_effects():
    """Non-centred: a datum depends on the scale and on one effect, by no lookup of a site."""
    model = partial(intercepts, centred=False)
    sparse, full = (fit(model, structure, at=point("beta", "tau", "u")) for structure in ("sparse", "full"))
    assert_equal_precision(sparse, full)


def test_a_convex_prior_is_flattened_as_in_full():
    at = point("beta", "tau", "u") | {"tau": torch.tensor(0.9)}
    at["u"] = 9 * at["u"]
    with pytest.warns(pl.LaplaceWarning, match="log prior is convex"):
        full = fit(intercepts, "full", at=at)
    with pytest.warns(pl.LaplaceWarning, match="log prior is convex"):
        sparse = fit(intercepts, at=at)
    assert_same(sparse.precision.to_dense(), full.precision.to_dense())
    with pl.settings.using(projected_coordinates=10), pytest.raises(pl.IndefiniteCurvature) as error:
        fit(intercepts, at=at)
    assert_says(error, "no strict maximum", "'tau'", "non-centred")


def test_a_part_of_the_sites_and_a_mapping():
    sparse, full = (fit(crossed_slopes, each, subset=["u", "s"]) for each in ("sparse", "full"))
    assert_equal_precision(sparse, full)
    mixed = fit(crossed_slopes, {"noise": "full", "*": "sparse"})
    whole = fit(crossed_slopes, "full").precision.to_dense()
    place = mixed.layout["noise"].start
    whole[place, :place] = whole[:place, place] = whole[place, place + 1 :] = whole[place + 1 :, place] = 0.0
    assert_same(mixed.precision.to_dense(), whole)


def test_batches_and_single_precision():
    x, group, item, y = data()
    halves = [(x[s], group[s], item[s], y[s]) for s in (slice(0, 70), slice(70, ROWS))]
    assert_equal_precision(fit(crossed_slopes, given=halves), fit(crossed_slopes))
    single = {name: value.float() for name, value in point(*SITES[crossed_slopes]).items()}
    given = tuple(each.float() if each.is_floating_point() else each for each in data())
    torch.set_default_dtype(torch.float32)
    try:
        sparse, full = (fit(crossed_slopes, each, given=given, at=single) for each in ("sparse", "full"))
    finally:
        torch.set_default_dtype(torch.float64)
    scale = full.precision.to_dense().diagonal().sqrt()
    assert sparse.precision.to_dense().dtype == torch.float32
    assert_close(
        sparse.precision.to_dense() / scale / scale[:, None], full.precision.to_dense() / scale / scale[:, None],
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


# --- what is made of it ---------------------------------------------------------------------------


def test_a_posterior_goes_on_with_new_data():
    x, group, item, y = data()
    first, later = (tuple(each[s] for each in (x, group, item, y)) for s in (slice(0, 90), slice(90, ROWS)))
    whole = fit(crossed_slopes)
    begun = fit(crossed_slopes, given=first)
    updated = pl.update(begun, later, move=False, on_not_a_mode="ignore")
    assert_same(updated.precision.to_dense(), whole.precision.to_dense())
    for kept in (pickle.loads(pickle.dumps(updated)), copy.deepcopy(updated)):
        white = torch.randn(3, whole.latent_dim)
        assert torch.equal(kept.precision.color(white), updated.precision.color(white))
        assert torch.equal(kept.precision.variance(), updated.precision.variance())


def test_a_coupled_prior_that_is_too_large_to_be_dense_is_kept_by_its_entries():
    with pl.settings.using(row_elements=100):
        guide = fit(walk)
        kept = pickle.loads(pickle.dumps(guide.prior))
    assert kept.rest.dense is None
    assert_same(guide.likelihood_sum.posterior(kept).to_dense(), guide.precision.to_dense())
    assert_same(kept.over(torch.arange(10, 40)).matrix(), guide.prior.matrix()[10:40, 10:40])


def test_draws_and_quantiles_are_those_of_the_covariance():
    guide = fit(compared)
    covariance = guide.precision.to_dense().inverse()
    draws = guide.sample_posterior(4000)["u"] - guide.median()["u"]
    found = draws.mT @ draws / len(draws)
    scale = covariance.diagonal().sqrt()
    assert_close(found / scale / scale[:, None], covariance / scale / scale[:, None], rtol=0, atol=0.1)
    low, high = guide.quantiles([0.025, 0.975])["u"]
    assert_close((high - low) / 2, 1.959964 * scale, rtol=1e-6, atol=0)


def predictions(model, structure):
    """At data whose pairs of effects are others than those of the fit."""
    x, group, item, y = data()
    given = x[:30], group[:30], item[:30].flip(0), y[:30]
    guide = fit(model, structure)
    with pl.settings.using(small=20):  # a large one
        predictive = pl.LinearizedPredictive(model, guide)
        joint = predictive.latent(*given, joint=True)
        return predictive.latent(*given), joint, predictive(*given), predictive.sample(2000)(*given)


@pytest.mark.parametrize("model", [crossed_slopes, nested, compared])
def test_the_linearized_predictive(model):
    """By entries of the covariance, those outside of the factor too: moments, joint ones, distributions and draws."""
    sparse, full = (predictions(model, structure) for structure in ("sparse", "full"))
    for one, other in zip(sparse[:2], full[:2], strict=True):
        for name in other:
            assert_same(one[name][0], other[name][0])
            assert_same(one[name][1], other[name][1])
    for name, expected in full[2].items():
        assert_close(sparse[2][name].mean, expected.mean, rtol=0.1, atol=0.1)
        found, draws = sparse[3][name], full[3][name]
        assert found.shape == draws.shape
        assert_close(found.mean(0), draws.mean(0), rtol=0.2, atol=0.2)
        assert_close(found.std(0), draws.std(0), rtol=0.2, atol=0.2)


def test_the_linearized_predictive_with_several_outputs_of_a_datum():
    def model(x, group, item, y):
        with pyro.plate("groups", GROUPS):
            u = pyro.sample("u", dist.Normal(torch.zeros(2), 0.6).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(u[group] * x[:, :2], 0.3).to_event(1), obs=x[:, 1:])

    at = {"u": torch.randn(GROUPS, 2) / 3}
    guides = [fit(model, each, at=at) for each in ("sparse", "full")]
    with pl.settings.using(small=20):
        sparse, full = (pl.LinearizedPredictive(model, guide).latent(*data())["y"] for guide in guides)
    assert_same(sparse[1], full[1])
    assert sparse[1].shape == (ROWS, 2, 2)


def walk_of_params(y, steps=60):
    """A random walk whose steps, level and noise have sizes that are hyperparameters."""
    size = pyro.param("size", torch.tensor(0.5), constraint=constraints.positive)
    level = pyro.sample(
        "level", dist.Normal(0.0, pyro.param("spread", torch.tensor(1.5), constraint=constraints.positive))
    )
    path = pyro.sample("x", dist.Normal(torch.zeros(steps), 1.0).mask(False).to_event(1))  # the factors are its prior
    pyro.factor("steps", dist.Normal(path[:-1], size).log_prob(path[1:]).sum())
    pyro.factor("first", dist.Normal(0.0, 1.0).log_prob(path[0]))
    noise = pyro.param("noise", torch.tensor(0.6), constraint=constraints.positive)
    with pyro.plate("data", steps):
        pyro.sample("y", dist.Normal(path + level, noise), obs=y)


def test_the_evidence_of_a_walk_and_its_gradient_are_those_of_its_marginal():
    generator = torch.Generator().manual_seed(0)
    y = (torch.randn(60, generator=generator) / 2).cumsum(0) + torch.randn(60, generator=generator) / 2
    at = {"level": torch.tensor(0.0), "x": torch.zeros(60)}
    pyro.poutine.trace(pyro.poutine.condition(walk_of_params, data=at)).get_trace(y)  # makes the params
    params = {name: pyro.param(name).unconstrained() for name in ("size", "spread", "noise")}
    size, spread, noise = (each.exp() for each in params.values())
    steps = torch.arange(60.0)
    covariance = 1 + size**2 * torch.minimum(steps[:, None], steps) + spread**2 + noise**2 * torch.eye(60)
    expected = torch.distributions.MultivariateNormal(torch.zeros(60), covariance).log_prob(y)
    with pl.settings.using(small=20):
        guide = pl.fit_laplace(walk_of_params, y, at, structure="sparse", curvature="ggn", polish=True, progress=False)
        found = pl.log_evidence(walk_of_params, guide, y)
    assert guide.log_evidence == pytest.approx(float(expected.detach()), rel=1e-9)
    assert_same(found.value, expected.detach().reshape(()))
    with pl.settings.using(small=200):
        dense = pl.log_evidence(walk_of_params, guide, y)
    assert found.effective_dim == pytest.approx(dense.effective_dim, rel=1e-9)
    for one, other in ((found.value, dense.value), (found.log_det_ratio, dense.log_det_ratio)):
        slopes = [torch.autograd.grad(each, list(params.values()), retain_graph=True) for each in (one, other)]
        assert_same(torch.stack(slopes[0]), torch.stack(slopes[1]))


def test_the_evidence_is_maximal_at_that_of_the_marginal():
    """Linear and Normal: the maximum is that of the closed form, found by the sparse posterior."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(60).repeat_interleave(4)
    y = torch.randn(60, generator=generator)[group] * 0.8 + torch.randn(240, generator=generator) / 2

    def model(group, y):
        scale = pyro.param("scale", torch.tensor(1.5), constraint=constraints.positive)
        with pyro.plate("groups", 60):
            u = pyro.sample("u", dist.Normal(0.0, scale))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(u[group], 0.5), obs=y)

    guide = pl.maximize_evidence(model, (group, y), {"u": torch.zeros(60)}, structure="sparse", curvature="ggn")
    means = y.reshape(60, 4).mean(1)  # Normal, of variance scale^2 + 0.25 / 4
    expected = (means.square().mean() - 0.25 / 4).sqrt()
    assert float(guide.hyperparameters["scale"]) == pytest.approx(float(expected), rel=1e-3)


# --- refusals, and cost ---------------------------------------------------------------------------


def network(x, y):
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(30, 20), 1.0).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(20), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1) @ w2, 0.5), obs=y)


def test_a_network_is_refused_with_what_to_use():
    x = torch.randn(50, 30)
    at = {"w1": torch.randn(30, 20), "w2": torch.randn(20)}
    with pytest.raises(pl.UnsupportedProgram) as error:
        pl.fit_laplace(network, (x, x[:, 0]), at, structure="sparse", polish=False, on_not_a_mode="ignore")
    assert_says(error, "620 coordinates", "'w1'", "'full'", "'kron'")
    small = {"w1": torch.randn(30, 10), "w2": torch.randn(10)}
    with pl.settings.using(recovery_dense=1000), pytest.raises(pl.UnsupportedProgram) as error:
        pl.fit_laplace(network, (x, x[:, 0]), at | {"w2": small["w2"].new_ones(20)}, structure="sparse", polish=False,
                       on_not_a_mode="ignore")  # fmt: skip
    assert_says(error, r"100%", r"\[620, 620\]", "'full'")


def test_a_dense_prior_is_refused_with_what_to_use():
    covariance = torch.exp(-(torch.arange(600.0)[:, None] - torch.arange(600.0)).abs() / 50) + torch.eye(600) / 10

    def model(y):
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(600), covariance))
        with pyro.plate("data", 600):
            pyro.sample("y", dist.Normal(f**3, 1.0), obs=y)

    with pytest.raises(pl.UnsupportedProgram) as error:
        pl.fit_laplace(model, torch.zeros(600), {"f": torch.ones(600)}, structure="sparse", polish=False,
                       on_not_a_mode="ignore")  # fmt: skip
    assert_says(error, "log prior couples 600 coordinates", "'f'", "'full'")


def test_directions_without_a_maximum_are_named():
    def flat(group, y):
        with pyro.plate("groups", GROUPS):
            u = pyro.sample("u", dist.ImproperUniform(constraints.real, (), ()))
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(u[group] + loc, 1.0), obs=y)

    at = {"u": torch.zeros(GROUPS), "loc": torch.tensor(0.0)}
    _, group, _, y = data()
    with pytest.raises(pl.IndefiniteCurvature) as error:
        pl.fit_laplace(flat, (group.clamp(max=30), y), at, structure="sparse", curvature="ggn", polish=False)
    assert_says(error, "no strict maximum", "'u'")


def test_what_is_held_is_linear_in_groups():
    """Never [params, params], and never [data, params]."""

    def entries(groups):
        group = torch.arange(groups).repeat_interleave(2)
        y = (torch.rand(2 * groups, generator=torch.Generator().manual_seed(0)) < 0.5).double()

        def model(group, y):
            tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
            with pyro.plate("groups", groups):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Bernoulli(logits=(tau * z)[group]), obs=y)

        at = {"tau": torch.tensor(0.5), "z": torch.linspace(-1, 1, groups)}
        with pl.settings.using(block_bytes=2**10 * groups):  # the dense matrix would be refused
            guide = pl.fit_laplace(model, (group, y), at, structure="sparse", polish=False, on_not_a_mode="ignore")
        block = next(iter(guide.precision.blocks))
        return guide.likelihood_sum.num_bytes + block.factor.plan.nnz

    assert entries(6000) < 4.2 * entries(1500)
