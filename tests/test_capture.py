"""Captured operations give the GGN that dense Jacobians give, and what cannot be captured falls back to them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.nn import functional

from pyro_laplace._compat import undisturbed
from pyro_laplace.curvature import CURVATURES, Point, likelihood_diagonal, likelihood_matrix
from pyro_laplace.curvature.factors import factors_of
from pyro_laplace.data import as_data
from pyro_laplace.likelihood import likelihood_of
from pyro_laplace.program import Program

pytestmark = pytest.mark.usefixtures("float64")

N = 7


def normal(*shape):
    return dist.Normal(torch.zeros(()), 1.0).expand(shape).to_event(len(shape))


def classes(logits, y):
    with pyro.plate("data", len(logits)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def numbers(loc, y, scale=0.5):
    with pyro.plate("data", len(loc)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y.to(loc.dtype))


def hand_written(x, y):
    w1, b1, w2 = pyro.sample("w1", normal(4, 3)), pyro.sample("b1", normal(3)), pyro.sample("w2", normal(3, 3))
    classes(torch.tanh(x @ w1 + b1) @ w2, y)


def transposed(x, y):
    w1, w2 = pyro.sample("w1", normal(3, 4)), pyro.sample("w2", normal(3, 3))
    classes(torch.matmul(torch.tanh(torch.mm(x, w1.t())), w2.T), y)


def one_long_vector(x, y):
    theta = pyro.sample("theta", normal(4 * 3 + 3 + 3 * 3))
    w1, b1, w2 = theta[:12].view(4, 3), theta[12:15], theta[15:].reshape(3, 3)
    classes(torch.addmm(b1, x, w1).sin() @ w2, y)


def rescaled(x, y):
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    w1, w2 = pyro.sample("w1", normal(4, 3)), pyro.sample("w2", normal(3, 3))
    classes(torch.tanh(x @ (tau * w1)) @ w2, y)


def used_twice(x, y):
    w1, w2 = pyro.sample("w1", normal(4, 4)), pyro.sample("w2", normal(4, 3))
    classes(torch.tanh(torch.tanh(x @ w1) @ w1) @ w2, y)


def tied(x, y):
    w1, b = pyro.sample("w1", normal(4, 4)), pyro.sample("b", normal(4))
    classes((torch.tanh(x @ w1 + b) @ w1.T + b)[:, :3], y)


def residual(x, y):
    w1, w2, b = pyro.sample("w1", normal(4, 4)), pyro.sample("w2", normal(4, 3)), pyro.sample("b", normal(4))
    hidden = x @ w1
    classes((hidden + torch.tanh(hidden + b)) @ w2, y)


def convolution(x, y):
    kernel, bias = pyro.sample("kernel", normal(2, 1, 2, 2)), pyro.sample("bias", normal(2))
    head = pyro.sample("head", normal(3, 2 * 3 * 3))
    hidden = functional.conv2d(x.reshape(-1, 1, 2, 2), kernel, bias, padding=1)
    classes(functional.linear(torch.tanh(hidden).flatten(1), head), y)


def grouped_convolution(x, y):
    kernel, head = pyro.sample("kernel", normal(4, 1, 1, 1)), pyro.sample("head", normal(3, 4))
    hidden = functional.conv2d(x.reshape(-1, 4, 1, 1), kernel, groups=4)
    classes(functional.linear(hidden.flatten(1), head), y)


def sequence(x, y):
    w1, w2 = pyro.sample("w1", normal(2, 3)), pyro.sample("w2", normal(3, 3))
    hidden = torch.tanh(x.reshape(-1, 2, 2) @ w1)  # two positions share w1
    classes(hidden.mean(1) @ w2, y)


def attention(x, y):
    q, k, v = (pyro.sample(name, normal(2, 2)) for name in "qkv")
    tokens = x.reshape(-1, 2, 2)
    scores = (tokens @ q) @ (tokens @ k).mT
    classes((scores.softmax(-1) @ (tokens @ v)).flatten(1)[:, :3], y)


def normalised(x, y):
    w1, gain, shift = pyro.sample("w1", normal(4, 3)), pyro.sample("gain", normal(3)), pyro.sample("shift", normal(3))
    classes(functional.layer_norm(x @ w1, (3,), gain, shift), y)


def embedding(x, y):
    table, w = pyro.sample("table", normal(3, 2)), pyro.sample("w", normal(2, 3))
    classes(functional.embedding(y, table) @ w, y)


def several_outputs(x, y):
    w = pyro.sample("w", normal(4, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.sin(x @ w), 0.3).to_event(1), obs=x[:, :2])


def noise_and_intercept(x, y):
    w, b, sigma = (
        pyro.sample("w", normal(4)),
        pyro.sample("b", normal()),
        pyro.sample("sigma", dist.LogNormal(0.0, 1.0)),
    )
    numbers(torch.exp(0.3 * (x @ w)) + b, y, sigma)


def batch_statistics(x, y):
    w1, w2 = pyro.sample("w1", normal(4, 3)), pyro.sample("w2", normal(3, 3))
    hidden = x @ w1
    classes((hidden - hidden.mean(0)) @ w2, y)  # every datum reaches every other


class Module(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = PyroModule[nn.Sequential](PyroModule[nn.Linear](4, 3), nn.Tanh(), PyroModule[nn.Linear](3, 3))
        for layer in (self.net[0], self.net[2]):
            layer.weight = PyroSample(normal(*layer.weight.shape))
            layer.bias = PyroSample(normal(*layer.bias.shape))

    def forward(self, x, y):
        classes(self.net(x), y)


CASES = {
    "hand_written": (hand_written, 0),
    "transposed": (transposed, 0),
    "one_long_vector": (one_long_vector, 0),
    "rescaled": (rescaled, 13),
    "used_twice": (used_twice, 0),
    "tied": (tied, 0),
    "residual": (residual, 0),
    "convolution": (convolution, 0),
    "grouped_convolution": (grouped_convolution, 4),
    "sequence": (sequence, 0),
    "attention": (attention, 0),
    "normalised": (normalised, 6),
    "embedding": (embedding, 6),
    "several_outputs": (several_outputs, 0),
    "noise_and_intercept": (noise_and_intercept, 1),
    "module": (Module, 0),
}
"""Program and the number of its coordinates that need dense columns."""


def problem(name):
    model = {**{key: case[0] for key, case in CASES.items()}, "batch_statistics": batch_statistics}[name]
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(N, 4, generator=generator), torch.arange(N) % 3
    data = as_data((x, y))
    program = Program.trace(Module() if model is Module else model, data)
    theta = program.start + 0.3 * torch.randn(program.num_params, generator=generator)
    return program, data, Point(theta, torch.arange(len(theta)))


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
    with undisturbed(), torch.no_grad():
        full = likelihood_matrix(CURVATURES["ggn"], program, point, data)
        diagonal = likelihood_diagonal(CURVATURES["ggn"], program, point, data)
    torch.testing.assert_close(full, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(diagonal, expected.diagonal(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_what_is_captured(name):
    program, data, point = problem(name)
    with undisturbed(), torch.no_grad():
        captured = factors_of(program, point, next(program.chunks(data)))
    assert captured is not None
    assert len(captured[0].dense_index) == CASES[name][1]


def test_data_that_reach_one_another_are_not_taken_for_independent():
    program, data, point = problem("batch_statistics")
    with undisturbed(), torch.no_grad():
        assert factors_of(program, point, next(program.chunks(data))) is None


@pytest.mark.parametrize("name", ["hand_written", "module", "convolution", "noise_and_intercept"])
def test_a_subset_is_the_submatrix(name):
    program, data, point = problem(name)
    last = list(program.latents)[1:]
    index = torch.cat([torch.arange(program.layout[n].start, program.layout[n].stop) for n in last])
    with undisturbed(), torch.no_grad():
        found = likelihood_matrix(CURVATURES["ggn"], program, Point(point.theta, index), data)
    expected = naive(program, point, data)[index][:, index]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["hand_written", "convolution"])
def test_nothing_of_the_program_keeps_a_gradient(name):
    program, data, point = problem(name)
    with undisturbed(), torch.no_grad():
        likelihood_matrix(CURVATURES["ggn"], program, point, data)
    assert not point.theta.requires_grad
    assert point.theta.grad is None
