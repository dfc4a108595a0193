"""`laplace_marginal` against a naive implementation, closed forms, and glmmTMB."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import pyro_laplace as pl

SHARED = Path(__file__).parents[3] / "shared" / "hierarchical"
GROUPS = 4


@pytest.fixture(autouse=True)
def double(float64):
    """Everything is compared in double precision."""


# --- the naive implementation ---------------------------------------------------------------------


def naive_log_joint(model: Callable, values: dict[str, Tensor], hyper: str) -> Tensor:
    """``log p(y, x | hyper)``, by Pyro's own trace."""
    with pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(model, values)).get_trace()
        trace.compute_log_prob()
    return sum(node["log_prob_sum"] for name, node in trace.nodes.items() if "log_prob_sum" in node and name != hyper)


def naive_marginal(model: Callable, log_scale: Tensor, size: int) -> Tensor:
    """Laplace over the real sites ``mu`` [] and ``u`` [size] at ``exp(log_scale)``, by plain Newton steps."""

    def negative(x: Tensor) -> Tensor:
        return -naive_log_joint(model, {"scale": log_scale.exp(), "mu": x[0], "u": x[1:]}, "scale")

    hessian = torch.func.jacrev(torch.func.grad(negative))
    x = torch.zeros(1 + size)
    for _ in range(100):
        gradient, matrix = torch.func.grad(negative)(x), hessian(x)
        values, vectors = torch.linalg.eigh(matrix)
        step = vectors @ ((vectors.T @ gradient) / values.abs())
        share = 1.0
        while share > 1e-6 and not float(negative(x - share * step)) <= float(negative(x)) + 1e-12:
            share /= 2
        x = x - share * step
        if float(step.norm()) < 1e-11:
            break
    matrix = hessian(x)
    return -negative(x) + (1 + size) / 2 * torch.log(torch.tensor(2 * torch.pi)) - torch.logdet(matrix) / 2


def naive_slope(model: Callable, log_scale: float, size: int, step: float = 2e-3) -> float:
    """Its derivative, by a central difference of fourth order."""
    at = [float(naive_marginal(model, torch.tensor(log_scale + k * step), size)) for k in (-2, -1, 1, 2)]
    return (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * step)


def grouped(family: Callable[[Tensor], dist.Distribution], y: Tensor) -> Callable:
    """A centred hierarchy whose data have ``mu + u[group]`` for predictor."""
    group = torch.arange(len(y)) % GROUPS

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("groups", GROUPS):
            u = pyro.sample("u", dist.Normal(0.0, scale))
        with pyro.plate("data", len(y)):
            pyro.sample("y", family(mu + u[..., group]), obs=y)

    return model


def noisy(y: Tensor) -> Callable:
    """A scale that is the noise of the data and of the groups at once."""
    group = torch.arange(len(y)) % GROUPS

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("groups", GROUPS):
            u = pyro.sample("u", dist.Normal(0.0, 2 * scale))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Gamma(1 / scale, (-mu - u[..., group]).exp() / scale), obs=y)

    return model


COUNTS = torch.tensor([0.0, 3.0, 1.0, 2.0, 1.0, 5.0, 0.0, 1.0, 2.0, 4.0, 0.0, 2.0])
FAMILIES = {
    "Normal": (lambda f: dist.Normal(f, 0.7), COUNTS - 1),
    "StudentT": (lambda f: dist.StudentT(4.0, f, 0.7), COUNTS - 1),
    "Bernoulli": (lambda f: dist.Bernoulli(logits=f), (COUNTS > 1).double()),
    "Binomial": (lambda f: dist.Binomial(6.0, logits=f), COUNTS),
    "Poisson": (lambda f: dist.Poisson(f.exp()), COUNTS),
    "NegativeBinomial": (lambda f: dist.NegativeBinomial(3.0, logits=f), COUNTS),
    "Exponential": (lambda f: dist.Exponential(f.exp()), COUNTS + 0.2),
    "Gamma": (lambda f: dist.Gamma(2.0, 2.0 * (-f).exp()), COUNTS + 0.2),
    "LogNormal": (lambda f: dist.LogNormal(f, 0.5), COUNTS + 0.2),
    "Beta": (lambda f: dist.Beta(5 * f.sigmoid(), 5 * (-f).sigmoid()), (COUNTS + 0.5) / 6),
    "Weibull": (lambda f: dist.Weibull(f.exp(), torch.tensor(1.5)), COUNTS + 0.2),
    "Categorical": (
        lambda f: dist.Categorical(logits=torch.stack([torch.zeros_like(f), f, 0.5 * f + 0.3], -1)),
        COUNTS % 3,
    ),
    "OrderedLogistic": (lambda f: dist.OrderedLogistic(f, torch.tensor([-1.0, 0.5])), COUNTS % 3),
}


