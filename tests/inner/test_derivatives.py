"""Derivatives of single points from recorded operations, against those of the program itself."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import as_data
from pyro_laplace.inner.conditional import Conditional
from pyro_laplace.inner.derivatives import Derivatives, RecordedDerivatives, recorded
from pyro_laplace.program.program import Program

pytestmark = pytest.mark.usefixtures("float64")

GROUP, Y = torch.arange(12) % 4, torch.arange(12) % 5


def counts(group, y=None):
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", 4):
        u = pyro.sample("u", dist.Normal(0.5, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)


def looks_at_a_value(group, y=None):
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", 4):
        u = pyro.sample("u", dist.Normal(0.5 if tau > 1.0 else -0.5, tau))
    with pyro.plate("data", len(group)):
        pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)


def split(model) -> Derivatives:
    data = as_data((GROUP, Y))
    return Derivatives(Conditional.of(Loop(Program.trace(model, data), data), ("tau",)))


def test_single_points_are_as_by_the_program():
    plain = split(counts)
    fast = recorded(plain)
    assert isinstance(fast, RecordedDerivatives)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x, h = torch.randn(1, 4, generator=generator), torch.randn(1, 1, generator=generator)
        ours, theirs = fast.expanded(x, h), plain.expanded(x, h)
        for name in ("value", "gradient", "hessian"):
            assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-12, atol=1e-12)
        weights = torch.randn(1, 4, 4, generator=generator)
        ours, theirs = fast.slopes(x, h, weights), plain.slopes(x, h, weights)
        for name in ("log_joint_h", "log_det_x", "log_det_h", "mixed"):
            assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-12, atol=1e-12)


def test_several_points_and_a_program_that_looks_at_values_are_not_by_recorded_operations():
    assert not isinstance(recorded(split(looks_at_a_value)), RecordedDerivatives)
    plain = split(counts)
    x, h = torch.zeros(2, 4), torch.zeros(2, 1)
    assert_close(recorded(plain).expanded(x, h).hessian, plain.expanded(x, h).hessian)
