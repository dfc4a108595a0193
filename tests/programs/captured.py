"""Programs that consume their latent sites in all the ways that are captured, and in some that are not.

`FUNCTIONS` has each by name, with the number of its coordinates that need dense columns; `factors_of` reads one.
"""

import pyro
import pyro.distributions as dist
import torch
from torch.nn import functional

from pyro_laplace.capture.run import CapturedRun
from pyro_laplace.curvature.table import CURVATURES
from pyro_laplace.reading.factors import factor

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


def left_product(x, y):
    w1, b1, w2 = pyro.sample("w1", normal(3, 4)), pyro.sample("b1", normal(3, 1)), pyro.sample("w2", normal(3, 3))
    classes((w2 @ torch.tanh(w1 @ x.T + b1)).T, y)


def left_vector(x, y):
    w, b = pyro.sample("w", normal(4)), pyro.sample("b", normal())
    numbers(w.matmul(x.T) + b, y)


def left_of_positions(x, y):
    mix, w = pyro.sample("mix", normal(3, 2)), pyro.sample("w", normal(2, 3))
    classes((mix @ x.reshape(-1, 2, 2)).tanh().sum(1) @ w, y)  # [3, 2] @ [n, 2, 2]


def reflected_matmul(x, y):
    w = pyro.sample("w", normal(4, 3))
    classes(w.__rmatmul__(x), y)


def einsum(x, y):
    w1, w2, w3 = (
        pyro.sample("w1", normal(2, 2, 3)),
        pyro.sample("w2", normal(2, 3, 2)),
        pyro.sample("w3", normal(3, 3)),
    )
    heads = torch.einsum("nti, hio -> nhto", x.reshape(-1, 2, 2), w1).tanh()
    mixed = torch.einsum("hot,nhto->no", w2, heads)  # summed over heads and positions
    classes(torch.einsum("oi,ni", w3, mixed), y)


def einsum_by_group(x, y):
    w, scale = pyro.sample("w", normal(2, 2, 3)), pyro.sample("scale", normal(20))
    hidden = torch.einsum("nhi,hio->nho", x.reshape(-1, 2, 2), w)
    wide = torch.einsum("nc,c->nc", x.repeat(1, 5), scale)
    classes(hidden.sin().sum(1) + wide[:, :3] + wide[:, 3:18].reshape(-1, 5, 3).cos().sum(1), y)


def batched_matmul(x, y):
    w1, w2, w3 = (
        pyro.sample("w1", normal(2, 3)),
        pyro.sample("w2", normal(3, 3, 3)),
        pyro.sample("w3", normal(5, 4, 3)),
    )
    hidden = torch.bmm(x.reshape(-1, 2, 2), w1.expand(len(x), 2, 3)).tanh()
    heads = hidden.unsqueeze(1) @ w2  # [n, 1, t, i] @ [h, i, o]
    ensemble = (x @ w3).tanh().mean(0)  # [n, i] @ [e, i, o]
    classes(heads.sin().sum((1, 2)) + ensemble, y)


def inner(x, y):
    w = pyro.sample("w", normal(3, 4))
    classes(torch.inner(x, w), y)


def one_dimensional_convolution(x, y):
    kernel, bias = pyro.sample("kernel", normal(3, 1, 2)), pyro.sample("bias", normal(3))
    hidden = functional.conv1d(x.unsqueeze(1), kernel, bias, padding="same", dilation=2)
    classes(torch.tanh(hidden).mean(-1), y)


def strided_convolution(x, y):
    kernel, bias = pyro.sample("kernel", normal(4, 1, 3, 2)), pyro.sample("bias", normal(4, 1, 1))
    images = torch.cat([x, x.cos(), x.sin()], 1).repeat(1, 2).reshape(-1, 2, 4, 3)
    hidden = functional.conv2d(images, kernel, stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2)
    classes((hidden + bias).sin().flatten(2).sum(-1)[:, :3], y)


def depthwise_convolution(x, y):
    kernel, bias = pyro.sample("kernel", normal(40, 1, 2)), pyro.sample("bias", normal(40))
    signal = torch.cat([x * k for k in range(1, 21)], 1).reshape(-1, 20, 4).sin()
    hidden = functional.conv1d(signal, kernel, bias, padding="valid", groups=20)
    classes(hidden.tanh().mean(-1)[:, 5:8] + hidden.cos().sum((1, 2))[:, None] * torch.arange(3), y)


def three_dimensional_convolution(x, y):
    kernel, bias = pyro.sample("kernel", normal(3, 2, 2, 1, 2)), pyro.sample("bias", normal(3))
    volume = torch.cat([x, x.cos(), x.sin(), x.tanh()], 1).reshape(-1, 2, 2, 2, 2)
    classes(torch.conv3d(volume, kernel, bias, padding=(1, 0, 0)).tanh().flatten(2).mean(-1), y)


