"""What is refused: each error names the object and what to do, and leaves the user's things as they were."""

import re
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_says
from oracles.naive import linear_regression
from programs.zoo import (
    BayesianNet,
    hierarchical,
    linear_data,
    linear_model,
    linear_unknown_noise,
    map_guide_at,
    map_guide_at_theta,
    mlp_classifier,
    normal,
    pyro_module_classifier,
    split,
)
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta
from torch.testing import assert_close

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")


def test_one_base_class():
    assert issubclass(pl.NotAMode, pl.LaplaceError)
    assert issubclass(pl.UnsupportedProgram, pl.LaplaceError)
    assert issubclass(pl.LaplaceError, Exception)


# --- programs -------------------------------------------------------------------------------------


def discrete_latent(x, y=None):
    w = pyro.sample("w", normal(1.0, 3))
    outlier = pyro.sample("outlier", dist.Bernoulli(0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0 + outlier), obs=y)


def discrete_latent_in_a_plate(x, y=None):
    w = pyro.sample("w", normal(1.0, 3))
    with pyro.plate("data", len(x)):
        kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
        pyro.sample("y", dist.Normal(x @ w + kind, 1.0), obs=y)


@pytest.mark.parametrize("entry", [pl.fit_map, pl.fit_laplace])
@pytest.mark.parametrize(("model", "site"), [(discrete_latent, "outlier"), (discrete_latent_in_a_plate, "kind")])
def test_discrete_latent(model, site, entry):
    with pytest.raises(pl.UnsupportedProgram) as error:
        entry(model, linear_data())
    assert_says(error, site, "discrete", "enumerat|marginal", "block")


def sequential_plate(x, y=None):
    w = torch.stack([pyro.sample(f"w_{i}", dist.Normal(0.0, 1.0)) for i in pyro.plate("weights", 3)])
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


@pytest.mark.parametrize("entry", [pl.fit_map, pl.fit_laplace])
def test_sequential_plate(entry):
    with pytest.raises(pl.UnsupportedProgram) as error:
        entry(sequential_plate, linear_data())
    assert_says(error, "w_0", "weights", "sequential", "with pyro.plate|vectori[sz]")


def local_latent(x, y=None):
    with pyro.plate("data", len(x)):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x.sum(-1) + offset, 1.0), obs=y)


@pytest.mark.parametrize("entry", [pl.fit_map, pl.fit_laplace])
def test_latent_whose_shape_depends_on_the_batch(entry):
    with pytest.raises(pl.UnsupportedProgram) as error:
        entry(local_latent, split(linear_data(40), 25))
    assert_says(error, "offset", "shape", "25", "15")


def test_latent_whose_shape_depends_on_the_data_is_fine_in_one_batch():
    x, y = linear_data(10)
    guide = pl.fit_laplace(local_latent, (x, y))
    assert_close(guide.median()["offset"], (y - x.sum(-1)) / 2, rtol=1e-8, atol=1e-8)
    assert_close(guide.precision.to_dense(), 2 * torch.eye(10), rtol=1e-8, atol=1e-8)


def unobserved(x):
    w = pyro.sample("w", normal(1.0, 3))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0))


@pytest.mark.parametrize("entry", [pl.fit_map, pl.fit_laplace])
def test_no_observed_site(entry):
    with pytest.raises(pl.UnsupportedProgram) as error:
        entry(unobserved, (linear_data()[0],))
    assert_says(error, "observed", "obs=|condition")


@pytest.mark.parametrize("entry", [pl.fit_map, pl.fit_laplace])
def test_observations_forgotten(entry):
    """The program observes `y` when it is given; here it is not."""
    with pytest.raises(pl.UnsupportedProgram) as error:
        entry(linear_model(), (linear_data()[0],))
    assert_says(error, "observed", "obs=|condition")


def no_latent(x, y=None):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=y)


def test_no_latent_site():
    with pytest.raises(pl.UnsupportedProgram) as error:
        pl.fit_laplace(no_latent, linear_data())
    assert_says(error, "latent", "pyro.sample|PyroSample|bayesianize")


def flat_direction(x, y=None):
    """Neither data nor prior say anything about `idle`."""
    w = pyro.sample("w", normal(1.0, 3))
    pyro.sample("idle", dist.ImproperUniform(constraints.real, torch.Size(), torch.Size()))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


