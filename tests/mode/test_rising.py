"""Programs without a mode are told from those with one far out, in either precision."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_laplace as pl


@pytest.fixture(params=[torch.float64, torch.float32], autouse=True)
def dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def flat(*shape: int):
    return dist.ImproperUniform(constraints.real, (), shape)


def classes(prior, link):
    def model(x, y=None):
        b = pyro.sample("b", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("y", link(x @ b), obs=y)

    return model


def groups(prior):
    def model(g, y=None):
        with pyro.plate("groups", 4):
            a = pyro.sample("a", prior)
        with pyro.plate("data", len(g)):
            pyro.sample("y", dist.Poisson(a[g].exp()), obs=y)

    return model


def cutpoints(prior):
    def model(x, y=None):
        cut, slope = pyro.sample("cut", prior), pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.OrderedLogistic(slope * x, cut), obs=y)

    return model


def logits(eta):
    return dist.Bernoulli(logits=eta)


def separated():
    x = torch.linspace(-1, 1, 20)
    return torch.stack([torch.ones(20), x], 1), (x > 0).to(x)


def quasi_separated():
    x, y = separated()
    overlap = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    return torch.cat([x, overlap]), torch.cat([y, torch.tensor([0.0, 1.0, 0.0, 1.0])])


def counts():
    g = torch.arange(4).repeat_interleave(10)
    return g, torch.tensor([1.0, 3.0, 0.0, 5.0])[g]


def ordered(lowest: int):
    torch.manual_seed(0)
    x = torch.randn(60)
    return x, lowest + (x + torch.randn(60) > 0).long() + (x + torch.randn(60) > 1).long()


WITHOUT = {
    "separated classes": (classes(flat(2), logits), separated, r"'b' \(.*\[1\] as it grows"),
    "quasi-separation": (classes(flat(2), logits), quasi_separated, r"'b' \(\[1\] as it grows\)"),
    "a group without events": (groups(flat()), counts, r"'a' \(\[2\] as it falls\)"),
    "an empty top class": (
        cutpoints(dist.ImproperUniform(dist.constraints.ordered_vector, (), (3,))),
        lambda: ordered(0),
        r"'cut' \(\[2\] as it grows\)",
    ),
    "an empty lowest class": (
        cutpoints(dist.ImproperUniform(dist.constraints.ordered_vector, (), (3,))),
        lambda: ordered(1),
        r"'cut' \(\[0\] as it falls",
    ),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_a_program_without_a_mode_is_told_by_its_site_and_direction(case, dtype):
    if dtype == torch.float32 and case == "an empty lowest class":
        pytest.skip("a quarter of a minute of the same in float64")
    model, data, where = WITHOUT[case]
    pyro.set_rng_seed(0)
    with pytest.raises(pl.NotAMode, match=where):
        pl.fit_laplace(model, data(), progress=False, on_not_a_mode="raise")
    with pytest.warns(pl.NotAModeWarning, match=where):
        pl.fit_map(model, data(), progress=False)


def test_it_may_be_ignored():
    pl.fit_laplace(groups(flat()), counts(), progress=False, on_not_a_mode="ignore")
    with pytest.warns(pl.NotAModeWarning, match="as it falls"):
        pl.fit_laplace(groups(flat()), counts(), progress=False)


PROPER = {
    "normal": lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
    "vague": lambda: dist.Normal(torch.zeros(2), 1e3).to_event(1),
    "Cauchy": lambda: dist.Cauchy(torch.zeros(2), 2.5).to_event(1),
    "Student": lambda: dist.StudentT(4.0, torch.zeros(2), 10.0).to_event(1),
    "Laplace": lambda: dist.Laplace(torch.zeros(2), 10.0).to_event(1),
}


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
@pytest.mark.parametrize("prior", PROPER)
def test_a_proper_prior_holds_separated_classes(prior):
    """However vague or heavy-tailed."""
    pyro.set_rng_seed(0)
    model = classes(PROPER[prior](), logits)
    pl.fit_map(model, separated(), progress=False)
    pl.fit_laplace(model, quasi_separated(), progress=False, on_not_a_mode="raise")


def test_a_flat_prior_that_the_data_bound_is_no_matter():
    x, _ = separated()
    y = (torch.arange(20) % 3 == 0).to(x)
    pl.fit_map(classes(flat(2), logits), (x, y), progress=False)
    pl.fit_laplace(classes(flat(2), logits), (x, y), progress=False, on_not_a_mode="raise")


@pytest.mark.filterwarnings("ignore:the mode is not where the posterior's mass is")
def test_a_border_of_the_support_is_a_maximum_of_the_constrained_density():
    """A half-Cauchy scale's density is highest at zero, where the constrained values end."""

    def schools(y=None):
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(tau * z, 10.0), obs=y)

    y = torch.tensor([8.0, 2.0, -3.0, 7.0, -1.0, 1.0, 5.0, 4.0])
    pl.fit_map(schools, (y,), progress=False)
    pl.fit_laplace(schools, (y,), progress=False, on_not_a_mode="raise")
