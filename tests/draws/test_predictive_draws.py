"""How `pl.Predictive` draws: one by one or by the chunk, under any guide of any program; and what it refuses."""

import copy
import random
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from oracles.predictions import NUM, assert_alike, assert_same, both, snapshot
from programs.zoo import linear, mlp_regression, normal, pyro_module_classifier
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal

import pyro_laplace as pl

# --- draw by draw ----------------------------------------------------------------------------------------------------


def branching(x, y=None):
    """Its control flow reads a value, which `vmap` cannot run."""
    w = pyro.sample("w", normal(1.0, x.shape[-1]))
    mean = x @ w if w[0] > 0 else -x @ w
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_control_flow_is_run_draw_by_draw_and_said_once():
    x = torch.randn(6, 3)
    predictive = pl.Predictive(branching, num_samples=NUM)
    pyro.set_rng_seed(1)
    with pytest.warns(pl.LaplaceWarning, match=r"the model is run draw by draw.*data-dependent control flow") as caught:
        first = predictive(x)
    assert len(caught) == 1
    pyro.set_rng_seed(1)
    again = predictive(x)  # a second warning would be an error
    assert_alike(first, again)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert_alike(pyro.infer.Predictive(branching, num_samples=NUM)(x), first)


def test_a_guide_in_a_loop_does_not_keep_the_model_from_being_vectorised():
    runs = []

    def model(x):
        runs.append(1)
        return linear().model(x)

    def guide(x):
        w = pyro.sample("w", normal(1.0, 3))
        pyro.deterministic("sign", torch.tensor(1.0 if w[0] > 0 else -1.0))

    with pytest.warns(pl.LaplaceWarning, match="the guide is run draw by draw"):
        found = pl.Predictive(model, guide=guide, num_samples=50)(torch.randn(6, 3))
    assert found["y"].shape == (50, 6)
    assert len(runs) == 2


@pytest.mark.parametrize("source", [np.random.standard_normal, random.random])
def test_random_numbers_that_are_not_torchs_differ_from_draw_to_draw(source):
    def model():
        pyro.deterministic("z", torch.tensor(source()))

    with pytest.warns(pl.LaplaceWarning, match="Python's or NumPy's random numbers"):
        found = pl.Predictive(model, num_samples=NUM)()["z"]
    assert len(found.unique()) == NUM


def test_sites_that_come_and_go_are_refused_by_name():
    def model():
        if pyro.sample("coin", dist.Bernoulli(0.5)) > 0:
            pyro.sample("extra", dist.Normal(0.0, 1.0))

    draws = {"coin": torch.tensor([1.0, 0.0])}
    with pytest.warns(pl.LaplaceWarning), pytest.raises(pl.UnsupportedProgram, match=r"'extra'.* must not depend"):
        pl.Predictive(model, draws)()


# --- any guide, any program ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("param_mode")
def test_a_list_of_guides_on_a_network():
    case = pyro_module_classifier()
    guide = AutoGuideList(case.model)
    guide.append(AutoDelta(poutine.block(case.model, expose=["hidden.weight", "hidden.bias"])))
    guide.append(AutoNormal(poutine.block(case.model, expose=["out.weight", "out.bias"])))
    guide(*case.data)
    before = snapshot(guide, case.model)
    theirs, ours = both(case.model, guide=guide, num_samples=NUM)
    assert_alike(theirs(*case.inputs), found := ours(*case.inputs))
    assert torch.equal(found["hidden.weight"][0], found["hidden.weight"][1])
    assert not torch.equal(found["out.weight"][0], found["out.weight"][1])
    assert_same(before, snapshot(guide, case.model))
    copy.deepcopy(case.model)


def test_draws_through_a_nonlinear_program_are_warned_of_and_through_a_linearised_one_are_not():
    case = mlp_regression()
    guide = pl.fit_laplace(case.model, case.data)
    predictive = pl.Predictive(case.model, guide=guide, num_samples=NUM)
    with pytest.warns(pl.LaplaceWarning, match=r"not linear within the posterior.*pl\.linearize\(model, guide\)"):
        predictive(*case.inputs)
    predictive(*case.inputs)  # a second warning would be an error
    model = pl.linearize(case.model, guide)
    theirs, ours = both(model, guide=guide, num_samples=NUM)
    assert_alike(theirs(*case.inputs), ours(*case.inputs))
    last = pl.fit_laplace(case.model, case.data, subset="last_layer", on_not_a_mode="ignore")
    assert pl.Predictive(case.model, guide=last, num_samples=NUM)(*case.inputs)["y"].shape == (NUM, 40)


