"""Ensembles, SWAG, dropout and VI: posteriors that everything takes, right where there is a closed form."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from oracles.naive import linear_regression
from programs.mixtures import bimodal
from programs.zoo import linear, linear_data
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal
from torch import nn
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.inference.dropped import spread
from pyro_laplace.inference.trajectory import Moments, block_of

pytestmark = pytest.mark.usefixtures("float64")

X, Y = (each.double() for each in linear_data())


def network(*layers):
    module = nn.Sequential(*(layers or (nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))).double()
    return pl.bayesianize(module, prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.Regression(0.5))


def dropping():
    return network(nn.Linear(3, 6), nn.ReLU(), nn.Dropout(0.25), nn.Linear(6, 1))


# --- ensembles ----------------------------------------------------------------------------------


def test_members_of_a_linear_gaussian_program_are_the_posterior_mean_and_that_is_said():
    case = linear()
    with pytest.warns(pl.LaplaceWarning, match="all 3 members came to one point"):
        ensemble = pl.fit_ensemble(case.model, case.data, num_members=3, num_steps=50, progress=False)
    exact = linear_regression(*case.data, 0.7, 1.3)
    for draw in ensemble.sample_posterior(4)["w"]:
        assert_close(draw, exact.mean, rtol=1e-6, atol=1e-8)
    assert ensemble.fit_seconds > 0
    mixture = pl.fit_laplace(case.model, case.data, ensemble, progress=False)
    assert isinstance(mixture, pl.LaplaceMixture)
    assert len(mixture.components) == 3
    assert_close(mixture.components[0].covariance, exact.cov, rtol=1e-6, atol=1e-9)


def test_members_of_a_network_differ_and_average():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model = pl.bayesianize(module, prior=pl.nn.Isotropic(3.0), likelihood=pl.nn.Regression(0.1))
    curved = (3 * X[:, 0]).sin()
    before = {name: value.clone() for name, value in model.named_parameters()}
    ensemble = pl.fit_ensemble(model, (X, curved), num_members=3, num_steps=60, progress=False)
    modes = ensemble.get_posterior().modes
    assert float(torch.pdist(modes).min()) > 0.1
    assert not list(pyro.get_param_store())  # members are not left there
    for name, value in model.named_parameters():
        assert_close(value, before[name], rtol=0, atol=0)
    outputs = []
    for point in ensemble.points:
        hidden = torch.tanh(X @ point["0.weight"].T + point["0.bias"])
        outputs.append((hidden @ point["2.weight"].T + point["2.bias"])[:, 0])
    mean = pl.LinearizedPredictive(model, ensemble)(X)["y"].mean
    assert_close(mean, torch.stack(outputs).mean(0), rtol=1e-10, atol=1e-10)


def test_the_first_member_starts_at_the_networks_own_weights():
    model = network()
    alone = pl.fit_map(model, (X, Y), num_steps=1, optim=pyro.optim.SGD({"lr": 0.0}), progress=False)
    ensemble = pl.fit_ensemble(model, (X, Y), 1, num_steps=1, optim=pyro.optim.SGD({"lr": 0.0}), progress=False)
    for name, value in alone.median(X, Y).items():
        assert_close(ensemble.points[0][name], value.detach())


def test_params_that_all_members_would_share_are_refused():
    def model(x, y=None):
        shift = pyro.param("shift", torch.zeros(()))
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w + shift, 0.5), obs=y)

    with pytest.raises(pl.UnsupportedProgram, match="shift"):
        pl.fit_ensemble(model, (X, Y), progress=False)
    with pytest.raises(pl.InvalidOption, match="num_members=0"):
        pl.fit_ensemble(linear().model, (X, Y), num_members=0)


# --- SWAG ---------------------------------------------------------------------------------------


def test_moments_of_a_trajectory_are_numpys():
    path = torch.randn(30, 4) @ torch.randn(4, 4)
    moments = Moments(rank=7)
    for theta in path:
        moments.add(theta)
    values = path.numpy()
    np.testing.assert_allclose(moments.mean, values.mean(0), atol=1e-12)
    np.testing.assert_allclose(moments.variance, (values**2).mean(0) - values.mean(0) ** 2, atol=1e-12)
    running = np.cumsum(values, 0) / np.arange(1, 31)[:, None]
    last = (values - running)[-7:]
    np.testing.assert_allclose(moments.deviations, last, atol=1e-12)
    expected = (np.diag(values.var(0)) + last.T @ last / 6) / 2
    block = block_of(moments, 1e-10)
    np.testing.assert_allclose(np.linalg.inv(block.to_dense()), expected, atol=1e-10)
    np.testing.assert_allclose(block.variance(), expected.diagonal(), atol=1e-10)


@pytest.mark.statistical
def test_swag_stays_around_the_mode_with_about_the_posteriors_width():
    """The rate is the one whose stationary distribution is nearest: the trace of covariances agrees within a factor."""
    case = linear()
    exact = linear_regression(*case.data, 0.7, 1.3)
    guide = pl.fit_swag(case.model, case.data, {"w": exact.mean}, num_iterates=150, progress=False)
    distance = guide.theta - exact.mean
    assert float(distance @ torch.linalg.solve(exact.cov, distance)) < 3
    share = float(torch.linalg.solve(exact.cov, guide.covariance).trace()) / 3
    assert 0.4 < share < 2.5
    assert guide.curvature == "none"


def test_swag_needs_the_noise_of_batches():
    case = linear()
    with pytest.raises(pl.InvalidData, match="at least two"):
        pl.fit_swag(case.model, [case.data], {"w": torch.zeros(3)}, progress=False)
    with pytest.raises(pl.InvalidOption, match="batch_size=99"):
        pl.fit_swag(case.model, case.data, {"w": torch.zeros(3)}, batch_size=99, progress=False)
    with pytest.raises(pl.InvalidOption, match="learning_rate"):
        pl.fit_swag(case.model, case.data, learning_rate="slow")
    with pytest.raises(pl.NotAMode, match="run away"):
        pl.fit_swag(case.model, case.data, {"w": torch.zeros(3)}, learning_rate=10.0, progress=False)


# --- dropout ------------------------------------------------------------------------------------


def test_draws_are_the_point_with_units_missing():
    model = dropping()
    point = {name: value.detach() for name, value in model.module.named_parameters()}
    posterior = pl.mc_dropout(model, (X, Y), point, progress=False)
    draws = posterior.sample_posterior(2000)
    for name in ("0.weight", "0.bias", "3.bias"):
        assert_close(draws[name], point[name].expand_as(draws[name]), rtol=0, atol=0)
    masks = draws["3.weight"] / point["3.weight"]
    assert set(masks.unique().round(decimals=6).tolist()) == {0.0, round(1 / 0.75, 6)}
    assert_close(masks.mean(0), torch.ones(1, 6), rtol=0, atol=4 * (0.25 / 0.75 / 2000) ** 0.5)


@pytest.mark.statistical
def test_predictions_have_the_moments_of_the_networks_own_dropout():
    """`nn.Dropout` in training mode, run by hand: one datum's mean and variance over masks."""
    module = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.4), nn.ReLU(), nn.Linear(6, 1)).double()
    model = pl.bayesianize(module, prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.Regression(0.5))
    point = {name: value.detach().clone() for name, value in module.named_parameters()}
    draws = pl.mc_dropout(model, (X, Y), point, progress=False).sample_posterior(20_000)
    hidden = torch.relu(torch.einsum("i,soi->so", X[0], draws["0.weight"]) + draws["0.bias"])
    ours = (hidden * draws["3.weight"][:, 0]).sum(1) + draws["3.bias"][:, 0]
    theirs = module.train()(X[:1].expand(20_000, 3))[:, 0].detach()
    assert_close(ours.mean(), theirs.mean(), rtol=0, atol=float(5 * theirs.std() / 20_000**0.5))
    assert_close(ours.var(), theirs.var(), rtol=0.06, atol=0)