def transposed_convolution(x, y):
    kernel, bias = pyro.sample("kernel", normal(4, 3, 3, 2)), pyro.sample("bias", normal(6))
    images = torch.cat([x, x.cos(), x.sin(), x.tanh()], 1).reshape(-1, 4, 2, 2)
    hidden = functional.conv_transpose2d(
        images, kernel, bias, stride=2, padding=(3, 0), output_padding=1, groups=2, dilation=(2, 1)
    )
    classes(hidden.tanh().flatten(2).sum(-1)[:, 1:4], y)


def transposed_one_dimensional(x, y):
    kernel, bias = pyro.sample("kernel", normal(2, 3, 3)), pyro.sample("bias", normal(3))
    hidden = functional.conv_transpose1d(x.reshape(-1, 2, 2), kernel, bias, stride=3, padding=1)
    classes(hidden.tanh().sum(-1), y)


def group_normalised(x, y):
    w, gain, shift = pyro.sample("w", normal(4, 8)), pyro.sample("gain", normal(4)), pyro.sample("shift", normal(4))
    hidden = functional.group_norm((x @ w).reshape(-1, 4, 2), 2, gain, shift)
    classes(hidden.sin().sum(-1)[:, 1:], y)


def batch_normalised(x, y):
    gain, shift = pyro.sample("gain", normal(4)), pyro.sample("shift", normal(4))
    hidden = functional.batch_norm(x, torch.arange(4) * 0.1, torch.ones(4) * 2, gain, shift)
    classes(hidden.sin()[:, 1:], y)


def root_mean_square(x, y):
    gain, w = pyro.sample("gain", normal(2)), pyro.sample("w", normal(4, 3))
    classes(functional.rms_norm(x.reshape(-1, 2, 2), (2,), gain).flatten(1) @ w, y)


def scaled(x, y):
    gain, tau, w = pyro.sample("gain", normal(4)), pyro.sample("tau", normal()), pyro.sample("w", normal(4, 3))
    wide, outer = pyro.sample("wide", normal(20)), pyro.sample("outer", normal(3))
    spread = (x.repeat(1, 5) * wide).cos()
    classes(2 * (tau * torch.tanh(x * gain)) @ w + torch.mul(spread.sum(1, keepdim=True), outer), y)


def used_as_scale_and_weight(x, y):
    w = pyro.sample("w", normal(20))
    wide = x.repeat(1, 5)
    classes((wide * w).tanh()[:, :3] + (wide @ w)[:, None] * torch.arange(3), y)


def scaled_twice(x, y):
    w = pyro.sample("w", normal(20))
    classes(((x.repeat(1, 5) * w).tanh() * w)[:, 3:18].reshape(-1, 5, 3).sum(1), y)


def sums_of_all_kinds(x, y):
    w, a, b, c, d = (
        pyro.sample(name, normal(*shape))
        for name, shape in zip("wabcd", [(4, 3), (3,), (3,), (3,), (1, 3)], strict=True)
    )
    hidden = x @ w
    hidden += a
    hidden = (hidden - b).tanh()
    hidden = (c - hidden).sin()
    hidden.add_(d)
    classes(hidden.sub(a).sin(), y)


def overwritten(x, y):
    w1, b1, w2 = pyro.sample("w1", normal(4, 3)), pyro.sample("b1", normal(3)), pyro.sample("w2", normal(3, 3))
    hidden = functional.relu(functional.linear(x, w1.T, b1), inplace=True)
    classes(hidden.mul(2.0).add_(0.3).relu_() @ w2, y)


def position_embedding(x, y):
    places, w, b = (
        pyro.sample("places", normal(1, 2, 2)),
        pyro.sample("w", normal(2, 3)),
        pyro.sample("b", normal(2, 1)),
    )
    classes(((x.reshape(-1, 2, 2) + places).tanh() @ w + b).sin().sum(1), y)


def words(x, y):
    table, w = pyro.sample("table", normal(5, 2)), pyro.sample("w", normal(2, 3))
    sentence = torch.stack([y, (y + 2) % 3, y + 2], 1)
    classes((functional.embedding(sentence, table, padding_idx=None) @ w).tanh().mean(1), y)


def group_effects(x, y):
    group = torch.arange(len(x)) % 5 - 2
    intercept, slope, w = (
        pyro.sample("intercept", normal(5)),
        pyro.sample("slope", normal(5, 4)),
        pyro.sample("w", normal(4)),
    )
    numbers(intercept[group] + (x * slope.index_select(0, group % 5)).sum(-1).sin() + x @ w, y)


