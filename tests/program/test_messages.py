"""What a model raises on data that it cannot take: the message says what of the data, and keeps torch's words."""

import re
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_says
from pyro import poutine
from torch import nn

import pyro_laplace as pl

N = 24


def inputs(columns=2):
    return torch.linspace(-1.0, 1.0, N * columns).reshape(N, columns)


Y = (torch.arange(N) % 2).float()
GROUP = torch.arange(N) % 4


def regression(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def grouped(x, group, y=None, count=4):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("groups", count):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w + u[group], 0.5), obs=y)


def net(*sizes):
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*layers[:-1], nn.Tanh(), layers[-1])


def program_of(module):
    return pl.bayesianize(module, prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.Regression(0.5))


class Inner(pyro.nn.PyroModule):
    """A program around a network that is not its own, with one latent site."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.features(x) @ w, 0.5), obs=y)


WRONG = {
    "no arguments": (regression, (), ["takes \\(x, y=None\\)", "model\\(\\)", "'x'"]),
    "too many": (regression, (inputs(), Y, Y), ["takes \\(x, y=None\\)", "too many"]),
    "another name": (regression, {"inputs": inputs(), "y": Y}, ["'inputs'|inputs=", "takes \\(x, y=None\\)"]),
    "another name, blocked": (
        poutine.block(regression, hide=["nothing"]),
        {"inputs": inputs(), "y": Y},
        ["inputs="],
    ),
    "a column too many": (
        regression,
        (inputs(3), Y),
        [r"argument 0 of shape \[24, 3\]", r"'w' \[2\]", "regression", "x @ w", "size mismatch"],
    ),
    "rows that differ": (grouped, (inputs(), GROUP[:20], Y), [r"\[24, 2\]", r"\[20\]", "grouped", "must match"]),
    "a group too many": (
        grouped,
        (inputs(), torch.arange(N) % 5, Y),
        ["argument 1", "number 4 at \\[4\\]", "'u'", "4 entries", "0 to 3"],
    ),
    "a group by name": (
        grouped,
        {"x": inputs(), "group": torch.arange(N) % 5, "y": Y},
        ["group of the data", "number 4", "'u'"],
    ),
    "float64 in float32": (
        Inner(net(3, 4, 2)),
        (inputs(3).double(), GROUP),
        ["argument 0", "torch.float64", "torch.float32", r"x\.float\(\)", r"net\.double\(\)"],
    ),
    "float32 in float64": (
        Inner(net(3, 4, 2).double()),
        (inputs(3), Y),
        ["argument 0", "torch.float64", "torch.float32", r"x\.double\(\)", r"net\.float\(\)"],
    ),
    "float32 in bfloat16": (
        Inner(net(3, 4, 2).bfloat16()),
        (inputs(3), Y),
        ["argument 0", "torch.float32", "torch.bfloat16", r"x\.bfloat16\(\)"],
    ),
    "whole numbers": (regression, (torch.ones(N, 2, dtype=torch.long), Y), ["argument 0", "int64", "float32"]),
}


@pytest.mark.parametrize("fit", [pl.fit_laplace, pl.fit_map])
@pytest.mark.parametrize("name", WRONG)
def test_what_of_the_data(name, fit):
    model, data, words = WRONG[name]
    with pytest.raises(pl.InvalidData) as caught:
        fit(model, data, progress=False)
    assert_says(caught, *words, "the model raised")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("data", [(inputs(3), GROUP), (inputs(3),), {"x": inputs(3), "y": GROUP}], ids=len)
def test_a_torch_network_is_no_program(data):
    with pytest.raises(pl.UnsupportedProgram) as caught:
        pl.fit_laplace(net(3, 4, 4), data, progress=False)
    assert_says(caught, "pl.bayesianize")


def test_a_module_with_pyro_statements_is_a_program():
    class Model(nn.Module):
        def forward(self, x, y=None):
            regression(x, y)

    assert pl.fit_laplace(Model(), (inputs(), Y), progress=False).mode.is_mode
    with pytest.raises(pl.InvalidData, match="shapes do not go together"):
        pl.fit_laplace(Model(), (inputs(3), Y), progress=False)


def test_data_parallel_is_named():
    with pytest.raises(pl.UnsupportedProgram) as caught:
        pl.fit_laplace(program_of(nn.DataParallel(net(3, 4, 1))), (inputs(3), Y), progress=False)
    assert_says(caught, "DataParallel", "net.module")


class Compiled(nn.Module):
    """As `torch.compile` wraps a module; compiling here takes a minute."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module

    def forward(self, x):
        torch._assert(False, "is already tracked for mutation")


def test_a_compiled_module_is_named():
    with pytest.raises(pl.UnsupportedProgram) as caught:
        pl.fit_laplace(Inner(Compiled(net(3, 4, 2))), (inputs(3), Y), progress=False)
    assert_says(caught, "torch.compile", "net._orig_mod")


