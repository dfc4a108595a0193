"""`diagnose`: right and wrong posteriors told apart, what the report holds, and nothing left changed."""

import dataclasses
import math
from dataclasses import astuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.judged import GLMS, Judged, few_residuals, glm, linear_gaussian, network, schools
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal

import pyro_laplace as pl

FAR = "ignore:the mode is not where the posterior's mass is"


@pytest.fixture(autouse=True)
def double(float64):
    """Everything here is compared with closed forms."""


def judged(case: Judged, **options) -> pl.Diagnosis:
    return pl.diagnose(case.model, pl.fit_laplace(case.model, case.data, **options), case.data)


@pytest.mark.parametrize("seed", range(20))
def test_no_false_alarm_where_everything_is_exact(seed):
    found = judged(linear_gaussian(seed))
    assert (found.verdict, found.subject) == ("trusted", "the program")
    assert found.khat == -math.inf
    assert found.max_shift < 0.01


@pytest.mark.parametrize("kind", GLMS)
def test_no_false_alarm_on_500_rows(kind):
    assert judged(glm(kind)).verdict == "trusted"


def test_a_skewed_scale_is_wrong_by_as_much_as_it_is():
    """Its mean and deviation in closed form: sigma^2 is inverse gamma."""
    case = few_residuals()
    guide = pl.fit_laplace(case.model, case.data)
    found = pl.diagnose(case.model, guide, case.data)
    y, shape = case.data[0], 4.5
    rate = float((y - y.mean()).square().sum()) / 2
    mean = rate**0.5 * math.exp(math.lgamma(shape - 0.5) - math.lgamma(shape))
    std = (rate / (shape - 1) - mean**2) ** 0.5
    log_std = guide.precision.variance()[1].sqrt()
    laplace_mean = float((guide.loc[1] + log_std**2 / 2).exp())
    assert found.verdict == "wrong"
    assert "'sigma'" in found.reason
    assert float(found.shifts["sigma"]) == pytest.approx(
        (mean - laplace_mean) / std, abs=4 * float(found.shift_errors["sigma"])
    )
    assert float(found.shift_errors["sigma"]) < 0.15
    assert found.next_step == "pl.importance_resample(model, guide, data)"


@pytest.mark.filterwarnings(FAR)
def test_a_funnel_is_wrong():
    found = judged(schools())
    assert found.verdict == "wrong"
    assert found.khat > 0.7
    assert "'tau'" in found.reason
    assert found.next_step == "pl.fit_nested_laplace(model, data, hyper=['tau'])"
    case = schools()
    nested = eval(found.next_step, {"pl": pl, "model": case.model, "data": case.data})
    assert pl.diagnose(case.model, nested, case.data).verdict == "trusted"


def hidden_funnel(y):
    """A funnel in nine dimensions whose mode, with so little said of its neck, looks harmless."""
    neck = pyro.sample("neck", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 9):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal((neck / 2).exp() * x, 1.0), obs=y)


@pytest.mark.filterwarnings(FAR)
@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0])
def test_funnels_are_never_trusted(scale):
    y = scale * torch.tensor([0.3, -1.2, 0.8, 0.1, -0.4, 1.9, -0.7, 0.2, -1.0])
    case = Judged(hidden_funnel, (y,))
    assert judged(case).verdict in ("unsure", "wrong")


@pytest.mark.filterwarnings(FAR)
def test_draws_of_a_network_are_not_trusted_and_its_linearised_program_is():
    case = network()
    guide = pl.fit_laplace(case.model, case.data)
    found = pl.diagnose(case.model, guide, case.data)
    assert found.verdict in ("unsure", "wrong")
    assert "LinearizedPredictive" in found.next_step
    assert found.predictive["linearized"] > found.predictive["sampled"] + 1.0
    straight = pl.diagnose(pl.linearize(case.model, guide), guide, case.data)
    assert (straight.verdict, straight.subject) == ("trusted", "the linearised program")
    assert "LinearizedPredictive" in straight.next_step