def test_seed_and_chunks():
    case = linear()
    results = []
    for chunk_size in (None, "auto", "auto"):
        pyro.set_rng_seed(5)
        results.append(pl.Predictive(case.model, num_samples=50, chunk_size=chunk_size)(*case.inputs)["y"])
    assert torch.equal(results[1], results[2])
    assert torch.equal(results[0], results[1])  # one chunk holds them all


@pytest.mark.parametrize(("chunk_size", "passes"), [(None, 1), (25, 4), (30, 4), (1, 100)])
def test_draws_of_one_pass(chunk_size, passes):
    runs = []

    def model(x):
        runs.append(1)
        return linear().model(x)

    pl.Predictive(model, num_samples=100, chunk_size=chunk_size)(torch.randn(6, 3))
    assert len(runs) == 1 + passes


def test_the_chunk_is_chosen_by_the_largest_tensor():
    """A hidden layer that no site shows: 2**16 elements a draw, 2**20 a pass."""
    runs = []

    def model():
        runs.append(1)
        hidden = pyro.sample("w", dist.Normal(0.0, 1.0)) * torch.ones(2**16)
        pyro.deterministic("mean", hidden.mean())

    pl.Predictive(model, num_samples=64)()
    assert len(runs) == 1 + 64 // 16


WIDE = """
import resource
import pyro, torch
import pyro.distributions as dist
import pyro_laplace as pl

def wide(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(3, 2000), 1.0).to_event(2))
    pyro.deterministic("f", (x @ w).tanh().mean(-1))

predictive = pl.Predictive(wide, num_samples=400, return_sites=["f"])
predictive(torch.ones(1, 3))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
predictive(torch.ones(500, 3))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is counted in other units")
def test_memory_is_that_of_a_chunk():
    """400 draws of a hidden layer of 4 MB."""
    run = subprocess.run([sys.executable, "-c", WIDE], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 100


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_samples": 3, "chunk_size": 0}, "chunk_size=0"),
        ({"num_samples": 3, "chunk_size": "all"}, "chunk_size='all'"),
        ({"num_samples": 3, "return_sites": "y"}, "return_sites='y'"),
        ({"posterior_samples": {"w": torch.zeros(2, 3), "v": torch.zeros(3)}}, "'w': 2, 'v': 3"),
        ({"posterior_samples": {"w": torch.tensor(1.0)}}, "'w': 0"),
    ],
)
def test_arguments_that_cannot_be(options, match):
    with pytest.raises(pl.InvalidOption, match=match):
        pl.Predictive(linear().model, **options)


def test_an_mcmc_is_no_guide():
    """Its draws are what is wanted, and the error says where they are."""
    model = linear().model
    mcmc = pyro.infer.MCMC(pyro.infer.NUTS(model), num_samples=2, warmup_steps=0, disable_progbar=True)
    match = r"guide=MCMC: .* posterior_samples=mcmc\.get_samples\(\)"
    with pytest.raises(pl.InvalidOption, match=match):
        pl.Predictive(model, guide=mcmc, num_samples=2)
    with pytest.raises(pl.InvalidOption, match=match.replace("guide=", "posterior_samples=")):
        pl.Predictive(model, mcmc)
    with pytest.raises(pl.InvalidOption, match="guide=dict"):
        pl.Predictive(model, guide={"w": torch.zeros(2, 3)}, num_samples=2)


def test_sites_that_do_not_exist():
    with pytest.raises(pl.InvalidOption, match=r"no sites \['v'\]; it has \['w', 'y'\]"):
        pl.Predictive(linear().model, num_samples=3, return_sites=["v"])(torch.randn(6, 3))

    def model():
        return {"w": pyro.sample("w", dist.Normal(0.0, 1.0))}

    with pytest.raises(pl.InvalidOption, match="'_RETURN' is no tensor"):
        pl.Predictive(model, num_samples=3, return_sites=["_RETURN"])()
