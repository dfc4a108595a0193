"""Long tables that the data choose from: entries one by one, as if they were one-hot rows, at a cost linear in rows."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.captured import FUNCTIONS, N, factors_of
from test_factors import naive, problem, summed

import pyro_laplace as pl
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.data import as_data
from pyro_laplace.program.program import Program
from pyro_laplace.structure.options import LowRank

pytestmark = pytest.mark.usefixtures("float64")

TABLES = ["embedding", "words", "group_effects"]


@pytest.fixture
def long_tables():
    """Every table is too long for one-hot rows."""
    with pl.settings.using(one_hot_elements=1):
        yield


@pytest.mark.usefixtures("long_tables")
@pytest.mark.parametrize("name", TABLES)
def test_full_and_diag_equal_the_naive_sum(name):
    program, data, point = problem(name)
    expected = naive(program, point, data)
    everything = torch.eye(point.size)
    full = summed(program, point, data).times(everything)
    diagonal = summed(program, point, data, "diag").times(torch.ones(1, point.size))[0]
    torch.testing.assert_close(full, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(diagonal, expected.diagonal(), rtol=1e-9, atol=1e-9)
    with pl.settings.using(one_hot_elements=1, small=1):  # a sketch, which takes products with A and A'
        low_rank = summed(program, point, data, LowRank(point.size - 10)).times(everything)
    torch.testing.assert_close(low_rank, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("long_tables")
@pytest.mark.parametrize("name", TABLES)
def test_they_are_no_dense_columns(name):
    program, data, point = problem(name)
    with undisturbed(), torch.no_grad():
        (factors,) = factors_of(program, point, next(program.chunks(data)))
    assert factors.entries
    assert not len(factors.dense_index)
    assert FUNCTIONS[name][1] == 0
    assert all(len(each.index) == N for each in factors.entries)


@pytest.mark.usefixtures("long_tables")
@pytest.mark.parametrize("name", TABLES)
def test_a_part_of_a_table_is_the_submatrix(name):
    program, data, point = problem(name)
    expected = naive(program, point, data)
    part = torch.arange(1, point.size, 2)
    some = type(point)(point.theta, part, program.latents)
    found = summed(program, some, data).times(torch.eye(len(part)))
    torch.testing.assert_close(found, expected[part][:, part], rtol=1e-9, atol=1e-9)


def effects(groups):
    def model(x, group, y=None):
        b = pyro.sample("b", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        with pyro.plate("groups", groups):
            u = pyro.sample("u", dist.Normal(0.0, 0.7))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ b + u[group]), obs=y)

    return model


def grouped(groups, rows=4):
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(0, groups, (rows * groups,), generator=generator)
    x = torch.randn(len(group), 2, generator=generator)
    return x, group, (torch.rand(len(group), generator=generator) < 0.5).double()


@pytest.mark.parametrize("structure", ["diag", {"u": "diag", "b": "full"}, "full"])
def test_a_program_of_many_groups(structure):
    x, group, y = grouped(30)
    point = {"b": torch.tensor([0.3, -0.2]), "u": torch.linspace(-1, 1, 30)}
    options = {"structure": structure, "curvature": "ggn", "polish": False, "on_not_a_mode": "ignore"}
    with pl.settings.using(one_hot_elements=1):
        guide = pl.fit_laplace(effects(30), (x, group, y), point, progress=False, **options)
        predicted = pl.LinearizedPredictive(effects(30), guide).latent(x, group)["y"]
    eta = x @ point["b"] + point["u"][group]
    rows = torch.cat([x, torch.nn.functional.one_hot(group, 30).double()], 1)
    matrix = rows.T @ (rows * (eta.sigmoid() * (-eta).sigmoid())[:, None])
    matrix += torch.cat([torch.full((2,), 1 / 4), torch.full((30,), 1 / 0.49)]).diag()
    if structure != "full":
        kept = torch.zeros_like(matrix)
        kept[:2, :2] = matrix[:2, :2] if structure != "diag" else matrix[:2, :2].diagonal().diag()
        matrix = kept + torch.cat([torch.zeros(2), matrix.diagonal()[2:]]).diag()
    torch.testing.assert_close(guide.precision.to_dense(), matrix)
    torch.testing.assert_close(predicted[0].reshape(-1), eta)
    torch.testing.assert_close(predicted[1].reshape(-1), torch.einsum("np,pq,nq->n", rows, matrix.inverse(), rows))


@pytest.mark.parametrize("structure", ["diag", {"u": "diag", "*": "full"}])
def test_a_random_scale_of_many_groups(structure):
    """The prior couples each effect with the scale, and no two effects."""
    groups = 40
    _, group, _ = grouped(groups)
    y = torch.poisson(torch.ones(len(group)), generator=torch.Generator().manual_seed(1))

    def model(group, y=None):
        tau = pyro.sample("tau", dist.LogNormal(-1.0, 0.3))
        with pyro.plate("groups", groups):
            u = pyro.sample("u", dist.Normal(0.0, tau))
        with pyro.plate("data", len(group)):
            pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)

    u, tau = torch.linspace(-0.5, 0.5, groups), torch.tensor(0.3)
    options = {"structure": structure, "curvature": "ggn", "polish": False, "on_not_a_mode": "ignore"}
    with pl.settings.using(one_hot_elements=1, row_elements=groups):
        guide = pl.fit_laplace(model, (group, y), {"tau": tau, "u": u}, progress=False, **options)
    rates = torch.zeros(groups).index_add(0, group, u.exp()[group])
    found = guide.precision.to_dense().diagonal()
    torch.testing.assert_close(found[guide.layout["u"]], rates + 1 / tau**2)
    of_tau = 2 * (u / tau).square().sum() + 1 / 0.3**2
    torch.testing.assert_close(found[guide.layout["tau"]], of_tau.reshape(1))


def test_the_cost_is_linear_in_rows():
    def elements(groups):
        x, group, y = grouped(groups)
        point = {"b": torch.zeros(2), "u": torch.zeros(groups)}
        data = as_data((x, group, y))
        program = Program.trace(effects(groups), data, point)
        theta = program.start
        anchor = Anchor(theta, torch.arange(len(theta)), program.latents)
        with undisturbed(), torch.no_grad(), pl.settings.using(one_hot_elements=2**12):
            (factors,) = factors_of(program, anchor, next(program.chunks(data)))
        return factors.elements

    assert elements(4000) == 4 * elements(1000)
