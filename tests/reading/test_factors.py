"""Captured operations give the GGN that dense Jacobians give, and what cannot be captured falls back to them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs.captured import FUNCTIONS, N, batch_statistics, factors_of
from programs.modules import MODULES

import pyro_laplace as pl
from pyro_laplace._compat.pyro import undisturbed
from pyro_laplace.capture.anchor import Anchor
from pyro_laplace.capture.loop import Loop
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.data import as_data
from pyro_laplace.likelihood import likelihood_of
from pyro_laplace.program.program import Program
from pyro_laplace.reading import factors, gradients
from pyro_laplace.reading.gram_times import gram_times
from pyro_laplace.structure.build import sum_over_data

pytestmark = pytest.mark.usefixtures("float64")


CASES = FUNCTIONS | MODULES


def problem(name):
    model = {**{key: case[0] for key, case in CASES.items()}, "batch_statistics": batch_statistics}[name]
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(N, 4, generator=generator), torch.arange(N) % 3
    data = as_data((x, y))
    program = Program.trace(model() if isinstance(model, type) else model, data)
    theta = program.start + 0.3 * torch.randn(program.num_params, generator=generator)
    return program, data, anchored(program, theta)


def anchored(program, theta, index=None):
    """A point of a program, some coordinates free."""
    return Anchor(theta, torch.arange(len(theta)) if index is None else index, program.latents)


def summed(program, point, data, structure="full"):
    """The GGN of the likelihood, summed over data."""
    with undisturbed(), torch.no_grad():
        return sum_over_data(Loop(program, data), point, CURVATURES["ggn"], structure).likelihood


def naive(program, point, data):
    """sum_n J_n' I_n J_n, one row of the likelihood's parameters at a time, with I = E[-d2 log p] by hand."""
    (chunk,) = program.chunks(data)

    def eta(theta):
        return likelihood_of(program.run(theta, chunk).observed["y"].fn).link()

    with undisturbed(), torch.no_grad():
        jacobian = torch.func.jacrev(eta)(point.theta)
        site = program.run(point.theta, chunk).observed["y"]
        value = eta(point.theta)
    base = likelihood_of(site.fn).base
    if isinstance(base, torch.distributions.Categorical):
        p = value.softmax(-1)
        information = p.diag_embed() - p[..., :, None] * p[..., None, :]
    else:
        information = torch.stack([(-2 * value[..., 1]).exp(), torch.full_like(value[..., 1], 2.0)], -1).diag_embed()
    return torch.einsum("...ap,...ab,...bq->pq", jacobian, information, jacobian)


@pytest.mark.parametrize("name", [*CASES, "batch_statistics"])
def test_full_and_diag_equal_the_naive_sum(name):
    program, data, point = problem(name)
    expected = naive(program, point, data)
    full = summed(program, point, data).times(torch.eye(point.size))
    diagonal = summed(program, point, data, "diag").times(torch.ones(1, point.size))[0]
    torch.testing.assert_close(full, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(diagonal, expected.diagonal(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_what_is_captured(name, monkeypatch):
    program, data, point = problem(name)
    columns = []

    def dense_rows(run, root, index):
        columns.append(len(index))
        return gradients.dense_rows(run, root, index)

    monkeypatch.setattr(factors, "dense_rows", dense_rows)
    with undisturbed(), torch.no_grad():
        captured = factors_of(program, point, next(program.chunks(data)))
    assert captured is not None
    assert sum(columns) == CASES[name][1]


def test_data_that_reach_one_another_are_not_taken_for_independent():
    program, data, point = problem("batch_statistics")
    with undisturbed(), torch.no_grad():
        assert factors_of(program, point, next(program.chunks(data))) is None


@pytest.mark.parametrize("name", ["hand_written", "module", "convolution", "noise_and_intercept"])
def test_a_subset_is_the_submatrix(name):
    program, data, point = problem(name)
    last = list(program.latents)[1:]
    index = torch.cat([torch.arange(program.layout[n].start, program.layout[n].stop) for n in last])
    found = summed(program, anchored(program, point.theta, index), data).times(torch.eye(len(index)))
    expected = naive(program, point, data)[index][:, index]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["hand_written", "convolution"])
def test_nothing_of_the_program_keeps_a_gradient(name):
    program, data, point = problem(name)
    summed(program, point, data)
    assert not point.theta.requires_grad
    assert point.theta.grad is None


@pytest.mark.parametrize("likelihood", ["classes", "one-hot", "counts"])
@pytest.mark.parametrize("subset_of_data", [None, "masked"])
def test_a_layer_that_is_the_likelihoods_own_needs_no_root(likelihood, subset_of_data, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(N, 4, generator=generator), torch.arange(N) % 3
    mask = torch.ones(N, dtype=torch.bool) if subset_of_data is None else torch.arange(N) % 4 > 0
    target = {"classes": y, "one-hot": torch.eye(3)[y], "counts": 5 * torch.eye(3)[y]}[likelihood]

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 4]).to_event(2))
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        f = torch.nn.functional.linear(x, w, b)
        fn = {
            "classes": lambda: dist.Categorical(logits=f),
            "one-hot": lambda: dist.OneHotCategorical(logits=f),
            "counts": lambda: dist.Multinomial(5, logits=f),
        }[likelihood]()
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
            pyro.sample("y", fn, obs=y)

    data = as_data((x, target))
    program = Program.trace(model, data)
    theta = program.start + 0.3 * torch.randn(15, generator=generator)
    point = anchored(program, theta)
    p = (x @ theta[:12].reshape(3, 4).T + theta[12:]).softmax(-1)
    information = (p.diag_embed() - p.unsqueeze(2) * p.unsqueeze(1)) * (5 if likelihood == "counts" else 1)
    a = torch.cat([x, torch.ones(N, 1)], 1)[mask]
    expected = torch.einsum("noo,ni->oi", information[mask], a.square())
    gradients = information[mask].sum(0)

    def no_root(*args):
        pytest.fail("made a root")

    monkeypatch.setattr("pyro_laplace.curvature.root.Information.root", no_root)
    diagonal = summed(program, point, data, "diag").times(torch.ones(1, 15))[0]
    (state,) = summed(program, point, data, "kron").sums["y",].state()["layers"]
    torch.testing.assert_close(diagonal[:12].reshape(3, 4), expected[:, :4], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(diagonal[12:], expected[:, 4], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state["gradients"], gradients, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state["inputs"].tril(), (a.T @ a).tril(), rtol=1e-9, atol=1e-9)
    assert state["count"] == int(mask.sum())


@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("normal", [False, True])
def test_a_weight_made_of_repeated_entries(structure, normal):
    """An entry that the layer's weight holds twice: the rows of its uses add up before they are squared."""
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(N, 2, generator=generator), torch.arange(N) % 2

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        f = torch.nn.functional.linear(x, w[torch.tensor([[0, 0], [1, 2]])]) + 0 * w[3]
        with pyro.plate("data", len(x)):
            if normal:
                pyro.sample("y", dist.Normal(f, 1.0).to_event(1), obs=torch.stack([y, y], 1).to(f))
            else:
                pyro.sample("y", dist.Categorical(logits=f), obs=y)

    data = as_data((x, y))
    program = Program.trace(model, data)
    point = anchored(program, program.start + 0.3 * torch.randn(4, generator=generator))
    w = point.theta[torch.tensor([[0, 0], [1, 2]])]
    probabilities = (x @ w.mT).softmax(-1)
    information = torch.eye(2).expand(N, 2, 2)
    if not normal:
        information = probabilities.diag_embed() - probabilities[:, :, None] * probabilities[:, None]
    jacobian = torch.stack([torch.stack([x.sum(1), 0 * x[:, 0]], 1), torch.stack([0 * x[:, 0], x[:, 0]], 1)], 2)
    third = torch.stack([0 * x[:, 0], x[:, 1]], 1)
    jacobian = torch.cat([jacobian, third[:, :, None], 0 * third[:, :, None]], 2)  # n o p
    expected = torch.einsum("nop,noq,nqr->pr", jacobian, information, jacobian)
    found = summed(program, point, data, structure).times(torch.eye(4))
    torch.testing.assert_close(found, expected if structure == "full" else expected.diagonal().diag())


