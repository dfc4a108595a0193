"""An enumerated site that all data share leaves several inner modes, and says so; one of each datum leaves one."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate

import pyro_laplace as pl

Y = torch.tensor([-1.5, 0.2, 2.0, -0.4, 1.1, 0.6])


@config_enumerate
def shared(y):
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    kind = pyro.sample("kind", dist.Bernoulli(0.3))
    with pyro.plate("data", len(y)):
        effect = pyro.sample("effect", dist.Normal(3.0 * kind, tau))
        pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


@config_enumerate
def of_each_datum(y):
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    loc = pyro.sample("loc", dist.Normal(0.0, tau))
    with pyro.plate("data", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(loc + 3.0 * kind, 1.0), obs=y)


def test_a_site_that_all_data_share_is_warned_of():
    with pytest.warns(pl.LaplaceWarning, match="'kind' is outside the data's plate.*poutine.condition"):
        pl.laplace_marginal(shared, (Y,), hyper=["tau"])


def test_a_site_of_each_datum_is_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pl.laplace_marginal(of_each_datum, (Y,), hyper=["tau"])
