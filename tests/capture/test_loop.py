"""The one loop over data: what is cut and joined to a memory budget, what never is, and that nothing depends on it."""

import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_laplace as pl
from pyro_laplace.capture.loop import Loop
from pyro_laplace.data import as_data
from pyro_laplace.program.program import Program

pytestmark = pytest.mark.usefixtures("float64")

N = 24


def inputs(num_obs=N):
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(num_obs, *shape, generator=generator, dtype=torch.float64) for shape in ((3,), ()))
    return x, torch.sin(x[:, 0]) + 0.1 * noise


def weight(size=3):
    return pyro.sample("w", dist.Normal(torch.zeros(size), 1.0).to_event(1))


def regression(x, y=None):
    w = weight()
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def of_dicts(x, y, extra):
    w = weight()
    with pyro.plate("data", len(x["a"])):
        pyro.sample("y", dist.Normal(x["a"] @ w + extra, 0.5), obs=y)


def with_a_factor(x, y):
    w = weight()
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)
        pyro.factor("penalty", -((x @ w) ** 4) / 10)


def enumerated(x, y):
    w = weight()
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(x @ w + k, 0.5), obs=y)


CUT = {
    "regression": (regression, inputs()),
    "dict": (of_dicts, {"x": {"a": inputs()[0]}, "y": inputs()[1], "extra": torch.tensor(0.3, dtype=torch.float64)}),
    "factor": (with_a_factor, inputs()),
    "enumerated": (enumerated, inputs()),
    "entries of an event": (
        lambda x, y: _matrix_of_data(x, y),
        (inputs()[0], torch.stack([inputs()[1], inputs()[1].square()], 1)),
    ),
}


def _matrix_of_data(x, y):
    w = weight()
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x @ w)[:, None] * torch.tensor([1.0, 2.0]), 0.5).to_event(1), obs=y)


def gaussian_process(x, y):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    kernel = (-0.5 * (x[:, None] - x[None]).square().sum(-1) / scale**2).exp() + 0.1 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), kernel), obs=y)


def fixed_plate(x, y):
    w = weight()
    with pyro.plate("data", N):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


ADJACENCY = (torch.rand(N, N, generator=torch.Generator().manual_seed(1)) < 0.2).double()


def graph(x, y):
    w = weight()
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(ADJACENCY @ (x @ w), 0.5), obs=y)


def graph_given(adjacency, x, y):
    w = weight()
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(adjacency @ (x @ w), 0.5), obs=y)


def batch_statistic(x, y):
    w = weight()
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x - x.mean(0)) @ w, 0.5), obs=y)


def counted(x, y):
    w = weight()
    with pyro.plate("data", len(x)), poutine.scale(scale=100 / len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def local(x, y):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def empirical_prior(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), x.std()).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def random_walk(x, y):
    w = weight()
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x @ w).cumsum(0), 0.5), obs=y)


def one_datum(x, y):
    w = weight()
    pyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)


def a_plate_of_features(x, y):
    w = weight()
    with pyro.plate("features", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal((x * w).mT, 0.5), obs=x.mT)


def transductive(x, y):
    w = weight()
    f = x @ w
    pyro.deterministic("largest", f.max())
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, 0.5), obs=y)


WHOLE = {
    "a Gaussian process": (gaussian_process, inputs()),
    "a plate of fixed size": (fixed_plate, inputs()),
    "an adjacency of the program": (graph, inputs()),
    "an adjacency among the data": (graph_given, (ADJACENCY, *inputs())),
    "a batch statistic": (batch_statistic, inputs()),
    "a scale that counts the rows": (counted, inputs()),
    "latents of the data": (local, inputs()),
    "a prior that reads the data": (empirical_prior, inputs()),
    "rows that build on one another": (random_walk, inputs()),
    "one datum of many entries": (one_datum, inputs()),
    "a plate to the left of the data": (a_plate_of_features, inputs()),
    "a deterministic site of all rows": (transductive, inputs()),
}


def sizes(model, data, **values):
    """Rows of each chunk of a pass with a small budget."""
    data = as_data(data)
    program = Program.trace(model, data)
    with pl.settings.using(cut_bytes=1, **values):
        chunks = list(Loop(program, data).chunks())
    return [num_rows(program, chunk) for chunk in chunks]


def num_rows(program, chunk):
    """The length of the last axis of what a chunk observes."""
    with torch.no_grad():
        run = program.run(program.start, chunk)
    shapes = [site.fn.batch_shape for site in (*run.observed.values(), *run.factors.values())]
    return max(shape[-1] if shape else 1 for shape in shapes)


@pytest.mark.parametrize("name", CUT)
def test_a_batch_of_independent_rows_is_cut_to_the_budget(name):
    found = sizes(*CUT[name], chunk_bytes=500)
    assert len(found) > 2
    assert sum(found) == N
    assert max(found) - min(found) <= max(found) // 2 + 1


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_set_of_rows_is_never_cut(name):
    assert len(sizes(*WHOLE[name], chunk_bytes=300)) == 1


def test_small_batches_are_joined_and_large_ones_cut():
    x, y = inputs()
    batches = [(x[:2], y[:2]), (x[2:4], y[2:4]), (x[4:20], y[4:20]), (x[20:21], y[20:21]), (x[21:], y[21:])]
    assert sizes(regression, batches) == [N]
    bytes_of_row = Loop(Program.trace(regression, as_data(batches)), as_data(batches)).cut.bytes_of_row
    assert sizes(regression, batches, chunk_bytes=int(8.5 * bytes_of_row)) == [4, 8, 8, 4]