@pytest.mark.parametrize("structure", ["full", "diag"])
def test_a_site_that_nothing_determines(structure):
    """Pyro's own says "leading minor of order 4 is not positive-definite"."""
    with pytest.raises(pl.LaplaceError) as error:
        pl.fit_laplace(flat_direction, linear_data(), structure=structure)
    assert_says(error, "idle", "prior")


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "given", "possible"),
    [
        ("structure", "dense", ["full", "diag"]),
        ("curvature", "fisher", ["ggn"]),
        ("polish", "maybe", ["auto", "True", "False"]),
        ("on_not_a_mode", "explode", ["raise", "warn", "ignore"]),
    ],
)
def test_unknown_option_value(option, given, possible):
    with pytest.raises(pl.LaplaceError) as error:
        pl.fit_laplace(linear_model(), linear_data(), **{option: given})
    assert_says(error, option, re.escape(str(given)), *possible)


def test_unknown_option():
    fit: Any = pl.fit_laplace
    with pytest.raises(TypeError, match="structur"):
        fit(linear_model(), linear_data(), structur="full")


@pytest.mark.parametrize(
    ("subset", "culprit"),
    [
        ("first_layer", "first_layer"),
        ("v*", r"v\*"),
        (["w1", "nope*"], r"nope\*"),
        (["w1", "y"], "y"),
        ([], "subset"),
        (lambda name: False, "subset|callable"),
    ],
)
def test_subset_that_matches_nothing(subset, culprit):
    case = mlp_classifier()
    start = map_guide_at_theta(case, torch.zeros(case.flat.size))
    with pytest.raises(pl.LaplaceError) as error:
        pl.fit_laplace(case.model, case.data, start, subset=subset)
    assert_says(error, culprit, "w1", "b1", "w2", "b2")


# --- data -----------------------------------------------------------------------------------------

ONE_SHOT = {
    "generator": lambda batches: (batch for batch in batches),
    "iterator": iter,
    "zip": lambda batches: zip([x for x, _ in batches], [y for _, y in batches], strict=True),
    "map": lambda batches: map(tuple, batches),
}


@pytest.mark.parametrize("entry", [pl.fit_map, pl.fit_laplace])
@pytest.mark.parametrize("kind", ONE_SHOT)
def test_one_shot_data(kind, entry):
    with pytest.raises(pl.LaplaceError) as error:
        entry(linear_model(), ONE_SHOT[kind](split(linear_data(), 10)))
    assert_says(error, "once|one-shot|generator|iterator", r"list\(|DataLoader")


@pytest.mark.parametrize("entry", [pl.fit_map, pl.fit_laplace])
@pytest.mark.parametrize("data", [[], 3, None, object()], ids=["empty", "number", "None", "object"])
def test_what_is_not_data(data, entry):
    with pytest.raises(pl.LaplaceError) as error:
        entry(linear_model(), data)
    assert_says(error, "data|batch")


def test_data_loader_of_nothing():
    nothing: Any = []
    with pytest.raises(pl.LaplaceError, match=r"data|batch"):
        pl.fit_laplace(linear_model(), torch.utils.data.DataLoader(nothing))


# --- map guides -----------------------------------------------------------------------------------


def test_map_guide_without_a_site():
    case = mlp_classifier()
    partial = AutoDelta(poutine.block(case.model, hide=["w2"]))
    partial(*case.data)
    with pytest.raises(pl.LaplaceError) as error:
        pl.fit_laplace(case.model, case.data, partial)
    assert_says(error, "w2", "guide")


def test_map_guide_with_a_site_that_the_program_lacks():
    x, y = linear_data()
    other = map_guide_at(linear_unknown_noise().model, {"w": torch.zeros(3), "sigma": torch.tensor(1.0)}, x, y)
    with pytest.raises(pl.LaplaceError) as error:
        pl.fit_laplace(linear_model(), (x, y), other)
    assert_says(error, "sigma", "guide")


def test_map_guide_that_took_the_observed_site_for_a_latent():
    """AutoDelta called first without observations."""
    x, y = linear_data()
    confused = AutoDelta(linear_model())
    confused(x)
    with pytest.raises(pl.LaplaceError) as error:
        pl.fit_laplace(linear_model(), (x, y), confused)
    assert_says(error, r"\by\b", "observed|observation")


def test_map_guide_of_another_shape():
    x, y = linear_data(num_weights=3)
    wider = map_guide_at(linear_model(), {"w": torch.zeros(5)}, *linear_data(num_weights=5))
    with pytest.raises(pl.LaplaceError) as error:
        pl.fit_laplace(linear_model(), (x, y), wider)
    assert_says(error, r"\bw\b", "shape", "5", "3")


# --- not a mode -----------------------------------------------------------------------------------


