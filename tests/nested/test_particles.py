"""`outer="smc"`: evidences and posteriors of several modes against quadrature, and what its draws are worth."""

import math
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl


@pytest.fixture(autouse=True)
def double(float64):
    """Everything is in double precision, from one seed."""
    pyro.set_rng_seed(0)


def log_normal(y, covariance):
    """Log density of Normal(0, covariance [..., n, n]) at y [n]."""
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, y.unsqueeze(-1).expand(*root.shape[:-1], 1), upper=False)[..., 0]
    log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (white.square().sum(-1) + log_det + len(y) * math.log(2 * math.pi))


Y = torch.tensor([1.9, 2.6, 1.4, 2.2, 1.1, 2.3], dtype=torch.float64)


def two_modes(y=None):
    """The data know the size of a, and not its sign."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6):
        x = pyro.sample("x", dist.Normal(a.square(), 0.6))
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def test_both_modes_are_found_with_their_evidence():
    a = torch.linspace(-5, 5, 4001)
    log_p = dist.Normal(a.unsqueeze(1).square(), math.hypot(0.6, 0.5)).log_prob(Y).sum(1)
    log_p = log_p + dist.Normal(0.0, 1.0).log_prob(a)
    weights = log_p.softmax(0)
    size = weights @ a.abs()
    guide = pl.fit_nested_laplace(two_modes, {"y": Y}, hyper="a", outer="smc", progress=False)
    found = guide.sample_posterior(4000)["a"]
    assert float((found > 0).double().mean()) == pytest.approx(0.5, abs=0.12)
    assert float(found.abs().mean()) == pytest.approx(float(size), abs=0.02)
    assert float(found.abs().std()) == pytest.approx(float((weights @ (a.abs() - size).square()).sqrt()), rel=0.12)
    assert guide.log_evidence == pytest.approx(float(log_p.logsumexp(0)) + math.log(10 / 4000), abs=0.15)
    mode = pl.fit_nested_laplace(two_modes, {"y": Y}, hyper="a", outer="laplace", progress=False)
    assert guide.log_evidence - mode.log_evidence == pytest.approx(math.log(2), abs=0.15)


# --- a network --------------------------------------------------------------------------------------

X = torch.linspace(-1.5, 1.5, 12, dtype=torch.float64)
OF_X = torch.tensor([-2.0, -0.7, 0.1, 0.8, 2.0], dtype=torch.float64)


@contextmanager
def in_double():
    """For what a whole file shares."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def network(x, y=None):
    noise = pyro.sample("noise", dist.LogNormal(-1.5, 0.5))
    w1 = pyro.sample("w1", dist.Normal(0.0, 1.5).expand([2]).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    f = pyro.deterministic("f", (torch.tanh(x.unsqueeze(-1) * w1) * w2).sum(-1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, noise), obs=y)


@pytest.fixture(scope="module")
def target():
    """The data, and what quadrature over noise and w1 says: evidence, and means and sds of log noise and of f."""
    with in_double():
        return by_quadrature()


def by_quadrature():
    y = 0.8 * torch.tanh(1.3 * X) + 0.15 * torch.sin(5 * X)
    line, log_noise = torch.linspace(-6, 6, 121), torch.linspace(-3.2, 0.4, 37)
    first, second = (each.flatten() for each in torch.meshgrid(line, line, indexing="ij"))
    w1 = torch.stack([first, second], 1)
    prior = dist.Normal(0.0, 1.5).log_prob(w1).sum(1)
    phi, phi_of = (torch.tanh(x[:, None] * w1[:, None]) for x in (X, OF_X))
    log_p, means, squares = [], [], []
    for each in log_noise:
        covariance = phi @ phi.mT + (2 * each).exp() * torch.eye(len(X))
        log_p.append(log_normal(y, covariance) + prior + dist.Normal(-1.5, 0.5).log_prob(each))
        gain = torch.linalg.solve(covariance, phi @ phi_of.mT).mT
        mean = gain @ y
        means.append(mean)
        squares.append(mean.square() + (phi_of @ phi_of.mT - gain @ phi @ phi_of.mT).diagonal(dim1=1, dim2=2))
    log_p = torch.stack(log_p)
    weights = log_p.flatten().softmax(0).reshape(log_p.shape)
    cell = math.log(0.1 * 0.1 * 0.1)
    noise = weights.sum(1)
    centre = noise @ log_noise
    mean, square = (torch.einsum("nw,nwi->i", weights, torch.stack(each)) for each in (means, squares))
    return {
        "y": y,
        "evidence": float(log_p.logsumexp((0, 1))) + cell,
        "noise": (float(centre), float((noise @ (log_noise - centre).square()).sqrt())),
        "f": (mean, (square - mean.square()).sqrt()),
    }


@pytest.fixture(scope="module")
def guide(target):
    pyro.set_rng_seed(0)  # whichever test asks first
    with in_double():
        return pl.fit_nested_laplace(network, (X, target["y"]), progress=False)


def test_a_small_network_has_its_lower_layer_explored(guide):
    assert guide.outer == "smc"
    assert guide.hyper == ("noise",)
    assert guide.layers == ("w1",)
    assert {name: tuple(value.shape) for name, value in guide.hyper_points.items()} == {"noise": (400,), "w1": (400, 2)}
    assert "layers explored: 'w1'" in repr(guide)


def test_the_function_of_a_network_is_that_of_quadrature(guide, target):
    noise = guide.sample_posterior(8000)["noise"]
    centre, spread = target["noise"]
    assert float((noise.log().mean() - centre).abs()) < 0.15 * spread
    assert abs(math.log(float(noise.log().std()) / spread)) < 0.15
    mean, sd = target["f"]
    y = pl.LinearizedPredictive(network, guide)(OF_X)["y"]
    linear = y.mean, (y.variance - noise.square().mean()).sqrt()
    drawn = pl.Predictive(network, guide=guide, num_samples=8000, return_sites=["f"])(OF_X)["f"].reshape(8000, -1)
    for found_mean, found_sd in (linear, (drawn.mean(0), drawn.std(0))):
        assert float(((found_mean - mean) / sd).abs().max()) < 0.15
        assert float((found_sd / sd).log().abs().max()) < 0.15
    assert guide.log_evidence == pytest.approx(target["evidence"], abs=0.3)


def test_its_verdict_weighs_what_is_integrated_out(guide, target):
    diagnosis = pl.diagnose(network, guide, (X, target["y"]), progress=False)
    assert diagnosis.verdict == "trusted"
    assert diagnosis.khat < 0.7
    assert float(diagnosis.log_ratios.std()) < 0.5


def test_its_density_is_that_of_the_particles_target(guide, target):
    """The weights of a report, ``p(y, theta) / q(theta)``, are the evidence, each of them nearly."""
    stats = pl.to_datatree(network, guide, (X, target["y"]), num_samples=500)["sample_stats"]
    ratio = torch.as_tensor((stats["lp"] - stats["lp_approx"]).values)
    assert float(ratio.median()) == pytest.approx(guide.log_evidence, abs=0.2)
    assert float(ratio.std()) < 0.5
    with pytest.raises(pl.InvalidOption, match=r"are points: draw from the guide itself"):
        pl.importance_resample(network, guide, (X, target["y"]), progress=False)


def test_its_file_keeps_the_layers(target, tmp_path):
    with pl.settings.using(particles=20, particle_settling=1):
        guide = pl.fit_nested_laplace(network, (X, target["y"]), progress=False)
    pl.save(guide, tmp_path / "network.pt")
    again = pl.load(tmp_path / "network.pt", network)
    assert (again.outer, again.hyper, again.layers) == ("smc", ("noise",), ("w1",))
    assert torch.equal(again.weights, guide.weights)


def test_a_network_of_fixed_scales_has_layers_alone(target):
    def model(x, y=None):
        with pyro.poutine.block(hide=["noise"]), pyro.condition(data={"noise": torch.tensor(0.2)}):
            network(x, y)

    with pl.settings.using(particles=100):
        found = pl.fit_nested_laplace(model, (X, target["y"]), progress=False)
    assert (found.outer, found.hyper, found.layers) == ("smc", (), ("w1",))
    assert repr(found).startswith("NestedLaplace(hyper: none; layers explored: 'w1'; outer='smc'")
    mean, sd = target["f"]
    predicted = pl.LinearizedPredictive(model, found)(OF_X)["y"].mean
    assert float(((predicted - mean) / sd).abs().max()) < 0.5


def test_a_larger_network_or_a_structure_asked_for_goes_by_gauss_newton(target, monkeypatch):
    quick = {"grid_step": 0.9, "grid_drop": 3.0, "grid_fewest": 1, "inner_starts": 2, "inner_draws": 6}
    for name, value in quick.items():
        monkeypatch.setattr(pl.settings, name, value)
    data = (X, target["y"])
    for settings, options in (({"particle_work": 1}, {}), ({}, {"structure": "diag"})):
        with pl.settings.using(**settings):
            found = pl.fit_nested_laplace(network, data, progress=False, **options)
        assert (found.outer, found.curvature, found.layers) == ("grid", "ggn", ())
    with pytest.raises(pl.InvalidOption, match=r"outer='smc' needs gradients.* structure='diag' .*leave structure="):
        pl.fit_nested_laplace(network, data, outer="smc", structure="diag", progress=False)


# --- draws, and what cannot be ----------------------------------------------------------------------


def few(model, hyper="a"):
    with pl.settings.using(particles=20, particle_settling=1):
        return pl.fit_nested_laplace(model, {"y": Y}, hyper=hyper, outer="smc", progress=False)


def test_the_random_state_decides_and_stays():
    state = torch.get_rng_state()
    first, same = few(two_modes), few(two_modes)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.hyper_points["a"], same.hyper_points["a"])
    pyro.set_rng_seed(7)
    other = few(two_modes)
    assert not torch.equal(first.hyper_points["a"], other.hyper_points["a"])


