"""Programs whose rows are no data of their own: graphs, and a network in two plates; against brute force.

The factors of a graph are those of one datum: every node is a position, every output of every node a column.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_says
from pyro.nn import PyroModule

import pyro_laplace as pl

pytestmark = pytest.mark.usefixtures("float64")

QUIET = {"curvature": "ggn", "polish": False, "on_not_a_mode": "ignore", "progress": False}
NODES, CLASSES = 14, 3


def normal(*shape):
    return dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))


def graph():
    generator = torch.Generator().manual_seed(0)
    links = (torch.rand(NODES, NODES, generator=generator) < 0.2).double() + torch.eye(NODES)
    x = torch.randn(NODES, 5, generator=generator)
    point = {
        "w1": 0.5 * torch.randn(5, 4, generator=generator),
        "w2": 0.5 * torch.randn(4, CLASSES, generator=generator),
    }
    return links / links.sum(1, keepdim=True), x, torch.arange(NODES) % CLASSES, point


def logits(p, adjacency, x):
    return adjacency @ (torch.tanh(adjacency @ (x @ p["w1"])) @ p["w2"])


def convolution(adjacency, x, y=None):
    p = {"w1": pyro.sample("w1", normal(5, 4)), "w2": pyro.sample("w2", normal(4, CLASSES))}
    with pyro.plate("nodes", NODES):
        pyro.sample("y", dist.Categorical(logits=logits(p, adjacency, x)), obs=y)


def graph_rows():
    """The GGN's root, (n, c) by coordinates of w1 and then w2."""
    adjacency, x, _, point = graph()
    jac = torch.autograd.functional.jacobian(
        lambda a, b: logits({"w1": a, "w2": b}, adjacency, x), (point["w1"], point["w2"])
    )
    j = torch.cat([each.flatten(2) for each in jac], -1)
    p = logits(point, adjacency, x).softmax(-1)
    information = p.diag_embed() - p[:, :, None] * p[:, None, :]
    return torch.einsum("ncp,ncd,ndq->pq", j, information, j)


