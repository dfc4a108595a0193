"""Scales that collapse, of families with a scale matrix, and what is said of them."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")


def groups_of(family):
    def model(g, y=None):
        tau = pyro.sample("tau", dist.HalfNormal(torch.ones(2)).to_event(1))
        with pyro.plate("groups", 6):
            u = pyro.sample("u", family(tau))
        with pyro.plate("data", len(g)):
            pyro.sample("y", dist.Normal(u[g].sum(-1), 0.5), obs=y)

    torch.manual_seed(0)
    g = torch.arange(6).repeat_interleave(5)
    return model, (g, torch.randn(6)[g] * 0.1 + 0.5 * torch.randn(30))


@pytest.mark.parametrize(
    "family",
    [
        lambda tau: dist.MultivariateNormal(torch.zeros(2), scale_tril=torch.diag_embed(tau)),
    ],
)
def test_a_scale_matrix_that_collapses_is_named(family):
    model, data = groups_of(family)
    pyro.set_rng_seed(0)
    with pytest.raises(pl.NotAMode, match=r"site 'u', which depends on \['tau'\], collapses.*scale_tril @ z"):
        pl.fit_laplace(model, data, progress=False)


def test_a_random_walk_is_told_to_sample_its_steps():
    def walk(y=None):
        scale, x = pyro.sample("scale", dist.HalfNormal(1.0)), torch.tensor(0.0)
        values = []
        for t in range(5):
            x = pyro.sample(f"x_{t}", dist.Normal(x, scale))
            values.append(x)
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(torch.stack(values), 0.5), obs=y)

    torch.manual_seed(0)
    with pytest.raises(pl.NotAMode, match=r"'x_0', 'x_1', 'x_2', \.\.\. are the steps of a random walk.*cumsum"):
        pl.fit_map(walk, (0.3 * torch.randn(5),), progress=False)


def test_a_scale_of_weights_that_all_sites_enter_is_refused_by_name():
    """Heteroscedastic: nothing is left to be searched for while the weights are held."""

    def model(x, y=None):
        w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), (2,)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w[0] * x, (w[0] + w[1]).exp()), obs=y)

    x = torch.linspace(-1, 1, 10)
    with pytest.raises(pl.NotAMode, match="site 'y', which depends on"):
        pl.fit_map(model, (x, 2 * x), progress=False)
