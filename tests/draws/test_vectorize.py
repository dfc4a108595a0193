"""Random numbers of a vectorised pass, which are each row's own."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl

COUNT = torch.tensor([5.0, 10.0, 40.0])
A = torch.linspace(-2.0, 2.0, 4000)


def of_logits(count, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(count)):
        return pyro.sample("y", dist.Binomial(total_count=count, logits=a), obs=y)


def of_one_count(count, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(count)):
        return pyro.sample("y", dist.Binomial(total_count=7, probs=a.sigmoid()), obs=y)


def of_nothing_random(count, y=None):
    pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(count)):
        return pyro.sample("y", dist.Binomial(total_count=count, probs=torch.tensor(0.3)), obs=y)


@pytest.mark.parametrize(
    ("model", "count", "prob"),
    [
        (of_logits, COUNT, A.sigmoid()),
        (of_one_count, torch.full((3,), 7.0), A.sigmoid()),
        (of_nothing_random, COUNT, torch.full_like(A, 0.3)),
    ],
)
def test_binomial_counts_that_no_row_has(model, count, prob):
    """Torch resizes the result with a warning, which would be an error here; draws are held by their moments."""
    pyro.set_rng_seed(0)
    y = pl.Predictive(model, {"a": A})(COUNT)["y"]
    assert y.shape == (4000, 3)
    standard = (y - count * prob.unsqueeze(-1)) / (count * (prob * (1 - prob)).unsqueeze(-1)).sqrt()
    assert float(standard.mean(0).abs().max()) < 4 / 4000**0.5
    assert float((standard.square().mean(0) - 1).abs().max()) < 0.1


def test_equal_rows_are_drawn_anew():
    pyro.set_rng_seed(0)
    y = pl.Predictive(of_logits, {"a": torch.zeros(500)})(COUNT)["y"]
    assert len(y[:, 2].unique()) > 10
