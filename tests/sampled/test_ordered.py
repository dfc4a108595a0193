"""`OrderedLogistic` at all draws at once: Pyro's own writes into a tensor that `torch.func.vmap` does not know."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace._compat.pyro import undisturbed

CUTS = torch.tensor([-1.0, 0.5, 2.0])


def ordered(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.OrderedLogistic(slope * x, CUTS), obs=y)


@pytest.mark.statistical
def test_draws_are_made_at_once_and_have_the_classes_probabilities():
    """A program that is run draw by draw warns, and a warning is an error here."""
    slopes = torch.full((4000,), 0.7)
    x = torch.tensor([-1.0, 0.0, 2.0])
    drawn = pl.Predictive(ordered, posterior_samples={"slope": slopes})(x)["y"]
    shares = torch.nn.functional.one_hot(drawn.long(), 4).double().mean(0)
    assert_close(shares, dist.OrderedLogistic(0.7 * x, CUTS).probs.double(), rtol=0, atol=0.03)


def test_its_probabilities_are_pyros():
    x = torch.randn(3, 5)
    with undisturbed():
        ours = dist.OrderedLogistic(x, CUTS)
        vectorised = torch.func.vmap(lambda row: dist.OrderedLogistic(row, CUTS).probs)(x)
    theirs = dist.OrderedLogistic(x, CUTS)
    for found in (ours.probs, vectorised):
        assert_close(found, theirs.probs)
    assert_close(ours.cutpoints, theirs.cutpoints)