def test_chunks_have_enough_bytes_or_rows_and_no_more_than_memory_allows():
    batches = [tuple(each[start : start + 2] for each in inputs()) for start in range(0, N, 2)]
    loop = Loop(Program.trace(regression, as_data(batches)), as_data(batches))
    row = loop.cut.bytes_of_row

    def found(**budgets):
        return sizes(regression, batches, **budgets)

    assert found(enough_bytes=int(6.5 * row), enough_rows=1) == [6] * 4
    assert found(enough_bytes=1, enough_rows=8) == [8] * 3
    assert found(enough_bytes=int(6.5 * row), enough_rows=12) == [12] * 2
    assert found(enough_bytes=int(6.5 * row), enough_rows=12, chunk_bytes=int(4.5 * row)) == [4] * 6


def test_single_rows_are_joined():
    x, y = inputs()
    assert sizes(regression, [(x[i : i + 1], y[i : i + 1]) for i in range(N)]) == [N]


def test_batches_with_another_constant_are_not_joined():
    x, y = inputs()
    parts = (slice(0, 12), 0.3), (slice(12, N), 0.4)
    batches = [{"x": {"a": x[s]}, "y": y[s], "extra": torch.tensor(c)} for s, c in parts]
    assert sizes(of_dicts, batches) == [12, 12]
    same = [batch | {"extra": torch.tensor(0.3)} for batch in batches]
    assert sizes(of_dicts, same) == [N]


def test_a_plate_that_subsamples_by_itself_goes_its_own_way():
    x, y = inputs()

    def model(x, y):
        w = weight()
        with pyro.plate("data", N, subsample_size=7) as index:
            pyro.sample("y", dist.Normal(x[index] @ w, 0.5), obs=y[index])

    assert sizes(model, (x, y), chunk_bytes=500) == [7] * 4


STRUCTURES = ["full", "block", "kron", "diag", pl.LowRank(3)]


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    model = pl.bayesianize(net, prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.Classification())
    return model, {name: value.detach().clone() for name, value in net.named_parameters()}


@pytest.mark.parametrize("curvature", ["ggn", "mc_fisher", "empirical_fisher"])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_a_posterior_does_not_depend_on_the_budget(structure, curvature):
    model, values = network()
    x, _ = inputs()
    y = (x[:, 0] > 0).long()
    options = {"structure": structure, "curvature": curvature, "polish": False, "on_not_a_mode": "ignore"}
    forms = {
        "tuple": (x, y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=5),
        "list": [(x[:1], y[:1]), (x[1:], y[1:])],
    }
    found = []
    for data in forms.values():
        for chunk_bytes in (2**28, 4000):
            with pl.settings.using(chunk_bytes=chunk_bytes, cut_bytes=1):
                pyro.set_rng_seed(3)
                found.append(pl.fit_laplace(model, data, values, **options))
    for guide in found[1:]:
        torch.testing.assert_close(guide.precision.to_dense(), found[0].precision.to_dense(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(guide.mode.gradient, found[0].mode.gradient, rtol=1e-9, atol=1e-9)
        assert guide.log_evidence == pytest.approx(found[0].log_evidence, rel=1e-10)


def test_a_search_and_a_datatree_do_not_depend_on_the_budget():
    x, y = inputs()
    trees = []
    for chunk_bytes in (2**28, 2000):
        with pl.settings.using(chunk_bytes=chunk_bytes, cut_bytes=1):
            pyro.set_rng_seed(0)
            guide = pl.fit_laplace(regression, (x, y), progress=False)
            pyro.set_rng_seed(0)
            trees.append(pl.to_datatree(regression, guide, (x, y), num_samples=20, num_prior_samples=5))
    for group, name in (("posterior", "w"), ("log_likelihood", "y"), ("sample_stats", "lp"), ("observed_data", "y")):
        one, other = (torch.as_tensor(tree[group][name].values.copy()) for tree in trees)
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_a_budget_bounds_what_a_chunk_makes():
    """Patches of a convolution: 9 channels of 27 entries at each of 900 positions."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 900, 2))
    model = pl.bayesianize(net, prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.Classification())
    x, y = torch.randn(16, 3, 32, 32), torch.randint(2, (16,))
    data = as_data((x, y))
    program = Program.trace(model, data)
    cut = Loop(program, data).cut
    patches = 900 * 28 * 8
    assert patches < cut.bytes_of_row < 4 * patches
    with pl.settings.using(chunk_bytes=int(3.5 * cut.bytes_of_row)):
        assert [len(chunk.batch.args[0]) for chunk in Loop(program, data).chunks()] == [3, 3, 3, 3, 3, 1]


def test_a_pass_that_lasts_shows_a_bar(capsys):
    def slow(x, y):
        time.sleep(0.15)
        one_datum(x, y)

    x, y = inputs()
    batches, values = [(x, y), (x, y)], {"w": torch.zeros(3)}
    options = {"polish": False, "on_not_a_mode": "ignore"}
    guide = pl.fit_laplace(slow, batches, values, **options)
    assert "curvature" not in capsys.readouterr().err  # it has taken less than two seconds
    with pl.settings.using(progress_seconds=0.01):
        pl.fit_laplace(slow, batches, values, **options)
        assert "curvature" in capsys.readouterr().err
        pl.update(guide, batches, on_not_a_mode="ignore")
        assert "curvature" in capsys.readouterr().err
        pl.fit_laplace(slow, batches, values, progress=False, **options)
        pl.update(guide, batches, on_not_a_mode="ignore", progress=False)
        assert "curvature" not in capsys.readouterr().err


def test_whether_rows_are_independent_is_found_out_without_a_trace_of_it():
    x, y = inputs()
    data, state = as_data((x, y)), torch.random.get_rng_state()
    program = Program.trace(regression, data)
    with pl.settings.using(cut_bytes=1):
        assert Loop(program, data).cut is not None
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not list(pyro.get_param_store())
