"""The run by which a program is traced serves the first pass over the data, where that is the same run."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_laplace as pl
from pyro_laplace.capture.anchor import Point
from pyro_laplace.capture.first_run import FirstRun
from pyro_laplace.data import as_data
from pyro_laplace.program.program import Program

pytestmark = pytest.mark.usefixtures("float64")

N = 12


class Model:
    """A network written by hand, that counts its calls."""

    def __init__(self, scale_is_random=False):
        self.calls, self.scale_is_random = 0, scale_is_random

    def __call__(self, x, y=None):
        """The program."""
        self.calls += 1
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 150]).to_event(2))
        v = pyro.sample("v", dist.Normal(0.0, 1.0).expand([150]).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0)) if self.scale_is_random else 0.5
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x @ w).tanh() @ v, noise), obs=y)


@pytest.fixture
def data():
    torch.manual_seed(0)
    return torch.randn(N, 2), torch.randn(N)


@pytest.fixture
def point():
    torch.manual_seed(1)
    return {"w": torch.randn(2, 150), "v": torch.randn(150)}


def fitted(model, data, point, **options):
    return pl.fit_laplace(model, data, point, polish=False, on_not_a_mode="ignore", **options)


@pytest.mark.parametrize("structure", ["full", "block", "kron", "diag", pl.LowRank(3)], ids=str)
def test_it_saves_a_run(structure, data, point, monkeypatch):
    model, without = Model(), Model()
    fitted(model, data, point, structure=structure)
    monkeypatch.setattr(FirstRun, "at", lambda *_: None)
    fitted(without, data, point, structure=structure)
    assert model.calls == without.calls - 1


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_it_is_the_run_that_a_pass_would_make(structure, data, point, monkeypatch):
    x, y = data
    forms = {
        "tuple": data,
        "dict": {"x": x, "y": y},
        "list": [(x[:5], y[:5]), (x[5:], y[5:])],
        "loader": DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True),
    }
    found = {name: fitted(Model(), form, point, structure=structure) for name, form in forms.items()}
    monkeypatch.setattr(FirstRun, "at", lambda *_: None)
    expected = fitted(Model(), data, point, structure=structure)
    for guide in found.values():
        torch.testing.assert_close(guide.precision.to_dense(), expected.precision.to_dense(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(guide.mode.gradient, expected.mode.gradient, rtol=1e-10, atol=1e-10)
        assert guide.log_evidence == pytest.approx(expected.log_evidence, rel=1e-12)


@pytest.mark.parametrize("other", ["point", "batch", "subset", "constrained"])
def test_it_is_not_given_where_it_is_another(other, data, point):
    first = FirstRun()
    values = {**point, "noise": torch.tensor(0.5)} if other == "constrained" else point
    program = Program.trace(Model(scale_is_random=other == "constrained"), as_data(data), values, [first])
    everything = torch.arange(program.num_params)
    theta = program.start + 1e-9 if other == "point" else program.start
    index = everything[1:] if other == "subset" else everything
    x, y = data
    chunk = next(program.chunks(as_data((x.clone(), y) if other == "batch" else data)))
    assert first.at(program, Point(theta, index), chunk) is None


def test_it_is_given_once(data, point):
    first = FirstRun()
    program = Program.trace(Model(), as_data(data), point, [first])
    where = Point(program.start, torch.arange(program.num_params))
    chunk = next(program.chunks(as_data(data)))
    assert first.at(program, where, chunk) is not None
    assert first.at(program, where, chunk) is None
