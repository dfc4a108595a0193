"""Every operation of the table, in a program: the posterior of all sites and of the last layer is the dense one's.

The reference is the Jacobian of the same few lines by autograd, without the package. Each operation is a method or a
function, in place or not; what it is called with latent values by is the last layer.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import pyro_laplace as pl
from pyro_laplace.capture import watch
from pyro_laplace.capture.operations import CHOICES, OPERATIONS

pytestmark = pytest.mark.usefixtures("float64")

N, NOISE = 12, 0.7

ATTENTION = nn.MultiheadAttention(4, 2, bias=False, dtype=torch.float64)
LSTM, GRU, TANH, RELU = (
    kind(1, 2, batch_first=True, dtype=torch.float64, **options)
    for kind, options in ((nn.LSTM, {}), (nn.GRU, {}), (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"}))
)


def weights_of(module):
    """Its parameters, under names of sites."""
    return {name: tuple(value.shape) for name, value in module.named_parameters()}


def recurrent(module):
    return lambda h, p, x: functional_call(module, p, (h[:, :, None],))[0][:, -1].sum(-1)


def attended(h, p, x):
    tokens = torch.stack([h, h.sin()])
    return functional_call(ATTENTION, p, (tokens, tokens, tokens))[0].sum((0, 2))


def words(x):
    return (x * 10).long().abs() % 5


W, B = {"w": (4,), "b": ()}, {"b": ()}
MATRIX = {"w": (4, 2), "b": (2,)}


def with_number(change):
    """A bias that is added to a layer, or taken off it, in one way or another."""
    return {"w": (4,), "b": ()}, lambda h, p, x: change(h @ p["w"], p["b"]), {"w", "b"}


def with_vector(change):
    """The same of two outputs."""
    return MATRIX, lambda h, p, x: change(h @ p["w"], p["b"]).sin().sum(-1), {"w", "b"}


CASES = {
    "matmul": [
        ({"w": (4,)}, lambda h, p, x: torch.matmul(h, p["w"]), {"w"}),
        ({"w": (4,)}, lambda h, p, x: h.matmul(p["w"]), {"w"}),
        ({"w": (4,)}, lambda h, p, x: h @ p["w"], {"w"}),
        ({"w": (2, 4)}, lambda h, p, x: (p["w"] @ h.T).sin().sum(0), {"w"}),
        ({"w": (4,), "scale": ()}, lambda h, p, x: h @ (p["w"] * p["scale"].exp()), {"w", "scale"}),
    ],
    "__matmul__": [({"w": (4,)}, lambda h, p, x: h.__matmul__(p["w"]), {"w"})],
    "__rmatmul__": [({"w": (2, 4)}, lambda h, p, x: h.T.__rmatmul__(p["w"]).sin().sum(0), {"w"})],
    "mm": [({"w": (4, 2)}, lambda h, p, x: torch.mm(h, p["w"]).sin().sum(-1), {"w"})],
    "mv": [({"w": (4,)}, lambda h, p, x: h.mv(p["w"]), {"w"})],
    "bmm": [({"w": (2, 4, 1)}, lambda h, p, x: torch.bmm(torch.stack([h, x]), p["w"]).sin().sum((0, 2)), {"w"})],
    "dot": [({"w": (4,)}, lambda h, p, x: torch.stack([row.dot(p["w"]) for row in h]), {"w"})],
    "vdot": [({"w": (4,)}, lambda h, p, x: torch.stack([torch.vdot(p["w"], row) for row in h]), {"w"})],
    "inner": [({"w": (2, 4)}, lambda h, p, x: torch.inner(h, p["w"]).sin().sum(-1), {"w"})],
    "einsum": [
        ({"w": (4,)}, lambda h, p, x: torch.einsum("ni,i->n", h, p["w"]), {"w"}),
        ({"w": (4, 2)}, lambda h, p, x: torch.einsum("io,ni->no", [p["w"], h]).sin().sum(-1), {"w"}),
    ],
    "linear": [
        ({"w": (1, 4), "b": (1,)}, lambda h, p, x: functional.linear(h, p["w"], p["b"])[:, 0], {"w", "b"}),
        ({"w": (2, 4)}, lambda h, p, x: functional.linear(input=h, weight=p["w"]).sin().sum(-1), {"w"}),
    ],
    "addmm": [(MATRIX, lambda h, p, x: torch.addmm(p["b"], h, p["w"]).sin().sum(-1), {"w", "b"})],
    "addmm_": [({"w": (4, 2)}, lambda h, p, x: torch.zeros(N, 2).addmm_(h, p["w"]).sin().sum(-1), {"w"})],
    "addmv": [(W, lambda h, p, x: torch.addmv(p["b"].expand(N), h, p["w"]), {"w", "b"})],
    "addmv_": [({"w": (4,)}, lambda h, p, x: torch.ones(N).addmv_(h, p["w"]), {"w"})],
    "baddbmm": [
        (
            {"w": (2, 4, 1), "b": (1,)},
            lambda h, p, x: torch.baddbmm(p["b"], torch.stack([h, x]), p["w"]).sin().sum((0, 2)),
            {"w", "b"},
        )
    ],
    "baddbmm_": [
        (
            {"w": (2, 4, 1)},
            lambda h, p, x: torch.zeros(2, N, 1).baddbmm_(torch.stack([h, x]), p["w"]).sin().sum((0, 2)),
            {"w"},
        )
    ],
    "tensordot": [({"w": (4,)}, lambda h, p, x: torch.tensordot(h, p["w"], 1), {"w"})],
    "outer": [({"w": (2,)}, lambda h, p, x: torch.outer(h[:, 0], p["w"]).sin().sum(-1), {"w"})],
    "ger": [({"w": (2,)}, lambda h, p, x: h[:, 0].ger(p["w"]).sin().sum(-1), {"w"})],
    "addr": [({"w": (2,)}, lambda h, p, x: torch.addr(torch.zeros(N, 2), h[:, 0], p["w"]).sin().sum(-1), {"w"})],
    "addr_": [({"w": (2,)}, lambda h, p, x: torch.zeros(N, 2).addr_(h[:, 0], p["w"]).sin().sum(-1), {"w"})],
    "linalg_multi_dot": [({"w": (4,)}, lambda h, p, x: torch.linalg.multi_dot([h, p["w"]]), {"w"})],
    "bilinear": [({"w": (1, 4, 4)}, lambda h, p, x: functional.bilinear(h, x, p["w"])[:, 0], {"w"})],
    "multi_head_attention_forward": [(weights_of(ATTENTION), attended, {"out_proj.weight"})],
    "lstm": [(weights_of(LSTM), recurrent(LSTM), set(weights_of(LSTM)))],
    "gru": [(weights_of(GRU), recurrent(GRU), set(weights_of(GRU)))],
    "rnn_tanh": [(weights_of(TANH), recurrent(TANH), set(weights_of(TANH)))],
    "rnn_relu": [(weights_of(RELU), recurrent(RELU), set(weights_of(RELU)))],
    "conv1d": [
        (
            {"w": (2, 1, 2), "b": (2,)},
            lambda h, p, x: functional.conv1d(h[:, None], p["w"], p["b"]).sin().sum((1, 2)),
            {"w", "b"},
        )
    ],
    "conv2d": [
        ({"w": (2, 1, 2, 1)}, lambda h, p, x: torch.conv2d(h.reshape(N, 1, 2, 2), p["w"]).sin().sum((1, 2, 3)), {"w"})
    ],
    "conv3d": [
        (
            {"w": (2, 1, 1, 2, 1)},
            lambda h, p, x: functional.conv3d(h.reshape(N, 1, 1, 2, 2), p["w"]).sin().flatten(1).sum(1),
            {"w"},
        )
    ],
    "conv_transpose1d": [
        (
            {"w": (1, 2, 2)},
            lambda h, p, x: functional.conv_transpose1d(h[:, None], p["w"], stride=2).sin().sum((1, 2)),
            {"w"},
        )
    ],
    "conv_transpose2d": [
        (
            {"w": (1, 2, 2, 1)},
            lambda h, p, x: functional.conv_transpose2d(h.reshape(N, 1, 2, 2), p["w"]).sin().flatten(1).sum(1),
            {"w"},
        )
    ],
    "conv_transpose3d": [
        (
            {"w": (1, 1, 2, 1, 1)},
            lambda h, p, x: functional.conv_transpose3d(h.reshape(N, 1, 2, 2, 1), p["w"]).sin().flatten(1).sum(1),
            {"w"},
        )
    ],
    "embedding": [({"w": (5, 2)}, lambda h, p, x: functional.embedding(words(x), p["w"]).sin().sum((1, 2)), {"w"})],
    "embedding_bag": [
        (
            {"w": (5, 2)},
            lambda h, p, x, mode=mode: functional.embedding_bag(words(x), p["w"], mode=mode).sin().sum(1),
            {"w"},
        )
        for mode in ("sum", "mean", "max")
    ],
    "add": [
        with_number(lambda f, b: f + b),
        with_number(lambda f, b: b + f),
        with_vector(lambda f, b: torch.add(f, b)),
        with_vector(lambda f, b: f.add(b, alpha=2.0)),
    ],
    "__add__": [with_number(lambda f, b: f.__add__(b))],
    "__radd__": [with_number(lambda f, b: f.__radd__(b))],
    "add_": [with_vector(lambda f, b: f.add_(b))],
    "__iadd__": [with_number(lambda f, b: f.__iadd__(b))],
    "sub": [
        with_number(lambda f, b: f - b),
        with_number(lambda f, b: b - f),
        with_vector(lambda f, b: torch.sub(f, b, alpha=0.5)),
    ],
    "subtract": [with_number(torch.subtract), with_vector(lambda f, b: f.subtract(b))],
    "__sub__": [with_number(lambda f, b: f.__sub__(b))],
    "sub_": [with_number(lambda f, b: f.sub_(b)), with_vector(lambda f, b: f.__isub__(b))],
    "subtract_": [with_vector(lambda f, b: f.subtract_(b))],
    "__isub__": [with_number(lambda f, b: f.__isub__(b))],
    "rsub": [with_number(torch.rsub), with_vector(lambda f, b: torch.rsub(f, b, alpha=2))],
    "__rsub__": [with_number(lambda f, b: f.__rsub__(b))],
    "mul": [
        ({"w": (4,)}, lambda h, p, x: (h * p["w"]).sum(-1), {"w"}),
        ({"w": (4,)}, lambda h, p, x: torch.mul(p["w"], h).sin().sum(-1), {"w"}),
        ({"w": (4,), "scale": ()}, lambda h, p, x: (h @ p["w"]) * p["scale"], {"w"}),
    ],
    "multiply": [({"w": (4,)}, lambda h, p, x: torch.multiply(h, p["w"]).sum(-1), {"w"})],
    "__mul__": [({"w": (4,)}, lambda h, p, x: h.__mul__(p["w"]).sum(-1), {"w"})],
    "__rmul__": [({"w": (4,)}, lambda h, p, x: h.__rmul__(p["w"]).sum(-1), {"w"})],
    "mul_": [({"w": (4,)}, lambda h, p, x: h.clone().mul_(p["w"]).sum(-1), {"w"})],
    "multiply_": [({"w": (4,)}, lambda h, p, x: h.clone().multiply_(p["w"]).sum(-1), {"w"})],
    "__imul__": [({"w": (4,)}, lambda h, p, x: h.clone().__imul__(p["w"]).sum(-1), {"w"})],
    "layer_norm": [
        (
            {"w": (4,), "b": (4,)},
            lambda h, p, x: functional.layer_norm(h, (4,), p["w"], p["b"]).sin().sum(-1),
            {"w", "b"},
        )
    ],
    "rms_norm": [({"w": (4,)}, lambda h, p, x: functional.rms_norm(h, (4,), p["w"]).sin().sum(-1), {"w"})],
    "group_norm": [
        ({"w": (4,), "b": (4,)}, lambda h, p, x: functional.group_norm(h, 2, p["w"], p["b"]).sin().sum(-1), {"w", "b"})
    ],
    "batch_norm": [
        (
            {"w": (4,), "b": (4,)},
            lambda h, p, x: functional.batch_norm(h, torch.zeros(4), torch.ones(4), p["w"], p["b"]).sin().sum(-1),
            {"w", "b"},
        )
    ],
    "__getitem__": [
        ({"w": (4,), "u": (5,)}, lambda h, p, x: h @ p["w"] + p["u"][words(x)[:, 0]], {"w", "u"}),
    ],
    "index_select": [
        ({"w": (4,), "u": (5,)}, lambda h, p, x: h @ p["w"] + p["u"].index_select(0, words(x)[:, 0]), {"w", "u"}),
    ],
    "gather": [({"w": (4,), "u": (5,)}, lambda h, p, x: h @ p["w"] + p["u"].gather(0, words(x)[:, 0]), {"w", "u"})],
    "take": [({"w": (4,), "u": (5,)}, lambda h, p, x: h @ p["w"] + p["u"].take(words(x)[:, 0]), {"w", "u"})],
    "take_along_dim": [
        (
            {"w": (4,), "u": (5,)},
            lambda h, p, x: h @ p["w"] + torch.take_along_dim(p["u"], words(x)[:, 0], 0),
            {"w", "u"},
        )
    ],
}
"""By name of the operation: the sites that the last layer may have, what it makes of h, and those that it has."""

FLAT = [(name, k) for name, cases in CASES.items() for k in range(len(cases))]


class _Names(TorchFunctionMode):
    """The functions that were called."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def problem(name, k):
    """A program h = tanh(x w1), f = operation(h); its data and point; f as a function; the last layer."""
    shapes, make, last = CASES[name][k]
    shapes = {"w1": (4, 4), **shapes}
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(N, 4, generator=generator), torch.randn(N, generator=generator)
    point = {site: 0.6 * torch.randn(shape, generator=generator) for site, shape in shapes.items()}

    def f(p, x):
        return make(torch.tanh(x @ p["w1"]), {site: p[site] for site in shapes if site != "w1"}, x)

    def model(x, y=None):
        p = {
            site: pyro.sample(site, dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))
            for site, shape in shapes.items()
        }
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(f(p, x), NOISE), obs=y)

    return model, (x, y), point, f, last