def permuted(x, y):
    w, gain = pyro.sample("w", normal(4, 3)), pyro.sample("gain", normal(3))
    order = torch.tensor([2, 0, 1])
    classes((x @ w[:, order]).tanh() * gain[order], y)


def local_effects(x, y):
    effect, w = pyro.sample("effect", normal(N)), pyro.sample("w", normal(4))
    numbers(x @ w + effect, y)


def filled_in(x, y):
    upper, w = pyro.sample("upper", normal(4)), pyro.sample("w", normal(4, 3))
    matrix = torch.zeros(4, 4)
    matrix[0] = upper
    classes((x @ matrix).tanh() @ w, y)


def flattened(x, y):
    w1, b, w2 = pyro.sample("w1", normal(2, 3)), pyro.sample("b", normal(3)), pyro.sample("w2", normal(3, 3))
    tokens = x.reshape(-1, 2)  # data first, then positions
    classes((tokens @ w1 + b).tanh().reshape(-1, 2, 3).mean(1) @ w2, y)


def positions_first(x, y):
    w, b = pyro.sample("w", normal(4, 3)), pyro.sample("b", normal(3))
    tokens = torch.stack([x * k for k in range(1, N + 1)])  # as many positions as data, and before them
    rows = (tokens.flatten(0, 1) @ w + b).tanh().reshape(N, -1, 3)
    classes((rows * (tokens @ w)).sum(0), y)


def recurrent(x, y):
    inward, across, bias, outward = (
        pyro.sample("inward", normal(1, 3)),
        pyro.sample("across", normal(3, 3)),
        pyro.sample("bias", normal(3)),
        pyro.sample("outward", normal(3, 3)),
    )
    hidden = torch.zeros(len(x), 3)
    for step in range(4):
        hidden = torch.tanh(x[:, step : step + 1] @ inward + hidden @ across + bias)
    classes(hidden @ outward, y)


FUNCTIONS = {
    "hand_written": (hand_written, 0),
    "transposed": (transposed, 0),
    "one_long_vector": (one_long_vector, 0),
    "rescaled": (rescaled, 13),
    "used_twice": (used_twice, 0),
    "tied": (tied, 0),
    "residual": (residual, 0),
    "convolution": (convolution, 0),
    "grouped_convolution": (grouped_convolution, 0),
    "sequence": (sequence, 0),
    "attention": (attention, 0),
    "normalised": (normalised, 0),
    "embedding": (embedding, 0),
    "several_outputs": (several_outputs, 0),
    "noise_and_intercept": (noise_and_intercept, 1),
    "left_product": (left_product, 0),
    "left_vector": (left_vector, 0),
    "left_of_positions": (left_of_positions, 0),
    "reflected_matmul": (reflected_matmul, 0),
    "einsum": (einsum, 0),
    "einsum_by_group": (einsum_by_group, 0),
    "batched_matmul": (batched_matmul, 0),
    "inner": (inner, 0),
    "one_dimensional_convolution": (one_dimensional_convolution, 0),
    "strided_convolution": (strided_convolution, 0),
    "depthwise_convolution": (depthwise_convolution, 0),
    "three_dimensional_convolution": (three_dimensional_convolution, 0),
    "transposed_convolution": (transposed_convolution, 0),
    "transposed_one_dimensional": (transposed_one_dimensional, 0),
    "group_normalised": (group_normalised, 0),
    "batch_normalised": (batch_normalised, 0),
    "root_mean_square": (root_mean_square, 0),
    "scaled": (scaled, 0),
    "used_as_scale_and_weight": (used_as_scale_and_weight, 20),
    "scaled_twice": (scaled_twice, 0),
    "sums_of_all_kinds": (sums_of_all_kinds, 0),
    "overwritten": (overwritten, 0),
    "position_embedding": (position_embedding, 0),
    "words": (words, 0),
    "group_effects": (group_effects, 0),
    "permuted": (permuted, 0),
    "local_effects": (local_effects, N),
    "filled_in": (filled_in, 4),
    "flattened": (flattened, 0),
    "positions_first": (positions_first, 0),
    "recurrent": (recurrent, 0),
}
"""Program and the number of its coordinates that need dense columns."""


def factors_of(program, point, chunk, root=None):
    """The factors of a root (the GGN's, if none is given) on one chunk, or None where there are none."""
    run = CapturedRun.make(program, point, chunk)
    root = CURVATURES["ggn"].root(program, run.run, chunk) if root is None else root
    factored = factor(run, root, run.anchor)
    return None if factored is None else [factors for _, factors in factored.factors(2**62)]
