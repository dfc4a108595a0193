"""The priors of `pyro_laplace.nn` against hand-computed scales, and every refusal."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.distributions import constraints

import pyro_laplace as pl
from pyro_laplace.nn.convert import _refuse_likelihood, _refuse_module
from pyro_laplace.nn.priors import _check_number
from pyro_laplace.nn.scale import check_scale
from pyro_laplace.nn.select import _as_prior

pytestmark = pytest.mark.usefixtures("float64")


class Alone(nn.Module):
    """A layer whose parameters are looked at, not used."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return torch.zeros(())


def scales(layer, prior, **options) -> dict[str, torch.Tensor]:
    trace = poutine.trace(pl.bayesianize(Alone(layer), prior, **options)).get_trace()
    return {
        name.removeprefix("layer."): node["fn"].base_dist.scale
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
    }


FAN_IN = {
    "linear": (lambda: nn.Linear(5, 3), {"weight": 5, "bias": 5}),
    "bilinear": (lambda: nn.Bilinear(2, 3, 4), {"weight": 6, "bias": 6}),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), {"weight": 12, "bias": 12}),
    "conv2d_groups": (lambda: nn.Conv2d(4, 6, (3, 5), groups=2), {"weight": 30, "bias": 30}),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, (3, 5)), {"weight": 60, "bias": 60}),
    "transposed_groups": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), {"weight": 6, "bias": 6}),
    "embedding": (lambda: nn.Embedding(11, 3), {"weight": 1}),
    "attention": (
        lambda: nn.MultiheadAttention(6, 2),
        {"in_proj_weight": 6, "in_proj_bias": 6, "out_proj.weight": 6, "out_proj.bias": 6},
    ),
    "gru": (
        lambda: nn.GRU(3, 5), {"weight_ih_l0": 3, "weight_hh_l0": 5, "bias_ih_l0": 3, "bias_hh_l0": 5},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAN_IN)
def test_fan_in(kind):
    make, expected = FAN_IN[kind]
    found = scales(make(), pl.nn.FanIn(gain=1.5))
    assert found.keys() == expected.keys()
    for name, number in expected.items():
        torch.testing.assert_close(found[name], torch.full_like(found[name], 1.5 / number**0.5), rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", ["linear", "conv2d_groups", "transposed"])
def test_fan_in_keeps_the_variance_of_its_inputs(kind):
    """Away from the borders an output sums fan_in terms of variance 1 / fan_in."""
    layer = FAN_IN[kind][0]()
    model = pl.bayesianize(layer, pl.nn.FanIn(), parameters="weight")
    size = {"linear": (5,), "conv2d_groups": (4, 3, 5), "transposed": (4, 7, 9)}[kind]
    x = torch.randn(1000, *size)
    layer.bias.data.zero_()
    model.module.bias.data.zero_()
    with torch.no_grad():
        out = torch.stack([model(x) for _ in range(50)])
    middle = out[..., 4, 6] if kind == "transposed" else out
    assert middle.var() == pytest.approx(1.0, abs=0.15)


def test_fan_in_biases_may_have_a_scale_of_their_own():
    found = scales(nn.Linear(4, 3), pl.nn.FanIn(bias_std=2.0))
    assert (found["weight"] == 0.5).all()
    assert (found["bias"] == 2.0).all()


@pytest.mark.parametrize(
    ("make", "axis", "size"),
    [
        (lambda: nn.Linear(5, 3), 1, 5),
        (lambda: nn.Conv2d(4, 6, 3), 1, 4),
        (lambda: nn.ConvTranspose2d(4, 6, 3), 0, 4),
        (lambda: nn.Embedding(5, 3), 0, 5),
    ],
)
def test_ard_has_a_scale_for_each_input(make, axis, size):
    layer, scale = make(), 0.1 + torch.rand(size)
    found = scales(layer, pl.nn.ARD(scale, bias_std=3.0))
    by_input = found["weight"].movedim(axis, -1)
    assert torch.equal(by_input, scale.expand(by_input.shape))
    assert "bias" not in found or (found["bias"] == 3.0).all()


def test_ard_stays_exact_in_a_kronecker_product():
    x, y, scale = torch.randn(20, 3), torch.randn(20), torch.tensor([0.3, 1.0, 2.0])
    model = pl.bayesianize(nn.Linear(3, 1), pl.nn.ARD(scale), pl.nn.Regression(0.5))
    kron, full = (pl.fit_laplace(model, (x, y), structure=s, progress=False) for s in ("kron", "full"))
    torch.testing.assert_close(kron.precision.to_dense(), full.precision.to_dense(), rtol=1e-9, atol=1e-9)


def by_hand(prior, net):
    """Sites of a weight [1, 3] with a random scale, written out; the value is the last."""
    if isinstance(prior, pl.nn.ARD):
        scale = pyro.sample("weight.scale", dist.HalfCauchy(1.0).expand([3]).to_event(1))
    elif isinstance(prior, pl.nn.Isotropic):
        scale = pyro.sample("weight.scale", dist.HalfCauchy(1.0))
    else:
        shared = pyro.sample("weight.shared", dist.HalfCauchy(0.5))
        scale = shared * pyro.sample("weight.local", dist.HalfCauchy(1.0).expand([1, 3]).to_event(2))
    return scale * pyro.sample("weight.raw", dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))