def test_a_coarse_structure_of_a_linearised_program_is_sent_to_a_finer_one():
    case = network()
    guide = pl.fit_laplace(case.model, case.data, structure="diag")
    found = pl.diagnose(pl.linearize(case.model, guide), guide, case.data)
    assert found.verdict != "trusted"
    assert "structure='full'" in found.next_step


def test_held_sites_are_named():
    found = judged(few_residuals(), subset=["mu"])
    assert found.subject == "the program with 'sigma' held at the mode"
    assert set(found.shifts) == {"mu"}
    assert found.verdict == "trusted"  # given sigma, mu is Gaussian


def two_modes(y):
    x = pyro.sample("x", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(x.square(), 1.0), obs=y)


def test_a_mixture_of_all_modes_is_trusted_and_one_mode_alone_looks_so():
    """One mode alone cannot see the other; with both, half the mass is on each side."""
    y = torch.tensor(9.0)
    modes = [{"x": torch.tensor(3.0)}, {"x": torch.tensor(-3.0)}]
    mixture = pl.fit_laplace(two_modes, y, modes)
    found = pl.diagnose(two_modes, mixture, y)
    assert found.verdict == "trusted"
    assert "LaplaceMixture of 2" in str(found)
    lopsided = pl.LaplaceMixture(list(mixture.components), weights="equal")
    lopsided.weights = torch.tensor([0.95, 0.05])
    wrong = pl.diagnose(two_modes, lopsided, y)
    assert wrong.verdict == "wrong"
    assert float(wrong.shifts["x"]) == pytest.approx((0.0 - 0.9 * 3.0) / 3.0, abs=0.2)


def test_any_guide_of_the_right_shape_is_trusted():
    case = glm("Normal")
    options = {"num_steps": 800, "learning_rate": 0.03, "progress": False}
    guide = pl.fit_svi(case.model, case.data, AutoMultivariateNormal(case.model), **options)
    found = pl.diagnose(case.model, guide, case.data)
    assert found.verdict == "trusted"
    assert found.gradient_norm is found.smallest_eigenvalue is None
    assert "AutoMultivariateNormal" in str(found)