@pytest.mark.parametrize("structure", ["full", "sparse"])
@pytest.mark.parametrize("name", FAMILIES)
def test_value_and_gradient_are_those_of_a_naive_implementation(name, structure):
    family, y = FAMILIES[name]
    model = grouped(family, y)
    marginal = pl.laplace_marginal(model, (), hyper="scale", structure=structure)
    log_scale = torch.tensor(-0.3, requires_grad=True)
    value = marginal.log_marginal({"scale": log_scale.exp()})
    (slope,) = torch.autograd.grad(value, log_scale)
    torch.testing.assert_close(value.detach(), naive_marginal(model, log_scale.detach(), GROUPS), rtol=1e-9, atol=1e-9)
    assert float(slope) == pytest.approx(naive_slope(model, -0.3, GROUPS), abs=1e-6)


@pytest.mark.parametrize("structure", ["full", "sparse"])
def test_gradient_in_a_dispersion(structure):
    model = noisy(COUNTS + 0.2)
    marginal = pl.laplace_marginal(model, (), hyper="scale", structure=structure)
    log_scale = torch.tensor(-0.4, requires_grad=True)
    (slope,) = torch.autograd.grad(marginal.log_marginal({"scale": log_scale.exp()}), log_scale)
    assert float(slope) == pytest.approx(naive_slope(model, -0.4, GROUPS), abs=1e-6)


# --- closed forms ---------------------------------------------------------------------------------


def normal_groups(group: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(1.0, 2.0))
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", 3):
        u = pyro.sample("u", dist.Normal(mu, tau))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(u[..., group], sigma), obs=y)


GROUP = torch.tensor([0, 0, 1, 1, 1, 2, 2])
Y = torch.tensor([1.1, 0.4, 2.0, 1.5, 2.4, -0.3, 0.2], dtype=torch.float64)


def exact_log_marginal(tau: Tensor, sigma: Tensor) -> Tensor:
    """``log N(y; 1, 4 + tau^2 same group + sigma^2 I)``."""
    same = (GROUP[:, None] == GROUP).double()
    covariance = 4.0 + tau**2 * same + sigma**2 * torch.eye(len(Y))
    return torch.distributions.MultivariateNormal(torch.ones(len(Y)), covariance).log_prob(Y)


def test_is_exact_where_the_conditional_is_gaussian():
    marginal = pl.laplace_marginal(normal_groups, (GROUP, Y))
    assert marginal.hyper == ("tau", "sigma")
    tau, sigma = torch.tensor([[0.1, 1.0], [3.0, 20.0]]), torch.tensor([[0.3, 0.6], [1.0, 0.2]])
    expected = torch.stack([exact_log_marginal(t, s) for t, s in zip(tau.flatten(), sigma.flatten(), strict=True)])
    found = marginal.log_marginal({"tau": tau, "sigma": sigma})
    torch.testing.assert_close(found, expected.reshape(2, 2), rtol=0, atol=1e-9)


def test_derivatives_by_torch_func_and_under_vmap():
    marginal = pl.laplace_marginal(normal_groups, (GROUP, Y))

    def ours(h: Tensor) -> Tensor:
        return marginal.log_marginal({"tau": h[0].exp(), "sigma": h[1].exp()})

    def exact(h: Tensor) -> Tensor:
        return exact_log_marginal(h[0].exp(), h[1].exp())

    def hessian(of: Callable) -> Callable:
        return torch.func.jacrev(torch.func.grad(of))

    rows = torch.tensor([[0.0, -0.5], [0.7, 0.1], [-1.5, -0.2]])
    gradients = torch.func.vmap(torch.func.grad(ours))(rows)
    torch.testing.assert_close(gradients, torch.stack([torch.func.grad(exact)(row) for row in rows]), rtol=0, atol=1e-8)
    torch.testing.assert_close(hessian(ours)(rows[0]), hessian(exact)(rows[0]), rtol=0, atol=1e-6)
    h = rows[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ours(h), h, create_graph=True)
    (row,) = torch.autograd.grad(gradient[1], h)
    torch.testing.assert_close(row, hessian(exact)(rows[0])[1], rtol=0, atol=1e-6)


# --- as a program ---------------------------------------------------------------------------------


def test_is_a_program_of_the_hyper_sites_and_a_factor():
    marginal = pl.laplace_marginal(normal_groups, (GROUP, Y))
    values = {"tau": torch.tensor(0.8), "sigma": torch.tensor(0.5)}
    trace = poutine.trace(poutine.condition(marginal, values)).get_trace()
    sites = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
    assert sites == ["tau", "sigma", "log_marginal"]
    expected = exact_log_marginal(**values) + dist.HalfCauchy(1.0).log_prob(values["tau"])
    expected = expected + dist.LogNormal(0.0, 0.5).log_prob(values["sigma"])
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=0, atol=1e-9)