RANDOM = {
    "isotropic": pl.nn.Isotropic(dist.HalfCauchy(1.0)),
    "ard": pl.nn.ARD(dist.HalfCauchy(1.0)),
    "horseshoe": pl.nn.Horseshoe(0.5),
    "mixture": pl.nn.ScaleMixture(dist.HalfCauchy(1.0), shared=dist.HalfCauchy(0.5)),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_random_scales_are_the_non_centred_program(kind):
    prior, x, y = RANDOM[kind], torch.randn(30, 3), torch.randn(30)
    model = pl.bayesianize(nn.Linear(3, 1, bias=False), prior, pl.nn.Regression(0.5))

    def program(x, y=None):
        w = by_hand(prior, None)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal((x @ w.T)[:, 0], 0.5), obs=y)

    trace = poutine.trace(program).get_trace(x, y)
    values = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes if name != "data"}
    other = poutine.trace(poutine.condition(model, data=values)).get_trace(x, y)
    torch.testing.assert_close(other.log_prob_sum(), trace.log_prob_sum(), rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("kind", RANDOM)
def test_random_scales_have_a_mode(kind, structure):
    x = torch.randn(60, 3)
    y = 2 * x[:, 0] + 0.3 * torch.randn(60)
    model = pl.bayesianize(nn.Linear(3, 1, bias=False), RANDOM[kind], pl.nn.Regression(0.3))
    guide = pl.fit_laplace(model, (x, y), structure=structure, on_not_a_mode="raise", progress=False)
    assert torch.isfinite(torch.tensor(guide.log_evidence))
    with torch.no_grad():
        at_mode = poutine.trace(poutine.condition(model, data=guide.median())).get_trace(x, y)
    weight = at_mode.nodes["weight"]["value"]
    assert all(draw.isfinite().all() for draw in guide.sample_posterior(100).values())
    torch.testing.assert_close(weight[0], torch.tensor([2.0, 0.0, 0.0]), rtol=0, atol=0.15)


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
def test_the_horseshoe_shrinks_noise_more_than_signal():
    x = torch.randn(60, 3)
    y = 2 * x[:, 0] + 0.3 * torch.randn(60)
    model = pl.bayesianize(nn.Linear(3, 1, bias=False), pl.nn.Horseshoe(0.5), pl.nn.Regression(0.3))
    local = pl.fit_laplace(model, (x, y), progress=False).median()["weight.local"][0]
    assert local[0] > 1.5 * local[1:].max()


def test_student_t_and_functions():
    trace = poutine.trace(pl.bayesianize(nn.Linear(3, 2), pl.nn.StudentT(4.0, 0.5))).get_trace(torch.ones(1, 3))
    expected = dist.StudentT(4.0, 0.0, 0.5).log_prob(trace.nodes["weight"]["value"]).sum()
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["weight"]["log_prob_sum"], expected, rtol=1e-13, atol=0)
    std = lambda: pyro.param("std", torch.tensor(0.4), constraint=constraints.positive)  # noqa: E731
    model = pl.bayesianize(nn.Linear(3, 2), {"weight": pl.nn.Isotropic(std)})
    assert (poutine.trace(model).get_trace(torch.ones(1, 3)).nodes["weight"]["fn"].base_dist.scale == 0.4).all()