def correlated(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def test_independent_deviations_of_a_correlated_posterior_are_not_trusted():
    x = torch.randn(200, 1) + 0.1 * torch.randn(200, 2)
    data = (x, x.sum(-1) + torch.randn(200))
    guide = pl.fit_svi(correlated, data, AutoNormal(correlated), num_steps=1000, learning_rate=0.03, progress=False)
    found = pl.diagnose(correlated, guide, data)
    assert found.verdict in ("unsure", "wrong")
    exact = pl.fit_laplace(correlated, data)
    factor = exact.precision.variance().sqrt() / guide.quantiles([0.5, 0.8413447])["w"].diff(dim=0)[0]
    if found.weights_trusted:
        torch.testing.assert_close(found.log_scales["w"], factor.log(), atol=0.15, rtol=0)


def test_a_guide_by_hand_and_one_of_several_parts():
    case = few_residuals()

    def by_hand(y):
        pyro.sample("sigma", dist.LogNormal(0.15, 0.35))
        pyro.sample("mu", dist.Normal(0.5, 0.6))

    assert pl.diagnose(case.model, by_hand, case.data).khat < 0.7
    parts = AutoGuideList(case.model)
    parts.append(AutoNormal(pyro.poutine.block(case.model, expose=["mu"])))
    parts.append(AutoDelta(pyro.poutine.block(case.model, expose=["sigma"])))
    parts(*case.data)
    found = pl.diagnose(case.model, parts, case.data)
    assert found.shifts["sigma"] == 0.0


def test_a_wrong_width_is_wrong_though_the_mean_is_right():
    """Student's t with three degrees of freedom: deviation sqrt(3), where the curvature says sqrt(3 / 4)."""

    def model(y):
        x = pyro.sample("x", dist.StudentT(3.0, 0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 100.0), obs=y)

    def wide(y):
        pyro.sample("x", dist.Normal(0.0, 6.0))

    found = pl.diagnose(model, wide, torch.tensor(0.0))
    assert found.verdict == "wrong"
    assert "sd of 'x'" in found.reason
    assert float(found.log_scales["x"].exp()) == pytest.approx(3**0.5 / 6, rel=0.25)


def test_a_point_that_is_no_mode_is_told():
    case = glm("logistic")
    start = {"w": torch.zeros(6)}
    guide = pl.fit_laplace(case.model, case.data, start, polish=False, on_not_a_mode="ignore")
    found = pl.diagnose(case.model, guide, case.data)
    assert found.verdict in ("unsure", "wrong")
    assert found.newton_decrement == guide.mode.decrement > found.at_mode.allowed
    assert "polish=True" in found.next_step


def test_what_determines_the_coordinates():
    """Two columns that are one but for rounding, and one that the data say nothing of."""
    x = torch.randn(50, 1)
    x = torch.cat([x, x + 1e-6 * torch.randn(50, 1), torch.zeros(50, 1)], 1)

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1e3).expand([3]).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 1e3))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w + b, 1.0), obs=y)

    data = (x, x.sum(-1) + torch.randn(50))
    guide = pl.fit_laplace(model, data)
    found = pl.diagnose(model, guide, data)
    dense = torch.cat([x, torch.ones(50, 1)], 1)
    exact = dense.mT @ dense + 1e-6 * torch.eye(4)
    values = torch.linalg.eigvalsh(exact)
    assert found.smallest_eigenvalue == pytest.approx(float(values[0]), rel=1e-4)
    assert found.condition_number == pytest.approx(float(values[-1] / values[0]), rel=1e-4)
    assert found.flat_directions == {"w": 1}
    torch.testing.assert_close(found.prior_share["w"][2], torch.tensor(1.0))
    assert float(found.prior_share["b"]) < 1e-4
    assert found.determined.hessian_apart < 1e-6
    assert "flat directions: 1 with 'w'" in str(found)


def test_gauss_newton_beside_the_exact_hessian():
    """One Poisson count with a square-root link: expected information 4, and observed 2 + 2 y / eta^2."""

    def model(y):
        eta = pyro.sample("eta", dist.Normal(3.0, 1.0))
        pyro.sample("y", dist.Poisson(eta.square()), obs=y)

    y = torch.tensor(16.0)
    guide = pl.fit_laplace(model, y, curvature="ggn")
    eta = float(guide.loc)
    apart = 0.5 * math.log((4 + 1) / (2 + 2 * 16 / eta**2 + 1))
    assert pl.diagnose(model, guide, y).determined.hessian_apart == pytest.approx(apart, rel=1e-6)


def test_inspecting_leaves_everything_and_says_the_same_again():
    case = few_residuals()
    guide = pl.fit_laplace(case.model, case.data)
    before = torch.get_rng_state()
    one = pl.diagnose(case.model, guide, case.data)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    other = pl.diagnose(case.model, guide, case.data)
    assert torch.equal(one.log_ratios, other.log_ratios)
    assert one.reason == other.reason


def test_the_budget_is_kept():
    case = few_residuals()
    guide = pl.fit_laplace(case.model, case.data)
    assert pl.diagnose(case.model, guide, case.data, max_draws=500).num_draws == 500
    with pl.settings.using(diagnose_elements=1):
        assert pl.diagnose(case.model, guide, case.data).num_draws == pl.settings.fewest_draws
    with pytest.raises(pl.InvalidOption, match="max_draws=3"):
        pl.diagnose(case.model, guide, case.data, max_draws=3)


def test_a_program_that_cannot_be_vectorised_has_the_same_weights():
    case = few_residuals()

    def one_by_one(y):
        case.model(y)
        float(pyro.sample("other", dist.Normal(0.0, 1.0)).detach())  # no batch of draws is one number

    found = judged(Judged(one_by_one, case.data))
    assert found.num_draws <= pl.settings.diagnose_one_by_one
    assert found.khat == pytest.approx(judged(case).khat, abs=0.4)