def dense_cov(f, point, x, sites):
    """(J'J / noise^2 + I)^-1 over some sites."""
    jac = torch.autograd.functional.jacobian(
        lambda *free: f({**point, **dict(zip(sites, free, strict=True))}, x), tuple(point[site] for site in sites)
    )
    rows = torch.cat([each.reshape(len(x), -1) for each in jac], 1)
    return (rows.T @ rows / NOISE**2 + torch.eye(rows.shape[1])).inverse()


def test_every_operation_is_here():
    assert CASES.keys() >= OPERATIONS.keys() | CHOICES


@pytest.mark.parametrize(("name", "k"), FLAT)
def test_the_operation_is_called_by_its_name(name, k):
    _, (x, _), point, f, _ = problem(name, k)
    with _Names() as names:
        f(point, x)
    assert name in names.seen or name.startswith("__") or name in ("addmm_", "ger", "linalg_multi_dot")


@pytest.mark.parametrize("what", ["all", "last_layer", "all, not captured"])
@pytest.mark.parametrize(("name", "k"), FLAT)
def test_the_posterior_is_the_dense_one(name, k, what, monkeypatch):
    model, (x, y), point, f, last = problem(name, k)
    subset, _, hidden = what.partition(", ")
    if hidden and k:
        pytest.skip("as the first of its name")
    if hidden:
        monkeypatch.setattr(watch, "contractions", lambda *args: None)
    guide = pl.fit_laplace(
        model, (x, y), point, subset=subset, curvature="ggn", polish=False, on_not_a_mode="ignore", progress=False
    )
    assert set(guide.random) == (last if subset == "last_layer" else point.keys())
    expected = dense_cov(f, point, x, guide.random)
    torch.testing.assert_close(guide.covariance, expected, rtol=1e-7, atol=1e-9)