class _Entry(torch.autograd.Function):
    """One entry of a weight, taken in a way that no handler of torch functions sees."""

    @staticmethod
    def forward(ctx, weight):
        """The entry."""
        ctx.shape = weight.shape
        return weight[1, 2].clone()

    @staticmethod
    def backward(ctx, gradient):
        """Its gradient."""
        return gradient.new_zeros(ctx.shape).index_put((torch.tensor([1]), torch.tensor([2])), gradient)


@pytest.mark.parametrize("large", [1, pl.settings.probed_coordinates], ids=["by probes", "entry by entry"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_use_that_was_not_seen_is_found_out(hidden, transposed, large):

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2))
        features = torch.nn.functional.linear(x, w.mT if transposed else w)
        if hidden:
            features = features * (1 + 1e-3 * _Entry.apply(w))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=features.tanh()), obs=y)

    torch.manual_seed(0)
    x, y = torch.randn(N, 4 if transposed else 3), torch.randint(3, (N,))
    data = as_data((x, y))
    program = Program.trace(model, data, {"w": torch.randn(4, 3)})
    with undisturbed(), torch.no_grad(), pl.settings.using(probed_coordinates=large):
        found = factors_of(program, anchored(program, program.start), next(program.chunks(data)))
    assert (found is None) == hidden


@pytest.mark.parametrize("elements", [1, 2**24])
@pytest.mark.parametrize("name", CASES)
def test_products_with_many_vectors_are_those_of_the_matrix(name, elements):
    program, data, point = problem(name)
    expected = naive(program, point, data)
    vectors = torch.randn(40, point.size, generator=torch.Generator().manual_seed(2))
    total = torch.zeros_like(vectors)
    with undisturbed(), torch.no_grad(), pl.settings.using(pass_elements=elements):
        for factors in factors_of(program, point, next(program.chunks(data))):
            total += gram_times(factors, vectors, point.size)
    torch.testing.assert_close(total, vectors @ expected, rtol=1e-9, atol=1e-9)