def at_distance(decrements: float) -> tuple:
    """A linear regression and an AutoDelta this many posterior standard deviations from its mode."""
    x, y = linear_data()
    exact = linear_regression(x, y, 0.7, 1.3)
    direction = torch.tensor([1.0, -2.0, 0.5])
    step = direction * decrements / (direction @ exact.prec @ direction).sqrt()
    start = map_guide_at(linear_model(), {"w": exact.mean + step}, x, y)
    return start, exact.mean + step


def fit_at_distance(decrements: float, **options):
    start, point = at_distance(decrements)
    return pl.fit_laplace(linear_model(), linear_data(), start, polish=False, **options), point


def numbers(message: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:[eE][+-]?\d+)?", message)]


def test_not_a_mode_raises():
    with pytest.raises(pl.NotAMode) as error:
        fit_at_distance(7.25, on_not_a_mode="raise")
    assert_says(error, "gradient", "decrement", "polish|train|fit_map")
    assert any(number == pytest.approx(7.25, abs=0.06) for number in numbers(str(error.value)))


def test_not_a_mode_tells_the_gradient():
    start, point = at_distance(7.25)
    x, y = linear_data()
    exact = linear_regression(x, y, 0.7, 1.3)
    gradient = exact.prec @ (exact.mean - point)
    with pytest.raises(pl.NotAMode) as error:
        pl.fit_laplace(linear_model(), (x, y), start, polish=False, on_not_a_mode="raise")
    norms = [gradient.norm(), gradient.abs().max(), gradient.norm() / 3**0.5]
    assert any(number == pytest.approx(float(norm), rel=0.05) for number in numbers(str(error.value)) for norm in norms)


def test_not_a_mode_warns_by_default():
    with pytest.warns(UserWarning, match=r"(?is)decrement.*(polish|train|fit_map)"):
        guide, point = fit_at_distance(7.25)
    assert_close(guide.median()["w"], point)


def test_not_a_mode_can_be_ignored():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guide, point = fit_at_distance(7.25, on_not_a_mode="ignore")
    assert_close(guide.median()["w"], point)


@pytest.mark.parametrize("relative", [0.09, 0.11])
def test_a_mode_is_judged_in_posterior_standard_deviations(relative):
    """The threshold is `0.1 sqrt(P)`."""
    decrement = relative * 3**0.5
    if relative < 0.1:
        fit_at_distance(decrement, on_not_a_mode="raise")
    else:
        with pytest.raises(pl.NotAMode):
            fit_at_distance(decrement, on_not_a_mode="raise")


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_judgement_is_scale_free(scale):
    """Units of x, and so of w, do not matter."""
    x, y = linear_data()
    exact = linear_regression(x * scale, y, 0.7, 1.3 / scale)
    for relative in (0.09, 0.11):
        pyro.clear_param_store()
        step = exact.cov[0] / exact.cov[0, 0].sqrt() * relative * 3**0.5
        start = map_guide_at(linear_model(0.7, 1.3 / scale), {"w": exact.mean + step}, x * scale, y)
        options = {"polish": False, "on_not_a_mode": "raise"}
        if relative < 0.1:
            pl.fit_laplace(linear_model(0.7, 1.3 / scale), (x * scale, y), start, **options)
        else:
            with pytest.raises(pl.NotAMode):
                pl.fit_laplace(linear_model(0.7, 1.3 / scale), (x * scale, y), start, **options)


@pytest.mark.parametrize("polish", ["auto", True])
def test_a_small_program_is_moved_to_its_mode(polish):
    x, y = linear_data()
    start, _ = at_distance(50.0)
    guide = pl.fit_laplace(linear_model(), (x, y), start, polish=polish, on_not_a_mode="raise")
    assert_close(guide.median()["w"], linear_regression(x, y, 0.7, 1.3).mean, rtol=1e-8, atol=1e-8)


def test_a_network_is_measured_where_it_is():
    """Early stopping is a choice: no retraining unasked, but no silence either."""
    case = mlp_classifier(num_inputs=20, num_hidden=60, num_classes=10, num_obs=100)
    theta = 0.1 * torch.randn(case.flat.size)
    start = map_guide_at_theta(case, theta)
    with pytest.warns(UserWarning, match="(?i)decrement"):
        guide = pl.fit_laplace(case.model, case.data, start, structure="diag")
    assert_close(case.flat.unconstrain(guide.median()), theta)


# --- nothing of the user's is left changed --------------------------------------------------------