def test_channels_of_convolutions_and_inputs_are_dropped_too():
    module = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.Dropout2d(0.2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(12, 2)
    ).double()
    model = pl.bayesianize(module, prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.Classification())
    data = torch.randn(5, 1, 3, 3), torch.tensor([0, 1, 0, 1, 1])
    point = {name: value.detach() for name, value in module.named_parameters()}
    posterior = pl.mc_dropout(model, data, point, rate=0.5, progress=False)
    assert [[(each.site, each.axis) for each in call.targets] for call in posterior.calls] == [
        [("0.weight", 0), ("0.bias", 0)],
        [("5.weight", 1)],
    ]
    assert [call.rate for call in posterior.calls] == [0.5, 0.5]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(3, 4), nn.Linear(4, 1), nn.Dropout(0.1)

    def forward(self, x):
        hidden = self.first(x)
        return self.last(hidden + self.drop(hidden))


def test_masks_that_no_weight_can_hold_are_refused():
    model = pl.bayesianize(Residual().double(), prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.Regression(0.5))
    with pytest.raises(pl.UnsupportedProgram, match="number 1 cannot"):
        pl.mc_dropout(model, (X, Y), progress=False)
    with pytest.raises(pl.UnsupportedProgram, match="no dropout"):
        pl.mc_dropout(network(), (X, Y), progress=False)
    with pytest.raises(pl.InvalidOption, match=r"rate=1\.5"):
        pl.mc_dropout(dropping(), (X, Y), rate=1.5)


