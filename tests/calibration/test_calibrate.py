"""Temperature and scale against scipy's minimisers of the held-out loss; curves against loops."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from programs.zoo import linear, logistic
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.calibration.adjusted import Widened, tempered, widened
from pyro_laplace.calibration.curves import coverage_of, reliability_of
from pyro_laplace.calibration.temperature import best_scale, best_temperature, normal_scale
from pyro_laplace.likelihood.mixture import FunctionMixture
from pyro_laplace.scores.prediction import Prediction

pytestmark = pytest.mark.usefixtures("float64")


def of_numbers(fn, truth) -> Prediction:
    return Prediction(fn, truth, torch.ones(truth.shape, dtype=torch.bool))


# --- the numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.3, 1.0, 6.0])
def test_the_temperature_is_scipys(size):
    logits, true = size * torch.randn(300, 4), torch.randn(300, 4)
    labels = dist.Categorical(logits=logits / 2 + true).sample()
    values, own = logits.numpy(), labels.numpy()

    def nll(temperature):
        return -scipy.special.log_softmax(values / temperature, 1)[np.arange(300), own].sum()

    best = scipy.optimize.minimize_scalar(nll, bounds=(1e-2, 1e2), method="bounded", options={"xatol": 1e-10}).x
    assert best_temperature(logits, labels) == pytest.approx(best, rel=1e-5)


def test_data_that_are_all_right_have_a_bound_for_temperature():
    logits = 3 * torch.eye(3)
    assert best_temperature(logits, torch.arange(3)) == pytest.approx(1e-3)
    assert best_temperature(logits, torch.tensor([1, 2, 0])) == pytest.approx(1e3)


def test_the_scale_of_normal_data_is_closed_form():
    z = 2.5 * torch.randn(400)
    expected = float(z.square().mean().sqrt())
    assert normal_scale(z) == pytest.approx(expected)
    found = best_scale(lambda s: -float(scipy.stats.norm.logpdf(z.numpy(), scale=s).sum()))
    assert found == pytest.approx(expected, rel=1e-5)


# --- distributions ------------------------------------------------------------------------------


def test_tempered_classes_keep_their_kind():
    logits = torch.randn(5, 3)
    fns = [
        dist.Categorical(logits=logits),
        dist.OneHotCategorical(logits=logits),
        FunctionMixture(torch.randn(7, 5, 3), lambda eta: dist.Categorical(logits=eta)),
    ]
    for fn in fns:
        found = tempered(fn, 2.0)
        probs = fn.probs if not isinstance(fn, FunctionMixture) else fn.components.probs.mean(0)
        assert_close(found.probs, probs.sqrt() / probs.sqrt().sum(-1, keepdim=True))
        assert (found.batch_shape, found.event_shape) == (fn.batch_shape, fn.event_shape)
    yes = dist.Bernoulli(logits=torch.randn(5, 2)).to_event(1)
    assert_close(tempered(yes, 3.0).base_dist.logits, yes.base_dist.logits / 3)


def test_widened_numbers_have_the_moments_and_densities():
    loc, y = torch.randn(4, 2), torch.randn(4, 2)
    normal = dist.Normal(loc, torch.rand(4, 2) + 0.5).to_event(1)
    wide = widened(normal, 3.0)
    assert_close(wide.base_dist.scale, 3 * normal.base_dist.scale)
    generic = Widened(normal, 3.0)
    assert_close(generic.log_prob(y), wide.log_prob(y))
    assert_close(generic.variance, wide.variance)
    student = widened(dist.StudentT(4.0, loc, 1.0), 2.0)
    expected = scipy.stats.t.logpdf(y.numpy(), 4, loc.numpy(), 2.0)
    np.testing.assert_allclose(student.log_prob(y), expected, atol=1e-12)
    joint = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
    assert_close(widened(joint, 2.0).covariance_matrix, 4 * joint.covariance_matrix)
    assert widened(dist.Normal(loc, 1.0).mask(loc > 0).to_event(1), 2.0).event_shape == (2,)


# --- calibrate ----------------------------------------------------------------------------------


def test_a_scale_mends_noise_that_the_program_states_wrongly():
    case = linear()
    model, (x, y) = case.model, case.data
    guide = pl.fit_laplace(model, case.data, progress=False)
    x, y = x.repeat(20, 1), (x @ guide.theta).repeat(20) + 2.1 * torch.randn(20 * len(y))
    predictive = pl.LinearizedPredictive(model, guide)
    calibrated = pl.calibrate(predictive, (x, y))
    fn = predictive(x)["y"]
    expected = float((((y - fn.mean) / fn.stddev) ** 2).mean().sqrt())
    assert calibrated.scales == {"y": pytest.approx(expected)}
    assert_close(calibrated(x)["y"].stddev, expected * fn.stddev)
    assert_close(calibrated(x)["y"].mean, fn.mean)
    before, after = pl.scores(predictive, (x, y)), pl.scores(calibrated, (x, y))
    assert after["nll"] < before["nll"] - 0.5
    assert abs(after["coverage_90"] - 0.9) < 0.03 < abs(before["coverage_90"] - 0.9)
    assert after["rmse"] == pytest.approx(before["rmse"])
    drawn = pl.calibrate(pl.Predictive(model, guide=guide, num_samples=200), [(x[:300], y[:300]), (x[300:], y[300:])])
    assert drawn.scales["y"] == pytest.approx(expected, rel=0.03)
    assert "scale" in repr(drawn)


def test_a_temperature_of_a_point_is_the_loss_minimiser():
    case = logistic()
    x, y = case.data
    draws = {"w": torch.full((1, x.shape[1]), 9.0), "b": torch.zeros(1)}
    calibrated = pl.calibrate(pl.Predictive(case.model, posterior_samples=draws), case.data)
    logits = (9 * x.sum(1)).numpy()
    signs = 2 * y.double().numpy() - 1

    def nll(inverse):
        return np.logaddexp(0, -signs * logits * inverse).sum()

    best = scipy.optimize.minimize_scalar(nll, bounds=(1e-3, 1e3), method="bounded", options={"xatol": 1e-12}).x
    assert calibrated.temperatures["y"] == pytest.approx(1 / best, rel=1e-4)
    assert pl.scores(calibrated, case.data)["nll"] == pytest.approx(nll(best) / len(y), rel=1e-6)


def test_what_cannot_be_calibrated_is_refused():
    case = linear()
    with pytest.raises(pl.InvalidOption, match="predictive is a str"):
        pl.calibrate("laplace", case.data)

    def counts(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Poisson((x @ w).exp()), obs=y)

    x = case.data[0]
    predictive = pl.Predictive(counts, posterior_samples={"w": torch.zeros(3, 3)})
    with pytest.raises(pl.UnsupportedProgram, match="Poisson"):
        pl.calibrate(predictive, (x, torch.ones(len(x))))


# --- curves -------------------------------------------------------------------------------------


def test_reliability_is_a_loop_over_bins():
    logits = 2 * torch.randn(97, 3)
    labels = dist.Categorical(logits=logits).sample()
    curve = reliability_of([of_numbers(dist.Categorical(logits=logits), labels)], 5)
    probs = logits.softmax(-1).numpy()
    top, right = probs.max(1), probs.argmax(1) == labels.numpy()
    order = np.argsort(top, kind="stable")
    for number, part in enumerate(np.array_split(order, 5)):
        assert float(curve.confidence[number]) == pytest.approx(top[part].mean())
        assert float(curve.accuracy[number]) == pytest.approx(right[part].mean())


def test_coverage_is_scipys_intervals_and_right_where_the_model_is():
    loc, scale = torch.randn(4000), torch.rand(4000) + 0.5
    y = dist.Normal(loc, scale).sample()
    curve = coverage_of([of_numbers(dist.Normal(loc, scale), y)], 9, 100)
    for level, inside, width in zip(curve.levels.tolist(), curve.inside.tolist(), curve.width.tolist(), strict=True):
        low, high = scipy.stats.norm.interval(level, loc.numpy(), scale.numpy())
        assert inside == pytest.approx(((low <= y.numpy()) & (y.numpy() <= high)).mean())
        assert width == pytest.approx((high - low).mean())
        assert abs(inside - level) < 4 * (level * (1 - level) / 4000) ** 0.5
