"""How many draws `outer="nuts"` takes, and what it says of too few."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl
from pyro_laplace.nested import fit

Y = torch.tensor([1.1, 0.4, 2.0, 1.5, 2.4, -0.3], dtype=torch.float64)


def schools(y=None):
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    with pyro.plate("schools", len(Y)):
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(theta, 0.5), obs=y)


def test_settings_say_how_many_draws(float64, monkeypatch):
    asked = []

    def counted(*args, **options):
        asked.append((options["num_samples"], options["warmup_steps"]))
        mcmc = pl.fit_nuts(*args, **options)
        assert len(mcmc.get_samples()["tau"]) == 70
        return mcmc

    monkeypatch.setattr(fit, "fit_nuts", counted)
    pyro.set_rng_seed(0)
    with pl.settings.using(outer_draws=70, outer_warmup=50):
        guide = pl.fit_nested_laplace(schools, {"y": Y}, outer="nuts", progress=False)
    assert asked == [(70, 50)]
    assert len(guide.weights) == 70


def test_draws_without_a_covariance_are_refused_by_the_settings(float64):
    pyro.set_rng_seed(0)
    with (
        pl.settings.using(outer_draws=2, outer_warmup=5),
        pytest.raises(pl.InvalidOption, match=r"1 distinct points of \['tau'\].*outer_draws=1000"),
    ):
        pl.fit_nested_laplace(schools, {"y": Y}, outer="nuts", progress=False)