def test_batches_weigh_as_one():
    case = glm("logistic")
    guide = pl.fit_laplace(case.model, case.data)
    x, y = case.data
    batches = [(x[:200], y[:200]), (x[200:], y[200:])]
    whole, parts = (pl.diagnose(case.model, guide, data) for data in (case.data, batches))
    torch.testing.assert_close(parts.log_ratios, whole.log_ratios)


def test_the_report_in_text_and_in_a_notebook():
    case = schools()
    with pytest.warns(pl.LaplaceWarning, match="pl.diagnose"):
        found = judged(case)
    text, page = str(found), found._repr_html_()
    assert text.splitlines()[0].startswith("WRONG for the program: ")
    assert text.splitlines()[1] == f"next: {found.next_step}  # {found.advice}"
    compile(found.next_step, "next", "eval")
    for piece in ("Pareto k-hat", "Newton decrement", "condition number", "prior's share"):
        assert piece in text
        assert piece.replace("'", "&#x27;") in page
    assert repr(found) == text
    assert {field.name for field in dataclasses.fields(found)} >= {"khat", "ess", "verdict", "next_step"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.verdict = "trusted"


def line(x, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ b, 0.5), obs=y)


def line_data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.cat([torch.ones(80, 1), torch.randn(80, 1) + 3], 1)
    return x, x @ torch.tensor([1.0, -2.0]) + 0.5 * torch.randn(80)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shift", [1.0, 5.0, 20.0, 1e3])
def test_other_data_than_those_it_was_fitted_to_are_never_trusted(shift, dtype):
    x, y = (each.to(dtype) for each in line_data())
    torch.set_default_dtype(dtype)
    guide = pl.fit_laplace(line, (x, y))
    found = pl.diagnose(line, guide, (x, y + shift))
    assert found.verdict == "wrong"
    assert not found.at_mode.is_mode
    assert "nan" not in str(found)
    assert found.next_step == "pl.fit_laplace(model, data, guide, polish=True)"
    torch.set_default_dtype(torch.float64)


def test_an_untrained_guide_is_wrong():
    data = line_data()
    guide = AutoMultivariateNormal(line)
    guide(*data)
    found = pl.diagnose(line, guide, data)
    assert found.verdict in ("unsure", "wrong")
    assert "nan" not in str(found)


def test_a_guide_of_another_model_is_refused_as_one():
    case = few_residuals()
    guide = pl.fit_laplace(case.model, case.data)
    x, y = line_data()
    for other, data in ((line, (x, y)), (linear_gaussian(0).model, linear_gaussian(0).data)):
        with pytest.raises(pl.InvalidOption, match="this guide is of another model, or of data of another shape"):
            pl.diagnose(other, guide, data)
    with pytest.raises(pl.InvalidOption, match=r"\(2,\).*\(8,\)"):
        pl.diagnose(linear_gaussian(2).model, pl.fit_laplace(*astuple(linear_gaussian(0))), linear_gaussian(2).data)


@pytest.mark.parametrize("count", [1, 2])
def test_a_scale_without_a_variance_is_seen_in_its_logarithm(count):
    """Of one or two data the posterior of a scale has no variance, and Laplace's is too wide in its logarithm."""

    def scale(y):
        s = pyro.sample("s", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, s), obs=y)

    found = judged(Judged(scale, (torch.tensor([0.1, 0.4])[:count],)))
    assert found.verdict != "trusted"
    assert found.moved.unconstrained["s"].log_std.abs() > 0.25 or found.moved.unconstrained["s"].mean.abs() > 0.3
    assert "unconstrained" in str(found)


def test_a_guide_without_a_site_is_refused():
    case = few_residuals()
    with pytest.raises(pl.InvalidOption, match=r"no site for the latent sites \['sigma'\]"):
        pl.diagnose(case.model, lambda y: pyro.sample("mu", dist.Normal(0.0, 1.0)), case.data)
