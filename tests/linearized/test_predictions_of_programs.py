"""What is predicted of a program does not depend on how the program is written."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.reparam import LocScaleReparam

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

Y = torch.tensor([0.3, -0.8, 1.9, 0.6, -0.1])


def groups(y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("groups", 5):
        a = pyro.sample("a", dist.Normal(mu, 0.7))
        return pyro.sample("y", dist.Normal(a, 0.5), obs=y)


def test_a_reparametrised_program_has_the_same_predictive():
    moved = poutine.reparam(groups, config={"a": LocScaleReparam(0.0)})
    plain = pl.fit_laplace(groups, (Y,), progress=False)
    guide = pl.fit_laplace(moved, (Y,), progress=False)
    assert guide.log_evidence == pytest.approx(plain.log_evidence, abs=1e-8)
    assert set(guide.latents) == {"mu", "a_decentered"}
    expected = pl.LinearizedPredictive(groups, plain)()["y"]
    found = pl.LinearizedPredictive(moved, guide)()["y"]
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-8, atol=1e-8)
    pyro.set_rng_seed(0)
    tree = pl.to_datatree(moved, guide, (Y,), num_samples=4, num_prior_samples=0)
    assert tree.posterior["a"].shape == (1, 4, 5)
    assert tree.log_likelihood["y"].shape == (1, 4, 5)


def test_scalars_beside_plated_sites_are_predicted_by_pyro_too():
    guide = pl.fit_laplace(groups, (Y,), progress=False)
    draws = Predictive(pl.linearize(groups, guide), guide=guide, num_samples=5)()
    assert draws["y"].shape == (5, 5)