def test_a_prior_that_cannot_be_drawn_from():
    def model(y=None):
        a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", 6):
            x = pyro.sample("x", dist.Normal(a, 0.6))
            pyro.sample("y", dist.Normal(x, 0.5), obs=y)

    with pytest.raises(pl.InvalidOption, match=r"begins at draws of the prior, and that of 'a' \(ImproperUniform\)"):
        few(model)


def test_particles_that_have_not_settled_are_told_of():
    def model(y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0).expand([20]).to_event(1))
        x = pyro.sample("x", dist.Normal(a, 0.1).to_event(1))
        pyro.sample("y", dist.Normal(x, 0.05).to_event(1), obs=y)

    hasty = {"particles": 40, "particle_share": 0.03, "particle_moves": 1, "particle_leaps": 1}
    with (
        pl.settings.using(particle_rounds=1, particle_settling=2, **hasty),
        pytest.warns(pl.LaplaceWarning, match=r"have not settled on the posterior of \['a'\] after 2 moves"),
    ):
        pl.fit_nested_laplace(model, {"y": torch.linspace(-2, 2, 20)}, hyper="a", outer="smc", progress=False)


def test_hyper_sites_that_the_data_do_not_inform():
    def model(y=None):
        pyro.sample("idle", dist.Normal(0.0, 1.0))
        two_modes(y)

    with pytest.raises(pl.UnsupportedProgram, match=r"say nothing of the hyper sites \['idle'\]"):
        few(model, ["a", "idle"])
