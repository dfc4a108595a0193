"""Where a search starts under vague priors: their draws overflow a link, and the mode is found all the same."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import pyro_laplace as pl
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import as_data
from pyro_laplace.mode.feasible import feasible_start
from pyro_laplace.mode.objective import Objective
from pyro_laplace.program.program import Program

pytestmark = pytest.mark.usefixtures("float64")

FAMILIES = {
    "Poisson": lambda mean: dist.Poisson(mean),
    "Exponential": lambda mean: dist.Exponential(1 / mean),
    "Gamma": lambda mean: dist.Gamma(3.0, 3.0 / mean),
}
WEIGHTS = {
    "Poisson": lambda mean, y: (y - mean, mean),
    "Exponential": lambda mean, y: (y / mean - 1, y / mean),
    "Gamma": lambda mean, y: (3 * (y / mean - 1), 3 * y / mean),
}
"""First derivative of a log density in the linear predictor, and minus the second, by hand."""


def regression(family: str, prior_scale: float, dtype: torch.dtype):
    torch.manual_seed(3)
    age = 20 + 60 * torch.rand(200, dtype=dtype)
    x = torch.stack([torch.ones_like(age), age, torch.randn(200, dtype=dtype)], 1)
    y = FAMILIES[family]((x @ torch.tensor([-1.0, 0.03, 0.4], dtype=dtype)).exp()).sample()

    def model(x, y=None):
        b = pyro.sample("b", dist.Normal(torch.zeros(3, dtype=dtype), prior_scale).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", FAMILIES[family]((x @ b).exp()), obs=y)

    return model, (x, y.clamp(min=1e-3) if family != "Poisson" else y)


def by_newton(family: str, x, y, prior_scale: float):
    b = torch.tensor([float(y.mean().log()), 0.0, 0.0], dtype=torch.float64)
    for _ in range(50):
        score, weight = WEIGHTS[family]((x @ b).exp(), y)
        prec = x.T @ (weight[:, None] * x) + torch.eye(3) / prior_scale**2
        b = b + torch.linalg.solve(prec, x.T @ score - b / prior_scale**2)
    return b


@pytest.mark.parametrize("prior_scale", [100.0, 1000.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_vague_prior_leads_to_the_mode_of_newton_by_hand(family, prior_scale):
    model, data = regression(family, prior_scale, torch.float64)
    expected = by_newton(family, *data, prior_scale)
    for seed in range(3):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        assert_close(pl.fit_map(model, data, progress=False).median()["b"], expected, rtol=1e-5, atol=1e-5)


def test_the_same_in_float32():
    model, (x, y) = regression("Poisson", 20.0, torch.float32)
    expected = by_newton("Poisson", x.double(), y.double(), 20.0)
    for seed in range(3):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        found = pl.fit_laplace(model, (x, y), progress=False).median()["b"]
        assert_close(found.double(), expected, rtol=1e-2, atol=1e-2)


def test_a_point_that_a_distribution_refuses_is_not_taken():
    """`validate_args=True` raises a ValueError at a rate that is not finite, on the way as well."""

    def model(y=None):
        a = pyro.sample("a", dist.Normal(0.0, 100.0), infer={"start": torch.tensor(3.0)})
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(0.0, (5 - a).sqrt(), validate_args=True), obs=y)

    data = as_data((torch.tensor([1.0, -1.0, 2.0, 0.5]),))
    program = Program.trace(model, data)
    objective = Objective(Loop(program, data), False, program.start, torch.arange(1))
    value, gradient = objective.value_and_gradient(torch.tensor([6.0]))
    assert value == torch.inf
    assert_close(gradient, torch.zeros(1))


def start_of(model, data) -> tuple[torch.Tensor, torch.Tensor]:
    data = as_data(data)
    program = Program.trace(model, data)
    return program.start, feasible_start(
        Objective(Loop(program, data), False, program.start, torch.arange(program.num_params))
    )


def test_a_start_that_will_do_stays():
    def model(y=None):
        a = pyro.sample("a", dist.Normal(torch.zeros(3), 50.0).to_event(1))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    own, start = start_of(model, (torch.zeros(3),))
    assert_close(start, own, rtol=0, atol=0)


def test_one_that_overflows_is_shortened_and_keeps_its_direction():
    model, data = regression("Poisson", 1000.0, torch.float64)
    own, start = start_of(model, data)
    assert (data[0] @ start).max() < 40
    assert_close(start / start.norm(), own / own.norm())


def test_no_start_at_all_names_the_remedies():
    def model(y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal((a - 50).log(), 1.0), obs=y)

    for fit in (pl.fit_map, pl.fit_laplace):
        with pytest.raises(pl.LaplaceError, match=r"\['a'\].*infer=\{'start': value\}.*map_guide=\{site: value\}"):
            fit(model, (torch.zeros(2),), progress=False)
