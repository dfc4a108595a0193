"""Learned scales: which `pyro.param`s a program has, and that it is the program with their values written in."""

import copy
import pickle
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.zoo import generator
from pyro import poutine
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import constraints

import pyro_laplace as pl
from pyro_laplace.nn.scale import check_initial, check_name
from pyro_laplace.nn.select import _as_prior

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore:.*hyperparameter")]


def mlp(**options) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4, **options), nn.Tanh(), nn.Linear(4, 1, **options))


def data(num_obs=30):
    g = generator()
    x = torch.randn(num_obs, 3, generator=g)
    return x, torch.sin(x[:, 0]) + 0.1 * torch.randn(num_obs, generator=g)


def sites(model, *args) -> dict:
    return dict(poutine.trace(model).get_trace(*args).nodes)


def params(model, *args) -> dict[str, torch.Tensor]:
    """The values of the learned scales of one run."""
    nodes = sites(model, *(args or data()))
    return {name: node["value"].detach() for name, node in nodes.items() if node["type"] == "param"}


def std_of(node) -> torch.Tensor:
    return node["fn"].base_dist.scale.detach()


# --- which params there are -------------------------------------------------------------------------

LEARNED = pl.nn.learned(0.7)

PRIORS = {
    "isotropic": (pl.nn.Isotropic(LEARNED), {"weight.scale": (), "bias.scale": ()}),
    "fan_in": (pl.nn.FanIn(LEARNED), {"weight.gain": (), "bias.gain": ()}),
    "fan_in bias": (pl.nn.FanIn(bias_std=LEARNED), {"bias.scale": ()}),
    "ard": (pl.nn.ARD(LEARNED), {"weight.scale": "in"}),
    "ard bias": (pl.nn.ARD(1.0, bias_std=LEARNED), {"bias.scale": ()}),
    "student": (pl.nn.StudentT(4.0, LEARNED), {"weight.scale": (), "bias.scale": ()}),
    "mixture": (
        pl.nn.ScaleMixture(dist.HalfCauchy(1.0), shared=LEARNED), {"weight.shared": (), "bias.shared": ()},
    ),
    "horseshoe": (pl.nn.Horseshoe(LEARNED), {"weight.scale": (), "bias.scale": ()}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", PRIORS)
def test_a_param_for_each_parameter(kind, dtype):
    prior, expected = PRIORS[kind]
    model = pl.bayesianize(mlp(dtype=dtype), prior)
    assert not list(pyro.get_param_store().keys())
    found = params(model, torch.randn(5, 3, dtype=dtype))
    inputs = {"0": 3, "2": 4}
    shapes = {
        f"{layer}.{name}": (inputs[layer],) if shape == "in" else shape
        for layer in inputs
        for name, shape in expected.items()
    }
    assert {name: tuple(value.shape) for name, value in found.items()} == shapes
    assert all(value.dtype == dtype for value in found.values())
    assert all(torch.allclose(value, torch.full_like(value, 0.7)) for value in found.values())
    held = pyro.get_param_store().get_state()["constraints"]
    assert {name: held[name] for name in shapes} == dict.fromkeys(shapes, constraints.positive)


@pytest.mark.parametrize("kind", PRIORS)
def test_the_log_prior_depends_on_it(kind):
    """That makes it a hyperparameter: the local scales of a mixture leave the density of `raw` as it is."""
    trace = poutine.trace(pl.bayesianize(mlp(), PRIORS[kind][0])).get_trace(data()[0])
    free = [pyro.param(name).unconstrained() for name in trace.param_nodes]
    grads = torch.autograd.grad(trace.log_prob_sum(), free)
    assert all(bool((grad != 0).all()) for grad in grads)


def test_a_name_is_shared():
    model = pl.bayesianize(mlp(), pl.nn.Isotropic(pl.nn.learned(0.5, name="std")))
    assert list(params(model, data()[0])) == ["std"]
    pyro.get_param_store()["std"] = torch.tensor(2.0)
    nodes = sites(model, data()[0])
    assert all((std_of(nodes[name]) == 2.0).all() for name in model.priors)


def test_names_follow_those_of_the_sites():
    prefixed = pl.bayesianize(mlp(), pl.nn.FanIn(LEARNED), pl.nn.Regression(LEARNED), name="encoder", parameters="0.*")
    assert list(params(prefixed)) == ["encoder.0.weight.gain", "encoder.0.bias.gain", "noise"]

    class Outer(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = pl.bayesianize(mlp(), {"2.weight": pl.nn.Isotropic(LEARNED)})

        def forward(self, x):
            return self.net(x)

    assert list(params(Outer(), data()[0])) == ["net.2.weight.scale"]


def test_the_gain_is_over_the_root_of_the_fan_in():
    nodes = sites(pl.bayesianize(mlp(), pl.nn.FanIn(pl.nn.learned(1.5))), data()[0])
    for name, fan_in in {"0.weight": 3, "0.bias": 3, "2.weight": 4, "2.bias": 4}.items():
        std = std_of(nodes[name])
        torch.testing.assert_close(std, torch.full_like(std, 1.5 / fan_in**0.5), rtol=1e-14, atol=0)


def test_each_input_has_its_scale():
    given = torch.tensor([0.1, 1.0, 2.0])
    model = pl.bayesianize(nn.Linear(3, 2), pl.nn.ARD(pl.nn.learned(given)))
    std = std_of(sites(model, data()[0])["weight"])
    torch.testing.assert_close(std, given.expand(2, 3), rtol=1e-14, atol=0)
    pyro.get_param_store()["weight.scale"] = torch.tensor([3.0, 4.0, 5.0])
    assert torch.equal(std_of(sites(model, data()[0])["weight"])[1], pyro.param("weight.scale").detach())


def test_noise_may_have_one_for_each_output():
    model = pl.bayesianize(nn.Linear(3, 2), pl.nn.Isotropic(1.0), pl.nn.Regression(pl.nn.learned(torch.ones(2))))
    assert {name: tuple(value.shape) for name, value in params(model, data()[0]).items()} == {"noise": (2,)}
    named = pl.bayesianize(nn.Linear(3, 1), pl.nn.Isotropic(1.0), pl.nn.Regression(pl.nn.learned(name="sigma")))
    assert list(params(named)) == ["sigma"]


def test_the_programs_dtype_may_change():
    model = pl.bayesianize(mlp(), pl.nn.FanIn(LEARNED), pl.nn.Regression(LEARNED))
    model(data()[0])
    nodes = sites(model.float(), data()[0].float())
    assert {node["value"].dtype for node in nodes.values() if node["type"] == "sample" and node["name"] != "data"} == {
        torch.float32
    }


# --- the same program as with numbers ---------------------------------------------------------------


def by_layer(net, noise, scale):
    prior = {"0.weight": pl.nn.ARD(scale), "0.*": pl.nn.Isotropic(scale), "*": pl.nn.FanIn(scale)}
    return pl.bayesianize(net, prior, pl.nn.Regression(noise))


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_the_posterior_is_that_of_the_number_written_in(structure):
    net = mlp()
    number, learnt = (by_layer(net, *each) for each in ((0.3, 0.8), (pl.nn.learned(0.3), pl.nn.learned(0.8))))
    point = pl.fit_map(number, data(), progress=False)
    expected, found = (
        pl.fit_laplace(each, data(), point, structure=structure, progress=False) for each in (number, learnt)
    )
    torch.testing.assert_close(found.precision.to_dense(), expected.precision.to_dense(), rtol=1e-10, atol=1e-10)
    assert found.log_evidence == pytest.approx(expected.log_evidence, abs=1e-9)
    assert list(params(learnt)) == ["0.weight.scale", "0.bias.scale", "2.weight.gain", "2.bias.gain", "noise"]


def test_fitted_along_with_the_mode_is_the_noise_alone():
    learnt = by_layer(mlp(), pl.nn.learned(0.8), pl.nn.learned(0.8))
    guide = pl.fit_laplace(learnt, data(), progress=False)
    assert guide.mode.is_mode
    found = params(learnt)
    assert found.pop("noise") < 0.3
    assert all(torch.allclose(value, torch.tensor(0.8)) for value in found.values())


MIXTURES = {
    "mixture": lambda scale: pl.nn.ScaleMixture(dist.HalfNormal(1.0), shared=scale),
    "horseshoe": pl.nn.Horseshoe,
    "student": lambda scale: pl.nn.StudentT(4.0, scale),
}


@pytest.mark.parametrize("kind", MIXTURES)
def test_mixtures_have_the_density_of_the_number_written_in(kind):
    net, (x, y) = nn.Linear(3, 1, bias=False), data()
    learnt, number = (pl.bayesianize(net, MIXTURES[kind](s), pl.nn.Regression(0.3)) for s in (LEARNED, 0.7))
    drawn = poutine.trace(number).get_trace(x, y)
    values = {name: drawn.nodes[name]["value"] for name in drawn.stochastic_nodes if name != "data"}
    expected = drawn.log_prob_sum()
    if kind == "mixture":  # its raw values are those of the number times the scale: so much for dx
        values["weight.raw"] = 0.7 * values["weight.raw"]
        expected = expected - 3 * torch.tensor(0.7).log()
    nodes = poutine.trace(poutine.condition(learnt, data=values)).get_trace(x, y)
    torch.testing.assert_close(nodes.log_prob_sum().detach(), expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(nodes.nodes["weight"]["value"], drawn.nodes["weight"]["value"], rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", PRIORS)
def test_the_search_starts_at_the_networks_weights(kind):
    net = mlp()
    model = pl.bayesianize(net, PRIORS[kind][0])
    nodes = sites(pyro.infer.autoguide.initialization.InitMessenger(pl.init_to_start)(model), data()[0])
    for name, weight in net.named_parameters():
        torch.testing.assert_close(nodes[name]["value"], weight, rtol=1e-14, atol=1e-14)


def test_a_random_gain_is_non_centred():
    net, (x, y) = nn.Linear(3, 1, bias=False), data()
    model = pl.bayesianize(net, pl.nn.FanIn(dist.HalfNormal(1.0)), pl.nn.Regression(0.5))

    def by_hand(x, y=None):
        gain = pyro.sample("weight.gain", dist.HalfNormal(1.0))
        w = gain / 3**0.5 * pyro.sample("weight.raw", dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal((x @ w.T)[:, 0], 0.5), obs=y)

    trace = poutine.trace(by_hand).get_trace(x, y)
    values = {name: trace.nodes[name]["value"] for name in ("weight.gain", "weight.raw")}
    other = poutine.trace(poutine.condition(model, data=values)).get_trace(x, y)
    torch.testing.assert_close(other.log_prob_sum(), trace.log_prob_sum(), rtol=1e-12, atol=0)


def test_scales_of_every_kind_where_numbers_were():
    def half():
        return torch.tensor(0.5)

    for scale in (0.5, half, pl.nn.learned(0.5)):
        for prior in (pl.nn.FanIn(scale, bias_std=scale), pl.nn.ARD(scale, bias_std=scale)):
            pyro.clear_param_store()
            nodes = sites(pl.bayesianize(nn.Linear(4, 1), prior), torch.randn(2, 4))
            std = 0.25 if isinstance(prior, pl.nn.FanIn) else 0.5
            assert torch.allclose(std_of(nodes["weight"]), torch.tensor(std))
            assert torch.allclose(std_of(nodes["bias"]), torch.tensor(0.5))
        pyro.clear_param_store()
        shared = sites(pl.bayesianize(nn.Linear(4, 1), pl.nn.Horseshoe(scale)), torch.randn(2, 4))["weight.shared"]
        assert torch.allclose(shared["fn"].scale, torch.tensor(0.5))
    random = pl.bayesianize(nn.Linear(4, 1), pl.nn.ARD(1.0, bias_std=dist.HalfNormal(1.0)))
    assert poutine.trace(random).get_trace(torch.randn(2, 4)).stochastic_nodes == ["weight", "bias.scale", "bias.raw"]


def test_copies_and_pickles_are_the_same_program():
    batch = data()
    model = pl.bayesianize(mlp(), pl.nn.FanIn(LEARNED), pl.nn.Regression(pl.nn.learned(torch.tensor(0.3))))
    values = {name: value.detach() for name, value in mlp().named_parameters()}
    pyro.get_param_store()["2.weight.gain"] = torch.tensor(1.5)

    def log_joint(program):
        return poutine.trace(poutine.condition(program, data=values)).get_trace(*batch).log_prob_sum()

    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(log_joint(again), log_joint(model), rtol=0, atol=0)


# --- Pyro's two modes -------------------------------------------------------------------------------


def test_both_of_pyros_modes(param_mode):
    net, batch = mlp(), data()
    model = pl.bayesianize(net, pl.nn.FanIn(LEARNED), pl.nn.Regression(pl.nn.learned(0.3)))
    number = pl.bayesianize(net, pl.nn.FanIn(0.7), pl.nn.Regression(0.3))
    assert model(batch[0]).shape == (30,)
    assert ("noise" in pyro.get_param_store()) != param_mode
    point = pl.fit_map(number, batch, progress=False)
    expected, found = (
        pl.fit_laplace(each, batch, point, progress=False).precision.to_dense() for each in (number, model)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    again = copy.deepcopy(model)
    assert again(batch[0]).shape == (30,)
    assert set(params(again)) == set(params(model))
    assert len(model.scales) == (5 if param_mode else 0)


def test_both_of_pyros_modes_inside_another_module(param_mode):
    class Sum(PyroModule):
        def __init__(self):
            super().__init__()
            self.left = pl.bayesianize(nn.Linear(3, 1), pl.nn.Isotropic(pl.nn.learned(name="std")))
            self.right = pl.bayesianize(nn.Linear(3, 1), pl.nn.FanIn(LEARNED))

        def forward(self, x):
            return self.left(x) + self.right(x)

    model = Sum()
    for _ in range(2):
        assert model(data()[0]).shape == (30, 1)
    assert set(params(model, data()[0])) == {"std", "right.weight.gain", "right.bias.gain"}


# --- what the store holds ---------------------------------------------------------------------------


def test_what_the_store_holds_is_warned_of():
    prior, likelihood = pl.nn.Isotropic(LEARNED), pl.nn.Regression(pl.nn.learned(0.3))
    model = pl.bayesianize(mlp(), prior, likelihood)
    model(data()[0])
    pl.bayesianize(mlp(), prior, likelihood)  # what it holds is what this program starts from
    pyro.get_param_store()["0.weight.scale"] = torch.tensor(2.0)
    pyro.get_param_store()["noise"] = torch.tensor(0.1)
    with pytest.warns(pl.LaplaceWarning) as caught:
        pl.bayesianize(mlp(), prior, likelihood)
    (warning,) = caught
    message = str(warning.message)
    assert re.search(r"holds \['0.weight.scale', 'noise'\]", message)
    assert "pyro.clear_param_store()" in message
    assert "give name=" in message
    assert pyro.param("noise").item() == pytest.approx(0.1)
    pl.bayesianize(mlp(), prior, name="second")


# --- refusals ---------------------------------------------------------------------------------------

REFUSED = {
    "zero": (lambda: pl.nn.learned(0.0), "learned: initial=0.0 is not positive and finite"),
    "infinite": (lambda: pl.nn.learned(float("inf")), "learned: initial=inf is not positive"),
    "tensor": (lambda: pl.nn.learned(torch.tensor([1.0, -1.0])), "is not positive"),
    "type": (lambda: check_initial("1"), "learned: initial='1' is not a number or tensor"),
    "distribution": (lambda: check_initial(dist.HalfNormal(1.0)), "learned: initial=HalfNormal() is not a number"),
    "name": (lambda: pl.nn.learned(name=""), "learned: name='' is not a name"),
    "name type": (lambda: check_name(1), "learned: name=1 is not a name"),
    "widths": (
        lambda: pl.bayesianize(mlp(), pl.nn.ARD(pl.nn.learned(name="std"))),
        "learned: the param 'std' has shape [3], and as '2.weight.scale' it needs the shape [4]: leave name= out",
    ),
    "initial": (
        lambda: pl.bayesianize(
            mlp(), pl.nn.Isotropic(pl.nn.learned(2.0, name="std")), pl.nn.Regression(pl.nn.learned(0.1, name="std"))
        ),
        "learned: the param 'std' has two initial values, 2.0 and 0.1",
    ),
    "inputs": (
        lambda: pl.bayesianize(mlp(), pl.nn.ARD(pl.nn.learned(torch.ones(3)))),
        "ARD: scale has shape [3], and parameter '2.weight' has 4 inputs",
    ),
    "prior": (lambda: _as_prior("prior", LEARNED), "prior=Learned(initial=0.7, name=None) is no prior"),
    "horseshoe": (
        lambda: pl.nn.Horseshoe(dist.HalfNormal(1.0)),
        "Horseshoe: a random scale= is not supported: use pl.nn.ScaleMixture",
    ),
    "local": (lambda: pl.nn.ScaleMixture(LEARNED), "is not a distribution of positive numbers"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_name_what_was_given(kind):
    call, message = REFUSED[kind]
    with pytest.raises(pl.InvalidOption, match=re.escape(message)):
        call()


def test_two_scales_of_one_name_may_start_alike():
    one, other = pl.nn.learned(torch.tensor(0.5), name="std"), pl.nn.learned(0.5, name="std")
    model = pl.bayesianize(mlp(), {"0.*": pl.nn.Isotropic(one), "*": pl.nn.Isotropic(other)})
    assert list(params(model, data()[0])) == ["std"]