def test_works_with_map_svi_and_nuts():
    marginal = pl.laplace_marginal(normal_groups, (GROUP, Y), hyper=["tau", "sigma"])
    mode = pl.fit_map(marginal, (), progress=False).median()
    grid = torch.linspace(0.02, 2.4, 60)
    tau, sigma = torch.meshgrid(grid, grid, indexing="ij")
    density = torch.stack([exact_log_marginal(t, s) for t, s in zip(tau.flatten(), sigma.flatten(), strict=True)])
    density = (
        density + dist.HalfCauchy(1.0).log_prob(tau.flatten()) + dist.LogNormal(0.0, 0.5).log_prob(sigma.flatten())
    )
    best = int(density.argmax())
    assert float(mode["tau"]) == pytest.approx(float(tau.flatten()[best]), abs=0.05)
    assert float(mode["sigma"]) == pytest.approx(float(sigma.flatten()[best]), abs=0.05)
    guide = pl.fit_svi(marginal, (), AutoNormal(marginal), num_steps=5, progress=False)
    assert set(guide.median()) == {"tau", "sigma"}
    mcmc = pl.fit_nuts(marginal, (), num_samples=15, warmup_steps=10, max_tree_depth=2, progress=False)
    draws = mcmc.get_samples()
    assert set(draws) == {"tau", "sigma"}
    assert len(draws["tau"]) == 15
    assert 0.2 < float(draws["sigma"].mean()) < 1.2


def hyper_of_all_kinds(y: Tensor) -> None:
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("kinds", 2):
        scale = pyro.sample("scale", dist.LogNormal(0.0, spread))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    root = pyro.sample("root", dist.LKJCholesky(2, 2.0))
    with pyro.plate("groups", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        u = (scale.unsqueeze(-2) * z) @ root.mT
        pyro.sample("y", dist.Normal(u * share.unsqueeze(-1), 0.5).to_event(1), obs=y)


def test_hyper_sites_are_of_any_support_in_plates_or_depend_on_one_another():
    y = torch.tensor([[0.4, 1.0], [-0.8, 0.1], [0.2, -0.6]])
    marginal = pl.laplace_marginal(hyper_of_all_kinds, (y,), hyper=["spread", "scale", "share", "root"])
    trace = poutine.trace(marginal).get_trace()
    nodes = {name: trace.nodes[name]["value"] for name in marginal.hyper}
    assert [frame.name for frame in trace.nodes["scale"]["cond_indep_stack"]] == ["kinds"]
    block = nodes["root"] @ torch.diag(nodes["scale"] ** 2) @ nodes["root"].T
    expected = sum(
        torch.distributions.MultivariateNormal(torch.zeros(2), share**2 * block + 0.25 * torch.eye(2)).log_prob(row)
        for share, row in zip(nodes["share"], y, strict=True)
    )
    torch.testing.assert_close(marginal.log_marginal(nodes), expected, rtol=0, atol=1e-9)
    mcmc = pl.fit_nuts(marginal, (), num_samples=2, warmup_steps=0, max_tree_depth=1, progress=False)
    assert mcmc.get_samples()["root"].shape == (2, 2, 2)


def test_batches_are_added_up_and_subsampling_counts_each_datum_once():
    def model(y):
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        mu = pyro.sample("mu", dist.Normal(0.0, tau))
        with pyro.plate("data", len(Y), subsample_size=len(y)):
            pyro.sample("y", dist.Poisson(mu.exp()), obs=y)

    y = torch.tensor([1.0, 2.0, 0.0, 3.0, 1.0, 1.0, 4.0])
    at = {"tau": torch.tensor(0.7)}
    whole = pl.laplace_marginal(model, (y,), hyper="tau").log_marginal(at)
    parts = pl.laplace_marginal(model, [y[:3], y[3:5], y[5:]], hyper="tau").log_marginal(at)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=0)


def test_is_of_its_own_data():
    marginal = pl.laplace_marginal(normal_groups, (GROUP, Y))
    poutine.trace(marginal).get_trace(GROUP, Y)
    with pytest.raises(pl.InvalidOption, match="of the data that it was made of"):
        marginal(GROUP, Y + 1)