def test_compiled_features_that_run_are_used():
    """A wrapper is no mistake where nothing fails."""

    class Harmless(Compiled):
        def forward(self, x):
            return self._orig_mod(x)

    features = net(3, 4, 2).requires_grad_(False).eval()
    found = pl.fit_laplace(Inner(Harmless(features)).eval(), (inputs(3), Y), progress=False)
    expected = pl.fit_laplace(Inner(features).eval(), (inputs(3), Y), progress=False)
    torch.testing.assert_close(found.covariance, expected.covariance)


# --- predictions ----------------------------------------------------------------------------------


@pytest.fixture
def groups():
    return pl.fit_laplace(grouped, (inputs(), GROUP, Y), progress=False)


PREDICT = {
    "linearised": lambda guide: pl.LinearizedPredictive(grouped, guide),
    "latent": lambda guide: pl.LinearizedPredictive(grouped, guide).latent,
    "drawn linearised": lambda guide: pl.LinearizedPredictive(grouped, guide).sample(5),
    "drawn": lambda guide: pl.Predictive(grouped, guide=guide, num_samples=5),
}


@pytest.mark.parametrize("kind", PREDICT)
def test_a_group_that_was_not_in_the_data(groups, kind):
    new = GROUP.clone()
    new[7] = 11
    with pytest.raises(pl.InvalidData) as caught:
        PREDICT[kind](groups)(inputs(), new)
    assert_says(caught, "argument 1", "number 11 at \\[7\\]", "'u'", "4 entries", "with_new_groups")


@pytest.mark.parametrize("kind", PREDICT)
def test_other_columns_at_a_prediction(groups, kind):
    with pytest.raises(pl.InvalidData) as caught:
        PREDICT[kind](groups)(inputs(3), GROUP)
    assert_says(caught, r"argument 0 of shape \[24, 3\]", r"'w' \[2\]")


# --- what is left as it is ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError("mine, of this size"), TypeError("mine"), RuntimeError("mine"), KeyError("shape")], ids=repr
)
def test_a_mistake_of_the_models_own(error):
    def broken(x, y=None):
        regression(x, y)
        raise error

    class Model(Inner):
        def forward(self, x, y=None):
            broken(x, y)

    for model in (broken, Model(nn.DataParallel(nn.Identity()))):
        with pytest.raises(type(error), match=re.escape(str(error))) as caught:
            pl.fit_laplace(model, (inputs(), Y), progress=False)
        assert caught.value is error


# --- sparse designs -------------------------------------------------------------------------------

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")
LAYOUTS = {"csr": torch.Tensor.to_sparse_csr, "csc": torch.Tensor.to_sparse_csc, "coo": torch.Tensor.to_sparse}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("structure", ["full", "diag"])
def test_a_sparse_input_of_a_linear_layer(layout, structure):
    """By the same numbers in a dense matrix."""
    x = inputs(3) * (torch.arange(3 * N).reshape(N, 3) % 3 > 0)
    model = program_of(nn.Linear(3, 1))
    point = {"weight": torch.tensor([[0.3, -0.2, 0.1]]), "bias": torch.tensor([0.2])}
    found, expected = (
        pl.fit_laplace(
            model, (each, Y), point, structure=structure, polish=False, on_not_a_mode="ignore", progress=False
        )
        for each in (LAYOUTS[layout](x), x)
    )
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_else_is_done_to_a_sparse_input_is_named(layout):
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal((x + w).sum(-1), 0.5), obs=y)

    with pytest.raises(pl.UnsupportedProgram) as caught:
        pl.fit_laplace(model, (LAYOUTS[layout](inputs()), Y), progress=False)
    assert_says(caught, r"\[24, 2\]", "sparse", "add", r"x\.to_dense\(\)")


# --- obs_mask -------------------------------------------------------------------------------------


def test_inputs_without_the_mask_of_the_fit():
    """The site has the name that the user gave it, and not that of a half of it."""

    def model(x, y=None, mask=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y, obs_mask=mask)

    mask = torch.arange(N) % 3 > 0
    guide = pl.fit_laplace(model, (inputs(), Y, mask), progress=False)
    expected = pl.fit_laplace(model, (inputs()[mask], Y[mask]), progress=False)
    torch.testing.assert_close(guide.covariance, expected.covariance, rtol=1e-4, atol=1e-6)
    found = pl.LinearizedPredictive(model, guide)(inputs())
    assert set(found) == {"y"}
    torch.testing.assert_close(
        found["y"].variance, pl.LinearizedPredictive(model, expected)(inputs())["y"].variance, rtol=1e-4, atol=1e-6
    )
    assert set(pl.LinearizedPredictive(model, guide).sample(3)(inputs())) == {"y"}
    assert pl.Predictive(pl.linearize(model, guide), guide=guide, num_samples=3)(inputs())["y"].shape == (3, N)
