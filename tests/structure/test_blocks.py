"""One contract for every structure of a precision, and what the Kronecker structure is exact for."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_laplace as pl
from pyro_laplace.sparse.symmetric import Symmetric
from pyro_laplace.structure.dense import Dense
from pyro_laplace.structure.diag import DiagBlock
from pyro_laplace.structure.dual import Dual
from pyro_laplace.structure.kron_block import KronBlock
from pyro_laplace.structure.low_rank_block import LowRankBlock
from pyro_laplace.structure.precision import Precision
from pyro_laplace.structure.sparse_block import SparseBlock

pytestmark = pytest.mark.usefixtures("float64")


def positive(size, seed=0):
    root = torch.randn(size, size + 2, generator=torch.Generator().manual_seed(seed))
    return root @ root.T


def vector(size, seed=0):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) + 0.1


def kron(out=3, fan_in=4):
    block = KronBlock.of(positive(out), positive(fan_in, 1), vector(out, 2), vector(fan_in, 3))
    prior = torch.outer(vector(out, 2), vector(fan_in, 3)).flatten().diag()
    return block, torch.kron(positive(out), positive(fan_in, 1)) + prior


def flat_kron():
    zeros = torch.zeros(3)
    return KronBlock.of(positive(3), positive(3, 1), zeros, zeros), torch.kron(positive(3), positive(3, 1))


def interleaved():
    first, second = torch.tensor([4, 0, 2]), torch.tensor([3, 1])
    dense, diag = positive(3), vector(2)
    expected = torch.zeros(5, 5)
    expected[first[:, None], first[None]] = dense
    expected[second, second] = diag
    return Precision([(first, Dense(dense.clone())), (second, DiagBlock(diag))]), expected


def low_rank(rank=2, size=5, lowest=0.0):
    basis = torch.linalg.qr(torch.randn(size, rank, generator=torch.Generator().manual_seed(4)))[0]
    values, prior = torch.linspace(lowest, 40.0, rank), vector(size)
    update = (basis * values) @ basis.T * prior.sqrt() * prior.sqrt()[:, None]
    return LowRankBlock(prior, basis, values), prior.diag() + update


def dual(strength=1.0):
    rows, scale = strength * torch.randn(2, 5, generator=torch.Generator().manual_seed(8)), vector(5).sqrt()
    return Dual(scale, rows), scale * (torch.eye(5) + rows.T @ rows) * scale[:, None]


def arrow(size):
    """Independent coordinates that each go with the last."""
    matrix = torch.diag(torch.arange(2.0, 2.0 + size))
    matrix[-1, :-1] = matrix[:-1, -1] = 0.5
    return matrix


BLOCKS = {
    "dense": lambda: (Dense(positive(5)), positive(5)),
    "badly scaled dense": lambda: (
        Dense(positive(4) * torch.outer(10.0 ** torch.arange(4) ** 2, 10.0 ** torch.arange(4) ** 2)),
        positive(4) * torch.outer(10.0 ** torch.arange(4) ** 2, 10.0 ** torch.arange(4) ** 2),
    ),
    "diag": lambda: (DiagBlock(vector(5)), vector(5).diag()),
    "kron": kron,
    "kron, flat prior": flat_kron,
    "diagonal and low rank": low_rank,
    "diagonal and low rank, of full rank": lambda: low_rank(5),
    "diagonal and low rank, with a negative update": lambda: low_rank(3, lowest=-0.9),
    "dual": dual,
    "dual, of strong data": lambda: dual(1e3),
    "dual, without data": lambda: dual(0.0),
    "interleaved blocks": interleaved,
    "sparse": lambda: (SparseBlock(Symmetric.of_dense(arrow(7))), arrow(7)),
}


@pytest.fixture(params=BLOCKS)
def block_and_matrix(request):
    return BLOCKS[request.param]()


def test_to_dense(block_and_matrix):
    block, matrix = block_and_matrix
    torch.testing.assert_close(block.to_dense(), matrix, rtol=1e-10, atol=1e-10)
    assert block.size == len(matrix)


def test_log_det(block_and_matrix):
    block, matrix = block_and_matrix
    scale = matrix.diagonal().sqrt()
    expected = torch.logdet(matrix / scale / scale[:, None]) + 2 * scale.log().sum()
    torch.testing.assert_close(block.log_det(), expected, rtol=1e-9, atol=1e-9)


def test_solve(block_and_matrix):
    block, matrix = block_and_matrix
    for shape in ((), (3,), (2, 3)):
        v = torch.randn(*shape, len(matrix), generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(block.solve(v @ matrix), v, rtol=1e-7, atol=1e-7)


def test_color_has_the_inverse_as_covariance_and_whiten_undoes_it(block_and_matrix):
    block, matrix = block_and_matrix
    root = block.color(torch.eye(len(matrix)))  # rows R^-1 e
    scale = matrix.diagonal().sqrt()
    unit = (root.T @ root) * scale * scale[:, None]
    torch.testing.assert_close(unit, torch.linalg.inv(matrix / scale / scale[:, None]), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(block.whiten(root), torch.eye(len(matrix)), rtol=1e-9, atol=1e-9)


def test_variance(block_and_matrix):
    block, matrix = block_and_matrix
    scale = matrix.diagonal().sqrt()
    expected = torch.linalg.inv(matrix / scale / scale[:, None]).diagonal() / scale**2
    torch.testing.assert_close(block.variance(), expected, rtol=1e-8, atol=0)


def test_push_makes_rows_of_a_jacobian_into_a_root_of_their_covariance(block_and_matrix):
    block, matrix = block_and_matrix
    scale = matrix.diagonal().sqrt()
    rows = torch.randn(2, 3, len(matrix), generator=torch.Generator().manual_seed(6))
    pushed = block.push(rows * scale)
    expected = rows @ torch.linalg.inv(matrix / scale / scale[:, None]) @ rows.mT
    torch.testing.assert_close(pushed @ pushed.mT, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["diag", "kron", "kron, flat prior"])
def test_the_basis_keeps_the_covariance_of_rows_that_are_products(name):
    block, matrix = BLOCKS[name]()
    out, fan_in = (5, 1) if name == "diag" else block.eigenvalues.shape
    generator = torch.Generator().manual_seed(7)
    g, a = torch.randn(4, 2, out, generator=generator), torch.randn(4, fan_in, generator=generator)
    rows = torch.einsum("nko,ni->nkoi", g, a).flatten(0, 1).flatten(1)
    basis = block.diagonal_basis(torch.arange(out * fan_in).reshape(out, fan_in), torch.float64)
    g, a = basis.rotate(g, a)
    found = torch.einsum("oi,nko,ni,mlo,mi->nkml", basis.variances, g, a, g, a)
    torch.testing.assert_close(found.reshape(8, 8), rows @ torch.linalg.inv(matrix) @ rows.T, rtol=1e-9, atol=1e-9)


def test_a_diagonal_block_has_a_basis_of_a_part_and_a_kronecker_block_only_of_all():
    variances = DiagBlock(vector(5)).diagonal_basis(torch.tensor([[4, -1, 0]]), torch.float64).variances
    torch.testing.assert_close(variances, torch.stack([1 / vector(5)[4], torch.zeros(()), 1 / vector(5)[0]])[None])
    assert kron()[0].diagonal_basis(torch.arange(6).reshape(3, 2), torch.float64) is None
    assert kron()[0].diagonal_basis(torch.arange(12).reshape(4, 3).T, torch.float64) is None
    assert Dense(positive(3)).diagonal_basis(torch.arange(3)[None], torch.float64) is None


def test_results_have_the_dtype_of_what_is_passed_in(block_and_matrix):
    block, matrix = block_and_matrix
    v = torch.ones(2, len(matrix), dtype=torch.float32)
    assert {op(v).dtype for op in (block.color, block.whiten, block.solve, block.push)} == {torch.float32}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Dense(torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
        lambda: Dense(torch.full((2, 2), torch.nan)),
        lambda: DiagBlock(torch.tensor([1.0, 0.0])),
        lambda: KronBlock.of(torch.zeros(2, 2), positive(2), torch.zeros(2), torch.zeros(2)),
        lambda: LowRankBlock(torch.tensor([1.0, 0.0]), torch.eye(2)[:, :1], torch.ones(1)),
        lambda: LowRankBlock(torch.ones(2), torch.eye(2)[:, :1], -torch.ones(1)),
        lambda: LowRankBlock(torch.ones(2), torch.eye(2)[:, :1], torch.full((1,), torch.nan)),
        lambda: Dual(torch.tensor([1.0, 0.0]), torch.ones(1, 2)),
        lambda: Dual(torch.ones(2), torch.full((1, 2), torch.nan)),
    ],
)
def test_what_is_not_positive_definite_is_refused(make):
    with pytest.raises(pl.IndefiniteCurvature):
        make()


# --- the Kronecker structure of a program -------------------------------------------------------


def normal(scale, *shape):
    return dist.Normal(torch.zeros(()), scale).expand(shape).to_event(len(shape))


def linear_network(x, y, bias_scale=1.0):
    """Deep and linear, with Normal data: output gradients do not depend on the datum."""
    w1, b1 = pyro.sample("w1", normal(torch.tensor([[0.5], [2.0]]), 2, 3)), pyro.sample("b1", normal(bias_scale, 3))
    w2 = pyro.sample("w2", normal(0.7, 3, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x @ w1 + b1) @ w2, 0.4).to_event(1), obs=y)


def classifier(x, y):
    w1, w2 = pyro.sample("w1", normal(1.0, 2, 3)), pyro.sample("w2", normal(1.0, 3, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=torch.tanh(x @ w1) @ w2), obs=y)


def fit(model, data, structure, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = {"w1": torch.randn(2, 3, generator=generator), "w2": torch.randn(3, 2, generator=generator)}
    if model is linear_network:
        values["b1"] = torch.randn(3, generator=generator)
    return pl.fit_laplace(model, data, values, structure=structure, polish=False, on_not_a_mode="ignore")


def data(num_obs, classes=False):
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(num_obs, 2, generator=generator)
    return x, (torch.arange(num_obs) % 2 if classes else torch.randn(num_obs, 2, generator=generator))


def blocks_of(guide, *groups):
    """The diagonal blocks of the dense precision over groups of sites, the rest zero."""
    dense, result = guide.precision.to_dense(), torch.zeros(guide.latent_dim, guide.latent_dim)
    for group in groups:
        index = torch.cat([torch.arange(guide.layout[n].start, guide.layout[n].stop) for n in group])
        result[index[:, None], index[None]] = dense[index[:, None], index[None]]
    return result


def test_kron_is_exact_for_deep_linear_networks():
    kron, full = (fit(linear_network, data(20), structure) for structure in ("kron", "full"))
    expected = blocks_of(full, ("w1", "b1"), ("w2",))
    torch.testing.assert_close(kron.precision.to_dense(), expected, rtol=1e-9, atol=1e-9)


def test_kron_is_exact_for_a_single_datum():
    one = data(1, classes=True)
    kron, full = (fit(classifier, one, structure) for structure in ("kron", "full"))
    torch.testing.assert_close(kron.precision.to_dense(), blocks_of(full, ("w1",), ("w2",)), rtol=1e-9, atol=1e-9)


def test_kron_does_not_depend_on_the_batches():
    x, y = data(12, classes=True)
    whole = fit(classifier, (x, y), "kron")
    parts = fit(classifier, [(x[:5], y[:5]), (x[5:7], y[5:7]), (x[7:], y[7:])], "kron")
    torch.testing.assert_close(whole.precision.to_dense(), parts.precision.to_dense(), rtol=1e-10, atol=1e-10)
    assert whole.log_evidence == pytest.approx(parts.log_evidence, rel=1e-10)


def test_the_factors_are_those_of_the_definition():
    x, y = data(6, classes=True)
    guide = fit(classifier, (x, y), "kron")
    w1, w2 = guide.median()["w1"], guide.median()["w2"]
    hidden = torch.tanh(x @ w1)
    p = (hidden @ w2).softmax(-1)
    information = p.diag_embed() - p[:, :, None] * p[:, None]
    inner = torch.einsum("io,ni->nio", w2, 1 - hidden**2)  # d logits / d (x @ w1)
    gradients = torch.einsum("nio,noc,njc->ij", inner, information, inner)
    # w1 is [in, out]: the input axis comes first
    expected = torch.kron((x.T @ x / 6).contiguous(), gradients.contiguous()) + torch.eye(6)
    torch.testing.assert_close(blocks_of(guide, ("w1",))[:6, :6], expected, rtol=1e-9, atol=1e-9)


def test_a_weight_used_twice_is_at_two_positions():
    def model(x, y):
        w = pyro.sample("w", normal(1.0, 2, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=torch.tanh(x @ w) @ w), obs=y)

    x, y = data(6, classes=True)
    w = torch.randn(2, 2, generator=torch.Generator().manual_seed(3))
    guide = pl.fit_laplace(model, (x, y), {"w": w}, structure="kron", polish=False, on_not_a_mode="ignore")
    hidden = torch.tanh(x @ w)
    p = (hidden @ w).softmax(-1)
    information = p.diag_embed() - p[:, :, None] * p[:, None]
    inner = torch.einsum("io,ni->nio", w, 1 - hidden**2)
    gradients = torch.einsum("nio,noc,njc->ij", inner, information, inner) + information.sum(0)
    inputs = (x.T @ x + hidden.T @ hidden) / 12
    expected = torch.kron(inputs.contiguous(), gradients.contiguous()) + torch.eye(4)
    torch.testing.assert_close(guide.precision.to_dense(), expected, rtol=1e-9, atol=1e-9)


def test_a_prior_that_is_no_outer_product_is_refused_by_name():
    def model(x, y):
        scale = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 2), scale).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)

    with pytest.raises(pl.UnsupportedProgram, match=r"'w'.* outer product .*structure='full'"):
        pl.fit_laplace(model, data(8, classes=True), {"w": torch.zeros(2, 2)}, structure="kron", polish=False)


def test_a_prior_that_couples_weights_is_refused_by_name():
    def model(x, y):
        w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(2), positive(2)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y.double())

    with pytest.raises(pl.UnsupportedProgram, match=r"couples the entries of sites \['w'\]"):
        pl.fit_laplace(model, data(8, classes=True), {"w": torch.zeros(2)}, structure="kron", polish=False)


def test_kron_needs_the_ggn():
    with pytest.raises(pl.InvalidOption, match=r"'kron' has no curvature='hessian'"):
        pl.fit_laplace(
            classifier, data(8, classes=True), {"w1": torch.zeros(2, 3), "w2": torch.zeros(3, 2)},
            structure="kron", curvature="hessian", polish=False,
        )  # fmt: skip


def test_scales_and_hierarchies_keep_dense_blocks_beside_the_factors():
    def model(x, y):
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        w1 = pyro.sample("w1", normal(1.0, 2, 3))
        w2 = pyro.sample("w2", normal(1.0, 3))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.tanh(x @ w1) @ w2, tau), obs=y[:, 0])

    values = {"tau": torch.tensor(0.5), "w1": torch.randn(2, 3), "w2": torch.randn(3)}
    kron, full = (
        pl.fit_laplace(model, data(9), values, structure=s, polish=False, on_not_a_mode="ignore")
        for s in ("kron", "full")
    )
    torch.testing.assert_close(blocks_of(kron, ("tau",)), blocks_of(full, ("tau",)), rtol=1e-9, atol=1e-9)


def test_the_precision_has_the_dtype_of_the_sites():
    x, y = data(9)
    guide = fit(linear_network, (x, y), "kron")
    values = {name: value.float() for name, value in guide.median().items()}

    def single(x, y):
        w1, b1, w2 = (
            pyro.sample(name, dist.Normal(torch.zeros_like(value), 1.0).to_event(value.dim()))
            for name, value in values.items()
        )
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x @ w1 + b1) @ w2, 0.4).to_event(1), obs=y)

    guide = pl.fit_laplace(single, (x.float(), y.float()), values, polish=False, on_not_a_mode="ignore")
    assert (
        guide.precision.to_dense().dtype == guide.precision.variance().dtype == guide.covariance.dtype == torch.float32
    )