def test_a_point_without_an_inner_mode_is_impossible_and_counted():
    def model(y):
        power = pyro.sample("power", dist.Normal(1.0, 0.1))
        with pyro.plate("data", len(y)):
            x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
            pyro.factor("peak", -power * (x - y).square())  # for power < 0 it has no maximum

    marginal = pl.laplace_marginal(model, (torch.tensor([0.3, -1.0]),), hyper="power", curvature="hessian")
    found = marginal.log_marginal({"power": torch.tensor([0.5, -0.5, 2.0])})
    expected = torch.log(torch.pi / torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(found[[0, 2]], expected, rtol=0, atol=1e-9)
    assert found[1] == -torch.inf
    assert marginal.failures == 1


# --- what cannot be ---------------------------------------------------------------------------------


def test_patterns_that_match_nothing_or_everything():
    with pytest.raises(pl.InvalidOption, match=r"hyper: 'sd\*' matches none of the latent sites \['mu', 'tau'"):
        pl.laplace_marginal(normal_groups, (GROUP, Y), hyper=["sd*"])
    with pytest.raises(pl.InvalidOption, match="matches every latent site"):
        pl.laplace_marginal(normal_groups, (GROUP, Y), hyper="*")
    with pytest.raises(pl.InvalidOption, match="hyper is empty"):
        pl.laplace_marginal(normal_groups, (GROUP, Y), hyper=[])


def test_a_hyper_site_with_an_inner_parent():
    with pytest.raises(
        pl.UnsupportedProgram, match=r"prior of the hyper site 'scale' depends on \['spread'\].*give hyper="
    ):
        pl.laplace_marginal(hyper_of_all_kinds, (torch.zeros(3, 2),), hyper=["scale"])


def test_an_inner_problem_without_a_mode_names_the_scale():
    with pytest.raises(pl.NotAMode, match=r"inner problem.*no mode.*hyper=\['sigma', 'tau'\]"):
        pl.laplace_marginal(normal_groups, (GROUP, Y), hyper=["sigma"])


def test_a_discrete_site_is_refused_by_name():
    def model(y):
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        kind = pyro.sample("kind", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(kind, tau), obs=y)

    with pytest.raises(pl.UnsupportedProgram, match="latent site 'kind' is discrete"):
        pl.laplace_marginal(model, (torch.tensor(1.0),), hyper="tau")


# --- glmmTMB ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no references at {SHARED}")
@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("cbpp_binomial", ["beta", "tau"]),
        ("epil_poisson", ["beta", "tau"]),
        ("sleepstudy_independent", ["intercept", "slope", "sigma", "tau_*"]),
    ],
)
def test_is_the_objective_of_glmmtmb(name, hyper, monkeypatch):
    monkeypatch.syspath_prepend(str(SHARED))
    monkeypatch.delitem(sys.modules, "programs", raising=False)
    import programs

    reference = json.loads((SHARED / "refs" / f"glmmtmb_{name}.json").read_text())
    points = [reference["optimum"], *reference["further"]]
    par = torch.tensor([point["par"] for point in points])
    if name == "sleepstudy_independent":  # the log variance of the noise
        values = {"intercept": par[:, 0], "slope": par[:, 1], "sigma": (par[:, 2] / 2).exp()}
        values |= {"tau_intercept": par[:, 3].exp(), "tau_slope": par[:, 4].exp()}
    else:
        values = {"beta": par[:, :-1], "tau": par[:, -1].exp()}
    leaves = {site: value.clone().requires_grad_() for site, value in values.items()}
    marginal = pl.laplace_marginal(programs.PROGRAMS[name], programs.load(name), hyper=hyper)
    found = marginal.log_marginal(leaves)
    torch.testing.assert_close(-found.detach(), torch.tensor([p["objective"] for p in points]), rtol=0, atol=1e-4)
    slopes = torch.autograd.grad(found[0], [*leaves.values()])
    assert max(float(slope[0].abs().max()) for slope in slopes) < 2e-3  # glmmTMB's optimum is ours
    monkeypatch.delitem(sys.modules, "programs", raising=False)


def test_values_are_broadcast_and_checked():
    def model(y):
        tau, s = pyro.sample("tau", dist.HalfNormal(1.0)), pyro.sample("s", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y)):
            u = pyro.sample("u", dist.Normal(0.0, tau))
            pyro.sample("y", dist.Normal(u, s), obs=y)

    y = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64)
    marginal = pl.laplace_marginal(model, y, hyper=["tau", "s"])
    found = marginal.log_marginal({"tau": 0.7, "s": torch.tensor([0.4, 0.9])})
    variance = 0.7**2 + torch.tensor([0.4, 0.9], dtype=torch.float64) ** 2
    expected = dist.Normal(0.0, variance.sqrt().unsqueeze(-1)).log_prob(y).sum(-1)
    torch.testing.assert_close(found, expected)
    for values in ({"tau": 0.7}, {"tau": 0.7, "s": 1.0, "sigma": 2.0}):
        with pytest.raises(pl.InvalidOption, match=r"one of each hyper site \['tau', 's'\] and of no other"):
            marginal.log_marginal(values)