def test_training_is_with_dropout_on():
    """With every unit's mask drawn anew, the loss of a dead rate of 0.9 cannot be fitted as without dropout."""
    model = network(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.9), nn.Linear(6, 1))
    wild = pl.mc_dropout(model, (X, Y), num_steps=150, progress=False)
    plain = pl.fit_map(model, (X, Y), num_steps=150, progress=False).median(X)
    assert float(wild.values["3.weight"].norm()) < 0.5 * float(plain["3.weight"].norm())


def test_a_mask_lies_along_its_axis():
    assert spread(torch.ones(7, 3), 4, 1).shape == (7, 1, 3, 1, 1)
    assert spread(torch.ones(3), 2, -1).shape == (1, 3)


# --- each is a posterior ------------------------------------------------------------------------


def peers():
    model = dropping()
    data = (X, Y)
    point = {name: value.detach() for name, value in model.module.named_parameters()}
    start = {"init_loc_fn": pl.init_to_start}
    fits = {
        "ensemble": pl.fit_ensemble(model, data, 2, num_steps=40, progress=False),
        "dropout": pl.mc_dropout(model, data, point, progress=False),
        "swag": pl.fit_swag(model, data, point, num_iterates=10, warmup=2, progress=False),
    }
    for guide in (AutoNormal, AutoLowRankMultivariateNormal, AutoMultivariateNormal):
        fits[guide.__name__] = pl.fit_svi(model, data, guide(model, **start), num_steps=20, progress=False)
    return model, data, fits


def test_everything_takes_them_unmodified():
    model, data, fits = peers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.LaplaceWarning)
        table = pl.compare(model, fits, data, data, num_samples=40, linearized=False, progress=False)
    assert list(table.index) == list(fits)
    assert bool(np.isfinite(table[["test_lpd", "rmse", "seconds"]].to_numpy(float)).all())
    for posterior in fits.values():
        tree = pl.to_datatree(model, posterior, data, num_samples=12, linearized=False, progress=False)
        assert tree.posterior["3.weight"].shape == (1, 12, 1, 6)
        assert tree.posterior_predictive["y"].shape == (1, 12, len(Y))
        drawn = pl.Predictive(model, guide=posterior, num_samples=6)(X)
        assert drawn["y"].shape == (6, len(Y))
        theirs = pyro.infer.Predictive(model, guide=posterior, num_samples=3)(X)
        assert theirs["y"].shape == (3, len(Y))
        assert set(drawn) == set(theirs)


# --- recorded potentials ------------------------------------------------------------------------


def test_a_program_that_branches_on_its_values_is_sampled_all_the_same():
    def model(y):
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        scale = 1.0 if bool(t > 0) else 2.0
        pyro.sample("y", dist.Normal(t, scale), obs=y)

    mcmc = pl.fit_nuts(model, (torch.tensor(0.3),), num_samples=5, warmup_steps=5, progress=False)
    assert not mcmc.kernel.potential_fn.recorded
    mcmc = pl.fit_nuts(bimodal, (torch.tensor([0.3]),), num_samples=5, warmup_steps=5, progress=False)
    assert mcmc.kernel.potential_fn.recorded
