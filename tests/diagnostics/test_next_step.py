"""What `diagnose` says to do next: code that keeps the guide as it was made, and what is not to be fitted anew."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.judged import few_residuals
from torch import nn

import pyro_laplace as pl


def one_by_one(y):
    """A program that no batch of draws goes through."""
    few_residuals().model(y)
    float(pyro.sample("other", dist.Normal(0.0, 1.0)).detach())


def test_the_draws_that_are_asked_for_are_weighed_one_by_one_too():
    (y,) = few_residuals().data
    guide = pl.fit_laplace(one_by_one, y, progress=False)
    small = {"diagnose_draws": 40, "diagnose_one_by_one": 80, "diagnose_most": 320, "clear_k": 1e9}
    with pl.settings.using(verdict_errors=1e9, **small):  # no number is clear of its bound by so many errors
        found = pl.diagnose(one_by_one, guide, y, progress=False)
        assert found.num_draws == 80
        more = pl.diagnose(one_by_one, guide, y, max_draws=160, progress=False)
        assert more.num_draws == 160
        vectorised = pl.diagnose(few_residuals().model, pl.fit_laplace(few_residuals().model, y), y, progress=False)
        assert vectorised.num_draws == 320


def test_more_draws_are_the_next_step_where_they_decide():
    """The move of an unknown scale's mean is 0.44 standard deviations, and few draws know it to 0.1."""
    (y,) = few_residuals().data
    guide = pl.fit_laplace(one_by_one, y, progress=False)
    with pl.settings.using(diagnose_draws=150, diagnose_one_by_one=300, diagnose_most=600, verdict_errors=20.0):
        found = pl.diagnose(one_by_one, guide, y, progress=False)
        assert found.verdict == "unsure"
        assert found.next_step == "pl.diagnose(model, guide, data, max_draws=600)"
        again = pl.diagnose(one_by_one, guide, y, max_draws=600, progress=False)
    assert again.num_draws == 600
    assert "max_draws" not in again.next_step


def classifier():
    """A network, its inputs and labels."""
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    x = torch.randn(40, 3)
    return net, (x, (x[:, 0] > 0).long())


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({"subset": "last_layer", "structure": "kron"}, ["subset=['2.weight', '2.bias']", "structure='kron'"]),
        ({"structure": pl.LowRank(3)}, ["structure=pl.LowRank(rank=3, passes=1)"]),
        ({"structure": {"0*": "diag", "2*": pl.Kron("reduce")}}, ["{'0*': 'diag', '2*': pl.Kron(shared='reduce')}"]),
        (
            {"subset": pl.Subnetwork(size=5), "curvature": "empirical_fisher"},
            ["subset=pl.Subnetwork(size=5)", "curvature='empirical_fisher'"],
        ),
    ],
    ids=["last layer", "low rank", "mapping", "subnetwork"],
)
def test_the_search_for_the_mode_keeps_the_guide_as_it_was_made(options, written):
    net, data = classifier()
    model = pl.bayesianize(net, pl.nn.Isotropic(1.0), pl.nn.Classification())
    given = {name: weight.detach() for name, weight in net.named_parameters()}
    held = {"polish": False, "on_not_a_mode": "ignore", "progress": False}
    guide = pl.fit_laplace(model, data, given, **options, **held)
    found = pl.diagnose(model, guide, data, max_draws=100, progress=False)
    assert not found.at_mode.is_mode
    assert all(each in found.next_step for each in [*written, "polish=True"])
    followed = eval(found.next_step, {"pl": pl, "model": model, "data": data, "guide": guide})
    assert followed.mode.is_mode
    assert (followed.structure, followed.curvature, len(followed.index)) == (
        guide.structure,
        guide.curvature,
        len(guide.index),
    )
    assert followed.random == guide.random or "subset" in options


def test_a_prior_tuned_around_given_weights_is_judged_by_held_out_data():
    net, data = classifier()
    prior = pl.nn.Isotropic(pl.nn.learned(0.1, name="std"))
    model = pl.bayesianize(net, prior, pl.nn.Classification())
    given = {name: weight.detach() for name, weight in net.named_parameters()}
    options = {"subset": "last_layer", "refit": False, "on_not_a_mode": "ignore", "progress": False}
    guide = pl.tune(model, data, data, map_guide=given, **options)
    found = pl.diagnose(model, guide, data, max_draws=100, progress=False)
    assert not found.at_mode.is_mode
    assert "fit_laplace" not in found.next_step
    assert "no mode of this prior" in found.advice
    scored = eval(found.next_step, {"pl": pl, "model": model, "guide": guide, "held_out_data": data})
    assert scored.nll > 0