def snapshot() -> dict:
    """The global things a library call could change, by value."""
    return {
        "params": {name: value.detach().clone() for name, value in pyro.get_param_store().items()},
        "rng": torch.get_rng_state(),
        "settings": pyro.settings.get(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "num_handlers": len(poutine.runtime._PYRO_STACK),
    }


def assert_unchanged(before: dict) -> None:
    after = snapshot()
    assert after["params"].keys() == before["params"].keys()
    assert_close(after["params"], before["params"], rtol=0, atol=0)
    assert torch.equal(after["rng"], before["rng"])
    for name in ("settings", "dtype", "grad", "num_handlers"):
        assert after[name] == before[name]


GOOD_OPTIONS = [{}, {"polish": False}, {"polish": True}, {"structure": "diag"}]
BAD_OPTIONS = [
    {"structure": "dense"},
    {"subset": "nope*"},
    {"on_not_a_mode": "raise", "polish": False},
]


@pytest.mark.parametrize("options", [*GOOD_OPTIONS, *BAD_OPTIONS], ids=str)
@pytest.mark.parametrize("make", [linear_unknown_noise, hierarchical, mlp_classifier, pyro_module_classifier])
def test_fit_laplace_changes_nothing(make, options, param_mode):
    """Given a map guide it only inspects, the random state included."""
    case = make()
    pyro.param("of the user's", torch.tensor(3.0))
    start = map_guide_at_theta(case, 0.3 * torch.ones(case.flat.size))
    own = {name: value.detach().clone() for name, value in start.median(*case.data).items()}
    before = snapshot()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if options in BAD_OPTIONS:
            with pytest.raises(pl.LaplaceError):
                pl.fit_laplace(case.model, case.data, start, **options)
        else:
            pl.fit_laplace(case.model, case.data, start, **options)
    assert_unchanged(before)
    assert_close(start.median(*case.data), own, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in start.parameters())


@pytest.mark.parametrize("validate", [True, False])
def test_validation_stays_as_the_user_set_it(validate):
    x, y = linear_data()
    with pyro.validation_enabled(validate):
        before = pyro.settings.get()
        pl.fit_laplace(linear_model(), (x, y))
        assert pyro.settings.get() == before
        with pytest.raises(pl.LaplaceError):
            pl.fit_laplace(discrete_latent, (x, y))
        assert pyro.settings.get() == before


class Broken(Exception):
    """Raised by a user's program."""


def breaks_on_its(call: int):
    """A program that raises on a later call."""
    calls = iter(range(10_000))
    inner = linear_unknown_noise().model

    def model(x, y=None):
        if next(calls) >= call:
            raise Broken
        return inner(x, y)

    return model


@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_exception_in_the_program_changes_nothing(call):
    """The call number 0 sets up the map guide; the others are the package's."""
    x, y = linear_data()
    model = breaks_on_its(call)
    start = map_guide_at(model, {"w": torch.ones(3), "sigma": torch.tensor(1.0)}, x, y)
    before = snapshot()
    with pytest.raises(Broken):
        pl.fit_laplace(model, split((x, y), 10), start)
    assert_unchanged(before)


def test_exception_in_training_leaves_the_settings():
    x, y = linear_data()
    model = breaks_on_its(20)
    before = snapshot()
    with pytest.raises(Broken):
        pl.fit_map(model, split((x, y), 10))
    after = snapshot()
    for name in ("settings", "dtype", "grad", "num_handlers"):
        assert after[name] == before[name]


def test_entries_of_the_param_store_survive_training():
    pyro.param("of the user's", torch.tensor(3.0))
    pl.fit_laplace(linear_model(), linear_data())
    assert_close(pyro.param("of the user's").detach(), torch.tensor(3.0), rtol=0, atol=0)


class NetWithModes(BayesianNet):
    """A net that has more in it than weights: a dropout, a buffer, a part in another mode than the rest."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.0)
        self.register_buffer("centre", torch.tensor([0.1, 0.2, 0.3]))

    def forward(self, x, y=None):
        return super().forward(self.dropout(x - self.centre), y)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_module_is_left_as_it_was(training, fails):
    """Train or eval mode of every part, buffers, and the `PyroSample`s themselves."""
    x, y = mlp_classifier().data
    net = NetWithModes().train(training)
    net.hidden.train(not training)
    start = map_guide_at(net, {}, x, y)
    modes = {name: module.training for name, module in net.named_modules()}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    options = {"polish": False, "on_not_a_mode": "raise" if fails else "ignore"}
    if fails:
        with pytest.raises(pl.NotAMode):
            pl.fit_laplace(net, (x, y), start, **options)
    else:
        pl.fit_laplace(net, (x, y), start, **options)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert_close(dict(net.state_dict()), state, rtol=0, atol=0)
    assert not torch.equal(net.hidden.weight, net.hidden.weight)  # still drawn anew at each look


def test_data_are_left_as_they_were():
    x, y = linear_data()
    copies = x.clone(), y.clone()
    pl.fit_laplace(linear_model(), (x, y))
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
    assert not x.requires_grad