LAYOUTS = {
    "dense": lambda a: a,
    "coo": lambda a: a.to_sparse(),
    "csr": lambda a: a.to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("structure", ["full", "diag", "kron"])
def test_a_network_on_a_graph(kind, structure):
    adjacency, x, y, point = graph()
    given = LAYOUTS[kind](adjacency)
    guide = pl.fit_laplace(convolution, (given, x, y), point, structure=structure, **QUIET)
    if structure == "kron":
        expected = kron_of_graph(adjacency, x, point)
    else:
        expected = graph_rows()
        expected = expected if structure == "full" else expected.diagonal().diag()
    torch.testing.assert_close(guide.precision.to_dense(), expected + torch.eye(len(expected)), rtol=1e-8, atol=1e-9)
    probs = pl.LinearizedPredictive(convolution, guide)(given, x)["y"].probs
    assert probs.shape == (NODES, CLASSES)


def kron_of_graph(adjacency, x, point):
    """A (x) B / positions of each weight, the gradients of every output of every node one by one."""
    z1 = (x @ point["w1"]).requires_grad_()
    hidden = torch.tanh(adjacency @ z1)
    z2 = (hidden @ point["w2"]).detach().requires_grad_()
    eta = adjacency @ z2
    p = eta.detach().softmax(-1)
    values, vectors = torch.linalg.eigh(p.diag_embed() - p[:, :, None] * p[:, None, :])
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
    eta = adjacency @ (hidden @ point["w2"] + (z2 - z2.detach()))
    factors = [torch.zeros(4, 4), torch.zeros(CLASSES, CLASSES)]
    for n in range(NODES):
        for column in root[n].T:
            for k, g in enumerate(torch.autograd.grad(eta[n] @ column, (z1, z2), retain_graph=True)):
                factors[k] += g.T @ g
    inputs = [x.T @ x, hidden.detach().T @ hidden.detach()]
    return torch.block_diag(*(torch.kron(a, b) / NODES for a, b in zip(inputs, factors, strict=True)))


def test_a_hidden_layer_of_a_graph_has_no_last_layer_but_its_own():
    adjacency, x, y, point = graph()
    guide = pl.fit_laplace(convolution, (adjacency.to_sparse(), x, y), point, subset="last_layer", **QUIET)
    assert guide.random == ("w2",)
    torch.testing.assert_close(guide.precision.to_dense(), graph_rows()[20:, 20:] + torch.eye(12))


# --- plates of unequal size -----------------------------------------------------------------------


def lab_and_field(x1, x2, y1=None, y2=None):
    w, v, c = pyro.sample("w", normal(5, 4)), pyro.sample("v", normal(4)), pyro.sample("c", normal())
    f = torch.tanh(x1 @ w) @ v
    with pyro.plate("lab", len(x1)):
        pyro.sample("y1", dist.Normal(f + c, 0.5), obs=y1)
        pyro.sample("z1", dist.Poisson(f.exp()), obs=torch.ones(len(x1)))
    with pyro.plate("field", len(x2)):
        pyro.sample("y2", dist.Bernoulli(logits=torch.tanh(x2 @ w) @ v), obs=y2)


def two_plates(first=9, second=6):
    generator = torch.Generator().manual_seed(1)
    x1, x2 = torch.randn(first, 5, generator=generator), torch.randn(second, 5, generator=generator)
    y1, y2 = torch.randn(first, generator=generator), (torch.arange(second) % 2).double()
    shapes = {"w": (5, 4), "v": (4,), "c": ()}
    return (x1, x2, y1, y2), {n: 0.5 * torch.randn(s, generator=generator) for n, s in shapes.items()}


def rows_of_plates(data, point):
    """The GGN's root, in w, v and c."""
    x1, x2, _, _ = data

    def f(x, c):
        return lambda w, v, b: torch.tanh(x @ w) @ v + c * b

    at = tuple(point.values())
    parts = []
    for x, c, weight in (
        (x1, 1.0, lambda eta: torch.full_like(eta, 1 / 0.5**2)),
        (x1, 0.0, torch.exp),
        (x2, 0.0, lambda eta: eta.sigmoid() * (-eta).sigmoid()),
    ):
        jac = torch.autograd.functional.jacobian(f(x, c), at)
        j = torch.cat([each.reshape(len(x), -1) for each in jac], 1)
        parts.append(weight(f(x, c)(*at)).sqrt().unsqueeze(1) * j)
    return torch.cat(parts)


@pytest.mark.parametrize("sizes", [(9, 6), (6, 6)])
@pytest.mark.parametrize("structure", ["full", "diag"])
def test_a_network_in_two_plates(sizes, structure):
    data, point = two_plates(*sizes)
    rows = rows_of_plates(data, point)
    guide = pl.fit_laplace(lab_and_field, data, point, structure=structure, **QUIET)
    expected = rows.T @ rows + torch.eye(25)
    found = guide.precision.to_dense()
    torch.testing.assert_close(found, expected if structure == "full" else expected.diagonal().diag())


@pytest.mark.parametrize("sizes", [(9, 6), (6, 6)])
def test_its_factors_are_those_of_all_data_together(sizes):
    data, point = two_plates(*sizes)
    guide = pl.fit_laplace(lab_and_field, data, point, subset=["w", "v"], structure="kron", **QUIET)
    x1, x2, _, _ = data
    hidden = [torch.tanh(x @ point["w"]) for x in (x1, x2)]
    eta = [h @ point["v"] for h in hidden]
    weights = torch.full_like(eta[0], 4.0) + eta[0].exp(), eta[1].sigmoid() * (-eta[1]).sigmoid()
    count = sum(sizes)
    h, s = torch.cat(hidden), torch.cat(weights)
    slopes = (1 - h.square()) * point["v"]
    x = torch.cat([x1, x2])
    of_v = (h.T @ h) * s.sum() / count
    of_w = torch.kron(x.T @ x, slopes.T @ (slopes * s[:, None])) / count
    expected = torch.block_diag(of_w, of_v) + torch.eye(24)
    torch.testing.assert_close(guide.precision.to_dense(), expected)
    found = pl.LinearizedPredictive(lab_and_field, guide)(x1, x2)
    assert found["y1"].mean.shape == x1.shape[:1]
    assert found["y2"].mean.shape == x2.shape[:1]


def test_its_linearised_predictor_is_that_of_each_plate():
    data, point = two_plates()
    guide = pl.fit_laplace(lab_and_field, data, point, **QUIET)
    x1, x2, _, _ = data
    jac = torch.autograd.functional.jacobian(lambda w, v, c: torch.tanh(x2 @ w) @ v + 0 * c, tuple(point.values()))
    j = torch.cat([each.reshape(len(x2), -1) for each in jac], 1)
    mean, cov = pl.LinearizedPredictive(lab_and_field, guide).latent(x1, x2)["y2"]
    torch.testing.assert_close(mean.reshape(-1), torch.tanh(x2 @ point["w"]) @ point["v"])
    torch.testing.assert_close(cov.reshape(-1), torch.einsum("np,pq,nq->n", j, guide.covariance, j))


def test_factors_of_slices_are_those_of_the_parts():
    """Two sites on parts of one output, and the same two on outputs of their own."""
    data, point = two_plates()
    x1, x2, y1, y2 = data
    point = {name: point[name] for name in ("w", "v")}

    def program(outputs):
        def model(x1, x2, y1=None, y2=None):
            w, v = pyro.sample("w", normal(5, 4)), pyro.sample("v", normal(4))
            f1, f2 = outputs(lambda x: torch.tanh(x @ w) @ v, x1, x2)
            with pyro.plate("lab", len(x1)):
                pyro.sample("y1", dist.Normal(f1, 0.5), obs=y1)
            with pyro.plate("field", len(x2)):
                pyro.sample("y2", dist.Bernoulli(logits=f2), obs=y2)

        return model

    together = program(lambda net, a, b: net(torch.cat([a, b])).split([len(a), len(b)]))
    apart = program(lambda net, a, b: (net(a), net(b)))
    one, other = (
        pl.fit_laplace(model, (x1, x2, y1, y2), point, structure="kron", **QUIET).precision.to_dense()
        for model in (together, apart)
    )
    torch.testing.assert_close(one, other)
    assert not one[:20, 20:].any()


def test_a_graph_that_a_network_holds():
    adjacency, x, y, point = graph()

    class Graph(torch.nn.Module):
        def __init__(self, adjacency):
            super().__init__()
            self.register_buffer("adjacency", adjacency)
            self.w1, self.w2 = (torch.nn.Parameter(point[name]) for name in ("w1", "w2"))

        def forward(self, x):
            return self.adjacency @ (torch.tanh(self.adjacency @ (x @ self.w1)) @ self.w2)

    found = []
    for given in (adjacency, adjacency.to_sparse()):
        program = pl.bayesianize(Graph(given), prior=pl.nn.Isotropic(1.0), likelihood=pl.nn.Classification())
        guide = pl.fit_laplace(program, (x, y), point, structure="diag", **QUIET)
        found.append((guide.precision.to_dense(), pl.LinearizedPredictive(program, guide).latent(x)["y"][1]))
    torch.testing.assert_close(found[0], found[1])


# --- a network that is called twice ---------------------------------------------------------------


def test_a_network_called_twice():
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(20, 3, generator=generator), torch.randn(20, 3, generator=generator)
    y = (torch.arange(20) % 2).double()
    network = pl.bayesianize(torch.nn.Linear(3, 1, bias=False).double(), prior=pl.nn.Isotropic(1.0))

    def preferred(a, b, y=None):
        f = (network(a) - network(b))[:, 0]
        with pyro.plate("data", len(a)):
            pyro.sample("y", dist.Bernoulli(logits=f), obs=y)

    with pytest.raises(pl.UnsupportedProgram) as caught:
        pl.fit_laplace(preferred, (a, b, y), progress=False)
    assert_says(caught, "'weight'", "twice", "PyroModule", "torch.cat")

    class Program(PyroModule):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, a, b, y=None):
            preferred(a, b, y)

    guide = pl.fit_laplace(Program(), (a, b, y), structure="kron", progress=False)
    w = guide.median()["network.weight"][0]
    p = ((a - b) @ w).sigmoid()
    assert guide.precision.to_dense().shape == (3, 3)
    torch.testing.assert_close((a - b).T @ (y - p), w, rtol=1e-4, atol=1e-6)  # a mode