def test_a_distribution_takes_dtype_and_shape_of_its_parameter():
    net = nn.Linear(3, 2, dtype=torch.float32)
    given = dist.Normal(0.0, torch.tensor([1.0, 2.0, 3.0]))
    trace = poutine.trace(pl.bayesianize(net, {"weight": lambda name, p: given})).get_trace(torch.ones(1, 3).float())
    fn = trace.nodes["weight"]["fn"]
    assert fn.event_shape == (2, 3)
    assert trace.nodes["weight"]["value"].dtype == torch.float32
    assert given.scale.dtype == torch.float64


# --- refusals ---------------------------------------------------------------------------------------


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


ONE = pl.nn.Isotropic(1.0)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, 2))

    def forward(self, x):
        return x @ self.w


def frozen():
    return net().requires_grad_(False)


REFUSED = {
    "module": (lambda: _refuse_module(torch.relu), "module is a builtin_function_or_method: give an nn.Module"),
    "pyro module": (
        lambda: pl.bayesianize(pl.bayesianize(net(), ONE), ONE), "has Pyro statements of its own",
    ),
    "lazy": (lambda: pl.bayesianize(nn.LazyLinear(3), ONE), "['weight', 'bias'] have no shape yet"),
    "no parameters": (lambda: pl.bayesianize(nn.Tanh(), ONE), "the Tanh has no parameters"),
    "frozen": (
        lambda: pl.bayesianize(frozen(), ONE),
        "'0.weight' requires no gradient, '0.bias' requires no gradient, '1.weight' belongs to a normalisation layer",
    ),
    "prior": (lambda: _as_prior("prior", 1.0), "prior=1.0 is no prior: give one of pl.nn"),
    "prior class": (lambda: _as_prior("prior", pl.nn.Isotropic), "is no prior"),
    "distribution": (lambda: pl.bayesianize(net(), {"*": dist.Normal(0.0, 1.0)}), "prior['*']=Normal"),
    "glob": (
        lambda: pl.bayesianize(net(), {"3.*": ONE}),
        "prior: '3.*' matches none of ['0.weight', '0.bias', '2.weight', '2.bias']",
    ),
    "norm glob": (
        lambda: pl.bayesianize(net(), {"1.*": ONE}), "'1.weight' belongs to a normalisation layer",
    ),
    "none left": (lambda: pl.bayesianize(net(), {"*": None}), "gives none of the parameters"),
    "parameters": (
        lambda: pl.bayesianize(net(), ONE, parameters="lora*"), "parameters: 'lora*' matches none of ['0.weight'",
    ),
    "parameters empty": (lambda: pl.bayesianize(net(), ONE, parameters=[]), "parameters is empty"),
    "parameters callable": (
        lambda: pl.bayesianize(net(), ONE, parameters=lambda name: False), "the callable chose none of ['0.weight'",
    ),
    "rest": (lambda: pl.bayesianize(net(), ONE, rest="free"), "rest='free' is not one of 'fixed', 'trained'"),
    "likelihood": (lambda: _refuse_likelihood("regression"), "likelihood='regression' is no likelihood"),
    "returns": (
        lambda: pl.bayesianize(net(), lambda name, p: 1.0),
        "the prior of parameter '0.weight' is a function that returned a float",
    ),
    "shape": (
        lambda: pl.bayesianize(net(), lambda name, p: dist.Normal(torch.zeros(7), 1.0)),
        "the prior of parameter '0.weight' has shape [7], which does not broadcast to the parameter's [4, 3]",
    ),
    "support": (
        lambda: pl.bayesianize(net(), lambda name, p: dist.HalfNormal(1.0)),
        "the prior of '0.weight' has the support",
    ),
    "std": (lambda: pl.nn.Isotropic(-1.0), "Isotropic: std=-1.0 is not positive"),
    "std type": (lambda: check_scale("Isotropic: std", "1"), "Isotropic: std='1' is none of a positive number"),
    "std support": (lambda: pl.nn.Isotropic(dist.Normal(0.0, 1.0)), "a scale is positive"),
    "gain": (lambda: pl.nn.FanIn(gain=0.0), "FanIn: gain=0.0 is not positive"),
    "gain type": (lambda: _check_number("FanIn: gain", dist.HalfNormal(1.0)), "gain=HalfNormal() is not a number"),
    "df": (lambda: pl.nn.StudentT(0.0), "StudentT: df=0.0 is not positive"),
    "student scale": (lambda: pl.nn.StudentT(4.0, dist.HalfNormal(1.0)), "use pl.nn.ScaleMixture"),
    "horseshoe": (lambda: pl.nn.Horseshoe(-1.0), "Horseshoe: scale=-1.0 is not positive"),
    "mixture": (lambda: pl.nn.ScaleMixture(1.0), "ScaleMixture: local=1.0 is not a distribution"),
    "noise": (lambda: pl.nn.Regression(noise=0.0), "Regression: noise=0.0 is not positive"),
    "fan-in": (
        lambda: pl.bayesianize(Custom(), pl.nn.FanIn()),
        "FanIn: the fan-in of parameter 'w' of a Custom is not known. Give it another prior: prior={'w':",
    ),
    "ard": (
        lambda: pl.bayesianize(net(), pl.nn.ARD(torch.ones(3))),
        "ARD: scale has shape [3], and parameter '2.weight' has 4 inputs",
    ),
    "ard layer": (lambda: pl.bayesianize(Custom(), pl.nn.ARD(1.0)), "ARD: the input axis of parameter 'w'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_name_what_was_given(kind):
    call, message = REFUSED[kind]
    with pytest.raises((pl.InvalidOption, pl.UnsupportedProgram), match=re.escape(message)):
        call()


def test_a_module_that_cannot_be_copied_is_refused():
    module = nn.Linear(3, 1)
    module.extra = module.weight * 2
    with pytest.raises(pl.UnsupportedProgram, match="the Linear cannot be copied"):
        pl.bayesianize(module, ONE)


def test_trained_params_do_not_take_what_the_store_holds():
    batch = torch.randn(8, 3), torch.randn(8)
    given = net()
    options = {"parameters": "2.*", "rest": "trained"}
    pl.fit_map(pl.bayesianize(given, ONE, pl.nn.Regression(0.1), **options), batch, num_steps=1, progress=False)
    with pytest.raises(pl.InvalidOption, match=re.escape("already holds ['0.bias', '0.weight', '1.bias', '1.weight']")):
        pl.bayesianize(given, ONE, pl.nn.Regression(0.1), **options)
    pl.bayesianize(given, ONE, pl.nn.Regression(0.1), name="second", **options)


WRONG_DATA = {
    "shape": (3, pl.nn.Regression(0.1), torch.ones(8), (), "y has shape [8], and its distribution [8, 3]"),
    "classes": (1, pl.nn.Classification(), torch.ones(8), (), "use pl.nn.BinaryClassification() for one logit"),
    "odd": (3, pl.nn.HeteroscedasticRegression(), torch.ones(8), (), "[n, 2 d], or two outputs"),
    "exposure": (1, pl.nn.Counts(), torch.ones(8), (torch.ones(3),), "exposure has shape [3], and the rates [8]"),
    "scalar": (1, lambda f: dist.Normal(f.sum(), 1.0), torch.ones(8), (), "whose first batch axis is the data's"),
    "nothing": (1, lambda f: f, torch.ones(8), (), "the likelihood gave"),
}


@pytest.mark.parametrize("kind", WRONG_DATA)
def test_data_that_do_not_fit_are_refused(kind):
    outputs, likelihood, y, args, message = WRONG_DATA[kind]
    model = pl.bayesianize(nn.Linear(3, outputs), ONE, likelihood)
    with pytest.raises((pl.InvalidData, pl.UnsupportedProgram), match=re.escape(message)):
        pl.fit_map(model, (torch.randn(8, 3), y, *args), progress=False)
